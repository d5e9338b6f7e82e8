"""The clocks: what the estimator saw, what it claims, and what it got wrong."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.reporting import page, plots
from sensorium.agent.reporting.events import verdict_table
from sensorium.agent.reporting.material import Material, attempt, names_text
from sensorium.sync.episode.manifest import StreamRecord
from sensorium.timebase import SECOND_NS

_FEW_STAMPS = 3
_Int64s = NDArray[np.int64]
_Floats = NDArray[np.float64]


def clocks(material: Material) -> str:
    figures = []
    sentences: dict[str, list[str]] = {}
    for record in material.records:
        found = material.streams.get(record.info.name)
        if found is None or not len(found.clock.rows()):
            continue
        sentence = _undrawn(found.clock.rows())
        if sentence:
            sentences.setdefault(sentence, []).append(record.info.name)
        else:
            name = f"clock of {record.info.name}"
            figures.append(attempt(name, partial(_clock, material, record, found.clock.rows())))
    body = page.grid(figures, "three") + (_CLOCK_LEGEND if figures else "")
    body += "".join(page.note(f"{sentence}: {names_text(names)}") for sentence, names in sentences.items())
    body += verdict_table(material.found["clocks"]["checks"])
    return page.section("clocks", "Clocks", body, _CLOCK_LEAD if figures else "")


def _undrawn(rows: _Int64s) -> str:
    """Return why a stream's clock is not worth a drawing, or ""."""
    if len(rows) < _FEW_STAMPS:
        return f"Fewer than {_FEW_STAMPS} stamps"
    if (rows[:, 2] != rows[:, 3]).any() or (rows[:, 4] != rows[0, 4]).any():
        return ""
    if rows[0, 4] == 0:
        return "Capture times are those of the recording itself, nothing was estimated"
    bound = plots.duration_text(float(rows[0, 4]) / SECOND_NS)
    return f"No device clock: capture time is arrival, stated 95 % bound {bound}"


_CLOCK_LEAD = (
    "Logarithmic. What the estimator had to see through (arrival minus capture, less the known minimum), what it "
    "claims, and, where a simulator knows, what it got wrong."
)
_CLOCK_LEGEND = (
    '<div class="legend"><span><i style="background:var(--soft)"></i>latency beyond the known minimum</span>'
    '<span><i style="background:var(--amber)"></i>stated 95 % bound</span>'
    '<span><i style="background:var(--accent)"></i>largest error against truth</span></div>'
)


def _clock(material: Material, record: StreamRecord, rows: _Int64s) -> str:
    info = record.info
    arrival, capture = rows[:, 2], rows[:, 3]
    jitter_s = (arrival - capture - info.latency.min_ns) / SECOND_NS
    if (arrival == capture).all():
        jitter_s = np.zeros(len(rows))
    error_s = _truth_error(rows, material.truth.get(info.name)) / SECOND_NS
    drawing = plots.clock_plot(
        material.seconds(capture), jitter_s, rows[:, 4] / SECOND_NS, error_s, material.length_s
    )
    return page.figure(
        drawing, info.name, _clock_caption(record, material.found["streams"].get(info.name, {}))
    )


def _clock_caption(record: StreamRecord, numbers: Mapping[str, Any]) -> str:
    clock = record.clock
    parts = [clock.method or "no device clock"]
    if clock.skew_ppm is not None:
        parts.append(f"skew {clock.skew_ppm:.1f} ppm")
    if clock.uncertainty_p95_us is not None:
        parts.append(f"bound p95 {plots.duration_text(clock.uncertainty_p95_us / 1e6)}")
    if numbers.get("clock_error_p99_us") is not None:
        parts.append(f"error p99 {plots.duration_text(numbers['clock_error_p99_us'] / 1e6)}")
    if clock.asymmetry_us:
        parts.append(f"of it minimum latency {plots.duration_text(clock.asymmetry_us / 1e6)}")
    if clock.epochs > 1:
        parts.append(f"{clock.epochs} epochs")
    parts += [f"{kind}: {count}" for kind, count in clock.events.items()]
    return " · ".join(parts)


def _truth_error(rows: _Int64s, truth: _Int64s | None) -> _Floats:
    """Return (n,) capture minus true capture in ns, NaN where the truth does not say.

    A restarted driver's truth begins again at number zero, in the order of the instances.
    """
    errors = np.full(len(rows), np.nan)
    if truth is None or not len(truth):
        return errors
    segments = np.split(truth, np.flatnonzero(np.diff(truth[:, 0]) < 0) + 1)
    for instance, segment in zip(dict.fromkeys(rows[:, 0].tolist()), segments, strict=False):
        mine = np.flatnonzero(rows[:, 0] == instance)
        at = np.clip(np.searchsorted(segment[:, 0], rows[mine, 1]), 0, len(segment) - 1)
        known = segment[at, 0] == rows[mine, 1]
        errors[mine[known]] = rows[mine[known], 3] - segment[at[known], 1]
    return errors
