"""``sensorium sync report``: what an episode's clocks did, how certain they are, and how its streams align."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.reporting import page, plots
from sensorium.agent.reporting.advice import by_weight, what_to_do
from sensorium.agent.reporting.survey import Envelope, Thinned
from sensorium.drivers.frame import ClockKind, StreamInfo
from sensorium.errors import EpisodeError
from sensorium.sync.align import Match
from sensorium.sync.clocks.model import credible_skew_ppm
from sensorium.sync.clocks.triggered import BY_PULSES
from sensorium.sync.distribution import Distribution
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.stamp_reader import StampRow
from sensorium.sync.episode.triggers import check_triggers
from sensorium.timebase import SECOND_NS, BaseReading
from sensorium.verdict import Quantity, Status, Verdict

_POINTS = 4000
_MAX_EVENTS = 200
NOTHING_TO_DO = "Nothing: no clock and no pair of streams has anything against it."
_Int64s = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(slots=True)
class StreamClock:
    """What one stream's stamps show.

    Attributes:
        latency: Arrival minus capture minus the known minimum, ns, per stamp.
        bound: Stated 95 % bounds, ns, per frame; ``statistical`` and ``floor`` are its parts.
        points: Columns capture, residual (= latency), bound of some stamps, ns.
        after_arrival: Captures after their arrival; a promise broken unless 0.
        backwards: Captures before the one before.
    """

    info: StreamInfo
    frames: int = 0
    samples: int = 0
    epochs: set[tuple[int, int]] = field(default_factory=set)
    latency: Distribution = field(default_factory=Distribution)
    bound: Distribution = field(default_factory=Distribution)
    total: Distribution = field(default_factory=Distribution)
    statistical: Distribution = field(default_factory=Distribution)
    floor: Distribution = field(default_factory=Distribution)
    asymmetry_ns: float = 0.0
    points: Thinned = field(default_factory=lambda: Thinned(3, _POINTS))
    after_arrival: int = 0
    backwards: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    first_seq: int = 0
    last_seq: int = 0
    skews_ppm: list[float] = field(default_factory=list)
    method: str = ""
    offsets: list[tuple[int, int, float]] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)

    def take(self, row: StampRow) -> None:
        """Take the stamps of one frame, in order of arrival."""
        capture, arrival = row.stamped.capture_ns, row.arrival_ns
        if len(arrival) != len(capture):  # a block that arrived as a whole: only one sample is fresh
            capture_fresh, arrival = capture[-1:], arrival[-1:]
        else:
            capture_fresh = capture
        latency = arrival - capture_fresh - self.info.latency.min_ns
        for value in latency.tolist():
            self.latency.add(max(value, 0))
        uncertainty = row.stamped.uncertainty
        self.bound.add(uncertainty.bound95_ns)
        self.total.add(uncertainty.total95_ns)
        self.statistical.add(uncertainty.statistical_ns)
        self.floor.add(uncertainty.floor_ns)
        self.asymmetry_ns = max(self.asymmetry_ns, uncertainty.asymmetry_ns)
        rows = np.empty((len(capture_fresh), 3), np.int64)
        rows[:, 0], rows[:, 1], rows[:, 2] = capture_fresh, latency, min(uncertainty.total95_ns, 1e18)
        self.points.add(rows)
        self.after_arrival += int((capture_fresh > arrival).sum())
        epoch = (row.instance, row.stamped.epoch)
        if epoch in self.epochs and self.last_ns is not None:
            self.backwards += int(capture[0] < self.last_ns)
        self.backwards += int((np.diff(capture) < 0).sum())
        self.epochs.add(epoch)
        if self.first_ns is None:
            self.first_ns, self.first_seq = int(capture[0]), row.seq
        self.last_ns, self.last_seq = int(capture[-1]), row.seq + (row.count if len(capture) > 1 else 1) - 1
        self.frames += 1
        self.samples += row.count

    @property
    def rate_hz(self) -> float | None:
        """Samples per second of capture time, by sequence numbers; None across a restart or without a span."""
        if self.first_ns is None or self.last_ns is None or len({i for i, _ in self.epochs}) != 1:
            return None
        span_ns = self.last_ns - self.first_ns
        return (self.last_seq - self.first_seq) / span_ns * SECOND_NS if span_ns > 0 else None

    def document(self) -> dict[str, Any]:
        """Return the numbers, for people and machines."""
        rate_hz, nominal = self.rate_hz, self.info.rate_hz
        return {
            "modality": self.info.modality.value,
            "clock": self.info.clock.kind.value,
            "method": self.method or ("host stamps" if self.info.clock.kind is ClockKind.HOST else "arrival"),
            "stamp_of": self.info.stamp_of,
            "frames": self.frames,
            "samples": self.samples,
            "rate_hz": rate_hz,
            "rate_nominal_hz": nominal or None,
            "rate_error_ppm": (rate_hz / nominal - 1) * 1e6 if rate_hz and nominal else None,
            "skew_ppm": self.skews_ppm[-1] if self.skews_ppm else None,
            "skew_range_ppm": [min(self.skews_ppm), max(self.skews_ppm)] if self.skews_ppm else None,
            "epochs": len(self.epochs),
            "latency_min_declared_us": self.info.latency.min_ns / 1e3,
            "residual_us": _summary_us(self.latency),
            "total95_us": _summary_us(self.total),
            "bound95_us": _summary_us(self.bound),
            "statistical_us": _summary_us(self.statistical),
            "floor_us": _summary_us(self.floor),
            "asymmetry_us": self.asymmetry_ns / 1e3,
            "captures_after_arrival": self.after_arrival,
            "captures_backwards": self.backwards,
            "events": dict(self.events),
        }


@dataclass(slots=True)
class PairAlignment:
    """How one stream answered the reference's ticks."""

    outcomes: Counter[str] = field(default_factory=Counter)
    residual: Distribution = field(default_factory=Distribution)
    bound: Distribution = field(default_factory=Distribution)
    points: Thinned = field(default_factory=lambda: Thinned(1, _POINTS))
    is_interpolated: bool = False


