"""Sealed episodes for the tests of the uploader: signed manifests over files of random bytes."""

import fcntl
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sensorium.drivers.frame import Encoding, Modality, StreamInfo
from sensorium.sync.consent.grants import ConsentGrant, Evidence, LawfulBasis, Purpose, Scope, parse_utc
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import LEAF_BYTES, Balance, Manifest, StreamRecord, seal
from sensorium.sync.episode.spool import Spool
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
) -> Path:
    """Seal an episode of two personal streams and another; ``large``: ``cam.mcap`` has three leaves."""
    rng = random.Random(5)
    folder = spool.open_folder(episode_id)
    folder.mkdir()
    files = {
        "data.mcap": rng.randbytes(data_bytes),
        "calibration.yaml": b"id: none\n",
        "cam.mcap": rng.randbytes(2 * LEAF_BYTES + 77 if large else 2000),
        "mic.mcap": rng.randbytes(1000),
        **(extra or {}),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    infos = [
        StreamInfo("cam", Modality.CAMERA, Encoding.JPEG, 30.0, "cam", is_personal=True),
        StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48000.0, "mic", shape=(2,), is_personal=True),
        StreamInfo("lidar", Modality.LIDAR, Encoding.POINTS, 10.0, "lidar"),
    ]
    streams = tuple(
        StreamRecord(
            info,
            balances={1: Balance(10, 10)},
            bytes_stored=1000,
            first_utc_ns=CAPTURED[0],
            last_utc_ns=CAPTURED[1],
        )
        for info in infos
    )
    manifest = Manifest(
        episode_id=episode_id,
        agent_version="0",
        facts=SessionFacts(rig="test"),
        start_utc_ns=CAPTURED[0],
        end_utc_ns=CAPTURED[1],
        timeline=Timeline("host", CAPTURED[0]),
        streams=streams,
    )
    return seal(folder, manifest)


@contextmanager
def locked_by_another(folder: Path) -> Iterator[None]:
    """Hold an episode as an uploader does that is sending it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
