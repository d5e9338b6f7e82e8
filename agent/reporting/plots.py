"""Drawings of the report as inline SVG; colours come from the page's style sheet."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.reporting.survey import TIME_BINS, Envelope

_Floats = NDArray[np.float64]
_Scale = Callable[[float], float]

WIDTH = 1140
_LABEL = 160
_LANE = 24
_TOP = 30
_LINES = 6
"""Colours of lines in one panel; the style sheet has as many."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of a lane, in seconds since the start; ``kind`` is its class in the style sheet."""

    start_s: float
    end_s: float
    kind: str
    tip: str


@dataclass(slots=True)
class Lane:
    """One row of the timeline; ``note`` is written into it when it holds nothing."""

    name: str
    modality: str
    bars: list[Bar] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Flag:
    """Something that happened at an instant; ``lane`` is a stream, or "" for the whole episode."""

    at_s: float
    kind: str
    tip: str
    lane: str = ""


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from ``low`` to ``high``, about so many."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    raw = span / max(about, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    size = abs(seconds)
    if size < 5e-10:
        return "0 s"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if size * factor >= 0.9995:
            return f"{_digits(seconds * factor)} {unit}"
    return f"{_digits(seconds * 1e9)} ns"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"


# -- timeline


def timeline(lanes: Sequence[Lane], flags: Sequence[Flag], bands: Sequence[Bar], length_s: float) -> str:
    """Return the timeline of an episode: a lane per stream, flags on top, bands (pauses) across."""
    height = _TOP + _LANE * len(lanes) + 28
    bottom = _TOP + _LANE * len(lanes)

    def x(seconds: float) -> float:
        share = min(max(seconds / length_s, 0.0), 1.0) if length_s > 0 else 0.0
        return _LABEL + share * (WIDTH - _LABEL - 10)

    parts = [_axis(x, length_s, bottom)]
    for index, lane in enumerate(lanes):
        parts.append(_lane(lane, _TOP + index * _LANE, x))
    for band in bands:
        left, right = x(band.start_s), x(band.end_s)
        parts.append(
            f'<rect class="{band.kind}" x="{left:.1f}" y="{_TOP - 6}" width="{max(right - left, 2):.1f}" '
            f'height="{bottom - _TOP + 6}">{_tip(band.tip)}</rect>'
        )
    rows = {lane.name: _TOP + index * _LANE for index, lane in enumerate(lanes)}
    parts += [_flag(flag, x(flag.at_s), rows.get(flag.lane), bottom) for flag in flags]
    return _svg(WIDTH, height, "".join(parts), "timeline", "Timeline of all streams")


def _axis(x: _Scale, length_s: float, bottom: int) -> str:
    parts = []
    for tick in nice_ticks(0.0, length_s, 10):
        parts.append(
            f'<line class="tick" x1="{x(tick):.1f}" y1="{_TOP - 6}" x2="{x(tick):.1f}" y2="{bottom}"/>'
        )
        parts.append(
            f'<text class="axis" text-anchor="middle" x="{x(tick):.1f}" y="{bottom + 16}">{tick:g}</text>'
        )
    parts.append(f'<text class="axis" x="{_LABEL - 12}" text-anchor="end" y="{bottom + 16}">seconds</text>')
    return "".join(parts)


def _lane(lane: Lane, top: int, x: _Scale) -> str:
    middle = top + _LANE / 2
    label = (
        f'<text class="lane" x="{_LABEL - 12}" y="{middle + 4}" text-anchor="end">{escape(_short(lane.name))}'
    )
    parts = [label + _tip(f"{lane.name} ({lane.modality})") + "</text>"]
    parts.append(f'<line class="rail" x1="{_LABEL}" y1="{middle}" x2="{WIDTH - 10}" y2="{middle}"/>')
    for bar in lane.bars:
        left, right = x(bar.start_s), x(bar.end_s)
        parts.append(
            f'<rect class="{bar.kind}" x="{left:.1f}" y="{top + 4}" width="{max(right - left, 1.6):.1f}" '
            f'height="{_LANE - 8}" rx="2">{_tip(bar.tip)}</rect>'
        )
    if lane.note:
        parts.append(
            f'<rect class="denied" x="{_LABEL}" y="{top + 4}" width="{WIDTH - 10 - _LABEL}" '
            f'height="{_LANE - 8}" rx="2"/>'
            f'<text class="note" x="{_LABEL + 8}" y="{middle + 4}">{escape(lane.note[:140])}</text>'
        )
    return "".join(parts)


def _short(name: str) -> str:
    return name if len(name) <= 21 else f"{name[:8]}…{name[-12:]}"


def _flag(flag: Flag, at: float, lane_top: int | None, bottom: int) -> str:
    if lane_top is not None:
        y = lane_top + _LANE / 2
        return f'<path class="{flag.kind}" d="M{at:.1f},{y - 7}l5,9h-10z">{_tip(flag.tip)}</path>'
    return (
        f'<g class="{flag.kind}"><line x1="{at:.1f}" y1="12" x2="{at:.1f}" y2="{bottom}"/>'
        f'<circle cx="{at:.1f}" cy="12" r="5.5">{_tip(flag.tip)}</circle></g>'
    )


