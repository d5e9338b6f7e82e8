"""What consent says of one stream of a sealed episode, by the ledger as it is now. Ask through ``use.py``."""

from dataclasses import replace

from sensorium.sync.consent.decisions import NOT_PERSONAL, Decision, decide, unknown_grant
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.episode.manifest import Manifest, StreamRecord


def judge(
    manifest: Manifest, record: StreamRecord, purpose: Purpose, now_utc_ns: int, ledger: ConsentLedger
) -> Decision:
    """Return whether a stream may be used, over its whole span, widened by its clock's uncertainty.

    Pauses are not asked: they deny captures, and whoever uses what is sealed captures nothing.
    """
    if record.info.is_personal is False:
        return NOT_PERSONAL
    lost = lost_row(manifest, ledger)
    if lost:
        return Decision(False, "old_log", lost)
    unknown = ledger.unknown(record.consent.grants)
    if unknown and not ledger.fault:
        return Decision(False, "unknown_grant", unknown_grant(record.info.name, unknown))
    unpaused = replace(ledger, pauses=())
    return decide(record.info, span_utc_ns(manifest, record), purpose, now_utc_ns, unpaused)


def lost_row(manifest: Manifest, ledger: ConsentLedger) -> str:
    """Return why the log cannot be the one that the episode was sealed under, grown since; "" if it can."""
    sealed = manifest.consent_log
    if not sealed.seq or sealed.log_id != ledger.log_id or ledger.fault:
        return ""
    if len(ledger.heads) >= sealed.seq and ledger.heads[sealed.seq - 1] == sealed.head:
        return ""
    return (
        f"the consent log {ledger.log_id} does not hold the row {sealed.seq} that this episode was sealed "
        "under: an old log was put back"
    )


def span_utc_ns(manifest: Manifest, record: StreamRecord) -> tuple[int, int]:
    """Return first and last capture with their uncertainty; of the whole episode where they are unknown."""
    first_ns = manifest.start_utc_ns if record.first_utc_ns is None else record.first_utc_ns
    last_ns = manifest.end_utc_ns if record.last_utc_ns is None else record.last_utc_ns
    margin_ns = int((record.clock.uncertainty_p95_us or 0.0) * 1000)
    return first_ns - margin_ns, last_ns + margin_ns
