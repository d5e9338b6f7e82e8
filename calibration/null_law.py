"""How far the agreement of edges would lie from a rig in order by chance, worked out anew for each window.

Twice what a motion gains over the best place of a rig in order is, while nothing moved, a weighted sum of squares:
of how the edges pull at the six degrees by chance, and of where a rig in order may stand. The weights follow from
how sharp the window's own agreement is; the size of the chance pull is read off the window itself, from how much
upright strips of its images pull against each other. Scenes whose strips quarrel (a bush, a passing car, one
keyframe against the others) so need a larger gain before they count.

Source: the null of a likelihood ratio under a misspecified likelihood: White, "Maximum likelihood estimation of
misspecified models", 1982; sum of weighted squares by two moments: Satterthwaite, 1946; normal score of an F
ratio: Paulson, 1942.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.calibration.agreement import ANYWHERE, Agreement, Expectation
from sensorium.calibration.geometry import Array
from sensorium.calibration.keyframes import BLUR_PX, Keyframe

# Strips of an image that are taken to err independently.
STRIPS = 8
_LEAST_STRIPS = 4
# Chance that edges which all err by themselves would have; scenes of rigs in order have 0.2 to 0.6 of it. Strips that
# pull harder do so because keyframes contradict each other, or edges agree nowhere near.
MOST_CHANCE = 1.0


@dataclass(frozen=True, slots=True)
class NullLaw:
    """What twice the gain is like while nothing moved.

    Attributes:
        mean: What it is on average.
        freedom: Of the chi-square that it is like.
        chance: Size of the chance pull, 1 where all edges err by themselves.
        certainty: How well the size of chance is known: the freedom of a chi-square that scatters as much.
    """

    mean: float
    freedom: float
    chance: float
    certainty: float

    def deviations(self, twice_gain: float) -> float:
        """Return how unlikely a gain is, as the standard deviations of a normal law (2 is exceeded by 2.3 %)."""
        if self.mean <= 0.0:
            return 0.0
        ratio = np.cbrt(max(twice_gain, 0.0) / self.mean)
        above, below = 2 / (9 * self.freedom), 2 / (9 * self.certainty)
        return float(((1 - below) * ratio - (1 - above)) / np.sqrt(below * ratio**2 + above))


def null_law(
    keyframes: Sequence[Keyframe], T_camera_lidar: Array, motion: Array, expected: Expectation
) -> NullLaw:
    """Return the law of twice the gain over the best place in order.

    Args:
        motion: (6,) That best place.
        expected: Where a rig in order is.
    """
    if not keyframes:
        return NullLaw(0.0, 1.0, 0.0, 1.0)
    level = len(BLUR_PX) - 1
    information = Agreement(keyframes, T_camera_lidar, level).information(motion)
    pulls = np.concatenate(
        [Agreement([frame], T_camera_lidar, level).pulls(motion, STRIPS) for frame in keyframes]
    )
    pulls = pulls[np.abs(pulls).sum(axis=1) > 0]
    anywhere, in_place = (
        np.linalg.inv(information + np.linalg.inv(prior.covariance)) for prior in (ANYWHERE, expected)
    )
    count = len(pulls)
    if count < _LEAST_STRIPS:
        return NullLaw(0.0, 1.0, 0.0, 1.0)
    # In the axes in which the information is one, what a strip pulls beside the others is so many squares of chance.
    apart = pulls - pulls.mean(axis=0)
    squares = np.einsum("bi,ij,bj->b", apart, anywhere, apart)
    chance = float(squares.sum()) / len(motion) * count / (count - 1)
    spread = min(chance, MOST_CHANCE) * information + information @ expected.covariance @ information
    weights = np.linalg.eigvals((anywhere - in_place) @ spread).real
    mean = float(weights.sum())
    # A few strips that pull far harder than the others tell little of the size of chance.
    unevenness = float(squares.var(ddof=1)) / max(float(squares.mean()), 1e-12) ** 2
    certainty = 2 * count / max(unevenness, 1e-3)
    return NullLaw(mean, mean**2 / max(float(np.square(weights).sum()), 1e-12), chance, certainty)