@dataclass(slots=True)
class SyncReport:
    """Everything that the report shows."""

    episode_id: str
    reference: str
    span: tuple[int, int]
    streams: dict[str, StreamClock]
    pairs: dict[str, PairAlignment]
    unmatched: Mapping[str, Mapping[str, int]]
    bases: Sequence[BaseReading]
    events: list[EpisodeEvent]
    more_events: int
    ticks: int
    content: tuple[Verdict, ...] = ()
    recorded: tuple[Verdict, ...] = ()
    triggers: tuple[Verdict, ...] = ()

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What the stamps themselves prove or disprove, what was found while recording, what the content says."""
        out = []
        for name, clock in self.streams.items():
            quantities = (
                Quantity("captures after arrival", clock.after_arrival, "1", 0),
                Quantity("captures running backwards", clock.backwards, "1", 0),
            )
            bad = clock.after_arrival or clock.backwards
            reasons = (
                (
                    f"{name}: {clock.after_arrival} capture times lie after their arrival and "
                    f"{clock.backwards} before the one before",
                )
                if bad
                else ()
            )
            out.append(Verdict("stamps", name, Status.FAILED if bad else Status.OK, quantities, reasons))
        return (*out, *self.recorded, *self.triggers, *self.content)

    @property
    def steps(self) -> list[str]:
        """What somebody could do about it, worst first."""
        return what_to_do(
            self.verdicts, {name: {"outcomes": pair.outcomes} for name, pair in self.pairs.items()}
        )

    def document(self) -> dict[str, Any]:
        """Return the report as plain data, the form of ``--json``."""
        pairs = {
            name: {
                "method": "interpolated" if pair.is_interpolated else "nearest",
                "outcomes": dict(pair.outcomes),
                "residual_us": None if pair.is_interpolated else _summary_us(pair.residual),
                "gap_us": _summary_us(pair.residual) if pair.is_interpolated else None,
                "total95_us": _summary_us(pair.bound),
                "bound95_us": _summary_us(pair.bound),
            }
            for name, pair in self.pairs.items()
        }
        return {
            "episode": self.episode_id,
            "seconds": (self.span[1] - self.span[0]) / SECOND_NS,
            "reference": self.reference,
            "ticks": self.ticks,
            "streams": {name: clock.document() for name, clock in self.streams.items()},
            "alignment": pairs,
            "unmatched": {name: dict(reasons) for name, reasons in self.unmatched.items()},
            "host_clock": host_clock(self.bases),
            "events": [
                {"host_ns": event.host_ns, "stream": event.stream, "detail": event.detail}
                for event in self.events
            ],
            "events_left_out": self.more_events,
            "steps": self.steps,
            "checks": [verdict.document() for verdict in self.verdicts],
            "verdicts": [_with_pairs(verdict) for verdict in self.verdicts],
        }


def _with_pairs(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict whose quantities are [value, unit]: what readers of older reports know as ``verdicts``."""
    numbers = {q.name: [q.value, q.unit] for q in verdict.quantities if np.isfinite(q.value)}
    return verdict.document() | {"quantities": numbers}


