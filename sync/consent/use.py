"""May this stream be used for that? The one question that everybody asks who lets recorded data out, whatever for.

Who holds the episode in its own spool is answered by the consent log as it is now (:class:`LedgerRights`); who holds
a delivered copy, by the signed state beside it (:class:`StateRights`); who has neither gets what is not personal.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from sensorium.sync.consent.decisions import NOT_PERSONAL, Decision
from sensorium.sync.consent.gate import judge, lost_row
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.state import ConsentState
from sensorium.sync.episode.files import SHARED_FILES, stream_file
from sensorium.sync.episode.manifest import Manifest, StreamRecord


class Rights(Protocol):
    """What the streams of one episode may be used for."""

    def permits(self, stream: str, purpose: Purpose, now_utc_ns: int) -> Decision:
        """Return whether a stream may be used; denies what it knows nothing of."""
        ...


@dataclass(frozen=True, slots=True)
class LedgerRights:
    """Those of an episode that lies in its own spool: each answer is as new as the ledger."""

    manifest: Manifest
    ledger: ConsentLedger

    def permits(self, stream: str, purpose: Purpose, now_utc_ns: int) -> Decision:
        record = _record(self.manifest, stream)
        if isinstance(record, Decision):
            return record
        return judge(self.manifest, record, purpose, now_utc_ns, self.ledger)


@dataclass(frozen=True, slots=True)
class StateRights:
    """Those of a delivered copy; without a state only what is not personal may be used."""

    manifest: Manifest
    state: ConsentState | None = None

    def permits(self, stream: str, purpose: Purpose, now_utc_ns: int) -> Decision:
        record = _record(self.manifest, stream)
        if isinstance(record, Decision):
            return record
        if record.info.is_personal is False:
            return NOT_PERSONAL
        if self.state is None:
            return Decision(
                False, "no_state", f"stream {stream} is personal, and no consent state lies beside this copy"
            )
        if self.state.episode_id != self.manifest.episode_id:
            return Decision(
                False, "no_state", f"the consent state is that of episode {self.state.episode_id}"
            )
        return self.state.permits(stream, purpose, now_utc_ns)


def rights_of(
    manifest: Manifest, *, ledger: ConsentLedger | None = None, state: ConsentState | None = None
) -> Rights:
    """Return the rights in an episode, by the consent log (which wins), else by the state beside a copy.

    Neither: only what is not personal may be used.
    """
    return StateRights(manifest, state) if ledger is None else LedgerRights(manifest, ledger)


def denials(
    rights: Rights,
    manifest: Manifest,
    purpose: Purpose,
    now_utc_ns: int,
    streams: Collection[str] | None = None,
) -> dict[str, Decision]:
    """Return the streams with data that may not be used, and why; what was erased is no data.

    Args:
        streams: Ask for these alone; None = all.
    """
    names = {file.name for file in manifest.files}
    found = {}
    for record in manifest.streams:
        name = record.info.name
        is_asked = streams is None or name in streams
        if is_asked and name not in manifest.erased and _has_data(record, names):
            decision = rights.permits(name, purpose, now_utc_ns)
            if not decision.is_allowed:
                found[name] = decision
    return found


def consent_reasons(
    manifest: Manifest,
    ledger: ConsentLedger,
    purpose: Purpose,
    now_utc_ns: int,
    streams: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Return why consent forbids a use of an episode, one sentence per stream or file; empty if it allows it.

    A file that belongs to no stream of the manifest could hold anything, and is refused.

    Args:
        streams: Ask for the samples of these streams alone, of which nothing else goes out; None = for the
            episode as it lies in its folder, every file included.
    """
    lost = lost_row(manifest, ledger)
    if lost:
        return (lost,)
    denied = denials(LedgerRights(manifest, ledger), manifest, purpose, now_utc_ns, streams)
    reasons = [f"stream {name}: {decision.reason}" for name, decision in denied.items()]
    if streams is None:
        reasons += _stray_files(manifest)
    return tuple(reasons)


def _record(manifest: Manifest, stream: str) -> StreamRecord | Decision:
    """Return what the manifest says of a stream, or the denial of one that is not there."""
    if stream in manifest.erased:
        why = next(
            (grave.reason for grave in manifest.tombstones if grave.stream == stream),
            "the episode was deleted",
        )
        return Decision(False, "erased", f"stream {stream} was erased: {why}")
    for record in manifest.streams:
        if record.info.name == stream:
            return record
    return Decision(False, "no_stream", f"episode {manifest.episode_id} has no stream {stream}")


def _has_data(record: StreamRecord, names: Collection[str]) -> bool:
    return bool(stream_file(record.info.name) in names or record.total.recorded or record.bytes_stored)


def _stray_files(manifest: Manifest) -> Iterator[str]:
    owned = {stream_file(record.info.name) for record in manifest.streams if record.info.is_personal}
    for name in sorted({file.name for file in manifest.files} - SHARED_FILES - owned):
        yield f"file {name}: belongs to no stream, so no grant can cover it"
