"""Does a device that claims PTP time keep it? Its claim beside what its arrivals say, the difference named."""

import numpy as np

from sensorium.errors import ClockError
from sensorium.sync.clocks.model import ClockModel
from sensorium.sync.clocks.ptp import PtpStatus
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict

TAI_MINUS_UTC_S = 37
"""Since 2017; used where the grandmaster does not announce it."""


def claimed_model(status: PtpStatus, local_ns: int, host_ns: int, host_per_local: float = 1.0) -> ClockModel:
    """Return the map from PTP nanoseconds to the host clock that the lock claims.

    Args:
        local_ns: The clock that ptp4l stamps with (REALTIME, or a PTP hardware clock), read at ``host_ns``.
        host_per_local: Host nanoseconds per nanosecond of that clock.

    Raises:
        ClockError: If PTP was never locked.
    """
    if status.uncertainty is None:
        raise ClockError("PTP was never locked; there is no claim to compare with")
    skew_ppm = (host_per_local - 1) * 1e6
    return ClockModel(
        status.epoch,
        "ptp",
        local_ns - status.offset_ns,
        host_ns,
        host_per_local,
        skew_ppm,
        status.uncertainty,
    )


def compare_ptp_claim(
    subject: str,
    at_ticks: int,
    one_way: ClockModel,
    claimed: ClockModel,
    utc_offset_s: int = TAI_MINUS_UTC_S,
    skew_limit_ppm: float = 5.0,
) -> Verdict:
    """Compare what a device's PTP claim says with what its arrivals say, and name the difference.

    Args:
        at_ticks: Unwrapped device stamp, recent for both models.
        one_way: From arrivals (late by the least latency, which its asymmetry term bounds).
        claimed: From PTP: device stamps are PTP time.
        skew_limit_ppm: A disciplined clock does not run faster or slower than its master by more.
    """
    ticks = np.array([at_ticks], np.int64)
    apart_ns = int(one_way.to_host(ticks)[0]) - int(claimed.to_host(ticks)[0])
    bound_ns = (
        one_way.uncertainty.bound95_ns
        + one_way.uncertainty.asymmetry_ns
        + claimed.uncertainty.bound95_ns
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
    return Verdict("ptp_claim", subject, status, quantities, tuple(reasons))


_HOUR_S = 3600


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