# -- small plots


@dataclass(frozen=True, slots=True)
class Frame:
    """The drawing area of a small plot and its scales."""

    width: int
    height: int
    left: int
    low: float
    high: float
    length_s: float
    top: int = 8
    bottom: int = 20

    def x(self, seconds: _Floats | float) -> _Floats:
        return np.asarray(self.left + np.asarray(seconds) / self.length_s * (self.width - self.left - 8))

    def y(self, values: _Floats | float) -> _Floats:
        share = (np.asarray(values) - self.low) / (self.high - self.low)
        return np.asarray(self.height - self.bottom - share * (self.height - self.bottom - self.top))

    def time_axis(self, about: int) -> str:
        ticks = nice_ticks(0.0, self.length_s, about)
        base = self.height - self.bottom
        return "".join(
            f'<text class="axis" text-anchor="middle" x="{float(self.x(tick)):.1f}" y="{base + 14}">{tick:g}'
            f"{' s' if tick == ticks[-1] else ''}</text>"
            for tick in ticks
        )

    def grid(self, value: float, label: str) -> str:
        at = float(self.y(value))
        return (
            f'<line class="tick" x1="{self.left}" y1="{at:.1f}" x2="{self.width - 8}" y2="{at:.1f}"/>'
            f'<text class="axis" text-anchor="end" x="{self.left - 5}" y="{at + 4:.1f}">{escape(label)}</text>'
        )


def clock_plot(
    times_s: _Floats, jitter_s: _Floats, bound_s: _Floats, error_s: _Floats, length_s: float
) -> str:
    """Return one stream's clock on a logarithmic scale.

    Grey dots: arrival minus capture minus the known minimum. Shaded: the stated 95 % bound. Line: largest
    absolute error against truth, where ``error_s`` is not NaN.
    """
    floor_s = 1e-7
    values = np.concatenate([np.abs(jitter_s), bound_s, np.abs(error_s[~np.isnan(error_s)])])
    values = values[values > floor_s]
    least = max(float(np.quantile(values, 0.02)), floor_s) if len(values) else 1e-6
    low = math.floor(math.log10(least) - 0.2)
    high = math.ceil(math.log10(float(values.max())) + 1e-9) if len(values) else -3
    frame = Frame(372, 176, 50, low, max(high, low + 2), length_s)
    parts = [
        frame.grid(decade, duration_text(10.0**decade))
        for decade in range(int(frame.low), int(frame.high) + 1)
    ]
    bins = np.clip((times_s / length_s * 120).astype(int), 0, 119)
    parts.append(_bound_area(frame, *_binned_max(bins, times_s, bound_s)))
    parts.append(_dots(frame, times_s, jitter_s, "jitter"))
    has_truth = ~np.isnan(error_s)
    if has_truth.any():
        at, worst = _binned_max(bins[has_truth], times_s[has_truth], np.abs(error_s[has_truth]))
        parts.append(f'<path class="error" d="{_line(frame.x(at), frame.y(_log(worst, frame.low)))}"/>')
    parts.append(frame.time_axis(5))
    return _svg(frame.width, frame.height, "".join(parts), "plot", "Clock residuals")


def readings_plot(times_s: _Floats, values: _Floats, is_used: NDArray[np.bool_]) -> str:
    """Return readings against time; those that are not used are marked."""
    shown = values[is_used] if is_used.any() else values
    reach = max(1.2 * float(np.abs(shown).max()), 1e-3)
    frame = Frame(562, 128, 56, -reach, reach, max(float(times_s[-1]), 1e-3))
    parts = [frame.grid(tick, f"{tick:.4g}") for tick in nice_ticks(-reach, reach, 4)]
    inside = np.clip(values, -reach, reach)
    for chosen, kind in ((~is_used, "unused"), (is_used, "used")):
        xs, ys = frame.x(times_s[chosen]), frame.y(inside[chosen])
        parts += [
            f'<circle class="reading {kind}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>'
            for x, y in zip(xs.tolist(), ys.tolist(), strict=True)
        ]
    parts.append(frame.time_axis(6))
    return _svg(frame.width, frame.height, "".join(parts), "plot", "Readings")


def _log(values: _Floats, low: float) -> _Floats:
    return np.asarray(np.log10(np.maximum(values, 10.0**low)))


def _binned_max(bins: NDArray[np.int64], times_s: _Floats, values: _Floats) -> tuple[_Floats, _Floats]:
    used, index = np.unique(bins, return_inverse=True)
    at, worst = np.full(len(used), np.inf), np.full(len(used), -np.inf)
    np.minimum.at(at, index, times_s)
    np.maximum.at(worst, index, values)
    return at, worst


