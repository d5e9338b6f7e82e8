"""Devices that claim to stamp in UTC or PTP time, held against their own arrivals."""

from sensorium.drivers.frame import StreamInfo
from sensorium.sync.clocks.model import ClockModel, Uncertainty
from sensorium.sync.clocks.oneway import Line
from sensorium.sync.clocks.ptp_claim import compare_ptp_claim
from sensorium.verdict import Verdict

SKEW_LIMIT_PPM = 5.0
"""A disciplined clock does not run faster or slower than its master by more."""
SKEW_KNOWN_AFTER_NS = 20e9
"""Windows shorter than this do not know the skew to a few ppm."""


def judge_utc_claim(
    info: StreamInfo, model: ClockModel, line: Line, utc_minus_host_ns: int, utc_error_ns: float = 1e6
) -> Verdict:
    """Return whether the device stamps are what the host calls UTC, and if not, what they look like instead.

    Counters with a modulus (microseconds of the hour) are compared within the modulus.

    Args:
        model: The stream's current map; line: the estimate that it came from.
        utc_error_ns: By how much the host's own UTC may be wrong.
    """
    ns_per_tick = info.clock.tick_ns
    utc_ns = model.ref_host_ns + utc_minus_host_ns
    claimed_ticks = round(utc_ns * info.clock.tick_ns_den / info.clock.tick_ns_num)
    modulus = info.clock.modulus
    if modulus is not None:
        claimed_ticks += round((model.ref_ticks - claimed_ticks) / modulus) * modulus
    claimed = ClockModel(
        model.epoch,
        "claim",
        claimed_ticks,
        model.ref_host_ns,
        ns_per_tick,
        0.0,
        Uncertainty(0.0, 0.0, utc_error_ns),
    )
    is_skew_known = line.window_ns >= SKEW_KNOWN_AFTER_NS
    limit_ppm = SKEW_LIMIT_PPM if is_skew_known else 1e6
    return compare_ptp_claim(info.name, model.ref_ticks, model, claimed, skew_limit_ppm=limit_ppm)
