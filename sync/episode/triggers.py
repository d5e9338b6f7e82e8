"""Triggered cameras of a finished recording: frames matched with pulses from both sides, a second opinion."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.errors import ClockError, ConfigError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.clocks.trigger import PERSIST, Pulse, TriggerCounts, TriggerMatch, match_trigger
from sensorium.sync.clocks.triggered import TriggerSettings, pulse_uncertainty, settings_of
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.stamp_reader import StampRow
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict

CHECK = "trigger_afterwards"
_SETTLE_NS = 5 * SECOND_NS
"""The ordinary estimate's first seconds say little about a drift."""
_MARGIN = 4.0
_WANDER = 2e-6
Rows = Mapping[tuple[str, int], Sequence[StampRow]]
"""Rows in order of arrival by stream and driver instance."""


@dataclass(frozen=True, slots=True, eq=False)
class CameraMatch:
    """Frames of one camera, the pulses of one instance of their trigger, and what belongs together."""

    rows: Sequence[StampRow]
    estimates: Sequence[Stamped]
    pulses: Sequence[StampRow]
    match: TriggerMatch

    @property
    def has_slipped(self) -> bool:
        """Whether the camera's own clock runs against the pulses by more than its stated bounds and wander allow.

        A camera that runs freely at nearly the trigger's rate keeps the difference of the counts for minutes.
        """
        at_ns = self.match.edge_ns[self.match.edge_ns >= 0]
        residual_ns = self.match.residual_ns
        if len(at_ns) and at_ns[-1] - at_ns[0] > 3 * _SETTLE_NS:
            residual_ns, at_ns = (
                residual_ns[at_ns > at_ns[0] + _SETTLE_NS],
                at_ns[at_ns > at_ns[0] + _SETTLE_NS],
            )
        if len(at_ns) < 3 * PERSIST:
            return False
        third = len(at_ns) // 3
        moved_ns = float(np.median(residual_ns[-third:]) - np.median(residual_ns[:third]))
        bound_ns = float(np.median([stamped.uncertainty.bound95_ns for stamped in self.estimates]))
        return abs(moved_ns) > _MARGIN * bound_ns + _WANDER * float(at_ns[-1] - at_ns[0])


def rows_of(episode: Episode, names: Iterable[str] | None = None) -> Rows:
    """Return the stamps of an episode's streams (or the named ones)."""
    found: dict[tuple[str, int], list[StampRow]] = defaultdict(list)
    for stream, row in episode.stamps(None if names is None else list(names)):
        found[stream, row.instance].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: int(row.arrival_ns[-1]))
    return found


def check_triggers(episode: Episode) -> tuple[Verdict, ...]:
    """Return one verdict per triggered camera, from the recording alone."""
    found = []
    for name, info in episode.streams.items():
        try:
            settings = settings_of(info)
            if settings is None:
                continue
            settings.check_driven(info)
            if settings.pulses not in episode.streams:
                raise ConfigError(f"the pulses of {settings.pulses} are not in the recording")
            rows = rows_of(episode, (name, settings.pulses))
            counts = TriggerCounts(counts_exposures=info.has_device_counter)
            for matched in match_camera(info, settings, rows):
                found_here = matched.match.counts
                found_here.counts_exposures = info.has_device_counter
                found_here.slips = int(matched.has_slipped)
                counts.add(found_here)
            counts.sum_ns += settings.late_ns * (counts.matched + counts.bridged)
            found.append(replace(counts.verdict(name), check=CHECK))
        except (ClockError, ConfigError) as err:
            found.append(Verdict(CHECK, name, Status.INSUFFICIENT, (), (str(err),)))
    return tuple(found)


def match_camera(
    info: StreamInfo,
    settings: TriggerSettings,
    rows: Rows,
    estimates: Mapping[tuple[str, int, int], Stamped] | None = None,
) -> Iterator[CameraMatch]:
    """Match the frames of a camera with the pulses recorded at the same time; yield each pair of instances.

    Args:
        estimates: Ordinary stamps by (stream, instance, sequence number), such as a re-map's; None = as they were
            estimated while recording.

    Raises:
        ClockError: If a match would be ambiguous or the counters make no sense.
    """
    for (name, instance), own in rows.items():
        if name != info.name:
            continue
        if estimates is None:
            ordinary = _causal(info, own)
        else:
            ordinary = [estimates[name, instance, row.seq] for row in own]
        for (pulses_name, _), pulses in rows.items():
            if pulses_name == settings.pulses and len(pulses) > 1:
                yield from _match(info, settings, own, ordinary, pulses)


