"""The HTML report of an episode: one page without any file beside it.

Whatever cannot be shown (a damaged payload, a stream without consent, an encoding that nobody here decodes)
becomes a sentence in its place: a report never fails the session that it is about.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.agent import page, plots
from sensorium.agent.pictures import UNSHOWABLE, bird_view, cloud_points, overlay_picture, thumbnail
from sensorium.agent.survey import (
    OverlayPair,
    Snapshot,
    StreamSurvey,
    Survey,
    is_cloud,
    is_image,
    survey,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Encoding, Modality, StreamInfo
from sensorium.errors import CalibrationError, EpisodeError, SensoriumError
from sensorium.simulators.truth import load_truth
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.manifest import Manifest, StreamRecord, read_manifest
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS

REPORT_FILE = "report.html"
CALIBRATION_FILE = "calibration.yaml"

_MAX_PANEL_COLUMNS = 24
_SHOWN_EVENTS = 150
_VISIBLE = ("allowed", "not personal", "partly denied")
_Int64s = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(slots=True)
class Material:
    """Everything that the sections are made of."""

    folder: Path
    found: Mapping[str, Any]
    manifest: Manifest | None = None
    survey: Survey | None = None
    calibration: RigCalibration | None = None
    calibration_problem: str = ""
    truth: Mapping[str, _Int64s] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def streams(self) -> Mapping[str, StreamSurvey]:
        return self.survey.streams if self.survey else {}

    @property
    def records(self) -> tuple[StreamRecord, ...]:
        return self.manifest.streams if self.manifest else ()

    @property
    def length_s(self) -> float:
        return (self.survey.span[1] - self.survey.span[0]) / SECOND_NS if self.survey else 1.0

    def seconds(self, host_ns: Any) -> Any:
        """Return host times as seconds since the first capture."""
        assert self.survey is not None
        return (host_ns - self.survey.span[0]) / SECOND_NS

    def utc(self, host_ns: int) -> str:
        assert self.manifest is not None
        return utc_text(host_ns + self.manifest.timeline.utc_minus_host_ns)

    def withheld(self, record: StreamRecord) -> str:
        """Return why a stream must not be shown, or "" when it may."""
        if not record.info.is_personal or record.consent.decision in _VISIBLE:
            return ""
        reason = record.consent.reason or "no decision is recorded"
        return f"not shown: {record.consent.decision or 'denied'}, {reason}"


def write_report(folder: Path, found: Mapping[str, Any], run_dir: Path) -> Path:
    """Write ``report.html`` beside the episode and return its path.

    Args:
        found: The session's document; see :func:`sensorium.agent.outcome.document`.
        run_dir: Folder of the session's processes, where simulated devices leave their truth.

    Raises:
        EpisodeError: If the folder does not take the file.
    """
    path = folder / REPORT_FILE
    html = render(_gather(folder, found, run_dir))
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as err:
        raise EpisodeError(f"report {path} cannot be written: {err.strerror}") from err
    return path


def utc_text(utc_ns: int) -> str:
    """Return an instant as ISO 8601 with milliseconds, or its number where the calendar ends."""
    try:
        instant = datetime.fromtimestamp(0, timezone.utc) + timedelta(microseconds=utc_ns // 1000)
    except OverflowError:
        return f"{utc_ns} ns since 1970"
    return instant.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")


# -- reading


def _gather(folder: Path, found: Mapping[str, Any], run_dir: Path) -> Material:
    material = Material(folder, found)
    try:
        material.manifest = read_manifest(folder)
        with Episode(folder) as episode:
            material.survey = survey(episode, material.manifest)
        material.problems += material.survey.problems
    except (SensoriumError, ValueError, OSError) as err:
        material.problems.append(f"the episode cannot be read: {err}")
    try:
        material.truth = load_truth(run_dir)
    except SensoriumError as err:
        material.problems.append(str(err))
    try:
        if (folder / CALIBRATION_FILE).exists():
            material.calibration = RigCalibration.load(folder / CALIBRATION_FILE)
        else:
            material.calibration_problem = "the episode has no calibration"
    except CalibrationError as err:
        material.calibration_problem = str(err)
    return material


def render(material: Material) -> str:
    """Return the page."""
    sections: tuple[tuple[str, Callable[[Material], str]], ...] = (
        ("header", _header),
        ("verdicts", _cards),
        ("problems", _problems),
        ("timeline", _timeline),
        ("streams", _stream_table),
        ("cameras", _cameras),
        ("LiDAR", _lidar),
        ("clocks", _clocks),
        ("waveforms", _waveforms),
        ("alignment", _alignment),
        ("calibration", _calibration),
        ("consent", _consent),
        ("events", _events),
        ("files", _files),
        ("footer", _footer),
    )
    body = "".join(_attempt(name, partial(make, material)) for name, make in sections)
    rig = material.manifest.rig if material.manifest else material.folder.name
    return page.page(f"{rig}: episode {material.folder.name}", body)


def _attempt(what: str, make: Callable[[], str]) -> str:
    """Return what ``make`` makes, or one sentence about why it could not."""
    try:
        return make()
    except UNSHOWABLE as err:
        return page.note(f"{what} cannot be shown: {str(err) or type(err).__name__}")


# -- head


def _header(material: Material) -> str:
    manifest = material.manifest
    if manifest is None:
        return f"<header><h1>{page.text(material.folder.name)}</h1></header>"
    words = [page.badge(word) for word, is_set in _tags(manifest) if is_set]
    when = material.utc(material.survey.span[0]) if material.survey else utc_text(manifest.start_utc_ns)
    return (
        f"<header><h1>{page.text(manifest.rig)}</h1>{''.join(words)}"
        f'<span class="when">{page.text(when)} · {material.length_s:.1f} s recorded</span>'
        f'<span class="id">{page.text(manifest.episode_id)}</span></header>'
    )


def _tags(manifest: Manifest) -> tuple[tuple[str, bool], ...]:
    return (("synthetic", manifest.synthetic), ("incomplete", manifest.truncated))


def _cards(material: Material) -> str:
    found = material.found
    verdicts = (
        ("quality", found["quality"]["status"], found["quality"]["reasons"]),
        ("calibration", found["calibration"]["status"], found["calibration"]["reasons"]),
        ("consent", found["consent"]["decision"], [found["consent"]["reason"]]),
        ("verification", found["verification"]["status"], _verification_reasons(found["verification"])),
    )
    cards = [
        f'<div class="card"><b>{name}</b>{page.badge(status)}<br>{page.text(_brief(reasons))}</div>'
        for name, status, reasons in verdicts
    ]
    return f'<div class="cards">{"".join(cards)}{_count_cards(material)}</div>'


def _verification_reasons(verification: Mapping[str, Any]) -> list[str]:
    where = [f"in {verification['store']}"] if verification.get("store") else []
    return where + [str(reason) for reason in verification.get("reasons", ())]


def _brief(reasons: Sequence[str]) -> str:
    shown = "; ".join(str(reason) for reason in reasons[:3] if reason)
    return f"{shown}; and {len(reasons) - 3} more" if len(reasons) > 3 else shown


def _count_cards(material: Material) -> str:
    streams = material.found["streams"].values()
    produced, recorded = (sum(stream[key] for stream in streams) for key in ("produced", "recorded"))
    dropped = sum(sum(stream["dropped"].values()) for stream in streams)
    raw = sum(stream["bytes_raw"] for stream in streams)
    stored = sum(file.bytes for file in material.manifest.files) if material.manifest else 0
    ratio = f", {raw / stored:.2f} times smaller" if stored and raw > 1.005 * stored else ""
    balance = f"of {page.number(produced)} produced; {page.number(dropped)} dropped"
    return (
        f'<div class="card"><b>samples</b><span class="big">{page.number(recorded)}</span>{balance}</div>'
        f'<div class="card"><b>size on disk</b><span class="big">{page.size(stored)}</span>'
        f"{page.size(raw)} from the sensors{ratio}</div>"
    )


def _problems(material: Material) -> str:
    found = material.found
    groups = (
        ("problems", [*material.problems, *found.get("problems", ())]),
        ("quality", found["quality"]["reasons"]),
        ("limitations", found.get("limitations", ())),
        ("warnings", found.get("warnings", ())),
    )
    parts = [f"<h3>{name}</h3>{page.items(sentences)}" for name, sentences in groups if sentences]
    return page.section("problems", "What to know", "".join(parts))


# -- timeline


def _timeline(material: Material) -> str:
    if material.survey is None or material.manifest is None:
        return ""
    lanes = [_lane(material, record) for record in material.records]
    events = material.survey.events
    flags = [flag for flag in (_flag(material, event) for event in events) if flag is not None]
    drawing = plots.timeline(lanes, flags, _pauses(material, events), material.length_s)
    return page.section("timeline", "Timeline", f'<div class="wide">{drawing}</div>{_TIMELINE_LEGEND}')


_TIMELINE_LEGEND = (
    '<div class="legend"><span><i style="background:var(--camera)"></i>recorded (colour by kind)</span>'
    '<span><i style="background:var(--gap)"></i>gap</span>'
    '<span><i style="background:var(--lost)"></i>samples dropped</span>'
    '<span><i style="background:var(--soft)"></i>withheld or paused</span>'
    "<span>● mark or verdict</span><span>▲ clock or driver event</span>"
    "<span>point at anything for its numbers</span></div>"
)


def _lane(material: Material, record: StreamRecord) -> plots.Lane:
    info = record.info
    lane = plots.Lane(info.name, info.modality.value)
    found = material.streams.get(info.name)
    if found is None or not found.spans:
        lane.note = (
            material.withheld(record) or f"nothing recorded; {_where(record.total.dropped) or 'no drops'}"
        )
        return lane
    at = material.seconds
    for start, end in found.spans:
        tip = f"{info.name}: {at(start):.3f} to {at(end):.3f} s, {_rate(record)}"
        lane.bars.append(plots.Bar(at(start), at(end), info.modality.value, tip))
    for gap in record.gaps[:200]:
        start, end = at(gap.host_ns), at(gap.host_ns + gap.duration_ns)
        tip = f"{info.name}: gap of {plots.duration_text(end - start)} from {start:.3f} s"
        lane.bars.append(plots.Bar(start, end, "gap", tip))
    every_reason = _where(record.total.dropped)
    for loss in found.losses:
        why = loss.why or f"not explained by an event; dropped in all: {every_reason}"
        is_consent = "consent" in (loss.why or every_reason)
        tip = f"{info.name}: {loss.count} samples dropped at {at(loss.start_ns):.3f} s; {why}"
        kind = "withheld" if is_consent else "lost"
        lane.bars.append(plots.Bar(at(loss.start_ns), at(loss.end_ns), kind, tip))
    return lane


def _rate(record: StreamRecord) -> str:
    return "aperiodic" if record.rate_hz is None else f"{record.rate_hz:.2f} Hz"


def _where(dropped: Mapping[str, Mapping[str, int]]) -> str:
    """Return drops as ``place: count reason; ...``."""
    return "; ".join(
        f"{place}: {count} {reason}"
        for place, reasons in dropped.items()
        for reason, count in reasons.items()
    )


def _flag(material: Material, event: EpisodeEvent) -> plots.Flag | None:
    at_s = material.seconds(event.host_ns)
    tip = f"{at_s:.2f} s: {event.kind}{' ' + event.stream if event.stream else ''}: {event.detail}"
    if event.kind == "mark":
        return plots.Flag(at_s, "mark", tip)
    if event.kind == "verdict":
        status = event.detail.partition(":")[2].strip().partition(".")[0]
        kind = status if status in ("ok", "suspect", "insufficient", "failed") else "event"
        return plots.Flag(at_s, kind, tip)
    if event.kind in ("pause", "resume", "loss"):
        return None
    return plots.Flag(at_s, "clock" if event.kind == "clock" else "event", tip, event.stream)


def _pauses(material: Material, events: Iterable[EpisodeEvent]) -> list[plots.Bar]:
    bands: list[plots.Bar] = []
    since: float | None = None
    for event in events:
        at_s = material.seconds(event.host_ns)
        if event.kind == "pause" and since is None:
            since = at_s
        elif event.kind == "resume" and since is not None:
            bands.append(plots.Bar(since, at_s, "pause", f"paused from {since:.2f} to {at_s:.2f} s"))
            since = None
    if since is not None:
        bands.append(plots.Bar(since, material.length_s, "pause", f"paused from {since:.2f} s to the end"))
    return bands


# -- numbers


def _stream_table(material: Material) -> str:
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
    reasons = _where(stream["dropped_reasons"])
    sub = f"{stream['modality']}, counted by the {stream['produced_by']}"
    loss = f'<span class="sub loss">{page.text(reasons)}</span>' if reasons else ""
    cells = [
        f'<strong>{page.text(name)}</strong><span class="sub">{page.text(sub)}</span>{loss}',
        page.number(stream["produced"]),
        page.number(stream["recorded"]),
        f'<span class="loss">{page.number(dropped)}</span>' if dropped else "0",
        page.number(stream["rate_hz"], 2),
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


# -- pictures


def _cameras(material: Material) -> str:
    rows = [_camera(material, record) for record in material.records if is_image(record.info)]
    return page.section("cameras", "Cameras", "".join(rows), "First, middle and last recorded image.")


def _camera(material: Material, record: StreamRecord) -> str:
    info = record.info
    found = material.streams.get(info.name)
    size = "×".join(str(length) for length in info.shape[1::-1]) if len(info.shape) > 1 else ""
    details = " · ".join(part for part in (info.encoding, size, _rate(record)) if part)
    title = f'<h3>{page.text(info.name)} <span class="lead">{page.text(details)}</span></h3>'
    withheld = material.withheld(record)
    if withheld:
        return f'<div class="camera-row">{title}{page.note(withheld)}</div>'
    if found is None or found.first is None:
        return f'<div class="camera-row">{title}{page.note("no image was recorded")}</div>'
    shots = dict.fromkeys(shot for shot in (found.first, found.middle, found.last) if shot is not None)
    strip = "".join(_shot(material, info, shot) for shot in shots)
    return f'<div class="camera-row">{title}<div class="strip">{strip}</div></div>'


def _shot(material: Material, info: StreamInfo, shot: Snapshot) -> str:
    when = f"{material.seconds(shot.capture_ns):.3f} s · {material.utc(shot.capture_ns)}"
    return (
        "<figure>"
        + _attempt(f"this image of {info.name}", lambda: page.image(thumbnail(info, shot.payload), when))
        + f"<figcaption>{page.text(when)}</figcaption></figure>"
    )


def _lidar(material: Material) -> str:
    clouds = [record for record in material.records if is_cloud(record.info)]
    originals = [record for record in clouds if not record.info.reference_of] or clouds
    birds = "".join(_bird(material, record) for record in originals)
    overlays = "".join(each for record in originals for each in _overlays(material, record))
    stacks = [f'<div class="stack">{content}</div>' for content in (birds, overlays) if content]
    return page.section("lidar", "LiDAR", page.grid(stacks, "two"))


def _bird(material: Material, record: StreamRecord) -> str:
    info = record.info
    title = f"{info.name}: from above"
    withheld = material.withheld(record)
    found = material.streams.get(info.name)
    if withheld or found is None or found.middle is None:
        return page.figure(page.note(withheld or "no sweep was recorded"), title)
    shot = found.middle

    def make() -> str:
        picture = bird_view(cloud_points(info, shot.payload))
        caption = f"Sweep at {material.seconds(shot.capture_ns):.3f} s: {picture.caption}."
        return page.figure(page.image(picture, title), title, caption)

    return _attempt(title, make)


def _overlays(material: Material, lidar: StreamRecord) -> list[str]:
    cameras = [record for record in material.records if record.info.modality is Modality.CAMERA]
    return [_attempt(_overlay_title(lidar, c), partial(_overlay, material, lidar, c)) for c in cameras]


def _overlay_title(lidar: StreamRecord, camera: StreamRecord) -> str:
    return f"{lidar.info.name} on {camera.info.name}"


def _overlay(material: Material, lidar: StreamRecord, camera: StreamRecord) -> str:
    title = _overlay_title(lidar, camera)
    reason = material.withheld(camera) or material.withheld(lidar) or material.calibration_problem
    if reason or material.calibration is None:
        return page.figure(page.note(reason), title)
    pair = _pair(material, lidar.info.name, camera.info.name)
    sweep = material.streams[lidar.info.name].wanted.get(pair.lidar_seq) if pair else None
    image = material.streams[camera.info.name].wanted.get(pair.camera_seq) if pair else None
    if pair is None or sweep is None or image is None:
        return page.figure(page.note("no reference tick has both a sweep and an image"), title)
    points = cloud_points(lidar.info, sweep.payload)
    picture = overlay_picture(camera.info, image.payload, points, lidar.info, material.calibration)
    caption = (
        f"Tick at {material.seconds(pair.tick_ns):.3f} s; middle of the sweep and image are "
        f"{plots.duration_text(pair.apart_ns / SECOND_NS)} apart; red is near, blue is far. "
        "The sweep is not corrected for motion."
    )
    return page.figure(page.image(picture, title), title, caption)


def _pair(material: Material, lidar: str, camera: str) -> OverlayPair | None:
    pairs = material.survey.overlays if material.survey else []
    return next((pair for pair in pairs if (pair.lidar, pair.camera) == (lidar, camera)), None)


# -- clocks


def _clocks(material: Material) -> str:
    figures, unestimated = [], []
    for record in material.records:
        found = material.streams.get(record.info.name)
        if found is None or not len(found.clock.rows()):
            continue
        if _is_estimated(found):
            name = f"clock of {record.info.name}"
            figures.append(_attempt(name, partial(_clock, material, record, found.clock.rows())))
        else:
            unestimated.append(record.info.name)
    body = page.grid(figures, "three") + (_CLOCK_LEGEND if figures else "")
    if unestimated:
        body += page.note(
            "Capture times are those of the recording itself, nothing was estimated: "
            + ", ".join(unestimated)
        )
    return page.section("clocks", "Clocks", body, _CLOCK_LEAD if figures else "")


def _is_estimated(found: StreamSurvey) -> bool:
    rows = found.clock.rows()
    return bool((rows[:, 2] != rows[:, 3]).any() or (rows[:, 4] > 0).any())


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
        parts.append(f"minimum latency known to {plots.duration_text(clock.asymmetry_us / 1e6)}")
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


# -- waveforms


def _waveforms(material: Material) -> str:
    panels: list[str] = []
    for record in material.records:
        info = record.info
        if info.encoding not in (Encoding.COLUMNS, Encoding.PCM_S16LE):
            continue
        withheld = material.withheld(record)
        found = material.streams.get(info.name)
        if withheld or found is None or found.envelope is None:
            panels.append(page.figure(page.note(withheld or "no sample was recorded"), info.name))
            continue
        make = partial(_panels, material, info, found)
        panels.append(_attempt(f"waveform of {info.name}", make))
    body = "".join(f'<div class="waves">{panel}</div>' for panel in panels)
    return page.section("waveforms", "Waveforms", body, "Least and greatest value over time.")


def _panels(material: Material, info: StreamInfo, found: StreamSurvey) -> str:
    assert found.envelope is not None
    is_audio = info.encoding == Encoding.PCM_S16LE
    columns = (
        [(f"channel {index + 1}", "full scale") for index in range(found.envelope.low.shape[1])]
        if is_audio
        else [(column.name, column.unit) for column in info.columns]
    )
    groups: dict[str, list[int]] = {}
    for index, (_, unit) in enumerate(columns[:_MAX_PANEL_COLUMNS]):
        if unit != "ns":  # the device's own stamps: a straight line
            groups.setdefault(unit, []).append(index)
    chosen = [
        (unit, indices[begin : begin + 6])
        for unit, indices in groups.items()
        for begin in range(0, len(indices), 6)
    ]
    parts = []
    for unit, indices in chosen:
        drawing = plots.wave_plot(found.envelope, indices, material.length_s, is_audio, len(chosen) == 1)
        legend = "".join(
            f'<span><i class="w{line}"></i>{page.text(columns[index][0])}</span>'
            for line, index in enumerate(indices)
        )
        content = drawing or page.note("no finite value")
        title = f"{info.name} ({unit})" if unit else info.name
        parts.append(page.figure(f'{content}<div class="legend">{legend}</div>', title))
    if len(columns) > _MAX_PANEL_COLUMNS:
        parts.append(
            page.note(f"{len(columns) - _MAX_PANEL_COLUMNS} more columns of {info.name} are not drawn")
        )
    return page.grid(parts, "two" if len(parts) > 1 else "one")


# -- alignment


def _alignment(material: Material) -> str:
    manifest = material.manifest
    if manifest is None:
        return ""
    numbers = {pair.b: pair for pair in manifest.pairs}
    names = [r.info.name for r in manifest.streams if r.info.name in numbers or r.unmatched]
    rows = []
    for name in names:
        pair = numbers.get(name)
        values = ["", "", ""] if pair is None else [_us(v) for v in (pair.p50_us, pair.p95_us, pair.max_us)]
        unmatched = manifest.stream(name).unmatched
        without = (
            material.survey.pairs[name].without if material.survey and name in material.survey.pairs else {}
        )
        method = "reference" if name == manifest.reference else pair.method if pair else ""
        rows.append(
            [
                f"<strong>{page.text(name)}</strong>",
                page.text(method),
                *values,
                page.text(_counts(unmatched)),
                page.text(_counts(without)),
            ]
        )
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
        if not len(values_s):
            continue
        what = "distance of the samples that are joined" if pair.is_interpolated else "capture minus tick"
        caption = f"{what}, {len(values_s)} ticks"
        make = partial(_histogram, name, values_s, caption)
        figures.append(_attempt(f"residuals of {name}", make))
    return page.grid(figures, "three")


def _histogram(name: str, values_s: _Floats, caption: str) -> str:
    return page.figure(plots.histogram(values_s), name, caption)


# -- verdicts and lists


def _calibration(material: Material) -> str:
    checks = material.found["calibration"].get("checks", ())
    rows = []
    for check in checks:
        status = (
            f'{page.badge(check["status"])}<span class="sub">{page.text("; ".join(check["reasons"]))}</span>'
        )
        subject = f'<strong>{page.text(check["check"])}</strong><span class="sub">{page.text(check["subject"])}</span>'
        for index, (name, quantity) in enumerate(check["quantities"].items() or [("", {})]):
            first = [subject, status] if index == 0 else ["", ""]
            values = [page.number(quantity.get(key), 3) for key in ("value", "sigma", "threshold")]
            rows.append([*first, page.text(name), *values, page.text(quantity.get("unit"))])
    head = ["check", "verdict", "quantity", "value", "sigma", "threshold", "unit"]
    body = page.table(head, rows, (3, 4, 5)) if rows else page.note("no calibration check ran")
    found_id = material.found["calibration"].get("id")
    lead = f"Calibration <code>{page.text(found_id)}</code>." if found_id else "No calibration is in force."
    return page.section("calibration", "Calibration", body, lead)


def _consent(material: Material) -> str:
    rows = [
        [
            f"<strong>{page.text(record.info.name)}</strong>",
            page.badge(record.consent.decision or "not decided"),
            page.text(record.consent.reason),
            page.text(", ".join(record.consent.purposes) if record.info.is_personal else "any"),
        ]
        for record in material.records
    ]
    return page.section(
        "consent", "Consent", page.table(["stream", "decision", "reason", "purposes"], rows) if rows else ""
    )


def _events(material: Material) -> str:
    if material.survey is None:
        return ""
    events = material.survey.events
    rows = [
        [
            f"{material.seconds(event.host_ns):.3f}",
            page.text(event.kind),
            page.text(event.stream),
            page.text(event.detail),
        ]
        for event in events[:_SHOWN_EVENTS]
    ]
    more = len(events) + material.survey.more_events - len(rows)
    body = page.table(["time (s)", "kind", "stream", "what"], rows, (0,)) if rows else ""
    return page.section(
        "events", "Marks and events", body + (page.note(f"{more} more are in the episode") if more else "")
    )


def _files(material: Material) -> str:
    manifest = material.manifest
    if manifest is None:
        return ""
    rows = [
        [page.text(file.name), page.number(file.bytes), f"<code>{page.text(file.sha256)}</code>"]
        for file in manifest.files
    ]
    verification = material.found["verification"]
    reasons = page.text("; ".join(_verification_reasons(verification)))
    lead = f"{page.badge(verification['status'])} {reasons}"
    return page.section("files", "Files", page.table(["file", "bytes", "SHA-256"], rows, (1,)), lead)


def _footer(material: Material) -> str:
    manifest = material.manifest
    if manifest is None:
        return ""
    facts = [
        ("agent", manifest.agent_version),
        ("host", manifest.timeline.host_id),
        ("operator", manifest.operator),
        ("task", manifest.task),
        *manifest.labels.items(),
        ("device key", manifest.device_public_key),
        ("previous episode", manifest.prev_manifest),
    ]
    return "<footer>" + " · ".join(f"{page.text(k)} {page.text(v)}" for k, v in facts if v) + "</footer>"
