"""Frames of a triggered camera while they come: each gets the time of its pulse, or keeps the ordinary estimate.

Pulses and frames come from different processes, so a frame may overtake its pulse on the way. It then waits until
a pulse has come that decides it: the first one less than half a period before the frame's own estimate of its
edge, or any later one. Which pulse that is depends on the two streams alone and not on how they were interleaved,
so a replay gives the same stamps. A trigger that has fallen silent is waited for once, not for every frame.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from sensorium.drivers.frame import STREAM_NAME, ClockKind, Frame, Modality, StreamInfo
from sensorium.errors import ConfigError
from sensorium.sync.clocks.model import ClockEvent, ClockEventKind, Stamped, Uncertainty
from sensorium.sync.clocks.trigger import PERSIST, Shutter, TriggerCounts, ambiguity
from sensorium.timebase import SECOND_NS
from sensorium.wording import in_words

DETAIL = "trigger"
"""``StreamInfo.details[DETAIL]`` of a triggered camera: its settings as JSON, so that they stay with the episode."""
BY_PULSES = "trigger"
"""``ClockSummary.method`` of a stream whose frames have the times of pulses."""
EXPOSURE_FIELD = "exposure_ns"
LATE_NS = SECOND_NS // 10
"""A pulse that arrives so long after the frame is not the frame's."""
PATIENCE_NS = SECOND_NS // 2
"""How long a frame is held for a pulse that is still on its way through the bus."""
LONGEST_US = 60e6
_PULSES_KEPT = 1024
_PERIODS_KEPT = 15
_MARGIN = 4.0
"""Times the stated 95 % bounds: how far a frame's own estimate may lie from the pulse it is matched with."""
_WANDER = 2e-6
"""How fast the difference may change: the least latency wanders, by up to 300 us in 300 s (spec 2a)."""
_SLIPS = 3
"""So often in a row in one direction, and it is no latency that changed but a camera that runs freely."""
_MAX_EVENTS = 64

NOT_KNOWN = "the counter difference was not known yet"
UNCERTAIN = "the estimate was not yet certain to half a period"
NOT_RECORDED = "the pulse was not recorded"
NO_PULSE = "no pulse came"
OTHER_PULSE = "time and count named different pulses"
UNFIT = "their time fits no pulse"
LOOSE = "the camera does not follow the trigger"
BAD_EXPOSURE = "their exposure time makes no sense"


