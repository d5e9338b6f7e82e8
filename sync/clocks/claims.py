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

SKEW_LIMIT_PPM = 5.0
"""A disciplined clock does not run faster or slower than its master by more."""
SKEW_KNOWN_AFTER_NS = 20e9
"""Windows shorter than this do not know the skew to a few ppm."""
PERSIST = 3
"""Looks in a row, a second apart, that must agree before a claim is believed or called wrong."""


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


def judge_claim(info: StreamInfo, model: ClockModel, line: Line, reference: Reference) -> Verdict:
    """Return whether the device stamps are what the reference says, and if not, what they look like instead.

    Counters with a modulus (microseconds of the hour) are compared within the modulus.

    Args:
        model: The stream's one-way map.
        line: The estimate that it came from.
    """
    claimed = in_ticks(reference.model, info.clock, model.ref_ticks)
    limit_ppm = SKEW_LIMIT_PPM if line.window_ns >= SKEW_KNOWN_AFTER_NS else 1e6
    announced_s = reference.utc_offset_s
    offset_s = TAI_MINUS_UTC_S if announced_s is None else announced_s
    verdict = compare_claim(info.name, model.ref_ticks, model, claimed, offset_s, limit_ppm)
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
    skew_limit_ppm: float = 5.0,
) -> Verdict:
    """Compare what a device's claim says with what its arrivals say, and name the difference.

    Args:
        at_ticks: Unwrapped device stamp, recent for both models.
        one_way: From arrivals (late by the least latency, which its asymmetry term bounds).
        claimed: What the device's stamps would be if its claim were true.
        skew_limit_ppm: A disciplined clock does not run faster or slower than its master by more.
    """
    ticks = np.array([at_ticks], np.int64)
    apart_ns = int(one_way.to_host(ticks)[0]) - int(claimed.to_host(ticks)[0])
    # Twice the 95 % bounds: a difference that one look in twenty shows is none.
    bound_ns = (
        2 * (one_way.uncertainty.bound95_ns + claimed.uncertainty.bound95_ns)
        + one_way.uncertainty.asymmetry_ns
        + claimed.uncertainty.asymmetry_ns
    )
    skew_ppm = one_way.skew_ppm - claimed.skew_ppm
    reasons = _name_difference(apart_ns, bound_ns, utc_offset_s)
    if abs(skew_ppm) > skew_limit_ppm:
        reasons.append(
            f"it runs {skew_ppm:+.1f} ppm off the clock that it claims to follow: it is free-running"
        )
    quantities = (
        Quantity("apart", float(apart_ns), "ns", bound_ns),
        Quantity("skew", skew_ppm, "ppm", skew_limit_ppm),
    )
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
            found = judge_claim(self._info, model, line, reference)
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
