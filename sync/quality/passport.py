"""The verdict over an episode: does its balance close, is every stream complete, at its rate, without holes."""

from collections.abc import Iterable

from sensorium.drivers.frame import Encoding
from sensorium.sync.episode.manifest import QualityRecord, StreamRecord
from sensorium.verdict import Status, Verdict

CONSENT_REASON = "consent: "
MAX_LOST_FRACTION = 1e-3
MAX_RATE_ERROR = 0.1


def balance_verdict(subject: str, streams: Iterable[StreamRecord]) -> Verdict:
    """Return whether produced = recorded + dropped for every stream and driver instance."""
    reasons = []
    for record in streams:
        for instance, balance in record.balances.items():
            if not balance.is_exact:
                reasons.append(
                    f"{record.info.name} (instance {instance:08x}): {balance.produced} produced, "
                    f"{balance.recorded} recorded, {balance.dropped_total} dropped"
                )
    status = Status.FAILED if reasons else Status.OK
    return Verdict("balance", subject, status, (), tuple(reasons))


def judge_quality(streams: Iterable[StreamRecord]) -> QualityRecord:
    """Return the quality over all streams: complete, at their nominal rate, without holes."""
    reasons: list[str] = []
    status = Status.OK
    for record in streams:
        for problem, severity in _stream_problems(record):
            reasons.append(f"{record.info.name}: {problem}")
            status = Status.FAILED if Status.FAILED in (status, severity) else severity
    return QualityRecord(status, tuple(reasons))


def _stream_problems(record: StreamRecord) -> Iterable[tuple[str, Status]]:
    total = record.total
    denied = sum(
        count
        for reasons in total.dropped.values()
        for reason, count in reasons.items()
        if reason.startswith(CONSENT_REASON)
    )
    lost = total.dropped_total - denied
    if not total.is_exact:
        yield "its balance does not close", Status.FAILED
    if total.produced == 0:
        yield "produced nothing", Status.FAILED
        return
    if denied:
        yield f"{denied} of {total.produced} samples withheld: {record.consent.reason}", Status.SUSPECT
    if lost > MAX_LOST_FRACTION * total.produced:
        yield f"lost {lost} of {total.produced} samples", Status.SUSPECT
    if record.gaps:
        longest = max(gap.duration_ns for gap in record.gaps)
        yield f"{len(record.gaps)} gaps, the longest {longest / 1e9:.2f} s", Status.SUSPECT
    nominal, measured = record.info.rate_hz, record.rate_hz
    is_promised = (
        record.info.encoding != Encoding.MESSAGE
    )  # else the rate was only guessed from the recording
    if is_promised and nominal and measured and abs(measured / nominal - 1) > MAX_RATE_ERROR:
        yield f"ran at {measured:.2f} Hz instead of {nominal:g} Hz", Status.SUSPECT
