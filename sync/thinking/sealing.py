"""From a closed episode to a signed one: balance, quality, consent and alignment as they were measured."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from sensorium import __version__
from sensorium.drivers.frame import Place
from sensorium.errors import BusyError, EpisodeError, SensoriumError
from sensorium.sync.align import StreamAlignment
from sensorium.sync.consent.decisions import freeze
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.pauses import on_timeline
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.files import PLOTS_FILE
from sensorium.sync.episode.manifest import (
    Balance,
    CalibrationRecord,
    ClockSummary,
    ConsentAnchor,
    ConsentRecord,
    Gap,
    Manifest,
    Mark,
    PairRecord,
    StreamRecord,
)
from sensorium.sync.erasure import erase_forgotten
from sensorium.sync.quality.passport import balance_verdict, judge_quality
from sensorium.sync.recording.accounting import Reason
from sensorium.sync.recording.closing import ClosedAccount, ClosedStream, Closing, unpack_reasons
from sensorium.sync.thinking.plots import write_plots
from sensorium.sync.thinking.tally import StreamTally
from sensorium.timebase import HostClock, is_utc_kept
from sensorium.verdict import Verdict

LOST_TO_DISK = "the disk did not take it"


@dataclass(slots=True)
class Thoughts:
    """What was found out about an episode beside its recording.

    Attributes:
        tallies: Of the streams that were declared by then; more may come.
        clocks: Verdicts about clocks that are no stream.
        limitations: What could not be found out.
    """

    tallies: dict[str, StreamTally] = field(default_factory=dict)
    alignments: Mapping[str, StreamAlignment] = field(default_factory=dict)
    clocks: tuple[Verdict, ...] = ()
    limitations: tuple[str, ...] = ()


def seal_closing(folder: Path, closing: Closing, thoughts: Thoughts) -> Path:
    """Build the manifest of a closed episode and seal it; return its folder in ``sealed/``.

    Raises:
        EpisodeError: If the disk does not take it; the episode stays open and can be recovered.
    """
    ledger = ConsentStore(Path(closing.consent)).inspect()
    try:
        write_plots(folder)
    except SensoriumError as err:  # what viewers would have shown is no reason not to seal what was recorded
        thoughts = replace(thoughts, limitations=(*thoughts.limitations, f"{PLOTS_FILE} is missing: {err}"))
    sealed = seal(folder, manifest_of(closing, thoughts, ledger))
    with suppress(EpisodeError, BusyError):  # whoever sends it, or the next one who withdraws, tries again
        erase_forgotten(sealed, ledger, HostClock().utc_ns(), is_time_kept=is_utc_kept())
    return sealed


def manifest_of(closing: Closing, thoughts: Thoughts, ledger: ConsentLedger) -> Manifest:
    """Return the manifest, unsigned and without its files' hashes."""
    streams = tuple(_stream_record(closing, each, thoughts, ledger) for each in closing.streams)
    limitations = [*closing.limitations, *thoughts.limitations]
    limitations += [
        f"{count} messages on the bus were rejected: {what}" for what, count in closing.rejected.items()
    ]
    offset = closing.timeline.utc_minus_host_ns
    return Manifest(
        episode_id=closing.episode_id,
        agent_version=__version__,
        facts=closing.facts,
        start_utc_ns=closing.started_ns + offset,
        end_utc_ns=closing.ended_ns + offset,
        timeline=closing.timeline,
        streams=streams,
        pairs=tuple(_pairs(closing, thoughts)),
        reference=closing.reference,
        calibration=CalibrationRecord(closing.calibration_id, closing.verdicts, closing.checks),
        clocks=(*thoughts.clocks, *closing.clocks),
        quality=judge_quality(streams),
        gates=(balance_verdict(closing.episode_id, streams),),
        marks=tuple(Mark(host_ns, text) for host_ns, text in closing.marks),
        limitations=tuple(limitations),
        synthetic=any(each.info.is_synthetic for each in closing.streams),
        truncated=closing.is_truncated,
        consent_log=ConsentAnchor(ledger.log_id, len(ledger.heads), ledger.head),
        bounds=closing.bounds,
    )


