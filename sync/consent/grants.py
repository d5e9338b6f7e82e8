"""Grants, what happened to them, pauses, and the ledger of all three: the facts that decisions rest on.

Conditions that this version cannot enforce have no field, so that a file which asks for them is refused.

The fields follow ISO/IEC TS 27560 and the states the W3C Data Privacy Vocabulary.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

from sensorium.drivers.driver import ZONE_PATTERN
from sensorium.drivers.frame import Modality
from sensorium.sync.consent.particulars import NONE_STATED, Particulars
from sensorium.sync.episode.personal import zone_of
from sensorium.sync.episode.ulid import ULID
from sensorium.timebase import SECOND_NS, HostInstant

SUBJECT_REF = re.compile(r"(sub|group|site):[A-Za-z0-9_.-]{1,64}")
_ZONE = re.compile(ZONE_PATTERN)
BEFORE_ALL_NS = -(1 << 63)
AFTER_ALL_NS = (1 << 63) - 1
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)")


class Purpose(str, Enum):
    """What data may be used for. The first four are gates of this agent, the others travel with the data.

    ``RECORD``: to store it, and to judge on this machine what is stored. ``LIVE``: to show it to people on this
    machine, while it is recorded (viewers, dashboard) and afterwards (pictures and curves of reports).
    """

    RECORD = "record"
    LIVE = "live"
    UPLOAD = "upload"
    EXPORT = "export"
    AI_TRAIN = "ai:train"
    AI_EVAL = "ai:eval"
    ANNOTATE = "annotate"
    DEBUG = "debug"
    SHARE_THIRD_PARTY = "share:third_party"


class LawfulBasis(str, Enum):
    CONSENT = "consent"
    EXPLICIT_CONSENT = "explicit_consent"
    CONTRACT = "contract"
    LEGITIMATE_INTEREST = "legitimate_interest"


class ConsentStatus(str, Enum):
    """The states of the W3C Data Privacy Vocabulary; only the first two permit anything."""

    GIVEN = "ConsentGiven"
    RENEWED = "RenewedConsentGiven"
    UNKNOWN = "ConsentUnknown"
    REQUESTED = "ConsentRequested"
    DEFERRED = "ConsentRequestDeferred"
    REFUSED = "ConsentRefused"
    EXPIRED = "ConsentExpired"
    INVALIDATED = "ConsentInvalidated"
    REVOKED = "ConsentRevoked"
    WITHDRAWN = "ConsentWithdrawn"

    @property
    def is_valid(self) -> bool:
        return self in (ConsentStatus.GIVEN, ConsentStatus.RENEWED)


class EventKind(str, Enum):
    """``REVOKED`` is an end by somebody other than the subject; every kind but ``GIVEN`` ends the grant."""

    GIVEN = "given"
    WITHDRAWN = "withdrawn"
    REVOKED = "revoked"
    EXPIRED = "expired"


_ENDED = {
    EventKind.WITHDRAWN: ConsentStatus.WITHDRAWN,
    EventKind.REVOKED: ConsentStatus.REVOKED,
    EventKind.EXPIRED: ConsentStatus.EXPIRED,
}


def format_utc(utc_ns: int) -> str:
    """Return an RFC 3339 text with nanoseconds, such as ``2026-11-21T21:00:00.000000001Z``."""
    seconds, fraction = divmod(utc_ns, SECOND_NS)
    whole = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{fraction:09d}Z"


def parse_utc(text: object) -> int:
    """Return UTC nanoseconds of an RFC 3339 text (or pass an integer through).

    Raises:
        ValueError: If it is neither, or has no time zone.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _RFC3339.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 2026-11-21T21:00:00Z (the zone is needed)")
    date, clock, fraction, zone = match.groups()
    whole = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    return int(whole.timestamp()) * SECOND_NS + int((fraction or "0").ljust(9, "0"))


UtcNs = Annotated[int, BeforeValidator(parse_utc), PlainSerializer(format_utc, when_used="json")]


