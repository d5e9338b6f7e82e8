"""What is almost right and signed all the same: what a confused or hostile holder of a trusted key could write.

A signature keeps mutated bytes from ever being parsed, so here the content is mutated first and signed then; and real
frames and declarations of the bus, and calibrations of others, beside.
``FUZZ_INPUTS=100000 pytest tests/faults/test_fuzz_signed.py`` as in ``test_fuzz_parsers.py``; ``-k NAME`` for one.
"""

import base64
import contextlib
import json
import random
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from episode_samples import sealed_episode
from fuzzing import GROWTH_KB, INPUTS, mutated
from upload_samples import EPISODE_ID, begin_spool, grant_for, seal_episode

from sensorium.calibration.formats.detect import import_calibration
from sensorium.drivers.bus.header import LostBefore, RingPlace, pack_frame, unpack_frame
from sensorium.drivers.bus.ring import RingReader
from sensorium.drivers.bus.wire import Declare, LostRun, pack_control, unpack_control
from sensorium.drivers.frame import Column, Frame, Modality, Place, StreamInfo, stamps
from sensorium.errors import SensoriumError
from sensorium.sync.consent.grants import canonical_json
from sensorium.sync.consent.log_keys import LogKeys
from sensorium.sync.consent.state import KIND, consent_state, pack_state, read_state
from sensorium.sync.consent.store import ConsentStore, read_grant
from sensorium.sync.episode.files import RECEIPT_FILE
from sensorium.sync.episode.manifest import load_manifest, read_manifest
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.remapped import read_remap, write_remap
from sensorium.sync.trust.dsse import peek_payload
from sensorium.sync.trust.keys import KeyRing, Role
from sensorium.sync.trust.record import TrustFile
from sensorium.sync.trust.rotation import read_rotation
from sensorium.sync.trust.store import TrustStore
from sensorium.timebase import Timeline
from sensorium.uploader.copies import copies, note_copy
from sensorium.uploader.receipt import Receipt, read_receipt, write_receipt

Parser = tuple[bytes, Callable[[bytes], object]]
_TYPE = "application/vnd.sensorium.{}+json"


def _declare() -> bytes:
    info = StreamInfo(
        "scale",
        Modality.FORCE,
        "columns",
        100.0,
        "scale",
        columns=(Column("x", "N", "<i2"),),
        details={"serial": "17"},
    )
    return pack_control(
        Declare(
            instance=7,
            device="scale",
            driver="sim",
            streams=(info, replace(info, name="second")),
            timeline=Timeline("host", 0),
            is_live=True,
            counters="/dev/shm/x",
            token="0" * 64,
        )
    )


def _frames() -> dict[str, Parser]:
    frame = Frame("imu", 4, 2, stamps(1, 2), stamps(10, 20), b"abcdefgh", (1.0, 2.5))
    losses = (LostBefore(3, Place.DRIVER, "queue full"),)
    inside = pack_frame(7, frame, losses, None, b"abcdefgh")
    beside = pack_frame(7, frame, (), None, None)
    ring = RingReader(memoryview(bytes(1 << 16)))
    placed = pack_frame(7, frame, (), RingPlace(0, 8), None)
    return {
        "frame with payload": (inside, lambda data: unpack_frame(data, None, None)),
        "frame beside its payload": (beside, lambda data: unpack_frame(data, b"abcdefgh", None)),
        "frame in shared memory": (placed, lambda data: unpack_frame(data, None, ring)),
        "declaration": (_declare(), unpack_control),
        "run of losses": (pack_control(LostRun(7, "imu", 4, losses)), unpack_control),
    }


def _documents(folder: Path) -> dict[str, Parser]:
    """Return the signed documents of an episode and of a key home: content mutated, then signed."""
    spool, _ = begin_spool(folder / "spool")
    episode = seal_episode(spool)
    store = ConsentStore(folder / "consent")
    store.grant(grant_for())
    home = TrustStore(folder / "robot")
    device = KeyRing(HOME[0]).signing_key(Role.DEVICE)
    operator = KeyRing(HOME[0]).signing_key(Role.OPERATOR)
    write_receipt(episode, Receipt(EPISODE_ID, "file:///x", "k", "0" * 64, (), "m", 5))
    note_copy(episode, "file:///x", 1)
    (record,) = (spool.root / "stores").iterdir()
    state = pack_state(consent_state(read_manifest(episode), store.poll(), 5), operator)
    old = home.ring.signing_key(Role.DEVICE)
    home.rotate(Role.DEVICE)
    rotation = (folder / "robot" / "rotations" / f"{old.key_id}.json").read_bytes()
    trust = TrustFile(folder / "robot")
    signer = home.ring.signing_key(Role.OPERATOR)

    def receipt(data: bytes) -> object:
        (episode / RECEIPT_FILE).write_bytes(device.sign(data, _TYPE.format("receipt")))
        return read_receipt(episode)

    def stores(data: bytes) -> object:
        record.write_bytes(device.sign(data, _TYPE.format("stores")))
        return copies(episode)

    def trusting(data: bytes) -> object:
        trust.path.write_bytes(signer.sign(data, _TYPE.format("trust")))
        return trust.read([signer.public])

    return {
        "receipt": (peek_payload((episode / RECEIPT_FILE).read_bytes()), receipt),
        "record of stores": (peek_payload(record.read_bytes()), stores),
        "consent state": (
            peek_payload(state),
            lambda data: read_state(operator.sign(data, _TYPE.format(KIND)), EPISODE_ID, [operator.public]),
        ),
        "rotation": (
            peek_payload(rotation),
            lambda data: read_rotation(old.sign(data, _TYPE.format("rotation"))),
        ),
        "trust store": (peek_payload(trust.path.read_bytes()), trusting),
        "signed manifest": (peek_payload((episode / "manifest.json").read_bytes()), load_manifest),
        **_consent(folder, store),
    }