class TriggerSettings(BaseModel):
    """Which pulse stream drives which cameras, and what lies between the edge and the image.

    Attributes:
        pulses: The stream whose samples are pulses; its sequence numbers are their count.
        drives: Streams of the cameras that expose once for each pulse.
        delay_us: Edge to start of the first row's exposure (data sheet: "trigger latency").
        bound_us: Bound on the error of ``delay_us``, jitter included.
        row_us: From one row's exposure to the next; 0 for a global shutter.
        exposure_us: Where the frames do not carry ``exposure_ns`` themselves.
        late_ms: By how much the cameras' ordinary times are late, least and most, where the driver declares no
            latency. The two must be less than a period apart, else frames cannot be told apart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pulses: str = Field(pattern=STREAM_NAME.pattern)
    drives: tuple[str, ...] = Field(min_length=1)
    delay_us: float = Field(default=0.0, ge=0, le=LONGEST_US)
    bound_us: float = Field(ge=0, le=LONGEST_US)
    row_us: float = Field(default=0.0, ge=0, le=LONGEST_US)
    exposure_us: float | None = Field(default=None, gt=0, le=LONGEST_US)
    late_ms: tuple[float, float] | None = None

    @field_validator("late_ms")
    @classmethod
    def _is_ordered(cls, late_ms: tuple[float, float] | None) -> tuple[float, float] | None:
        if late_ms is not None and not -1e4 <= late_ms[0] <= late_ms[1] <= 1e4:
            raise ValueError("should be the least and the most, in this order, within 10 s")
        return late_ms

    def shutter(self, info: StreamInfo) -> Shutter:
        """Return what lies between an edge and the middle of an image of ``info``."""
        rows = info.shape[0] if info.shape else 1
        return Shutter(round(self.delay_us * 1e3), round(self.bound_us * 1e3), self.row_us * 1e3, rows)

    def exposure_ns(self, info: StreamInfo, meta: tuple[float, ...]) -> float | None:
        """Return the exposure time of a frame with these ``meta`` values; None if that is nonsense."""
        if EXPOSURE_FIELD not in info.meta_fields:
            assert self.exposure_us is not None, "checked by check_driven"
            return self.exposure_us * 1e3
        found = float(meta[info.meta_fields.index(EXPOSURE_FIELD)])
        return found if 0 <= found <= LONGEST_US * 1e3 else None

    @property
    def late_ns(self) -> int:
        """By how much the ordinary times are late, in the middle of what is known of it."""
        return 0 if self.late_ms is None else round((self.late_ms[0] + self.late_ms[1]) * 5e5)

    def latency_bound_ns(self, info: StreamInfo) -> float:
        """Return the bound on the constant error that the ordinary times of ``info`` have beside ``late_ns``."""
        if self.late_ms is not None:
            return (self.late_ms[1] - self.late_ms[0]) * 5e5
        return float(info.latency.min_uncertainty_ns)

    def check_driven(self, info: StreamInfo) -> None:
        """Raise ``ConfigError`` if frames of ``info`` cannot be given the times of pulses."""
        name = info.name
        if info.modality not in (Modality.CAMERA, Modality.DEPTH):
            raise ConfigError(f"triggers: {name} is no camera, so no pulse exposes it; remove it from drives")
        if EXPOSURE_FIELD not in info.meta_fields and self.exposure_us is None:
            raise ConfigError(f"triggers: frames of {name} do not carry their exposure time; set exposure_us")
        latency = info.latency
        is_silent = latency.min_ns == 0 and latency.min_uncertainty_ns == 0
        is_exposure = info.clock.kind is ClockKind.HOST and info.stamp_of in (
            "exposure_start",
            "exposure_mid",
        )
        if is_silent and not is_exposure and self.late_ms is None:
            raise ConfigError(
                f"triggers: the driver of {name} does not say how long its frames take, so which pulse caused "
                f"a frame cannot be told; set late_ms: [least, most]"
            )

    def estimate(self, info: StreamInfo, stamped: Stamped, exposure_ns: float) -> Stamped:
        """Return the ordinary stamps of a frame as mid-exposure of its middle row, which the pulses give."""
        middle_ns = int(stamped.capture_ns[0]) - self.late_ns
        if info.stamp_of == "exposure_start":
            middle_ns += self.shutter(info).after_edge_ns(exposure_ns) - round(self.delay_us * 1e3)
        stated = stamped.uncertainty
        if self.late_ms is not None:
            stated = replace(stated, asymmetry_ns=self.latency_bound_ns(info))
        return Stamped(np.array([middle_ns], np.int64), stated, stamped.epoch)


def settings_of(info: StreamInfo) -> TriggerSettings | None:
    """Return what drives a stream, by its declaration; None for streams without a trigger.

    Raises:
        ConfigError: If the declaration holds something else.
    """
    text = info.details.get(DETAIL)
    if text is None:
        return None
    try:
        return TriggerSettings.model_validate_json(text)
    except ValidationError as err:
        fault = err.errors(include_url=False)[0]
        problem = in_words(fault, ".".join(map(str, fault["loc"])))
        raise ConfigError(f"triggers: {info.name} declares a trigger that makes no sense: {problem}") from err


def pulse_uncertainty(pulses: StreamInfo, stated: Uncertainty) -> Uncertainty:
    """Return the uncertainty of an edge as its frame has it.

    Stamps of the host's own kernel are each late by at most what the driver declares, which is no constant.
    """
    if pulses.clock.kind is not ClockKind.HOST:
        return stated
    return Uncertainty(stated.statistical_ns, stated.floor_ns + stated.asymmetry_ns, 0.0)


@dataclass(frozen=True, slots=True)
class PulseStamp:
    """One recorded pulse: its number, the host time of its edge, and when it arrived.

    ``period_ns`` is the period as the pulses up to here tell it; 0 while unknown.
    """

    number: int
    edge_ns: int
    arrival_ns: int
    uncertainty: Uncertainty
    period_ns: float


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    frame: Frame
    estimate: Stamped
    exposure_ns: float | None
    edge_ns: int
    since_ns: int

    @property
    def arrival_ns(self) -> int:
        return int(self.frame.arrival_ns[-1])

    @property
    def middle_ns(self) -> int:
        return int(self.estimate.capture_ns[0])


class TriggerMatcher:
    """Stamps the frames of one camera by its pulses. Deterministic, causal, constant memory.

    Frames go in with their ordinary stamps (:meth:`frame`), pulses with theirs (:meth:`pulse`); :meth:`ready` gives
    the frames back in order. Times are those of the middle row's mid-exposure, never after the arrival, and
    never run backwards.
    """

    def __init__(self, info: StreamInfo, settings: TriggerSettings, pulses: StreamInfo) -> None:
        """Raise ``ConfigError`` if frames of ``info`` cannot be matched."""
        settings.check_driven(info)
        self.info = info
        self._settings = settings
        self._shutter = settings.shutter(info)
        self._latency_bound_ns = settings.latency_bound_ns(info)
        self._pulse_info = pulses
        self._nominal_ns = SECOND_NS / pulses.rate_hz if pulses.rate_hz > 0 else 0.0
        self._pulses: deque[PulseStamp] = deque(maxlen=_PULSES_KEPT)
        self._periods_ns: deque[float] = deque(maxlen=_PERIODS_KEPT)
        self._held: deque[_Held] = deque()
        self._instance = 0
        self._is_silent = False
        self._given_up: _Held | None = None
        self._difference: int | None = None
        self._candidate: tuple[int, int] | None = None
        self._last_count: int | None = None
        self._last_ns = -(1 << 62)
        self._window: tuple[float, float] | None = None
        self._unfit_run = 0
        self._direction = 0
        self._slips_in_row = 0
        self._events: deque[ClockEvent] = deque(maxlen=_MAX_EVENTS)
        self._counts = self._begin()

    def _begin(self) -> TriggerCounts:
        return TriggerCounts(counts_exposures=self.info.has_device_counter)

    # -- what comes in

    def pulse(self, frame: Frame, stamped: Stamped, instance: int = 0) -> None:
        """Take the next samples of the pulse stream, with their capture times.

        Args:
            instance: Of the pulses' driver; a new one counts anew.
        """
        if instance != self._instance and self._pulses:
            self._count_anew(int(frame.arrival_ns[0]), frame.seq)
        self._instance = instance
        for index, edge_ns in enumerate(stamped.capture_ns.tolist()):
            arrival_ns = int(frame.arrival_ns[min(index, frame.arrival_ns.size - 1)])
            self._take_pulse(frame.seq + index, edge_ns, arrival_ns, stamped.uncertainty)

    def _count_anew(self, host_ns: int, number: int) -> None:
        self._note(host_ns, f"the pulses are numbered anew, from {number}")
        self._pulses.clear()
        self._difference = self._candidate = None

    def _take_pulse(self, number: int, edge_ns: int, arrival_ns: int, stated: Uncertainty) -> None:
        last = self._pulses[-1] if self._pulses else None
        if last is not None:
            self._counts.unrecorded_pulses += number - last.number - 1
            if edge_ns > last.edge_ns:
                self._periods_ns.append((edge_ns - last.edge_ns) / (number - last.number))
        period_ns = median(self._periods_ns) if self._periods_ns else self._nominal_ns
        stated = pulse_uncertainty(self._pulse_info, stated)
        self._pulses.append(PulseStamp(number, edge_ns, arrival_ns, stated, period_ns))
        self._counts.pulses += 1
        self._counts.period_ns = period_ns
        self._is_silent = False
        given_up, self._given_up = self._given_up, None
        if (
            given_up is not None
            and edge_ns > given_up.edge_ns - period_ns / 2
            and arrival_ns <= given_up.arrival_ns + LATE_NS
        ):
            self._note(
                arrival_ns,
                f"pulse {number} came through the bus too late for frame {given_up.frame.seq}, which was not "
                "held any longer; a replay may stamp otherwise",
            )

    def frame(self, frame: Frame, estimate: Stamped, now_ns: int) -> None:
        """Take the next frame with its ordinary stamps.

        Args:
            now_ns: On the clock of :meth:`ready`, which counts real time, also in a replay.
        """
        exposure_ns = self._settings.exposure_ns(self.info, frame.meta)
        estimate = self._settings.estimate(self.info, estimate, exposure_ns or 0.0)
        edge_ns = int(estimate.capture_ns[0]) - self._shutter.after_edge_ns(exposure_ns or 0.0)
        self._held.append(_Held(frame, estimate, exposure_ns, edge_ns, now_ns))

    # -- what goes out

    @property
    def is_matching(self) -> bool:
        """Whether frames have the times of their pulses by now."""
        return self._difference is not None and self._slips_in_row < _SLIPS

    @property
    def oldest_arrival_ns(self) -> int | None:
        """Arrival of the oldest frame that still waits; None if none does."""
        return self._held[0].arrival_ns if self._held else None

    def ready(self, now_ns: int | None = None) -> Iterator[tuple[Frame, Stamped]]:
        """Yield the frames that are decided, in order, with their final stamps.

        Args:
            now_ns: As of :meth:`frame`; None = wait for nothing any more.
        """
        while self._held:
            held = self._held[0]
            stamped = self._decide(held)
            if stamped is None:
                if now_ns is not None:
                    if now_ns - held.since_ns <= PATIENCE_NS and not self._is_silent:
                        return
                    self._is_silent, self._given_up = True, held
                stamped = self._keep(held, NO_PULSE)
            self._held.popleft()
            yield held.frame, stamped

    def take_counts(self) -> TriggerCounts:
        """Return what was counted since the last call, and begin anew."""
        counts, self._counts = self._counts, self._begin()
        self._counts.period_ns = counts.period_ns
        counts.is_loose = self._slips_in_row >= _SLIPS
        return counts

    def take_events(self) -> tuple[ClockEvent, ...]:
        """Return what happened since the last call, oldest first."""
        events = tuple(self._events)
        self._events.clear()
        return events

    # -- deciding

    def _decide(self, held: _Held) -> Stamped | None:
        """Return the final stamps of a frame; None while the pulse that decides it may still come."""
        if held.exposure_ns is None:
            return self._keep(held, BAD_EXPOSURE)
        deciding, before = self._pulses_at(held.edge_ns)
        if deciding is None:
            return None
        if deciding.arrival_ns > held.arrival_ns + LATE_NS:
            return self._keep(held, NO_PULSE)
        period_ns = deciding.period_ns
        stated = held.estimate.uncertainty
        if self._latency_bound_ns >= period_ns / 2 > 0:
            self._counts.refusal = ambiguity(self._latency_bound_ns, period_ns)
            return self._keep(held, UNCERTAIN)
        if self._latency_bound_ns + stated.bound95_ns >= period_ns / 2:
            return self._keep(held, UNCERTAIN)
        number = _number_at(held.edge_ns, deciding, before)
        self._take_evidence(number - held.frame.seq, held)
        if self._difference is None:
            return self._keep(held, NOT_KNOWN)
        if number - held.frame.seq != self._difference:
            return self._keep(held, OTHER_PULSE)
        if number == deciding.number:
            return self._by_pulse(held, deciding, held.exposure_ns)
        if before is not None and number == before.number:
            return self._by_pulse(held, before, held.exposure_ns)
        return self._keep(held, NOT_RECORDED)

    def _pulses_at(self, edge_ns: int) -> tuple[PulseStamp | None, PulseStamp | None]:
        """Return the first pulse less than half a period before a time, or after it, and the pulse before it."""
        deciding: PulseStamp | None = None
        for pulse in reversed(self._pulses):
            if pulse.edge_ns <= edge_ns - pulse.period_ns / 2:
                return deciding, pulse
            deciding = pulse
        return deciding, None

    def _take_evidence(self, difference: int, held: _Held) -> None:
        """Believe a new difference of the counters once it held for some frames."""
        known = self._difference
        if difference == known:
            self._candidate = None
            return
        run = self._candidate[1] + 1 if self._candidate and self._candidate[0] == difference else 1
        self._candidate = (difference, run)
        if run < PERSIST:
            return
        self._difference, self._candidate = difference, None
        what = f"frame {held.frame.seq} answers pulse {difference + held.frame.seq}"
        if known is None:
            self._note(held.arrival_ns, f"{what}; frames have the times of their pulses from here on")
        elif difference > known:
            self._counts.ignored_pulses += difference - known
            self._note(held.arrival_ns, f"{what}; pulses ignored by the camera: {difference - known}")
        else:
            self._counts.spurious_frames += known - difference
            self._note(held.arrival_ns, f"{what}; frames exposed without a pulse: {known - difference}")

    def _by_pulse(self, held: _Held, pulse: PulseStamp, exposure_ns: float) -> Stamped:
        capture_ns = pulse.edge_ns + self._shutter.after_edge_ns(exposure_ns)
        is_possible = self._last_ns <= capture_ns <= held.arrival_ns
        if not is_possible or not self._fits(held, pulse, float(held.middle_ns - capture_ns)):
            return self._keep(held, UNFIT)
        if self._slips_in_row >= _SLIPS:
            return self._keep(held, LOOSE)
        self._counts.matched += 1
        self._counts.residual(float(held.middle_ns + self._settings.late_ns - capture_ns))
        known = pulse.uncertainty
        uncertainty = Uncertainty(
            known.statistical_ns, known.floor_ns + self._shutter.bound_ns, known.asymmetry_ns
        )
        return self._stamp(held, capture_ns, uncertainty)

    def _fits(self, held: _Held, pulse: PulseStamp, residual_ns: float) -> bool:
        """Return whether a frame's own estimate is as late against its pulse as those before were.

        The constant latency is the same for all frames, so the windows that their bounds leave for it overlap.
        """
        margin_ns = _MARGIN * (held.estimate.uncertainty.bound95_ns + pulse.uncertainty.bound95_ns)
        low, high = residual_ns - margin_ns, residual_ns + margin_ns
        if self._window is None:
            self._window = (low, high)
            return True
        wander_ns = _WANDER * pulse.period_ns
        least, most = self._window[0] - wander_ns, self._window[1] + wander_ns
        if low <= most and high >= least:
            self._window = (max(low, least), min(high, most))
            self._unfit_run = 0
            return True
        self._unfit_run += 1
        if self._unfit_run < PERSIST:
            return False
        direction = 1 if residual_ns > most else -1
        self._slips_in_row = self._slips_in_row + 1 if direction == self._direction else 1
        self._direction = direction
        self._counts.slips += 1
        middle_ns = (least + most) / 2
        self._note(
            held.arrival_ns,
            f"frames are {(residual_ns - middle_ns) / 1e3:+.0f} us away from where their pulses had them",
        )
        self._window, self._unfit_run = (low, high), 0
        return True

    def _keep(self, held: _Held, reason: str) -> Stamped:
        """Return the ordinary estimate, counted under a reason."""
        self._counts.estimated[reason] += 1
        return self._stamp(held, held.middle_ns, held.estimate.uncertainty)

    def _stamp(self, held: _Held, capture_ns: int, uncertainty: Uncertainty) -> Stamped:
        self._count_losses(held)
        self._last_ns = max(self._last_ns, min(capture_ns, held.arrival_ns))
        # Arrivals that run backwards are the driver's fault; not after the arrival comes first.
        final_ns = min(self._last_ns, held.arrival_ns)
        return Stamped(np.array([final_ns], np.int64), uncertainty, held.estimate.epoch)

    def _count_losses(self, held: _Held) -> None:
        if self._last_count is not None:
            self._counts.lost_frames += max(held.frame.seq - self._last_count - 1, 0)
        self._last_count = held.frame.seq + held.frame.count - 1

    def _note(self, host_ns: int, detail: str) -> None:
        self._events.append(ClockEvent(self.info.name, ClockEventKind.TRIGGER, host_ns, detail))


def _number_at(edge_ns: int, deciding: PulseStamp, before: PulseStamp | None) -> int:
    """Return the number of the pulse nearest to a time, also of one that was not recorded."""
    gap_ns = deciding.edge_ns - edge_ns
    if abs(gap_ns) <= deciding.period_ns / 2 or deciding.period_ns <= 0:
        return deciding.number
    if before is None or deciding.edge_ns <= before.edge_ns:
        return deciding.number - round(gap_ns / deciding.period_ns)
    share = (edge_ns - before.edge_ns) / (deciding.edge_ns - before.edge_ns)
    return before.number + round(share * (deciding.number - before.number))
