"""The consent gate of a sealed episode: one question for whoever lets its data out, whatever for."""

from collections.abc import Collection, Iterator

from sensorium.sync.consent.decisions import decide, unknown_grant
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.episode.files import SHARED_FILES, stream_file
from sensorium.sync.episode.manifest import Manifest, StreamRecord


def consent_reasons(
    manifest: Manifest,
    ledger: ConsentLedger,
    purpose: Purpose,
    now_utc_ns: int,
    streams: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Return why consent forbids a use of an episode, one sentence per stream or file; empty if it allows it.

    Each personal stream that has a file or samples needs a grant over its span, widened by its clock
    uncertainty. A file that belongs to no stream of the manifest could hold anything, and is refused.

    Args:
        streams: Ask for the samples of these streams alone, of which nothing else goes out; None = for the
            episode as it lies in its folder, every file included.
    """
    names = {file.name for file in manifest.files}
    reasons = list(_lost_rows(manifest, ledger))
    for record in manifest.streams:
        is_asked = streams is None or record.info.name in streams
        if record.info.name in manifest.erased:
            continue
        if is_asked and record.info.is_personal and _has_data(record, names):
            unknown = ledger.unknown(record.consent.grants)
            if unknown and not ledger.fault:
                reasons.append(unknown_grant(f"stream {record.info.name}", unknown))
                continue
            decision = decide(record.info, span_utc_ns(manifest, record), purpose, now_utc_ns, ledger)
            if not decision.is_allowed:
                reasons.append(f"stream {record.info.name}: {decision.reason}")
    if streams is None:
        reasons += _stray_files(manifest, names)
    return tuple(reasons)


def _lost_rows(manifest: Manifest, ledger: ConsentLedger) -> Iterator[str]:
    """Yield why the log cannot be the one that the episode was sealed under, grown since."""
    sealed = manifest.consent_log
    if not sealed.seq or sealed.log_id != ledger.log_id or ledger.fault:
        return
    if len(ledger.heads) < sealed.seq or ledger.heads[sealed.seq - 1] != sealed.head:
        yield (
            f"the consent log {ledger.log_id} does not hold the row {sealed.seq} that this episode was sealed "
            "under: an old log was put back"
        )


def _has_data(record: StreamRecord, names: Collection[str]) -> bool:
    return bool(stream_file(record.info.name) in names or record.total.recorded or record.bytes_stored)


def _stray_files(manifest: Manifest, names: Collection[str]) -> Iterator[str]:
    owned = {stream_file(record.info.name) for record in manifest.streams if record.info.is_personal}
    for name in sorted(set(names) - SHARED_FILES - owned):
        yield f"file {name}: belongs to no stream, so no grant can cover it"


def span_utc_ns(manifest: Manifest, record: StreamRecord) -> tuple[int, int]:
    """Return first and last capture with their uncertainty; of the whole episode where they are unknown."""
    first_ns = manifest.start_utc_ns if record.first_utc_ns is None else record.first_utc_ns
    last_ns = manifest.end_utc_ns if record.last_utc_ns is None else record.last_utc_ns
    margin_ns = int((record.clock.uncertainty_p95_us or 0.0) * 1000)
    return first_ns - margin_ns, last_ns + margin_ns
