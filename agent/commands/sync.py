"""What ``sensorium sync ...`` does; each function returns an exit code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from sensorium.agent.commands.display import Progress, coloured
from sensorium.agent.commands.output import print_json
from sensorium.agent.commands.terminal import styled, table_console
from sensorium.agent.reporting.sync import NOTHING_TO_DO, SyncReport, sync_report, write_sync_report
from sensorium.calibration.geometry import Intrinsics
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError, UsageError
from sensorium.sync.clocks.model import Uncertainty
from sensorium.sync.content.check import ContentInputs, check_content
from sensorium.sync.distribution import Distribution
from sensorium.sync.episode.files import CALIBRATION_FILE, REMAP_FILE, SYNC_REPORT_FILE
from sensorium.sync.episode.folder import file_in
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.remapped import read_remap, write_remap
from sensorium.sync.reading.locate import folder_of, locate
from sensorium.sync.sources.xdf import is_xdf, read_xdf
from sensorium.verdict import Status, Verdict

CLAP_BOUND_M = 0.1
"""How well a user paces off the distance of a clap: 0.3 ms of sound."""


@dataclass(slots=True)
class _Bounds:
    """What the frames of a stream state: the whole bound, and what was measured of it."""

    total95: Distribution = field(default_factory=Distribution)
    bound95: Distribution = field(default_factory=Distribution)

    def add(self, known: Uncertainty) -> None:
        self.total95.add(known.total95_ns)
        self.bound95.add(known.bound95_ns)

    def p50_us(self) -> dict[str, float]:
        return {"total95": _percentile_us(self.total95, 50), "bound95": _percentile_us(self.bound95, 50)}


@dataclass(slots=True)
class _Moved:
    """By how much a re-map moved the frames of a stream, and what was stated of them before and after."""

    by: Distribution = field(default_factory=Distribution)
    before: _Bounds = field(default_factory=_Bounds)
    after: _Bounds = field(default_factory=_Bounds)


def content_inputs(clap_m: float | None, filter_delays: Sequence[str]) -> ContentInputs:
    """Return what the user says about the place of claps and the filters of sensors.

    Raises:
        UsageError: If a delay is not ``STREAM=MS``.
    """
    delays: dict[str, float] = {}
    for text in filter_delays:
        name, _, value = text.partition("=")
        try:
            delays[name] = float(value) * 1e6
        except ValueError as err:
            raise UsageError(f"--filter-delay {text}: give STREAM=MS, such as imu=3.2") from err
    if clap_m is None:
        return ContentInputs(filter_delay_ns=delays)
    return ContentInputs(clap_m, CLAP_BOUND_M, delays)


def report_sync(text: str | Path, html: Path | None, *, inputs: ContentInputs | None, as_json: bool) -> int:
    """Print what an episode's clocks did and write the page with plots; exit code 1 if a verdict failed.

    Args:
        text: An episode, as :func:`sensorium.sync.reading.locate.locate` takes it, or an XDF file.
        inputs: What the content check needs to be told; None = do not ask the sensors' data.
    """
    episode = folder_of(text)
    if is_xdf(episode):
        if inputs is not None and inputs != ContentInputs():
            raise UsageError(f"--clap-m and --filter-delay are for episodes; {episode.name} is an XDF file")
        return _report_xdf(episode, html, as_json=as_json)
    located = locate(text)
    episode = located.folder.resolve()
    with Progress("sync report", as_json) as progress:
        progress.show({"phase": "reading stamps"})
        report = sync_report(episode)
        if inputs is not None:
            for name in inputs.filter_delay_ns:
                if name not in report.streams:
                    known = ", ".join(report.streams)
                    raise UsageError(f"--filter-delay {name}: no such stream; known: {known}")
            progress.show({"phase": "comparing the clocks with what the sensors saw"})
            report.content = _content(episode, inputs)
        progress.show({"phase": "drawing"})
        path = write_sync_report(report, html or located.output(SYNC_REPORT_FILE))
    if as_json:
        print_json({**report.document(), "html": str(path)})
    else:
        _print(report, path)
    return 1 if any(verdict.status is Status.FAILED for verdict in report.verdicts) else 0


def _report_xdf(path: Path, html: Path | None, *, as_json: bool) -> int:
    """Print what the stamps of an XDF file are worth; the page lies beside the file unless said otherwise."""
    from sensorium.agent.reporting.xdf import HEAD, table_rows, write_xdf_report, xdf_report

    report = xdf_report(read_xdf(path))
    written = write_xdf_report(report, html or path.with_suffix(".sync-report.html"))
    found = report.document() | {"html": str(written)}
    if as_json:
        print_json(found)
    else:
        console = table_console()
        table = Table(title=f"clocks of {path.name}", title_justify="left")
        for number, name in enumerate(HEAD):
            table.add_column(name, justify="right" if number else "left")
        for row in table_rows(found):
            table.add_row(*row)
        console.print(table)
        for verdict in report.verdicts:
            for reason in verdict.reasons:
                console.print(f"{coloured(verdict.status.value)}  {verdict.subject}: ", end="")
                console.print(reason, markup=False, soft_wrap=True)
        for problem in report.recording.problems:
            console.print(problem, markup=False, soft_wrap=True)
        console.print(f"report: {written}", markup=False, soft_wrap=True)
    return 1 if any(verdict.status is Status.FAILED for verdict in report.verdicts) else 0


def remap_sync(episode: str | Path, *, as_json: bool) -> int:
    """Write the sidecar with two-sided stamps and say by how much each stream moved.

    It lies beside the episode; that of a delivered copy in the current folder.
    """
    located = locate(episode)
    with Episode(located.folder.resolve()) as opened:
        path = write_remap(opened, located.output(REMAP_FILE))
        better = read_remap(opened, path)
        moved: dict[str, _Moved] = {}
        for stream, row in opened.stamps():
            new = better[stream, row.instance, row.seq]
            found = moved.setdefault(stream, _Moved())
            found.by.add(abs(int(new.capture_ns[-1] - row.stamped.capture_ns[-1])))
            found.before.add(row.stamped.uncertainty)
            found.after.add(new.uncertainty)
    rows = {
        stream: {
            "moved_p50_us": _percentile_us(found.by, 50),
            "moved_p99_us": _percentile_us(found.by, 99),
            **{f"{name}_p50_before_us": value for name, value in found.before.p50_us().items()},
            **{f"{name}_p50_after_us": value for name, value in found.after.p50_us().items()},
        }
        for stream, found in moved.items()
    }
    if as_json:
        print_json({"remap": str(path), "streams": rows})
        return 0
    console = table_console()
    table = Table(title="two-sided stamps against those of the recording", title_justify="left")
    for name in ("stream", "moved p50/p99 us", "bound p50 before us", "after us"):
        table.add_column(name, justify="left" if name == "stream" else "right")
    for stream, row_of in rows.items():
        moved_by = f"{row_of['moved_p50_us']:.1f} / {row_of['moved_p99_us']:.1f}"
        bounds = [f"{row_of[f'total95_p50_{when}_us']:.1f}" for when in ("before", "after")]
        table.add_row(stream, moved_by, *bounds)
    console.print(table)
    console.print(f"written: {path}", markup=False, soft_wrap=True)
    return 0


def _percentile_us(found: Distribution, percent: float) -> float:
    return (found.percentile(percent) or 0.0) / 1e3


def _content(episode: Path, inputs: ContentInputs) -> tuple[Verdict, ...]:
    cameras: Mapping[str, Intrinsics] = {}
    try:
        calibration = file_in(episode, CALIBRATION_FILE)
        if calibration.exists():
            cameras = RigCalibration.load(calibration).cameras
    except CalibrationError:
        cameras = {}  # the calibration has its own verdict; the clocks do without
    with Episode(episode) as opened:
        return check_content(opened, cameras, inputs)


def _print(report: SyncReport, path: Path) -> None:
    console = table_console()
    found = report.document()
    console.print(styled("what to do", "bold"))
    for step in report.steps or [NOTHING_TO_DO]:
        console.print(f"   {step}", markup=False, soft_wrap=True)
    clocks = Table(title=f"clocks of {report.episode_id}, {found['seconds']:.1f} s", title_justify="left")
    for name in ("stream", "method", "rate Hz", "skew ppm", "epochs"):
        clocks.add_column(name, justify="left" if name in ("stream", "method") else "right")
    for name in ("residual p50/p99 us", "bound p50/p95 us", "of it floor us", "of it latency us", "events"):
        clocks.add_column(name, justify="right")
    for name, stream in found["streams"].items():
        clocks.add_row(
            name,
            stream["method"],
            _text(stream["rate_hz"], 3),
            _text(stream["skew_ppm"], 2),
            str(stream["epochs"]),
            _pair(stream["residual_us"], "p50", "p99"),
            _pair(stream["total95_us"], "p50", "p95"),
            _text((stream["floor_us"] or {}).get("p95"), 1),
            _text(stream["asymmetry_us"], 1),
            ", ".join(f"{kind} {count}" for kind, count in stream["events"].items()),
        )
    console.print(clocks)
    pairs = Table(title=f"alignment on {report.reference}, {report.ticks} ticks", title_justify="left")
    for name in ("stream", "method", "matched", "p50/p95/max us", "ticks without", "samples unmatched"):
        pairs.add_column(name, justify="left" if name in ("stream", "method") else "right")
    for name, pair in found["alignment"].items():
        numbers = pair["gap_us"] if pair["method"] == "interpolated" else pair["residual_us"]
        others = {reason: count for reason, count in pair["outcomes"].items() if reason != "matched"}
        pairs.add_row(
            name,
            pair["method"],
            str(pair["outcomes"].get("matched", 0)),
            _pair(numbers, "p50", "p95", "max"),
            _counts(others),
            _counts(report.unmatched.get(name, {})),
        )
    console.print(pairs)
    for verdict in report.verdicts:
        if verdict.reasons:
            console.print(f"{coloured(verdict.status.value)} {verdict.check} {verdict.subject}")
            for reason in verdict.reasons:
                console.print(f"   {reason}", markup=False)
    for event in report.events[:10]:
        console.print(f"   {(event.host_ns - report.span[0]) / 1e9:9.3f} s  {event.detail}", markup=False)
    left = len(report.events) - 10 + report.more_events
    if left > 0:
        console.print(f"   and {left} more clock events")
    console.print(f"plots: {path}", markup=False, soft_wrap=True)


def _counts(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in reasons.items())


def _pair(found: Mapping[str, Any] | None, *keys: str) -> str:
    return "" if found is None else " / ".join(f"{found[key]:.0f}" for key in keys)


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
