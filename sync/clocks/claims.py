"""Devices that claim to keep a known clock (PTP, UTC, a node's): held against their own arrivals, then believed.

A claim that its arrivals confirm is the better clock: its capture times carry no unknown least latency. Until
then, and whenever it is contradicted, the one-way estimate stamps; it goes on beside as a monitor.
"""

from dataclasses import dataclass, replace

import numpy as np

from sensorium.drivers.frame import DeviceClock, StreamInfo
from sensorium.sync.clocks.model import ClockModel, Uncertainty
from sensorium.sync.clocks.oneway import Line
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict, outweighs

STEERED_PPM = 1.0
"""A disciplined clock is slewed by its servo now and then, but is not this much faster or slower on the mean."""
FAR = 4.0
"""Times the 95 % bounds. Latencies have exponential tails, so errors of an estimate do: one in 20 exceeds its bound,
one in 160 000 four times that, and whoever looks for an hour looks at a few hundred independent estimates."""
TELLING_PPM = 4.0
"""Rates that are known worse cannot tell a clock that runs freely at 5 ppm; the verdict says how well they are."""
OLD_NS, MANY = 20e9, 100
YOUNG_TIMES, YOUNG_RATES = 1.5, 2.0
"""An estimate younger than this, or of fewer samples, has not yet seen how soft its floor is: what a device seems to be
late by, within this much of the jitter of its arrivals, may be latency; being early never is. What few samples say of
a rate is known so many times worse than their bounds make it."""
CROWDED = 1.5
"""Samples that come in order and jitter by so many of their periods wait for one another: none is ever as quick as the
link, at any age, and the more there are, the further from it they all stay."""
OF_THE_SLOPE = 4.6
"""An error of e at the end of a window of t has, in a parabola, a slope there of 4.6 e / t (least squares)."""
PERSIST = 3
"""Looks in a row, a second apart, that must agree before a claim is believed or called wrong: a reading of the
reference may be stale. They share their samples, so they make no false alarm rarer; `FAR` does."""
JUMP_NS = 1e6
"""More between two looks, a second apart, than a clock that is 1000 ppm off would move."""
POINTS = 64
"""Comparisons kept of a run; more are thinned out, the oldest stays."""


TAI_MINUS_UTC_S = 37
"""Since 2017; used where the grandmaster does not announce it."""
_HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Reference:
    """A clock that devices may claim to keep, at its newest reading.

    Attributes:
        name: For reasons and models: ``ptp``, ``utc``, ``node``.
        model: Its nanoseconds onto the host clock.
        doubt: Why the reference itself may be wrong; a device that differs is then only suspect.
        may_be_followed: Whether it is known well enough to stamp by.
        utc_offset_s: TAI - UTC as it announces it; None = it does not.
    """

    name: str
    model: ClockModel
    doubt: str = ""
    may_be_followed: bool = True
    utc_offset_s: int | None = None


def in_ticks(reference: ClockModel, clock: DeviceClock, near_ticks: int) -> ClockModel:
    """Return a reference's map in a device's own ticks, in the turn of its counter nearest to ``near_ticks``."""
    ref_ticks = round(reference.ref_ticks * clock.tick_ns_den / clock.tick_ns_num)
    if clock.modulus is not None:
        ref_ticks += round((near_ticks - ref_ticks) / clock.modulus) * clock.modulus
    return replace(reference, ref_ticks=ref_ticks, ns_per_tick=reference.ns_per_tick * clock.tick_ns)


def utc_reference(utc_minus_host_ns: int, host_ns: int, error_ns: float = 1e6, doubt: str = "") -> Reference:
    """Return the host's own idea of UTC at ``host_ns``, which may be wrong by ``error_ns``."""
    uncertainty = Uncertainty(0.0, 0.0, error_ns)
    model = ClockModel(0, "utc", host_ns + utc_minus_host_ns, host_ns, 1.0, 0.0, uncertainty)
    return Reference("utc", model, doubt, may_be_followed=False)


@dataclass(frozen=True, slots=True)
class Rate:
    """By how much a clock runs off the one that it claims to keep, and how far that may be wrong (ppm)."""

    ppm: float
    within_ppm: float