def _stream_record(
    closing: Closing, closed: ClosedStream, thoughts: Thoughts, ledger: ConsentLedger
) -> StreamRecord:
    info = closed.info
    name = info.name
    tally = thoughts.tallies.get(name) or StreamTally(info)
    accounts = [account for account in closing.accounts if account.stream == name]
    offset = closing.timeline.utc_minus_host_ns
    has_samples = tally.first_arrival_ns is not None
    span = (tally.first_capture_ns + offset, tally.last_capture_ns + offset) if has_samples else None
    alignment = thoughts.alignments.get(name)
    p95 = tally.bound_ns.percentile(95)
    return StreamRecord(
        info=info,
        balances={account.instance: _balance(account) for account in accounts},
        produced_by="device" if info.has_device_counter else "driver",
        rate_hz=tally.rate_hz if has_samples else None,
        gaps=tuple(Gap(host_ns, duration_ns) for host_ns, duration_ns in tally.gaps),
        unmatched=dict(alignment.unmatched) if alignment else {},
        clock=ClockSummary(
            method=closed.clock_method or tally.clock_method,
            skew_ppm=tally.told_skew_ppm,
            uncertainty_p95_us=None if p95 is None else p95 / 1e3,
            asymmetry_us=tally.asymmetry_ns / 1e3,
            epochs=tally.clock_epochs if has_samples else 0,
            events=dict(tally.clock_events + Counter(closed.clock_events)),
        ),
        bytes_raw=tally.bytes_raw,
        bytes_stored=round(sum(account.written.stored_bytes for account in accounts)),
        first_utc_ns=span[0] if span else None,
        last_utc_ns=span[1] if span else None,
        consent=_consent_record(closing, closed, span, ledger),
    )


def _balance(account: ClosedAccount) -> Balance:
    """Return the balance with what the files really hold in the place of what was handed to the writer."""
    written = account.written
    dropped = unpack_reasons(account.dropped)
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


def _consent_record(
    closing: Closing, closed: ClosedStream, span: tuple[int, int] | None, ledger: ConsentLedger
) -> ConsentRecord:
    info = closed.info
    if not info.is_personal:
        return ConsentRecord(
            "not personal", "the stream is not personal", (), tuple(p.value for p in Purpose)
        )
    offset = closing.timeline.utc_minus_host_ns
    asked = span or (closing.started_ns + offset, closing.ended_ns + offset)
    frozen = freeze(info, asked, closing.now_utc_ns, on_timeline(ledger, closing.timeline))
    grants = sorted({grant for part in frozen.spans for grant in part.decision.grant_ids})
    denied = Counter(closed.denials).most_common(1)
    if span is None:
        reason = denied[0][0] if denied else frozen.decision.reason
        return ConsentRecord("denied", reason, tuple(grants), ())
    purposes = tuple(purpose.value for purpose in frozen.purposes)
    if denied:
        return ConsentRecord("partly denied", denied[0][0], tuple(grants), purposes)
    if not frozen.decision.is_allowed:
        return ConsentRecord("denied", frozen.decision.reason, tuple(grants), purposes)
    return ConsentRecord("allowed", f"granted by {', '.join(grants)}", tuple(grants), purposes)


def _pairs(closing: Closing, thoughts: Thoughts) -> Iterable[PairRecord]:
    infos = {each.info.name: each.info for each in closing.streams}
    for name, alignment in thoughts.alignments.items():
        residual = alignment.residual_us()
        if name == closing.reference or residual is None:
            continue
        info = infos[name]
        is_interpolated = info.is_sampled or info.modality.value == "audio"
        method = "interpolation gap" if is_interpolated else "nearest residual"
        yield PairRecord(closing.reference, name, method, *residual)
