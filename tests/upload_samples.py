"""Sealed episodes for the tests of the uploader: signed manifests over files of random bytes."""

import fcntl
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sensorium.drivers.frame import Encoding, Frame, Modality, StreamInfo
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.consent.grants import ConsentGrant, Evidence, LawfulBasis, Purpose, Scope, parse_utc
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import LEAF_BYTES, Balance, Manifest, StreamRecord
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key
from sensorium.timebase import SECOND_NS, Timeline

EPISODE_ID = "01J00000000000000000000001"
CAPTURED = (parse_utc("2026-03-01T12:00:00Z"), parse_utc("2026-03-01T12:01:00Z"))
_DAY_NS = 24 * 3600 * SECOND_NS


def begin_spool(root: Path) -> tuple[Spool, tuple[bytes, ...]]:
    """Return a new spool and the keys that its episodes are signed with."""
    spool = Spool(root)
    spool.create()
    return spool, (signing_key(Role.DEVICE).public,)


def grant_for(
    number: int = 1,
    purposes: Sequence[Purpose] = (Purpose.RECORD, Purpose.UPLOAD),
    captured: tuple[int, int] | None = None,
    valid_around_ns: int = CAPTURED[0],
) -> ConsentGrant:
    """Return a grant for every stream, valid for 20 days."""
    return ConsentGrant(
        id=f"01J{number:023d}",
        subject="sub:a",
        controller="Lab, privacy@example.org",
        lawful_basis=LawfulBasis.CONSENT,
        purposes=tuple(purposes),
        scope=Scope(("*",), (), *(captured or (None, None))),
        valid_from=valid_around_ns - _DAY_NS,
        valid_until=valid_around_ns + 20 * _DAY_NS,
        evidence=Evidence("button"),
    )


def seal_episode(
    spool: Spool,
    episode_id: str = EPISODE_ID,
    large: bool = False,
    extra: Mapping[str, bytes] | None = None,
    data_bytes: int = 3000,
    seed: int = 5,
) -> Path:
    """Seal an episode of two personal streams and another; ``large``: ``cam.mcap`` has three leaves.

    Args:
        extra: Further files, by name.
        data_bytes: About how large ``data.mcap`` is.
    """
    infos = [
        StreamInfo("cam", Modality.CAMERA, Encoding.JPEG, 30.0, "cam", is_personal=True),
        StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48000.0, "mic", shape=(2,), is_personal=True),
        StreamInfo("lidar", Modality.LIDAR, Encoding.POINTS, 10.0, "lidar"),
    ]
    sizes = {"cam": 2 * LEAF_BYTES + 77 if large else 2000, "mic": 1000, "lidar": data_bytes}
    timeline = Timeline("host", 0)
    folder = spool.open_folder(episode_id)
    writer = EpisodeWriter(folder, episode_id, timeline, WriterPolicy(sync_s=None, reserve_bytes=0))
    rng = random.Random(seed)
    streams = []
    for info in infos:
        writer.declare(info)
        samples = _write(writer, info.name, rng.randbytes(sizes[info.name] // 16 * 16))
        streams.append(
            StreamRecord(
                info,
                balances={1: Balance(samples, samples)},
                bytes_stored=1000,
                first_utc_ns=CAPTURED[0],
                last_utc_ns=CAPTURED[1],
            )
        )
    writer.close()
    for name, content in {"calibration.yaml": b"id: none\n", **(extra or {})}.items():
        (folder / name).write_bytes(content)
    manifest = Manifest(
        episode_id=episode_id,
        agent_version="0",
        facts=SessionFacts(rig="test"),
        start_utc_ns=CAPTURED[0],
        end_utc_ns=CAPTURED[1],
        timeline=timeline,
        streams=tuple(streams),
    )
    return seal(folder, manifest)


def _write(writer: EpisodeWriter, stream: str, payload: bytes) -> int:
    """Write one frame; return its samples."""
    count = len(payload) // 4 if stream == "mic" else 1
    arrival_ns = np.array([CAPTURED[0] + SECOND_NS], np.int64)
    frame = Frame(stream, 0, count, None, arrival_ns, payload)
    writer.write(frame, Stamped(arrival_ns - 1000, Uncertainty(1.0, 1.0, 1.0), 0), 1)
    return count


@contextmanager
def locked_by_another(folder: Path) -> Iterator[None]:
    """Hold an episode as an uploader does that is sending it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