def _causal(info: StreamInfo, rows: Sequence[StampRow]) -> list[Stamped]:
    tracker = StreamTracker(info)
    return [
        tracker.update(Frame(info.name, row.seq, row.count, row.device_ticks, row.arrival_ns, b"", row.meta))
        for row in rows
    ]


def _match(
    info: StreamInfo,
    settings: TriggerSettings,
    rows: Sequence[StampRow],
    estimates: Sequence[Stamped],
    pulses: Sequence[StampRow],
) -> Iterator[CameraMatch]:
    pulse_ns = np.array([int(row.stamped.capture_ns[0]) for row in pulses], np.int64)
    exposure_ns = np.array([settings.exposure_ns(info, row.meta) or 0.0 for row in rows])
    middle_ns = np.array(
        [
            int(settings.estimate(info, stamped, exposure).capture_ns[0])
            for stamped, exposure in zip(estimates, exposure_ns.tolist(), strict=True)
        ],
        np.int64,
    )
    # Frames of another instance's pulses are that one's to match.
    inside = (middle_ns > pulse_ns[0] - SECOND_NS) & (middle_ns < pulse_ns[-1] + SECOND_NS)
    if not inside.any():
        return
    chosen = np.flatnonzero(inside).tolist()
    match = match_trigger(
        np.array([row.seq for row in pulses], np.int64),
        pulse_ns,
        np.array([rows[i].seq for i in chosen], np.int64),
        middle_ns[chosen],
        exposure_ns[chosen],
        settings.shutter(info),
        latency_bound_ns=settings.latency_bound_ns(info),
    )
    yield CameraMatch([rows[i] for i in chosen], [estimates[i] for i in chosen], pulses, match)


def restamped(
    info: StreamInfo,
    streams: Mapping[str, StreamInfo],
    rows: Rows,
    estimates: Mapping[tuple[str, int, int], Stamped],
) -> dict[tuple[str, int, int], Stamped]:
    """Return new stamps of a triggered camera's frames, by the key of ``estimates``; empty for other streams.

    Frames without a recorded pulse keep their estimate, as mid-exposure of the middle row.

    Raises:
        ClockError: If a match would be ambiguous or the counters make no sense.
        ConfigError: If the frames or the pulses cannot be matched at all.
    """
    settings = settings_of(info)
    if settings is None or settings.pulses not in streams:
        return {}
    settings.check_driven(info)
    found: dict[tuple[str, int, int], Stamped] = {}
    for (name, instance), own in rows.items():
        for row in own if name == info.name else ():
            estimate = estimates[name, instance, row.seq]
            exposure_ns = settings.exposure_ns(info, row.meta) or 0.0
            found[name, instance, row.seq] = settings.estimate(info, estimate, exposure_ns)
    bound_ns = settings.shutter(info).bound_ns
    for each in match_camera(info, settings, rows, estimates):
        by_number = {row.seq: row.stamped.uncertainty for row in each.pulses}
        for index, row in enumerate(each.rows):
            has_exposure = settings.exposure_ns(info, row.meta) is not None
            if has_exposure and each.match.outcome[index] is Pulse.MATCHED:
                known = pulse_uncertainty(streams[settings.pulses], by_number[int(each.match.pulse[index])])
                stated = Uncertainty(known.statistical_ns, known.floor_ns + bound_ns, known.asymmetry_ns)
                capture_ns = each.match.capture_ns[index : index + 1]
                found[info.name, row.instance, row.seq] = Stamped(capture_ns, stated, row.stamped.epoch)
    for (name, instance), own in rows.items():
        last_ns = -(1 << 62)
        for row in own if name == info.name else ():
            stamped = found[name, instance, row.seq]
            last_ns = max(last_ns, min(int(stamped.capture_ns[0]), int(row.arrival_ns[-1])))
            found[name, instance, row.seq] = replace(stamped, capture_ns=np.array([last_ns], np.int64))
    return found
