"""The timeline: every stream with its gaps, drops, pauses, marks and verdicts."""

from collections.abc import Iterable, Sequence

from sensorium.agent.reporting import page, plots
from sensorium.agent.reporting.material import Material, rate_text, where_text
from sensorium.drivers.frame import Modality
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.manifest import StreamRecord

_MAX_LANES = 24


def timeline(material: Material) -> str:
    if material.survey is None or material.manifest is None:
        return ""
    lanes = _fold([_lane(material, record) for record in material.records], material.records)
    events = material.survey.events
    flags = [flag for flag in (_flag(material, event) for event in events) if flag is not None]
    drawing = plots.timeline(lanes, flags, _pauses(material, events), material.length_s)
    return page.section("timeline", "Timeline", page.wide(drawing) + _TIMELINE_LEGEND)


_TIMELINE_LEGEND = (
    '<div class="legend"><span><i style="background:var(--camera)"></i>recorded (colour by kind)</span>'
    '<span><i style="background:var(--gap)"></i>gap</span>'
    '<span><i style="background:var(--lost)"></i>samples dropped</span>'
    '<span><i style="background:var(--soft)"></i>withheld or paused</span>'
    "<span>● mark or verdict</span><span>▲ clock or driver event</span>"
    "<span>point at anything for its numbers</span></div>"
)


def _fold(lanes: list[plots.Lane], records: Sequence[StreamRecord]) -> list[plots.Lane]:
    """Return the lanes with streams of a single sample joined into one where there are many (bag topics)."""
    if len(lanes) <= _MAX_LANES:
        return lanes
    singles = [
        lane
        for lane, record in zip(lanes, records, strict=True)
        if record.total.produced <= 1 and record.info.modality is Modality.OTHER
    ]
    if len(singles) < 2:
        return lanes
    joined = plots.Lane(f"{len(singles)} with one sample", "other")
    joined.bars = [bar for lane in singles for bar in lane.bars]
    return [lane for lane in lanes if lane not in singles] + [joined]


def _lane(material: Material, record: StreamRecord) -> plots.Lane:
    info = record.info
    lane = plots.Lane(info.name, info.modality.value)
    found = material.streams.get(info.name)
    if found is None or not found.spans:
        lane.note = (
            material.withheld(record) or f"nothing recorded; {where_text(record.total.dropped) or 'no drops'}"
        )
        return lane
    at = material.seconds
    for start, end in found.spans:
        tip = f"{info.name}: {at(start):.3f} to {at(end):.3f} s, {rate_text(record)}"
        lane.bars.append(plots.Bar(at(start), at(end), info.modality.value, tip))
    for gap in record.gaps[:200]:
        start, end = at(gap.host_ns), at(gap.host_ns + gap.duration_ns)
        tip = f"{info.name}: gap of {plots.duration_text(end - start)} from {start:.3f} s"
        lane.bars.append(plots.Bar(start, end, "gap", tip))
    every_reason = where_text(record.total.dropped)
    for loss in found.losses:
        why = loss.why or f"not explained by an event; dropped in all: {every_reason}"
        is_consent = "consent" in (loss.why or every_reason)
        tip = f"{info.name}: {loss.count} samples dropped at {at(loss.start_ns):.3f} s; {why}"
        kind = "withheld" if is_consent else "lost"
        lane.bars.append(plots.Bar(at(loss.start_ns), at(loss.end_ns), kind, tip))
    return lane


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