def sync_report(path: Path) -> SyncReport:
    """Return what an episode's stamps, rows and events say about its clocks; frames are not decoded.

    Raises:
        EpisodeError: If the episode cannot be read.
    """
    with Episode(path) as episode:
        streams = {name: StreamClock(info) for name, info in episode.streams.items()}
        for name, row in episode.stamps():
            streams[name].take(row)
        for entry in episode.models():
            clock = streams.get(entry.stream)
            if clock is not None:
                clock.method = entry.model.method
                skew_ppm = credible_skew_ppm(entry.model.skew_ppm)
                if skew_ppm is not None:
                    clock.skews_ppm.append(skew_ppm)
                clock.offsets.append((entry.model.epoch, entry.host_ns, _offset_ns(entry.model, clock.info)))
        events: list[EpisodeEvent] = []
        more = 0
        for event in episode.events():
            if event.kind != "clock":
                continue
            if event.stream in streams:
                streams[event.stream].events[event.fields.get("kind", "event")] += 1
            if len(events) < _MAX_EVENTS:
                events.append(event)
            else:
                more += 1
        pairs: dict[str, PairAlignment] = {}
        ticks = 0
        for sync_row in episode.rows():
            ticks += 1
            for match in sync_row.matches:
                _take_match(pairs.setdefault(match.stream, PairAlignment()), match)
        manifest = episode.manifest
        for record in manifest.streams if manifest is not None else ():
            if record.clock.method == BY_PULSES and record.info.name in streams:
                streams[record.info.name].method = BY_PULSES
        firsts = [clock.first_ns for clock in streams.values() if clock.first_ns is not None]
        lasts = [clock.last_ns for clock in streams.values() if clock.last_ns is not None]
        if not firsts:
            raise EpisodeError(f"{path} holds no samples; there is nothing to report")
        return SyncReport(
            episode.episode_id,
            manifest.reference if manifest is not None else "",
            manifest.span_ns if manifest is not None else (min(firsts), max(*lasts, min(firsts) + 1)),
            streams,
            pairs,
            {r.info.name: r.unmatched for r in manifest.streams if r.unmatched} if manifest else {},
            list(episode.bases()),
            events,
            more,
            ticks,
            recorded=manifest.clocks if manifest is not None else (),
            triggers=check_triggers(episode),
        )


def host_clock(bases: Sequence[BaseReading]) -> dict[str, Any]:
    """Return how the system's clock moved against the raw one while recording.

    Capture times are on the raw clock: a step or slew of the system clock changes none of them.
    """
    if len(bases) < 2:
        return {"readings": len(bases)}
    raw_s = np.array([base.raw_ns - bases[0].raw_ns for base in bases]) / SECOND_NS
    offset_us = np.array([base.utc_minus_host_ns - bases[0].utc_minus_host_ns for base in bases]) / 1e3
    slope, height = np.polyfit(raw_s, offset_us, 1) if raw_s[-1] > 0 else (0.0, 0.0)
    return {
        "readings": len(bases),
        "bracket_max_us": max(base.bracket_ns for base in bases) / 1e3,
        "realtime_rate_ppm": float(slope),
        "realtime_step_max_us": float(np.abs(offset_us - (slope * raw_s + height)).max()),
        "tai_minus_utc_s": round((bases[-1].tai_ns - bases[-1].realtime_ns) / SECOND_NS),
    }


