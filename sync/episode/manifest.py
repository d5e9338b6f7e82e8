"""What an episode says about itself: typed, signed by the device, chained to the episode before.

``manifest.json`` is a DSSE envelope over an in-toto Statement v1 whose predicate is :class:`Manifest`
(specs/consent_upload.md A6).
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from blake3 import blake3
from pydantic import TypeAdapter, ValidationError

from sensorium.drivers.frame import StreamInfo
from sensorium.errors import ConfigError, EpisodeError, TrustError
from sensorium.sync.episode.facts import UNBOUNDED, LossBounds, SessionFacts
from sensorium.sync.episode.files import DATA_FILE, MANIFEST_FILE
from sensorium.sync.episode.spool import read_plain
from sensorium.sync.episode.strict import unknown_keys
from sensorium.sync.trust.dsse import choose_key, open_envelope, peek_payload
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys
from sensorium.sync.trust.trusted import check_vouched, with_key
from sensorium.timebase import SECOND_NS, Timeline
from sensorium.verdict import Status, Verdict
from sensorium.wording import said

SCHEMA_VERSION = 1
LEAF_BYTES = 8 << 20
"""Leaf of the hash tree = part of an upload, so one list serves scrubbing, resuming and partial reads."""

_READ_BYTES = 1 << 18
"""Divides a leaf; stays in the processor's cache between the two hashes."""

PREDICATE_TYPE = "urn:sensorium:episode:v1"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_TREE_CONTEXT = "sensorium episode file tree v1: root over blake3 leaves of 8 MiB"

_STRICT: dict[str, Any] = {"extra": "forbid", "ser_json_bytes": "base64", "val_json_bytes": "base64"}


@dataclass(frozen=True, slots=True)
class Balance:
    """Samples of one driver instance: produced = recorded + dropped, by place and reason.

    The account covers the sequence numbers from ``first_seq`` to ``first_seq + produced``.
    """

    produced: int = 0
    recorded: int = 0
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    first_seq: int = 0

    @property
    def dropped_total(self) -> int:
        return sum(count for reasons in self.dropped.values() for count in reasons.values())

    @property
    def is_exact(self) -> bool:
        return self.produced == self.recorded + self.dropped_total


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without samples, from the last sample before to the first after it."""

    host_ns: int
    duration_ns: int
    samples: int = 0


@dataclass(frozen=True, slots=True)
class ClockSummary:
    """How well a stream's clock is known; None where it has none or too few samples came.

    Attributes:
        uncertainty_p95_us: 95th percentile of the bounds of its capture times, what no stamp shows included.
        asymmetry_us: That part of it: the constant least latency, unequal paths.
    """

    method: str = ""
    skew_ppm: float | None = None
    uncertainty_p95_us: float | None = None
    asymmetry_us: float | None = None
    epochs: int = 0
    events: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConsentRecord:
    """What was decided for a stream, by which grants, for which purposes."""

    decision: str = ""
    reason: str = ""
    grants: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One stream of the episode. ``balances`` counts per driver instance; denied streams are listed too."""

    info: StreamInfo
    balances: Mapping[int, Balance] = field(default_factory=dict)
    produced_by: str = "driver"
    rate_hz: float | None = None
    gaps: tuple[Gap, ...] = ()
    unmatched: Mapping[str, int] = field(default_factory=dict)
    clock: ClockSummary = ClockSummary()
    bytes_raw: int = 0
    bytes_stored: int = 0
    first_utc_ns: int | None = None
    last_utc_ns: int | None = None
    consent: ConsentRecord = ConsentRecord()
    quality: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> Balance:
        """The balance over all instances."""
        dropped: dict[str, dict[str, int]] = {}
        for balance in self.balances.values():
            for place, reasons in balance.dropped.items():
                for reason, count in reasons.items():
                    into = dropped.setdefault(place, {})
                    into[reason] = into.get(reason, 0) + count
        balances = self.balances.values()
        return Balance(sum(b.produced for b in balances), sum(b.recorded for b in balances), dropped)