def _consent(folder: Path, store: ConsentStore) -> dict[str, Parser]:
    (grant,) = (path for path in store.folder.iterdir() if path.suffix == ".yaml")
    (row, *_) = store.rows()
    body = canonical_json({key: value for key, value in row.items() if key != "sig"})
    signer = LogKeys().signer()
    other = folder / "other-consent"
    other.mkdir()
    count = iter(range(1 << 60))

    def rows(data: bytes) -> object:
        """Sign a row whatever it says, as the first of a log."""
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            found = json.loads(data)
            found["key"] = signer.key_id
            text = canonical_json(found)
            signature = base64.b64encode(signer.private.sign(text)).decode()
            (other / "events.jsonl").write_bytes(canonical_json({**found, "sig": signature}) + b"\n")
            return ConsentStore(other, keys=KEYS[0]).poll().fault
        return None

    def granting(data: bytes) -> object:
        path = folder / f"grant-{next(count) % 4}.yaml"
        path.write_bytes(data)
        return read_grant(path)

    return {"consent row": (body, rows), "grant": (grant.read_bytes(), granting)}


_KALIBR = b"""cam0:
  camera_model: pinhole
  distortion_coeffs: [0.01, -0.02, 0.001, 0.0002]
  distortion_model: radtan
  intrinsics: [458.6, 457.3, 367.2, 248.4]
  resolution: [752, 480]
  rostopic: /cam0/image_raw
  T_cam_imu: [[1.0, 0.0, 0.0, 0.1], [0.0, 1.0, 0.0, 0.2], [0.0, 0.0, 1.0, 0.3], [0.0, 0.0, 0.0, 1.0]]
"""
_CAMERA_INFO = b"""image_width: 640
image_height: 480
camera_name: left
camera_matrix: {rows: 3, cols: 3, data: [500, 0, 320, 0, 500, 240, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [0.1, -0.2, 0, 0, 0]}
rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}
projection_matrix: {rows: 3, cols: 4, data: [500, 0, 320, 0, 0, 500, 240, 0, 0, 0, 1, 0]}
"""
_STORAGE = b"""%YAML:1.0
---
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 500., 0., 320., 0., 500., 240., 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ 0.1, 0., 0., 0., 0. ]
image_width: 640
image_height: 480
"""


def _files(folder: Path) -> dict[str, Parser]:
    episode = sealed_episode(folder / "remapped")
    with Episode(episode) as opened:
        path = write_remap(opened, folder / "remap.npz")
    valid = path.read_bytes()
    opened = Episode(episode)

    def remap(data: bytes) -> object:
        path.write_bytes(data)
        return read_remap(opened, path)

    def importing(name: str) -> Callable[[bytes], object]:
        place = folder / name
        place.mkdir()

        def parse(data: bytes) -> object:
            (place / "camchain.yaml").write_bytes(data)
            return import_calibration(place / "camchain.yaml")

        return parse

    return {
        "re-map": (valid, remap),
        "kalibr": (_KALIBR, importing("kalibr")),
        "camera_info": (_CAMERA_INFO, importing("info")),
        "OpenCV storage": (_STORAGE, importing("storage")),
    }


HOME: list[Path] = []
KEYS: list[LogKeys] = []
NAMES = (
    *("frame with payload", "frame beside its payload", "frame in shared memory", "declaration"),
    *("run of losses", "receipt", "record of stores", "consent state", "rotation", "trust store"),
    *("signed manifest", "consent row", "grant", "re-map", "kalibr", "camera_info", "OpenCV storage"),
)
EACH_RUN = min(INPUTS, 100) if INPUTS == 300 else INPUTS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    folder = tmp_path_factory.mktemp("fuzz-signed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_HOME", str(folder / "home"))
        HOME[:] = [folder / "home"]
        KEYS[:] = [LogKeys(folder / "home")]
        return {**_frames(), **_documents(folder), **_files(folder)}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_almost_right_and_signed_is_read_or_refused(
    made: dict[str, Parser], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(HOME[0]))
    valid, parse = made[name]
    parse(valid)
    rng = random.Random(name)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(EACH_RUN):
        with contextlib.suppress(SensoriumError):
            parse(mutated(valid, rng))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < GROWTH_KB
