"""``sync report`` of an XDF file: what Lab Streaming Layer's stamps and offsets are worth, as data and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.reporting import page, plots
from sensorium.errors import SourceError
from sensorium.sync.clocks.lsl import LslClock, judge_stamps
from sensorium.sync.sources.xdf import XdfRecording, XdfStream
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "xdf_clock"
PYXDF_OFF_S = 1e-3
"""What pyxdf's corrections may move a stamp by before a user is told to load without them."""
_DOTS = 4000
_LISTED = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class XdfReport:
    """A file and what was found out about each of its streams, in file order."""

    recording: XdfRecording
    clocks: tuple[LslClock, ...]

    @property
    def pairs(self) -> list[tuple[XdfStream, LslClock]]:
        return list(zip(self.recording.streams, self.clocks, strict=True))

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One per stream on its stamps, and one on what pyxdf makes of them where there is something to say."""
        found = []
        for stream, clock in self.pairs:
            found.append(_verdict(stream, clock))
            moved = _pyxdf_verdict(stream, clock)
            if moved is not None:
                found.append(moved)
        return tuple(found)

    def document(self) -> dict[str, Any]:
        """Return the report as plain data, the form of ``--json``; times in seconds of the sender's clock."""
        return {
            "file": str(self.recording.path),
            "format": "xdf",
            "streams": {stream.label: _stream_document(stream, clock) for stream, clock in self.pairs},
            "problems": list(self.recording.problems),
            "checks": [verdict.document() for verdict in self.verdicts],
        }


def xdf_report(recording: XdfRecording) -> XdfReport:
    """Judge every stream of a file."""
    clocks = (
        judge_stamps(each.stamp_s, each.offset_at_s, each.offset_s, each.rate_hz)
        for each in recording.streams
    )
    return XdfReport(recording, tuple(clocks))


def pyxdf_off_s(stream: XdfStream, clock: LslClock) -> Floats | None:
    """Return (n,) how far pyxdf's stamps are from the raw ones on the recorder's clock; None if unknown."""
    return None if stream.pyxdf_s is None or not stream.stamp_s.size else stream.pyxdf_s - clock.time_s


def _stream_document(stream: XdfStream, clock: LslClock) -> dict[str, Any]:
    off_s = pyxdf_off_s(stream, clock)
    return {
        "type": stream.kind,
        "host": stream.host,
        "channels": stream.channels,
        "samples": int(stream.stamp_s.size),
        "rate_nominal_hz": stream.rate_hz or None,
        "rate_hz": clock.rate_hz,
        "jitter_us": _summary_us(clock.jitter_s) if stream.rate_hz else None,
        "gaps": {
            "count": len(clock.gaps),
            "lost": sum(gap.lost for gap in clock.gaps),
            "longest_s": max((gap.duration_s for gap in clock.gaps), default=None),
            "first": [[gap.after_s, gap.duration_s] for gap in clock.gaps[:_LISTED]],
        },
        "resets": [float(stream.stamp_s[index]) for index in clock.resets],
        "backwards": clock.backwards,
        "offset": {
            "readings": int(stream.offset_s.size),
            "live": int(clock.is_live.sum()),
            "epochs": [
                {
                    "from_s": line.begin_ns / SECOND_NS,
                    "to_s": line.end_ns / SECOND_NS,
                    "skew_ppm": line.skew * 1e6,
                    "residual_rms_us": line.residual_rms_ns / 1e3,
                    "live": line.live,
                    "repeats": line.repeats,
                }
                for line in clock.lines
            ],
            "frozen": [
                {
                    "from_s": run.begin_s,
                    "to_s": run.end_s,
                    "readings": run.readings,
                    "samples": run.samples,
                }
                for run in clock.frozen
            ],
            "at_s": stream.offset_at_s.tolist(),
            "offset_s": stream.offset_s.tolist(),
            "bound95_us": _summary_us(clock.bound_s),
        },
        "pyxdf_off_us": None if off_s is None else _summary_us(np.abs(off_s)),
    }


