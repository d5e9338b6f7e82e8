"""The tables of streams and of their alignment."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.reporting import page, plots
from sensorium.agent.reporting.material import Material, attempt, names_text, where_text
from sensorium.timebase import SECOND_NS

_Int64s = NDArray[np.int64]
_Floats = NDArray[np.float64]


_FEW_VALUES = 3


def streams(material: Material) -> str:
    streams: Mapping[str, Mapping[str, Any]] = material.found["streams"]
    has_truth = any("clock_error_p99_us" in stream for stream in streams.values())
    head = ["stream", "produced", "recorded", "dropped", "rate (Hz)", "skew (ppm)", "uncertainty p95 (µs)"]
    head += ["error p99 (µs)", "start-up p99 (µs)", "covered (%)"] if has_truth else []
    head += ["from the sensor", "stored"]
    rows = [_stream_row(name, stream, has_truth) for name, stream in streams.items()]
    lead = "Samples produced = recorded + dropped; a drop names its place and reason."
    if has_truth:
        lead += (
            " Error: capture time against the simulator's truth, after each stream's first 5 s; covered: share "
            "of errors within the stated 95 % bound."
        )
    episodes = material.found["episodes"]
    if len(episodes) > 1:
        lead += (
            f" The session has {len(episodes)} episodes: numbers are sums over all, pictures show the last."
        )
    return page.section("streams", "Streams", page.table(head, rows, range(1, len(head))), lead)


def _stream_row(name: str, stream: Mapping[str, Any], has_truth: bool) -> list[str]:
    dropped = sum(stream["dropped"].values())
    reasons = where_text(stream["dropped_reasons"])
    sub = f"{stream['modality']} · counted by {stream['produced_by']}"
    loss = f'<span class="sub loss">{page.text(reasons)}</span>' if reasons else ""
    cells = [
        f'<strong>{page.text(name)}</strong><span class="sub">{page.text(sub)}</span>{loss}',
        page.number(stream["produced"]),
        page.number(stream["recorded"]),
        f'<span class="loss">{page.number(dropped)}</span>' if dropped else "0",
        page.number(stream["rate_hz"] or None, 2),
        page.number(stream["clock_skew_ppm"], 1),
        page.number(stream["clock_uncertainty_p95_us"], 0),
    ]
    if has_truth:
        coverage = stream.get("clock_bound_coverage")
        cells += [
            page.number(stream.get("clock_error_p99_us"), 1),
            page.number(stream.get("clock_error_start_up_p99_us"), 0),
            page.number(None if coverage is None else 100 * coverage, 1),
        ]
    return [*cells, page.size(stream["bytes_raw"]), page.size(stream["bytes_stored"])]


def alignment(material: Material) -> str:
    manifest = material.manifest
    if manifest is None:
        return ""
    numbers = {pair.b: pair for pair in manifest.pairs}
    names = [r.info.name for r in manifest.streams if r.info.name in numbers or r.unmatched]
    grouped: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        pair = numbers.get(name)
        values = ["", "", ""] if pair is None else [_us(v) for v in (pair.p50_us, pair.p95_us, pair.max_us)]
        method = "reference" if name == manifest.reference else pair.method if pair else ""
        found = material.survey.pairs.get(name) if material.survey else None
        unmatched, without = _counts(manifest.stream(name).unmatched), _counts(found.without if found else {})
        key = (method, *values, unmatched, without, "" if pair is None else name)
        grouped.setdefault(key, []).append(name)  # many topics of a bag match nothing, all for one reason
    rows = [
        [f"<strong>{page.text(names_text(members, 3))}</strong>", *(page.text(cell) for cell in key[:-1])]
        for key, members in grouped.items()
    ]
    head = [
        "stream",
        "method",
        "p50 (µs)",
        "p95 (µs)",
        "max (µs)",
        "samples unmatched",
        "ticks without a match",
    ]
    lead = f"Every tick of {page.text(manifest.reference)} lists what matches it, or why nothing does."
    body = page.table(head, rows, (2, 3, 4)) if rows else ""
    return page.section("alignment", "Alignment", body + _histograms(material), lead)


def _us(value: float) -> str:
    return page.number(value, 0 if abs(value) >= 100 else 1)


def _counts(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{page.number(count)} {reason}" for reason, count in reasons.items())


def _histograms(material: Material) -> str:
    figures = []
    for name, pair in (material.survey.pairs if material.survey else {}).items():
        values_s = pair.residual_ns.rows()[:, 0] / SECOND_NS
        if len(values_s) < _FEW_VALUES:
            continue
        what = "distance of the samples that are joined" if pair.is_interpolated else "capture minus tick"
        caption = f"{what}, {len(values_s)} ticks"
        make = partial(_histogram, name, values_s, caption)
        figures.append(attempt(f"residuals of {name}", make))
    return page.grid(figures, "three")


def _histogram(name: str, values_s: _Floats, caption: str) -> str:
    return page.figure(plots.histogram(values_s), name, caption)
