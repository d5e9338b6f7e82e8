"""What an offset between two sensors is, found in what they saw, and how it compares with what the clocks claim."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.sync.clocks.model import Uncertainty
from sensorium.verdict import Quantity, Status, Verdict

Floats = NDArray[np.float64]

SOUND_NS_PER_M = 1e9 / 343.2
"""Travel of sound in dry air of 20 degrees Celsius; 0.6 m/s faster per degree (ISO 9613-1)."""


@dataclass(frozen=True, slots=True)
class Delay:
    """A known delay between the instant and its stamp, with the bound on its error.

    Attributes:
        delay_ns: Taken off the stamps: half the exposure where the stamp is its end, the group delay of an
            anti-alias filter, the travel of sound.
        bound_ns: Largest error of it; added to what the clocks claim.
    """

    delay_ns: float = 0.0
    bound_ns: float = 0.0

    @staticmethod
    def of_sound(distance_m: float, distance_bound_m: float = 0.0) -> "Delay":
        """Return the travel time from the place of a clap to a microphone (air of 0 to 40 degrees)."""
        travel_ns = distance_m * SOUND_NS_PER_M
        return Delay(travel_ns, distance_bound_m * SOUND_NS_PER_M + 0.035 * travel_ns)


NO_DELAY = Delay()


@dataclass(frozen=True, slots=True, eq=False)
class ContentOffset:
    """An offset between two sensors, or why there is none.

    Attributes:
        offset_ns: Stamp of the second sensor minus stamp of the first; meaningless while ``reasons`` is not empty.
        sigma_ns: One standard deviation, from curvature and residuals.
        bound_ns: Bound on the error of the delays that were put in; apart, it does not average out.
        count: Rotation steps or events that were used.
        quantities: Further numbers for the verdict.
        reasons: Why the scene does not answer; empty = it does.
        rotation: (3, 3) R_second_first where the rotation was fitted.
        bias_rad_s: (3,) the gyro's bias in its own axes, then.
    """

    method: str
    offset_ns: float
    sigma_ns: float
    bound_ns: float = 0.0
    count: int = 0
    quantities: tuple[Quantity, ...] = ()
    reasons: tuple[str, ...] = ()
    rotation: Floats | None = None
    bias_rad_s: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def is_informative(self) -> bool:
        return not self.reasons


def judge(
    found: ContentOffset, subject: str, first: Uncertainty, second: Uncertainty, *, wanted_ns: float = 10e6
) -> Verdict:
    """Return whether content confirms that two streams are on one timeline, as their clocks claim.

    Args:
        subject: The pair, ``camera_left~imu``.
        first: What the first stream's clock claims: its 95 % bound and the bound on its constant latency.
        second: The same of the second stream.
        wanted_ns: An answer less certain than this (95 %) proves nothing.

    The clocks claim an offset of zero within the sum of their bounds. Within that plus two sigma of the content:
    confirmed, or no more than agreed with where the content is less certain than the claim. Beyond it by four
    sigma: contradicted. Between: suspect.
    """
    check = f"content_{found.method}"
    if not found.is_informative:
        return Verdict(check, subject, Status.INSUFFICIENT, found.quantities, found.reasons)
    claimed_ns = found.bound_ns + sum(each.bound95_ns + each.asymmetry_ns for each in (first, second))
    excess_ns = abs(found.offset_ns) - claimed_ns
    quantities = (
        Quantity("offset", found.offset_ns / 1e3, "us", claimed_ns / 1e3, found.sigma_ns / 1e3),
        *found.quantities,
    )
    told = (
        f"content puts the second stream {found.offset_ns / 1e6:+.3f} ms from the first "
        f"(sigma {found.sigma_ns / 1e6:.3f} ms, {found.count} {found.method} observations); "
        f"the clocks claim 0 within {claimed_ns / 1e6:.3f} ms"
    )
    if excess_ns > 4 * found.sigma_ns:
        return Verdict(check, subject, Status.FAILED, quantities, (f"{told}: contradicted",))
    if excess_ns > 2 * found.sigma_ns:
        return Verdict(check, subject, Status.SUSPECT, quantities, (f"{told}: doubtful",))
    if 2 * found.sigma_ns > wanted_ns:
        reason = f"{told}; a proof needs {wanted_ns / 1e6:.1f} ms or better"
        return Verdict(check, subject, Status.INSUFFICIENT, quantities, (reason,))
    if 2 * found.sigma_ns > claimed_ns:
        told = f"{told}: agrees, as far as the content can tell, which is {2 * found.sigma_ns / 1e6:.3f} ms"
        return Verdict(check, subject, Status.OK, quantities, (told,))
    return Verdict(check, subject, Status.OK, quantities, (f"{told}: confirmed",))