@dataclass(frozen=True, slots=True)
class PairRecord:
    """Alignment of two streams: absolute residuals in microseconds."""

    a: str
    b: str
    method: str
    p50_us: float
    p95_us: float
    max_us: float


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """How a check of one subject came out over the episode; times are host ns.

    Attributes:
        start_ns, end_ns: First and last capture of the window whose verdict is kept.
        windows: How many came out how; ``withdrawn``: suspected once, and not by the next window.
        first_alarm_ns: Start of the first window that was suspect or failed.
    """

    check: str
    subject: str
    start_ns: int
    end_ns: int
    windows: Mapping[str, int]
    first_alarm_ns: int | None = None


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """The calibration in force (content id; "" = none) and what the checks said about it."""

    id: str = ""
    verdicts: tuple[Verdict, ...] = ()
    checks: tuple[CheckRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class QualityRecord:
    status: Status = Status.INSUFFICIENT
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    host_ns: int
    text: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of the episode: SHA-256, and a BLAKE3 tree (root over the digests of 8 MiB leaves)."""

    name: str
    bytes: int
    sha256: str
    blake3_root: str
    blake3_leaves: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConsentAnchor:
    """How far the consent log had come when the episode was sealed: its id, rows, and the hash of the last."""

    log_id: str = ""
    seq: int = 0
    head: str = ""


@dataclass(frozen=True, slots=True)
class TrustPoint:
    """How far the trust store of the machine had come that sealed an episode: version and SHA-256; 0 = not said."""

    seq: int = 0
    head: str = ""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A file that is gone: what it was, and why.

    Attributes:
        stored: Its name in a store.
        reason: In words, for people.
        grants: Those whose end it was.
    """

    file: str
    stream: str
    stored: str
    bytes: int
    sha256: str
    erased_utc_ns: int
    reason: str
    grants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The predicate; :func:`seal` fills in ``device_public_key``, ``files``, ``prev_manifest`` and ``trust``."""

    episode_id: str
    agent_version: str
    facts: SessionFacts
    start_utc_ns: int
    end_utc_ns: int
    timeline: Timeline
    streams: tuple[StreamRecord, ...] = ()
    pairs: tuple[PairRecord, ...] = ()
    reference: str = ""
    calibration: CalibrationRecord = CalibrationRecord()
    clocks: tuple[Verdict, ...] = ()
    quality: QualityRecord = QualityRecord()
    gates: tuple[Verdict, ...] = ()
    marks: tuple[Mark, ...] = ()
    limitations: tuple[str, ...] = ()
    synthetic: bool = False
    truncated: bool = False
    bounds: LossBounds = UNBOUNDED
    consent_log: ConsentAnchor = ConsentAnchor()
    trust: TrustPoint = TrustPoint()
    files: tuple[FileRecord, ...] = ()
    prev_manifest: str = ""
    device_public_key: str = ""
    revision: int = 1
    supersedes: str = ""
    tombstones: tuple[Tombstone, ...] = ()
    schema_version: int = SCHEMA_VERSION

    __pydantic_config__: ClassVar[Any] = _STRICT

    @property
    def span_ns(self) -> tuple[int, int]:
        """The first and the last capture of any stream, host ns: what is meant by how long an episode is.

        An episode without a capture has its own span, from its opening to its end.
        """
        offset = self.timeline.utc_minus_host_ns
        firsts = [record.first_utc_ns for record in self.streams if record.first_utc_ns is not None]
        lasts = [record.last_utc_ns for record in self.streams if record.last_utc_ns is not None]
        start, end = min(firsts, default=self.start_utc_ns), max(lasts, default=self.end_utc_ns)
        return start - offset, max(end, start + 1) - offset

    @property
    def duration_s(self) -> float:
        """How long the episode is, by its captures; the same number everywhere."""
        first_ns, last_ns = self.span_ns
        return (last_ns - first_ns) / SECOND_NS

    @property
    def erased(self) -> frozenset[str]:
        """Names of the streams whose files are gone."""
        by_file = frozenset(tombstone.stream for tombstone in self.tombstones)
        if all(tombstone.file != DATA_FILE for tombstone in self.tombstones):
            return by_file
        return by_file | {record.info.name for record in self.streams if not record.info.is_personal}

    def stream(self, name: str) -> StreamRecord:
        """Return the record of one stream.

        Raises:
            EpisodeError: If the episode has no such stream.
        """
        for record in self.streams:
            if record.info.name == name:
                return record
        raise EpisodeError(f"episode {self.episode_id} has no stream {name}")


@cache
def _adapter() -> TypeAdapter[Manifest]:
    """Return what reads and writes manifests; 10 ms of work that who records does not need at its start."""
    return TypeAdapter(Manifest)


def hash_file(path: Path) -> FileRecord:
    """Return size and hashes of a file.

    Raises:
        EpisodeError: If it cannot be read.
    """
    sha = hashlib.sha256()
    leaf = blake3()
    leaves: list[bytes] = []
    size = 0
    block = memoryview(bytearray(_READ_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while taken := file.readinto(block[: LEAF_BYTES - size % LEAF_BYTES]):
                sha.update(block[:taken])
                leaf.update(block[:taken])
                size += taken
                if size % LEAF_BYTES == 0:
                    leaves.append(leaf.digest())
                    leaf = blake3()
    except OSError as err:
        raise EpisodeError(f"{path} cannot be read: {err.strerror}") from err
    if size % LEAF_BYTES:
        leaves.append(leaf.digest())
    return FileRecord(
        path.name, size, sha.hexdigest(), tree_root(leaves), tuple(leaf.hex() for leaf in leaves)
    )


def stored_name(file: FileRecord) -> str:
    """Return the name of a file in a store, which carries its hash: other bytes never take its place."""
    path = Path(file.name)
    return f"{path.stem}-{file.blake3_root[:16]}{path.suffix}"


def tree_root(leaves: Iterable[bytes]) -> str:
    """Return the root over leaf digests, in a domain of its own so that a root never equals a leaf."""
    return blake3(b"".join(leaves), derive_key_context=_TREE_CONTEXT).hexdigest()


def dump_manifest(manifest: Manifest) -> bytes:
    """Return the in-toto statement of a manifest as JSON, the payload that is signed.

    Raises:
        EpisodeError: If it would not read back equal (a NaN, a value of the wrong type).
    """
    predicate = _adapter().dump_python(manifest, mode="json")
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [
            {"name": file.name, "digest": {"sha256": file.sha256, "blake3": file.blake3_root}}
            for file in manifest.files
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    try:
        data = json.dumps(statement, indent=1, allow_nan=False).encode()
    except ValueError as err:
        raise EpisodeError(
            f"manifest of {manifest.episode_id} holds a number that JSON has no word for: {err}"
        ) from err
    if load_manifest(data) != manifest:
        raise EpisodeError(
            f"manifest of {manifest.episode_id} does not read back equal; a value has the wrong type"
        )
    return data


def load_manifest(payload: bytes) -> Manifest:
    """Return the manifest of an in-toto statement.

    Raises:
        EpisodeError: If it is not one, or of another version.
    """
    try:
        statement = json.loads(payload)
        predicate = statement["predicate"]
        if (statement["_type"], statement["predicateType"]) != (_STATEMENT_TYPE, PREDICATE_TYPE):
            raise EpisodeError(
                f"it is a statement of type {statement['predicateType']!r}, not an episode manifest"
            )
        if predicate["schema_version"] != SCHEMA_VERSION:
            raise EpisodeError(
                f"it has version {predicate['schema_version']}, this agent reads {SCHEMA_VERSION}"
            )
        manifest = _adapter().validate_json(json.dumps(predicate))
        unknown = unknown_keys(predicate, _adapter().dump_python(manifest, mode="json"))
        if unknown:
            raise EpisodeError(f"it has a key that this agent does not know: {unknown[0]}")
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError, ConfigError) as err:
        raise EpisodeError(f"it is not a valid manifest: {said(err)}") from err
    for file in manifest.files:
        if file.name != Path(file.name).name or file.name in ("", ".", ".."):
            raise EpisodeError(f"it names a file outside the episode: {file.name!r}")
    return manifest


def read_manifest(folder: Path, trusted: Collection[bytes] | None = None) -> Manifest:
    """Return the newest revision of a sealed episode's manifest, once all their signatures have been checked.

    Args:
        trusted: Raw public keys of known devices; None accepts the key that the first manifest itself names (and
            for revisions that one, and this machine's), which proves integrity since signing but not who signed.

    Raises:
        EpisodeError: If one is missing, damaged, changed, or signed by a key that is not trusted.
    """
    found = read_seal(folder, trusted)
    data = _read_file(folder / MANIFEST_FILE)
    while os.path.lexists(path := folder / revision_file(found.revision + 1)):
        before = blake3(data).hexdigest()
        data = _read_file(path)
        follower = _open_manifest(path, data, trusted if trusted is not None else _revisers(found))
        is_next = (follower.episode_id, follower.revision) == (found.episode_id, found.revision + 1)
        if not is_next or follower.supersedes != before:
            raise EpisodeError(
                f"{path} does not follow from the revision before it; it was changed or swapped"
            )
        found = follower
    return found


def read_seal(folder: Path, trusted: Collection[bytes] | None = None) -> Manifest:
    """Return the first manifest of a sealed episode, whatever was said later; see :func:`read_manifest`.

    Raises:
        EpisodeError: As :func:`read_manifest`.
    """
    path = folder / MANIFEST_FILE
    found = _open_manifest(path, _read_file(path), trusted)
    if (found.revision, found.supersedes) != (1, ""):
        raise EpisodeError(f"{path} is no first seal: it says revision {found.revision}")
    return found


def revision_file(number: int) -> str:
    """Return the name of a revision's file, from 2 on."""
    return f"manifest-{number}.json"


def _revisers(manifest: Manifest) -> frozenset[bytes]:
    """Return who may revise an episode whose signer nobody asked about: its own device, and this machine."""
    try:
        here = trusted_keys(Role.DEVICE)
    except TrustError as err:
        raise EpisodeError(str(err)) from err
    return with_key(here, _from_hex(manifest.device_public_key))


def _read_file(path: Path) -> bytes:
    try:
        if path.is_symlink():
            raise EpisodeError(f"{path} is a link: somebody else can change it; copy the file itself here")
        return read_plain(path)
    except OSError as err:
        raise EpisodeError(f"{path.parent} has no readable {path.name}: {err.strerror}") from err


def _open_manifest(path: Path, data: bytes, trusted: Collection[bytes] | None) -> Manifest:
    try:
        found = load_manifest(peek_payload(data))
        public = choose_key(_from_hex(found.device_public_key), trusted)
        open_envelope(data, public)  # what was peeked at is what the envelope holds, and that is signed
        check_vouched(trusted, public, data)
        return found
    except (EpisodeError, TrustError) as err:
        raise EpisodeError(f"{path}: {err}") from err


def manifest_digest(folder: Path) -> str:
    """Return the BLAKE3 of a folder's manifest file, the link of the chain."""
    return blake3(read_plain(folder / MANIFEST_FILE)).hexdigest()


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as err:
        raise EpisodeError(f"device key {text[:20]!r} is not hexadecimal") from err
