"""From a closed episode to a signed one: balance, quality, consent and alignment as they were measured."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sensorium import __version__
from sensorium.drivers.frame import Encoding, Place
from sensorium.sync.align import StreamAlignment
from sensorium.sync.consent.decisions import freeze
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.episode.manifest import (
    Balance,
    CalibrationRecord,
    CheckRecord,
    ClockSummary,
    ConsentRecord,
    Gap,
    Manifest,
    Mark,
    PairRecord,
    QualityRecord,
    StreamRecord,
    seal,
)
from sensorium.sync.episode.writer import Written
from sensorium.sync.recording.accounting import Account, Reason
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.streams import StreamTally
from sensorium.timebase import Timeline
from sensorium.verdict import Status, Verdict

CONSENT_REASON = "consent: "
LOST_TO_DISK = "the disk did not take it"
MAX_LOST_FRACTION = 1e-3
MAX_RATE_ERROR = 0.1


@dataclass(frozen=True, slots=True)
class Closing:
    """All that is known about an episode when its files are closed."""

    spool: Path
    spec: SyncSpec
    episode_id: str
    folder: Path
    timeline: Timeline
    reference: str
    tallies: Mapping[str, StreamTally]
    accounts: tuple[tuple[str, int, Account], ...]
    written: Mapping[tuple[str, int], Written]
    alignments: Mapping[str, StreamAlignment]
    marks: tuple[tuple[int, str], ...]
    limitations: tuple[str, ...]
    rejected: Counter[str]
    verdicts: tuple[Verdict, ...]
    clocks: tuple[Verdict, ...]
    calibration_id: str
    ledger: ConsentLedger
    now_utc_ns: int
    ended_ns: int
    started_ns: int
    checks: tuple[CheckRecord, ...] = ()


def seal_closing(closing: Closing) -> Path:
    """Build the manifest of a closed episode and seal it; return its folder in ``sealed/``.

    Raises:
        EpisodeError: If the disk does not take it; the episode stays open and can be recovered.
    """
    return seal(closing.folder, manifest_of(closing))


def manifest_of(closing: Closing) -> Manifest:
    """Return the manifest, unsigned and without its files' hashes."""
    streams = tuple(_stream_record(closing, name, tally) for name, tally in closing.tallies.items())
    quality = judge_quality(streams)
    limitations = list(closing.limitations)
    limitations += [
        f"{count} messages on the bus were rejected: {what}" for what, count in closing.rejected.items()
    ]
    offset = closing.timeline.utc_minus_host_ns
    return Manifest(
        episode_id=closing.episode_id,
        agent_version=__version__,
        rig=closing.spec.rig,
        start_utc_ns=closing.started_ns + offset,
        end_utc_ns=closing.ended_ns + offset,
        timeline=closing.timeline,
        streams=streams,
        pairs=tuple(_pairs(closing)),
        reference=closing.reference,
        calibration=CalibrationRecord(closing.calibration_id, closing.verdicts, closing.checks),
        clocks=closing.clocks,
        quality=quality,
        gates=(balance_verdict(closing.episode_id, streams),),
        operator=closing.spec.operator,
        task=closing.spec.task,
        labels={"instruction": closing.spec.instruction} if closing.spec.instruction else {},
        marks=tuple(Mark(host_ns, text) for host_ns, text in closing.marks),
        limitations=tuple(limitations),
        synthetic=any(tally.info.is_synthetic for tally in closing.tallies.values()),
    )


def _stream_record(closing: Closing, name: str, tally: StreamTally) -> StreamRecord:
    info = tally.info
    balances: dict[int, Balance] = {}
    for stream, instance, account in closing.accounts:
        if stream == name:
            balances[instance] = _balance(account, closing.written.get((name, instance), Written()))
    offset = closing.timeline.utc_minus_host_ns
    has_samples = tally.first_arrival_ns is not None
    span = (tally.first_capture_ns + offset, tally.last_capture_ns + offset) if has_samples else None
    alignment = closing.alignments.get(name)
    p95 = tally.bound_ns.percentile(95)
    return StreamRecord(
        info=info,
        balances=balances,
        produced_by="device" if info.has_device_counter else "driver",
        rate_hz=tally.rate_hz if has_samples else None,
        gaps=tuple(Gap(host_ns, duration_ns) for host_ns, duration_ns in tally.gaps),
        unmatched=dict(alignment.unmatched) if alignment else {},
        clock=ClockSummary(
            method=tally.clock_method,
            skew_ppm=tally.skew_ppm,
            uncertainty_p95_us=None if p95 is None else p95 / 1e3,
            asymmetry_us=tally.asymmetry_ns / 1e3,
            epochs=tally.clock_epochs if has_samples else 0,
            events=dict(tally.clock_events),
        ),
        bytes_raw=tally.bytes_raw,
        bytes_stored=_stored_bytes(closing, name),
        first_utc_ns=span[0] if span else None,
        last_utc_ns=span[1] if span else None,
        consent=_consent_record(closing, tally, span),
    )


def _stored_bytes(closing: Closing, name: str) -> int:
    return round(sum(each.stored_bytes for (stream, _), each in closing.written.items() if stream == name))


def _balance(account: Account, written: Written) -> Balance:
    """Return the balance with what the files really hold in the place of what was handed to the writer."""
    dropped = Counter(account.dropped)
    if written.lost_samples:
        dropped[Place.WRITER, LOST_TO_DISK] += written.lost_samples
    return Balance(account.produced, written.samples, nested(dropped), account.start_seq)


def nested(dropped: Mapping[Reason, int]) -> dict[str, dict[str, int]]:
    """Return losses as {place: {reason: count}}."""
    found: dict[str, dict[str, int]] = {}
    for (place, reason), count in dropped.items():
        if count:
            found.setdefault(place.value, {})[reason] = count
    return found


def _consent_record(closing: Closing, tally: StreamTally, span: tuple[int, int] | None) -> ConsentRecord:
    info = tally.info
    if not info.is_personal:
        return ConsentRecord(
            "not personal", "the stream is not personal", (), tuple(p.value for p in Purpose)
        )
    offset = closing.timeline.utc_minus_host_ns
    asked = span or (closing.started_ns + offset, closing.ended_ns + offset)
    frozen = freeze(info, asked, closing.now_utc_ns, closing.ledger)
    grants = sorted({grant for part in frozen.spans for grant in part.decision.grant_ids})
    denied = tally.denials.most_common(1)
    if span is None:
        reason = denied[0][0] if denied else frozen.decision.reason
        return ConsentRecord("denied", reason, tuple(grants), ())
    purposes = tuple(purpose.value for purpose in frozen.purposes)
    if denied:
        return ConsentRecord("partly denied", denied[0][0], tuple(grants), purposes)
    if not frozen.decision.is_allowed:
        return ConsentRecord("denied", frozen.decision.reason, tuple(grants), purposes)
    return ConsentRecord("allowed", f"granted by {', '.join(grants)}", tuple(grants), purposes)


def _pairs(closing: Closing) -> Iterable[PairRecord]:
    for name, alignment in closing.alignments.items():
        residual = alignment.residual_us()
        if name == closing.reference or residual is None:
            continue
        info = closing.tallies[name].info
        is_interpolated = info.is_sampled or info.modality.value == "audio"
        method = "interpolation gap" if is_interpolated else "nearest residual"
        yield PairRecord(closing.reference, name, method, *residual)


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