class LongRun:
    """How a claimed clock and the arrivals move apart, over all of an epoch and not one window.

    What both have in common, the least latency and what the shape of its floor makes of it, cancels in a difference
    of differences; what is left of their errors is divided by the time between.
    """

    def __init__(self) -> None:
        self._epochs: tuple[int, int] | None = None
        self._points: list[tuple[int, float, float]] = []

    def take(self, one_way: ClockModel, claimed: ClockModel, has_few: bool = False) -> Rate | None:
        """Take a comparison and return the rate by the earlier one that tells it best; None after the first."""
        epochs = one_way.epoch, claimed.epoch
        if epochs != self._epochs:
            self._epochs = epochs
            self._points.clear()
        ticks = np.array([one_way.ref_ticks], np.int64)
        apart_ns = float(one_way.ref_host_ns - int(claimed.to_host(ticks)[0]))
        bound_ns = one_way.uncertainty.bound95_ns + claimed.uncertainty.bound95_ns
        if has_few:
            bound_ns *= YOUNG_RATES
        at_ns = one_way.ref_host_ns
        if self._points:
            _, before_ns, before_bound_ns = self._points[-1]
            if abs(apart_ns - before_ns) > JUMP_NS + FAR * (bound_ns + before_bound_ns):
                self._points.clear()  # a step of either clock is no rate
        found = [
            Rate(
                (apart_ns - before_ns) / (at_ns - then_ns) * 1e6,
                FAR * (bound_ns + before_bound_ns) / (at_ns - then_ns) * 1e6,
            )
            for then_ns, before_ns, before_bound_ns in self._points
            if at_ns > then_ns
        ]
        self._points.append((at_ns, apart_ns, bound_ns))
        if len(self._points) > POINTS:
            del self._points[1::2]
        return min(found, key=lambda rate: rate.within_ppm, default=None)


def judge_claim(
    info: StreamInfo,
    model: ClockModel,
    line: Line,
    reference: Reference,
    long_run: Rate | None = None,
    jitter_ns: float = 0.0,
) -> Verdict:
    """Return whether the device stamps are what the reference says, and if not, what they look like instead.

    Counters with a modulus (microseconds of the hour) are compared within the modulus.

    Args:
        model: The stream's one-way map.
        line: The estimate that it came from.
        long_run: The rate over more than the estimate's window, if more is known.
        jitter_ns: Of the arrivals, 90 % of the time.
    """
    claimed = in_ticks(reference.model, info.clock, model.ref_ticks)
    bound_ns = model.uncertainty.bound95_ns
    within_ppm = FAR * OF_THE_SLOPE * bound_ns / max(line.window_ns, 1.0) * 1e6
    rate = Rate(model.skew_ppm - claimed.skew_ppm, within_ppm)
    if line.count < MANY:
        rate = replace(rate, within_ppm=YOUNG_RATES * within_ppm)
    if long_run is not None and long_run.within_ppm < rate.within_ppm:
        rate = long_run
    is_young = line.window_ns < OLD_NS or line.count < MANY
    crowding = jitter_ns * 1e-9 * info.message_rate_hz
    late_ns = YOUNG_TIMES * jitter_ns if is_young else 0.0
    if crowding > CROWDED:
        late_ns = min(YOUNG_TIMES * jitter_ns * (1 + crowding), float(info.latency.max_ns))
    announced_s = reference.utc_offset_s
    offset_s = TAI_MINUS_UTC_S if announced_s is None else announced_s
    verdict = compare_claim(info.name, model.ref_ticks, model, claimed, offset_s, rate, late_ns)
    is_assumed = announced_s is None and any("is taken for" in reason for reason in verdict.reasons)
    if verdict.status is Status.FAILED and reference.doubt:
        verdict = replace(verdict, status=Status.SUSPECT, reasons=(*verdict.reasons, reference.doubt))
    if is_assumed:
        assumed = f"nobody announces TAI - UTC, {offset_s} s is assumed"
        verdict = replace(verdict, reasons=(*verdict.reasons, assumed))
    return verdict


def compare_claim(
    subject: str,
    at_ticks: int,
    one_way: ClockModel,
    claimed: ClockModel,
    utc_offset_s: int = TAI_MINUS_UTC_S,
    rate: Rate | None = None,
    late_ns: float = 0.0,
) -> Verdict:
    """Compare what a device's claim says with what its arrivals say, and name the difference.

    Args:
        at_ticks: Unwrapped device stamp, recent for both models.
        one_way: From arrivals (late by the least latency, which its asymmetry term bounds).
        claimed: What the device's stamps would be if its claim were true.
        rate: By how much the device runs off its claim, where that is known better than by ``one_way``.
        late_ns: By how much later than in truth ``one_way`` may say, beside its bound.
    """
    ticks = np.array([at_ticks], np.int64)
    apart_ns = int(one_way.to_host(ticks)[0]) - int(claimed.to_host(ticks)[0])
    bound_ns = (
        FAR * (one_way.uncertainty.bound95_ns + claimed.uncertainty.bound95_ns)
        + one_way.uncertainty.asymmetry_ns
        + claimed.uncertainty.asymmetry_ns
    )
    if apart_ns > 0:
        bound_ns += late_ns
    if rate is None:
        rate = Rate(one_way.skew_ppm - claimed.skew_ppm, 0.0)
    limit_ppm = STEERED_PPM + rate.within_ppm
    reasons = _name_difference(apart_ns, bound_ns, utc_offset_s)
    if abs(rate.ppm) > limit_ppm:
        reasons.append(
            f"it runs {rate.ppm:+.1f} ppm (+- {rate.within_ppm:.1f}) off the clock that it claims to follow: it is"
            " free-running"
        )
    quantities = (
        Quantity("apart", float(apart_ns), "ns", bound_ns),
        Quantity("skew", rate.ppm, "ppm", limit_ppm),
    )
    if not reasons and rate.within_ppm > TELLING_PPM:
        told = f"its rate is known to {rate.within_ppm:.0f} ppm so far; whether it runs freely within that is not told"
        return Verdict("clock_claim", subject, Status.OK, quantities, (told,))
    status = Status.FAILED if reasons else Status.OK
    return Verdict("clock_claim", subject, status, quantities, tuple(reasons))