def _verdict(stream: XdfStream, clock: LslClock) -> Verdict:
    reasons = []
    if clock.resets:
        when = ", ".join(f"{stream.stamp_s[index]:.3f}" for index in clock.resets[:_LISTED])
        reasons.append(f"the sender's clock was restarted ({len(clock.resets)} times); it then said {when} s")
    reasons += [
        f"{run.readings} offsets in a row repeat one value, {run.begin_s:.1f} to {run.end_s:.1f} s: nobody measured"
        f" any more ({run.samples} samples lie there); they are left out"
        for run in clock.frozen
    ]
    if clock.backwards:
        reasons.append(f"{clock.backwards} stamps lie before the one before")
    if clock.gaps:
        lost, longest = sum(gap.lost for gap in clock.gaps), max(gap.duration_s for gap in clock.gaps)
        reasons.append(f"{len(clock.gaps)} gaps, the longest {longest:.3f} s; {lost} samples would fit in")
    status = Status.SUSPECT if reasons else Status.OK
    if not stream.stamp_s.size:
        reasons.append("it holds no samples")
        status = Status.INSUFFICIENT
    elif not np.isfinite(clock.bound_s).all():
        reasons.append(
            f"{int(clock.is_live.sum())} offsets were measured, too few for a line: its stamps are those of its"
            " sender, and how far they are from the recorder's clock is not known"
        )
        status = Status.INSUFFICIENT
    return Verdict(CHECK, stream.label, status, _quantities(stream, clock), tuple(reasons))


def _quantities(stream: XdfStream, clock: LslClock) -> tuple[Quantity, ...]:
    found = [Quantity("samples", float(stream.stamp_s.size), "1")]
    if clock.rate_hz is not None:
        found.append(Quantity("rate", clock.rate_hz, "Hz"))
    bound_s = clock.bound_s[np.isfinite(clock.bound_s)]
    if bound_s.size:
        found.append(Quantity("bound", float(np.percentile(bound_s, 95)) * 1e6, "us"))
    return tuple(found)


def _pyxdf_verdict(stream: XdfStream, clock: LslClock) -> Verdict | None:
    off_s = pyxdf_off_s(stream, clock)
    if off_s is None:
        return None
    p99, worst = (float(np.percentile(np.abs(off_s), percent)) * 1e6 for percent in (99, 100))
    quantities = (Quantity("p99", p99, "us", PYXDF_OFF_S * 1e6), Quantity("max", worst, "us"))
    if worst <= PYXDF_OFF_S * 1e6:
        return Verdict("pyxdf_stamps", stream.label, Status.OK, quantities, ())
    reason = (
        f"pyxdf moves its stamps by up to {worst / 1e3:.1f} ms (p99 {p99 / 1e3:.1f} ms) from what was measured; load"
        " it with dejitter_timestamps=False, and where offsets are frozen with synchronize_clocks=False, too"
    )
    return Verdict("pyxdf_stamps", stream.label, Status.SUSPECT, quantities, (reason,))


def _summary_us(values_s: Floats) -> dict[str, float] | None:
    used = values_s[np.isfinite(values_s)] * 1e6
    if not used.size:
        return None
    p50, p95, p99, worst = np.percentile(used, (50, 95, 99, 100)).tolist()
    return {"p50": p50, "p95": p95, "p99": p99, "max": worst}


# -- the page


def render(report: XdfReport) -> str:
    """Return the report as one HTML page without any file beside it."""
    name = report.recording.path.name
    header = (
        f"<header><h1>clocks of an XDF file</h1>"
        f'<span class="when">{len(report.clocks)} streams</span><span class="id">{page.text(name)}</span></header>'
    )
    body = header + page.verdicts(report.verdicts)
    body += page.section("problems", "Not read", page.items(report.recording.problems))
    return page.page(
        f"sync report {name}", body + _table(report) + _clock_figures(report) + _offset_figures(report)
    )