class ConsentStream(Protocol):
    """What a decision needs to know of a stream; a ``StreamInfo`` is one."""

    @property
    def name(self) -> str: ...

    @property
    def modality(self) -> str: ...

    @property
    def is_personal(self) -> bool: ...

    @property
    def details(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """What a grant reaches: stream name globs, modalities (none = every), zones (none = anywhere), capture times.

    A zone is matched with what the rig says of where a device stands (``zone:``). Where nothing says it, the grant may
    concern the stream, and permits nothing.

    ``captured_from_ns``/``captured_until_ns`` default to the grant's validity; a grant for a recording of the
    past names them. The end is exclusive.
    """

    streams: tuple[str, ...]
    modalities: tuple[Modality, ...] = ()
    captured_from: UtcNs | None = None
    captured_until: UtcNs | None = None
    zones: tuple[str, ...] = ()

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def reaches(self, stream: ConsentStream) -> bool:
        """Return whether it may concern a stream."""
        is_elsewhere = self.zones and zone_of(stream.details) not in ("", *self.zones)
        return (
            not is_elsewhere
            and (not self.modalities or stream.modality in self.modalities)
            and any(fnmatchcase(stream.name, pattern) for pattern in self.streams)
        )

    def is_located(self, stream: ConsentStream) -> bool:
        """Return whether it is known that a stream it reaches was captured in its zones."""
        return not self.zones or zone_of(stream.details) in self.zones


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the subject asks for in return.

    Attributes:
        redact: What must be made unrecognisable (``face``, ``plate``, ``voice``); the grant permits nothing
            to a caller that does not state it applies them all.
        retain_days: Nothing may be done with data older than this; None = as long as the grant is valid.
    """

    redact: tuple[str, ...] = ()
    retain_days: int | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.retain_days is not None and self.retain_days < 1:
            raise ValueError(f"retain_days must be at least 1, found {self.retain_days}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """How it is known: ``method`` (signature, button, voice, paper, configuration), who took it, its hash."""

    method: str
    by: str = ""
    sha256: str = ""
    note: str = ""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ConsentGrant:
    """One subject's permission. Times are UTC ns (RFC 3339 in files); the ends are exclusive.

    Attributes:
        id: ULID.
        subject: Pseudonym: ``sub:...`` a person, ``group:...``, ``site:...``; never a name.
        controller: Who answers for the data, with an address to withdraw at.
        valid_from: The grant may be relied on from here ...
        valid_until: ... to here, whatever is done with the data.
        state: As given; what happened since is in the log. Only the two given states permit anything.
    """

    id: str
    subject: str
    controller: str
    lawful_basis: LawfulBasis
    purposes: tuple[Purpose, ...]
    scope: Scope
    valid_from: UtcNs
    valid_until: UtcNs
    evidence: Evidence
    conditions: Conditions = Conditions()
    state: ConsentStatus = ConsentStatus.GIVEN
    notice: str = ""
    jurisdiction: str = ""
    version: int = 1
    particulars: Particulars = NONE_STATED

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not ULID.fullmatch(self.id):
            raise ValueError(f"id {self.id!r} is not a ULID (26 digits and capital letters)")
        if not SUBJECT_REF.fullmatch(self.subject):
            raise ValueError(f"subject {self.subject!r} must look like sub:1f0c9a, group:lab or site:hall2")
        if self.version != 1:
            raise ValueError(f"version {self.version} is not known to this program, which reads version 1")
        if not self.purposes or not self.scope.streams:
            raise ValueError("purposes and scope.streams must each name at least one")
        if not all(_ZONE.fullmatch(zone) for zone in self.scope.zones):
            raise ValueError(
                f"zones {', '.join(self.scope.zones)}: a zone is a name such as hall2 or lab/bench-3"
            )
        if self.valid_from >= self.valid_until or self.captured_from_ns >= self.captured_until_ns:
            raise ValueError("the time span ends before it begins")

    @property
    def captured_from_ns(self) -> int:
        return self.valid_from if self.scope.captured_from is None else self.scope.captured_from

    @property
    def captured_until_ns(self) -> int:
        return self.valid_until if self.scope.captured_until is None else self.scope.captured_until

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form; pinned in the log when the grant is given."""
        return _digest(self)


@dataclass(frozen=True, slots=True)
class ConsentEvent:
    """Something that happened to a grant at UTC ``at_ns``; ``digest``: of the grant as it was given."""

    grant_id: str
    kind: EventKind
    at_ns: int
    by: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class PauseEvent:
    """A privacy pause of the streams that match ``streams``; still on while ``until_ns`` is None.

    Attributes:
        from_ns, until_ns: UTC ns of press and release by the wall clock, which may be stepped in between.
        pressed, released: The same on the host clock, which is what captures are compared with.
    """

    id: str
    from_ns: int
    until_ns: int | None = None
    streams: tuple[str, ...] = ("*",)
    source: str = ""
    pressed: HostInstant | None = None
    released: HostInstant | None = None

    @property
    def is_on(self) -> bool:
        return self.until_ns is None

    def holds(self, stream: ConsentStream) -> bool:
        return any(fnmatchcase(stream.name, pattern) for pattern in self.streams)


@dataclass(frozen=True, slots=True)
class ConsentLedger:
    """Everything that a decision rests on; an immutable snapshot.

    Attributes:
        seen_ns: Latest UTC that the log has seen; a clock behind it does not revive what had expired.
        fault: Why the ledger cannot be trusted; personal streams are denied while it is not empty.
        log_id: Which log it was read from; "" if nothing was ever written to one.
        heads: SHA-256 of each row of the log, by which a sealed episode says how far it had come then.
    """

    grants: tuple[ConsentGrant, ...] = ()
    events: tuple[ConsentEvent, ...] = ()
    pauses: tuple[PauseEvent, ...] = ()
    seen_ns: int = BEFORE_ALL_NS
    fault: str = ""
    log_id: str = ""
    heads: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        """The hash of the log's last row."""
        return self.heads[-1] if self.heads else ""

    def unknown(self, grant_ids: Iterable[str]) -> str:
        """Return the first of some grants that was never entered in this log; "" if all were."""
        known = {event.grant_id for event in self.events if event.kind is EventKind.GIVEN}
        return next((grant_id for grant_id in grant_ids if grant_id not in known), "")

    @property
    def is_paused(self) -> bool:
        return any(pause.is_on for pause in self.pauses)

    def status(self, grant: ConsentGrant, now_utc_ns: int) -> ConsentStatus:
        """Return what the grant is worth now. The worst of its events counts, in whatever order they came."""
        mine = [event for event in self.events if event.grant_id == grant.id]
        for kind, ended in _ENDED.items():
            if any(event.kind is kind for event in mine):
                return ended
        given = [event for event in mine if event.kind is EventKind.GIVEN]
        if not given:
            return ConsentStatus.UNKNOWN
        if any(event.digest != grant.digest for event in given):
            return ConsentStatus.INVALIDATED
        if max(now_utc_ns, self.seen_ns) >= grant.valid_until:
            return ConsentStatus.EXPIRED
        return grant.state


def canonical_json(document: object) -> bytes:
    """Return JSON with sorted keys and no spaces; equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


GRANT_SCHEMA: TypeAdapter[ConsentGrant] = TypeAdapter(ConsentGrant)


@lru_cache(maxsize=4096)
def _digest(grant: ConsentGrant) -> str:
    document = GRANT_SCHEMA.dump_python(grant, mode="json")
    # What says nothing is left out, so that a grant of before these fields has the digest that its log pins.
    if grant.particulars == NONE_STATED:
        del document["particulars"]
    if not grant.scope.zones:
        del document["scope"]["zones"]
    return hashlib.sha256(canonical_json(document)).hexdigest()