def _offset_ns(model: Any, info: StreamInfo) -> float:
    """Return host minus nominal device time at the model's reference."""
    clock = info.clock
    return float(model.ref_host_ns - model.ref_ticks * clock.tick_ns_num // clock.tick_ns_den)


def _take_match(pair: PairAlignment, match: Any) -> None:
    pair.outcomes[match.outcome.value] += 1
    if match.outcome is Match.MATCHED:
        pair.is_interpolated = pair.is_interpolated or match.gap_ns > 0
        pair.residual.add(match.gap_ns or abs(match.residual_ns))
        pair.bound.add(match.bound_ns)
        pair.points.add(np.array([[match.gap_ns or match.residual_ns]], np.int64))


def _summary_us(found: Distribution) -> dict[str, float] | None:
    if not found.count:
        return None
    p50, p95, p99 = (found.percentile(percent) or 0.0 for percent in (50, 95, 99))
    return {"p50": p50 / 1e3, "p95": p95 / 1e3, "p99": p99 / 1e3, "max": found.max / 1e3}


# -- pictures


def render(report: SyncReport) -> str:
    """Return the report as one HTML page without any file beside it."""
    found = report.document()
    header = (
        f"<header><h1>clocks and alignment</h1>"
        f'<span class="when">{found["seconds"]:.1f} s, {found["ticks"]} ticks of '
        f"{page.text(report.reference or 'no reference')}</span>"
        f'<span class="id">{page.text(report.episode_id)}</span></header>'
    )
    steps = page.items(report.steps) or page.note(NOTHING_TO_DO)
    body = header + page.section("steps", "What to do", steps) + page.verdicts(by_weight(report.verdicts))
    body += _clock_table(found) + _clock_plots(report)
    body += _offset_plots(report) + _alignment(report, found) + _host(found) + _events(report)
    return page.page(f"sync report {report.episode_id}", body)


def write_sync_report(report: SyncReport, path: Path) -> Path:
    """Write the page and return its path.

    Raises:
        EpisodeError: If the disk does not take it.
    """
    try:
        path.write_text(render(report), encoding="utf-8")
    except OSError as err:
        raise EpisodeError(f"sync report {path} cannot be written: {err.strerror}") from err
    return path


def _clock_table(found: Mapping[str, Any]) -> str:
    head = ["stream", "clock", "rate (Hz)", "rate error (ppm)", "skew (ppm)", "epochs"]
    head += [
        "residual p50 / p99 / max (µs)",
        "bound p50 / p95 / max (µs)",
        "of it floor (µs)",
        "of it latency (µs)",
    ]
    rows = []
    for name, stream in found["streams"].items():
        bound, residual = stream["total95_us"], stream["residual_us"]
        rows.append(
            [
                f'<strong>{page.text(name)}</strong><span class="sub">{page.text(stream["modality"])}</span>',
                f'{page.text(stream["method"])}<span class="sub">{page.text(stream["clock"])}, '
                f"{page.text(stream['stamp_of'])}</span>",
                page.number(stream["rate_hz"], 3),
                page.number(stream["rate_error_ppm"], 1),
                page.number(stream["skew_ppm"], 2),
                page.number(stream["epochs"]),
                _three(residual, ("p50", "p99", "max")),
                _three(bound, ("p50", "p95", "max")),
                page.number(stream["floor_us"]["p95"], 1) if stream["floor_us"] else "",
                page.number(stream["asymmetry_us"], 1),
            ]
        )
    lead = (
        "Residual: arrival minus capture, less the declared minimum latency. Bound: what a capture time may be off "
        "by, 95 %. What no stamp shows (the constant minimum latency, unequal paths) is part of it, in the last column."
    )
    return page.section("clocks", "Clocks", page.table(head, rows, range(2, len(head))), lead)


def _three(found: Mapping[str, float] | None, keys: Sequence[str]) -> str:
    return "" if found is None else " / ".join(page.number(found[key], 0) for key in keys)


def _clock_plots(report: SyncReport) -> str:
    start_ns, length_s = report.span[0], (report.span[1] - report.span[0]) / SECOND_NS
    residuals, histograms = [], []
    for name, clock in report.streams.items():
        rows = clock.points.rows()
        if len(rows) < 3 or not (rows[:, 1] != 0).any():
            continue
        times_s, values_s = (rows[:, 0] - start_ns) / SECOND_NS, rows[:, 1] / SECOND_NS
        drawing = plots.clock_plot(
            times_s, values_s, rows[:, 2] / SECOND_NS, np.full(len(rows), np.nan), length_s
        )
        residuals.append(
            page.figure(drawing, name, "dots: residual; shaded: stated 95 % bound (logarithmic)")
        )
        histograms.append(page.figure(plots.histogram(values_s), name, f"{len(rows)} stamps"))
    return page.section(
        "residuals", "Residuals and uncertainty against time", page.grid(residuals, "three")
    ) + page.section("histograms", "Residuals", page.grid(histograms, "three"))


def _offset_plots(report: SyncReport) -> str:
    length_s = (report.span[1] - report.span[0]) / SECOND_NS
    figures = []
    for name, clock in report.streams.items():
        epochs = {epoch for epoch, _, _ in clock.offsets}
        for epoch in sorted(epochs):
            own = [(host_ns, offset) for each, host_ns, offset in clock.offsets if each == epoch]
            if len(own) < 3:
                continue
            host_ns = np.array([host for host, _ in own])
            offset_us = np.array([offset - own[0][1] for _, offset in own]) / 1e3
            slope = np.polyfit((host_ns - host_ns[0]) / SECOND_NS, offset_us, 1)[0]
            rest_us = offset_us - slope * (host_ns - host_ns[0]) / SECOND_NS
            envelope = Envelope(1, report.span)
            envelope.add(host_ns, rest_us[:, None])
            drawing = plots.wave_plot(envelope, [0], length_s, is_symmetric=False, is_wide=False)
            title = name if len(epochs) == 1 else f"{name}, epoch {epoch}"
            caption = f"host minus device time in µs, less its mean slope of {slope:.2f} ppm"
            figures.append(page.figure(drawing, title, caption))
    return page.section("offsets", "Offset against time", page.grid(figures, "two"))


def _alignment(report: SyncReport, found: Mapping[str, Any]) -> str:
    rows = []
    for name, pair in found["alignment"].items():
        matched = pair["outcomes"].get(Match.MATCHED.value, 0)
        others = {k: v for k, v in pair["outcomes"].items() if k != Match.MATCHED.value}
        numbers = pair["gap_us"] if pair["method"] == "interpolated" else pair["residual_us"]
        rows.append(
            [
                f"<strong>{page.text(name)}</strong>",
                pair["method"],
                page.number(matched),
                _three(numbers, ("p50", "p95", "max")),
                _reasons(others),
                _reasons(report.unmatched.get(name, {})),
            ]
        )
    head = ["stream", "method", "ticks matched", "residual or gap p50 / p95 / max (µs)"]
    head += ["ticks without a match", "samples unmatched"]
    figures = []
    for name, alignment in report.pairs.items():
        values_s = alignment.points.rows()[:, 0] / SECOND_NS
        if len(values_s) >= 3:
            what = "distance of the joined samples" if alignment.is_interpolated else "capture minus tick"
            figures.append(page.figure(plots.histogram(values_s), name, what))
    table = page.table(head, rows, (2, 3)) if rows else ""
    return page.section("alignment", "Alignment", table + page.grid(figures, "three"))


def _reasons(reasons: Mapping[str, int]) -> str:
    return page.text("; ".join(f"{count} {reason}" for reason, count in reasons.items()))


def _host(found: Mapping[str, Any]) -> str:
    host = found["host_clock"]
    rows = [[page.text(key.replace("_", " ")), page.number(value, 3)] for key, value in host.items()]
    lead = (
        "The system clock against the raw one, which capture times are on: steps here move no capture time."
    )
    return page.section("host", "Host clock", page.table(["", "value"], rows, (1,)), lead)


def _events(report: SyncReport) -> str:
    if not report.events:
        return ""
    rows = [
        [
            f"{(event.host_ns - report.span[0]) / SECOND_NS:.3f}",
            page.text(event.stream),
            page.text(event.detail),
        ]
        for event in report.events
    ]
    more = f"{report.more_events} more are not shown." if report.more_events else ""
    return page.section("events", "Clock events", page.table(["s", "stream", "what"], rows, (0,)), more)
