"""What a delivered copy may be used for: a small signed document beside each episode in a store.

Whoever reads the copy has no consent log. The state says, as of a row of the log, which purposes are permitted for
each personal stream and until when; the newest row wins, and a reader without a state opens nothing personal.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sensorium.errors import ConsentError, TrustError
from sensorium.sync.consent.decisions import DAY_NS, Decision
from sensorium.sync.consent.gate import judge, span_utc_ns
from sensorium.sync.consent.grants import ConsentGrant, ConsentLedger, Purpose
from sensorium.sync.episode.files import CONSENT_STATE_FILE, SIGNED_RECORDS
from sensorium.sync.episode.manifest import Manifest, StreamRecord
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.keys import SigningKey

KIND = SIGNED_RECORDS[CONSENT_STATE_FILE]
_VERSION = 1


@dataclass(frozen=True, slots=True)
class StreamState:
    """What one personal stream may be used for, and until when (UTC ns); ``reason`` says why not for more."""

    purposes: tuple[str, ...]
    until_utc_ns: int
    grants: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ConsentState:
    """The state of an episode's personal streams as of row ``seq`` of a log."""

    episode_id: str
    log_id: str
    seq: int
    at_utc_ns: int
    streams: dict[str, StreamState]

    def permits(self, stream: str, purpose: Purpose, now_utc_ns: int) -> Decision:
        """Return whether a reader may use a personal stream; what is not named is denied."""
        found = self.streams.get(stream)
        if found is None:
            return Decision(False, "no_state", f"the consent state says nothing of stream {stream}")
        if purpose.value not in found.purposes:
            reason = found.reason or f"{stream} may not be used for {purpose.value}"
            return Decision(False, "purpose", reason)
        if now_utc_ns >= found.until_utc_ns:
            return Decision(False, "expired", f"the consent for {stream} has run out: ask for a newer state")
        return Decision(True, "granted", f"granted by {', '.join(found.grants)}", found.grants)


def consent_state(manifest: Manifest, ledger: ConsentLedger, now_utc_ns: int) -> ConsentState:
    """Return what an episode's personal streams may be used for now."""
    streams = {
        record.info.name: _stream_state(manifest, record, ledger, now_utc_ns)
        for record in manifest.streams
        if record.info.is_personal
    }
    return ConsentState(manifest.episode_id, ledger.log_id, len(ledger.heads), now_utc_ns, streams)


def _stream_state(
    manifest: Manifest, record: StreamRecord, ledger: ConsentLedger, now_utc_ns: int
) -> StreamState:
    found = {purpose: judge(manifest, record, purpose, now_utc_ns, ledger) for purpose in Purpose}
    grants = sorted({grant for each in found.values() for grant in each.grant_ids})
    first_ns, _ = span_utc_ns(manifest, record)
    until = [_usable_until(grant, first_ns) for grant in ledger.grants if grant.id in grants]
    reasons = [each.reason for each in found.values() if not each.is_allowed]
    return StreamState(
        tuple(purpose.value for purpose, each in found.items() if each.is_allowed),
        min(until, default=now_utc_ns),
        tuple(grants),
        reasons[0] if reasons else "",
    )


def _usable_until(grant: ConsentGrant, first_capture_ns: int) -> int:
    """Return when a reader has to ask again: the grant ends, or what was captured first is kept for too long."""
    if grant.conditions.retain_days is None:
        return grant.valid_until
    return min(grant.valid_until, first_capture_ns + grant.conditions.retain_days * DAY_NS)


def pack_state(state: ConsentState, key: SigningKey) -> bytes:
    """Return the signed document."""
    streams = {
        name: {
            "purposes": list(each.purposes),
            "until": each.until_utc_ns,
            "grants": list(each.grants),
            "reason": each.reason,
        }
        for name, each in state.streams.items()
    }
    document = {
        "v": _VERSION,
        "episode": state.episode_id,
        "log": state.log_id,
        "seq": state.seq,
        "at": state.at_utc_ns,
        "streams": streams,
    }
    return sign_document(document, key, KIND)


def read_state(data: bytes, episode_id: str, trusted: Collection[bytes]) -> ConsentState:
    """Return the state of an episode.

    Raises:
        ConsentError: If nobody trusted signed it, it is of another episode, or it is no state.
    """
    try:
        found, _ = open_document(data, KIND, trusted)
        if (found["v"], found["episode"]) != (_VERSION, episode_id):
            raise ConsentError(
                f"the consent state is that of episode {found['episode']}, not of {episode_id}"
            )
        streams = {str(name): _read_stream(each) for name, each in found["streams"].items()}
        return ConsentState(episode_id, str(found["log"]), int(found["seq"]), int(found["at"]), streams)
    except (TrustError, KeyError, TypeError, ValueError, AttributeError) as err:
        raise ConsentError(f"the consent state of {episode_id} cannot be relied on: {err}") from err


def _read_stream(found: dict[str, Any]) -> StreamState:
    return StreamState(
        tuple(map(str, found["purposes"])),
        int(found["until"]),
        tuple(map(str, found["grants"])),
        str(found["reason"]),
    )