def write_xdf_report(report: XdfReport, path: Path) -> Path:
    """Write the page and return its path.

    Raises:
        SourceError: If the disk does not take it.
    """
    try:
        path.write_text(render(report), encoding="utf-8")
    except OSError as err:
        raise SourceError(
            f"sync report {path} cannot be written: {err.strerror}; say where it may lie with --html"
        ) from err
    return path


HEAD = (
    "stream",
    "samples",
    "rate Hz",
    "jitter p50/p99 us",
    "gaps",
    "offsets",
    "skew ppm",
    "bound p95 us",
    "pyxdf off p99/max us",
)


def table_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return one row per stream of the document, as :data:`HEAD` names them."""
    rows = []
    for name, stream in found["streams"].items():
        offset, nominal = stream["offset"], stream["rate_nominal_hz"]
        rate = "" if stream["rate_hz"] is None else f"{stream['rate_hz']:.3f}"
        rows.append(
            [
                name,
                f"{stream['samples']}",
                f"{rate} of {nominal:g}" if nominal else rate or "irregular",
                _two(stream["jitter_us"], "p50", "p99"),
                f"{stream['gaps']['count']}",
                f"{offset['live']} of {offset['readings']}",
                " / ".join(f"{epoch['skew_ppm']:.2f}" for epoch in offset["epochs"] if epoch["live"] > 1),
                "" if offset["bound95_us"] is None else f"{offset['bound95_us']['p95']:.1f}",
                _two(stream["pyxdf_off_us"], "p99", "max"),
            ]
        )
    return rows


def _two(found: Mapping[str, float] | None, first: str, second: str) -> str:
    return "" if found is None else f"{found[first]:.1f} / {found[second]:.1f}"


def _table(report: XdfReport) -> str:
    rows = [[page.text(cell) for cell in row] for row in table_rows(report.document())]
    lead = (
        "Rate: between the gaps. Jitter: an interval against the middle one. Offsets: those that were measured, of "
        "those that are stored; repeats of one value are not. Bound: of the offset's line, 95 %; what unequal ways "
        "through the network hide is not in the file. pyxdf: its stamps against raw stamps plus that line."
    )
    return page.section("clocks", "Clocks", page.table(list(HEAD), rows, range(1, len(HEAD))), lead)


def _clock_figures(report: XdfReport) -> str:
    figures = []
    for stream, clock in report.pairs:
        if stream.stamp_s.size < 3:
            continue
        chosen = _spread(stream.stamp_s.size - 1)
        at_s = clock.time_s[1:][chosen] - clock.time_s[0]
        length_s = max(float(clock.time_s[-1] - clock.time_s[0]), 1e-3)
        off_s = pyxdf_off_s(stream, clock)
        error_s = np.full(chosen.size, np.nan) if off_s is None else off_s[1:][chosen]
        bound_s, jitter_s = np.nan_to_num(clock.bound_s[1:][chosen]), np.nan_to_num(clock.jitter_s[chosen])
        drawing = plots.clock_plot(at_s, jitter_s, bound_s, error_s, length_s)
        caption = "Dots: jitter of the raw intervals. Shaded: bound of the offset's line. Line: what pyxdf is off by."
        figures.append(page.figure(drawing, stream.label, caption))
    return page.section("plots", "Stamps against time", page.grid(figures, "two"))


def _offset_figures(report: XdfReport) -> str:
    figures = []
    for stream, clock in report.pairs:
        if stream.offset_s.size < 3:
            continue
        drawing = plots.readings_plot(
            clock.offset_time_s - clock.offset_time_s[0], clock.offset_left_s * 1e6, clock.is_live
        )
        skews = " / ".join(f"{line.skew * 1e6:.2f}" for line in clock.lines)
        caption = f"Offset readings in us less their line ({skews} ppm). Red: repeats of one value, left out."
        figures.append(page.figure(drawing, stream.label, caption))
    return page.section("offsets", "Clock offsets", page.grid(figures, "two"))


def _spread(count: int) -> NDArray[np.intp]:
    """Return at most :data:`_DOTS` places in 0 ... count - 1, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, _DOTS)).astype(np.intp))