def _bound_area(frame: Frame, at_s: _Floats, bound_s: _Floats) -> str:
    if not len(at_s) or not (bound_s > 0).any():
        return ""
    xs, ys = frame.x(at_s), np.clip(frame.y(_log(bound_s, frame.low)), 0, frame.height - frame.bottom)
    if len(xs) == 1:  # a single frame still shows its bound
        xs, ys = np.array([xs[0] - 4, xs[0] + 4]), np.repeat(ys, 2)
    base = frame.height - frame.bottom
    line = _line(xs, ys)
    area = f"M{xs[0]:.1f},{base}L{line[1:]}L{xs[-1]:.1f},{base}z"
    return f'<path class="bound" d="{area}"/><path class="boundline" d="{line}"/>'


def _dots(frame: Frame, times_s: _Floats, values: _Floats, kind: str) -> str:
    keep = values > 10.0**frame.low
    xs, ys = frame.x(times_s[keep]), frame.y(_log(values[keep], frame.low))
    path = "".join(f"M{x:.1f},{y:.1f}h0" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
    return f'<path class="{kind}" d="{path}"/>'


def _line(xs: Iterable[float], ys: Iterable[float]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def wave_plot(
    envelope: Envelope, columns: Sequence[int], length_s: float, is_symmetric: bool, is_wide: bool
) -> str:
    """Return the min/max envelope of some columns over the whole episode."""
    low_values, high_values = envelope.low[:, columns], envelope.high[:, columns]
    finite = np.isfinite(low_values) & np.isfinite(high_values)
    if not finite.any():
        return ""
    low, high = float(low_values[finite].min()), float(high_values[finite].max())
    if is_symmetric:
        high = max(abs(low), abs(high), 1e-4)
        low = -high
    margin = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-9)
    frame = Frame(WIDTH if is_wide else 562, 128, 56, low - margin, high + margin, length_s)
    parts = [frame.grid(tick, f"{tick:.4g}") for tick in nice_ticks(low - margin, high + margin, 4)]
    for line, column in enumerate(columns):
        path = _envelope_path(frame, envelope.low[:, column], envelope.high[:, column])
        parts.append(f'<path class="wave w{line % _LINES}" d="{path}"/>')
    parts.append(frame.time_axis(12 if is_wide else 6))
    return _svg(frame.width, frame.height, "".join(parts), "plot", "Waveform")


def _envelope_path(frame: Frame, low: _Floats, high: _Floats) -> str:
    """Return a stroke from low to high in every bin; bins far apart (a gap) are not joined."""
    used = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    if not len(used):
        return ""
    steps = np.diff(used, prepend=used[0])
    limit = max(3 * float(np.median(steps[1:])), 2.0) if len(used) > 1 else 2.0
    xs = frame.x((used + 0.5) / TIME_BINS * frame.length_s).tolist()
    tops, bottoms = frame.y(high[used]).tolist(), frame.y(low[used]).tolist()
    parts = []
    for index, (x, top, bottom) in enumerate(zip(xs, tops, bottoms, strict=True)):
        near, far = (top, bottom) if index % 2 else (bottom, top)
        move = "M" if index == 0 or steps[index] > limit else "L"
        parts.append(f"{move}{x:.1f},{near:.1f}" + (f"V{far:.1f}" if far != near else "h.1"))
    return "".join(parts)


def histogram(values_s: _Floats) -> str:
    """Return a histogram of residuals (signed, seconds)."""
    low, high = (float(value) for value in np.quantile(values_s, (0.005, 0.995)))
    margin = max(0.05 * (high - low), 0.02 * abs(high + low), 1e-6)  # what hardly varies shows as one peak
    low, high = low - margin, high + margin
    counts, edges = np.histogram(np.clip(values_s, low, high), 40, (low, high))
    width, height, base = 372, 130, 106
    scale = (width - 24) / (high - low)
    bars = "".join(
        f'<rect class="count" x="{12 + (left - low) * scale:.1f}" y="{base - 92 * count / counts.max():.1f}" '
        f'width="{(high - low) / 40 * scale - 1:.1f}" height="{92 * count / counts.max():.1f}">'
        f"{_tip(f'{count} at {duration_text(float(left))}')}</rect>"
        for left, count in zip(edges[:-1], counts, strict=True)
        if count
    )
    ticks = "".join(
        f'<text class="axis" text-anchor="middle" x="{12 + (tick - low) * scale:.1f}" y="{base + 16}">'
        f"{duration_text(tick)}</text>"
        for tick in nice_ticks(low, high, 4)
        if 24 < 12 + (tick - low) * scale < width - 24
    )
    zero = ""
    if low < 0 < high:
        at = 12 - low * scale
        zero = f'<line class="zero" x1="{at:.1f}" y1="6" x2="{at:.1f}" y2="{base}"/>'
    line = f'<line class="rail" x1="12" y1="{base}" x2="{width - 12}" y2="{base}"/>'
    return _svg(width, height, zero + bars + line + ticks, "plot", "Alignment residuals")


def _svg(width: int, height: int, content: str, kind: str, label: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{content}</svg>"
    )