def _name_difference(apart_ns: int, bound_ns: float, utc_offset_s: int) -> list[str]:
    """Return a sentence on what ``apart_ns`` looks like; none if it is within the bound.

    One clock is ahead of the other by whole hours, by the leap seconds, by both, or by whole seconds.
    """
    if abs(apart_ns) <= bound_ns:
        return []
    near_ns = max(bound_ns, 0.05 * SECOND_NS)
    seconds = apart_ns / SECOND_NS
    for leap_s, leap_text in (
        (0, ""),
        (utc_offset_s, "UTC is taken for TAI"),
        (-utc_offset_s, "TAI is taken for UTC"),
    ):
        hours = round((seconds - leap_s) / _HOUR_S)
        left_ns = abs(apart_ns - (leap_s + hours * _HOUR_S) * SECOND_NS)
        if left_ns <= near_ns and (hours or leap_s):
            parts = [f"{leap_text} ({utc_offset_s} s)"] if leap_s else []
            if hours:
                parts.append(f"it counts within the hour ({hours:+d} h)")
            return [f"the device stamps are {seconds:+.3f} s from their claim: {' and '.join(parts)}"]
    whole = round(seconds)
    if whole and abs(apart_ns - whole * SECOND_NS) <= near_ns and abs(whole) <= _HOUR_S:
        return [
            f"the device stamps are {whole:+d} s from their claim: whole seconds, as after a leap second or a"
            " pulse counted for its neighbour"
        ]
    shown = f"{seconds:+.3f} s" if abs(seconds) >= 0.1 else f"{apart_ns / 1e3:+.1f} us"
    return [
        f"the device stamps are {shown} from their claim, beyond the bound of {bound_ns / 1e3:.1f} us: it is not"
        " synchronised"
    ]


class ClaimWatch:
    """One stream's claim, looked at each second; believed or called wrong after :data:`PERSIST` equal looks.

    Attributes:
        verdict: What is believed now.
        worst: The most severe of the looks that persisted since :meth:`begin`.
    """

    def __init__(self, info: StreamInfo, keeps: str) -> None:
        """Args:
        keeps: What it claims to keep, in words.
        """
        self._info = info
        self._keeps = keeps
        self._last: Verdict | None = None
        self._run = 0
        self._long_run = LongRun()
        self.verdict = self.worst = self._not_yet(f"it was not yet compared with {keeps}")

    def begin(self) -> None:
        """Forget what was found before: a new episode has begun."""
        self.worst = self.verdict

    def look(self, tracker: StreamTracker, reference: Reference | None, why_none: str = "") -> bool:
        """Compare once; return True when what is believed has changed. Makes the tracker follow or leave.

        Args:
            why_none: Why there is no reference, if there is none.
        """
        model, line = tracker.own_model, tracker.line
        if reference is None:
            found = self._not_yet(why_none or f"{self._keeps} is not known")
        elif model is None or line is None:
            found = self._not_yet("too few device stamps")
        else:
            claimed = in_ticks(reference.model, self._info.clock, model.ref_ticks)
            rate = self._long_run.take(model, claimed, line.count < MANY)
            found = judge_claim(self._info, model, line, reference, rate, tracker.jitter_ns)
        self._run = self._run + 1 if self._last is not None and self._last.status is found.status else 1
        self._last = found
        has_changed = False
        if self._run >= PERSIST:
            has_changed = self.verdict.status is not found.status
            self.verdict = found
            if outweighs(found.status, self.worst.status):
                self.worst = found
        tracker.follow(self._to_follow(found, model, reference))
        return has_changed

    def _to_follow(
        self, found: Verdict, own: ClockModel | None, reference: Reference | None
    ) -> ClockModel | None:
        """Return the claimed map while it is believed, and known better than the stream's own."""
        is_known = found.status is not Status.INSUFFICIENT and self.verdict.status is Status.OK
        if not is_known or own is None or reference is None or not reference.may_be_followed:
            return None
        claimed = in_ticks(reference.model, self._info.clock, own.ref_ticks)
        return claimed if _width_ns(claimed) < _width_ns(own) else None

    def _not_yet(self, reason: str) -> Verdict:
        return Verdict("clock_claim", self._info.name, Status.INSUFFICIENT, (), (reason,))


def _width_ns(model: ClockModel) -> float:
    return model.uncertainty.bound95_ns + model.uncertainty.asymmetry_ns
