"""Whether a LiDAR still stands where the calibration has it, seen from a camera, without a target.

Three kinds of edges of the LiDAR's sweep should lie on edges of the image: depth jumps along a ring (upright
outlines, on horizontal gradients), depth jumps between rings (level outlines, on vertical gradients) and
reflectance steps on a surface (paint, signs, on any gradient). The sum of how well they do, over several
keyframes, is climbed in six degrees of freedom from blurred to sharp edge images; where the top lies tells
how far the LiDAR moved, and how sharp the top is tells how well each degree is known.

Source: spec calibration 2, after Levinson and Thrun, "Automatic online calibration of cameras and lasers",
RSS 2013, whose single-frame count of worse neighbours it replaces by an estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.calibration.agreement import (
    DRIFT_SIGMA,
    PRIOR_SIGMA,
    Agreement,
    Estimate,
    Expectation,
    expected_of,
    hill_climb,
)
from sensorium.calibration.checks import Degree
from sensorium.calibration.edges import Reference
from sensorium.calibration.geometry import (
    Array,
    difference,
    small_motion,
)
from sensorium.calibration.keyframes import BLUR_PX, Keyframe, distinct_scenes
from sensorium.calibration.null_law import MOST_CHANCE, null_law
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "camera_lidar"
DEGREES = ("pitch", "yaw", "roll", "x", "y", "z")
UNITS = ("deg", "deg", "deg", "m", "m", "m")
# Where climbs start that ask how large a large motion is: 1.5 degrees and 15 cm either way.
WIDE_STARTS = tuple(
    sign * size * np.eye(6)[axis]
    for axis, size in ((0, np.deg2rad(1.5)), (1, np.deg2rad(1.5)), (3, 0.15), (4, 0.15))
    for sign in (-1.0, 1.0)
)
MIN_KEYFRAMES = 3
MIN_DEPTH_EDGES = 200
MIN_REFLECTANCE_EDGES = 50
MIN_CONTRAST = 12.0
# Misalignment that counts, for windows and for the hint that a single keyframe gives. The law of each window allows
# for a rig in order that is off by as much as BIAS_SIGMA in all degrees, which few are: of 352 windows of 5 scenes and
# a drive of KITTI (whole, halved, blurred, dark, noisy, thinned to 32 and 16 rings) 3 lie beyond, by the law 8 % would.
THRESHOLD = 1.4
# With 95 % confidence no more than this share of windows of a rig in order lies beyond: 1 of 124 windows of three and
# five keyframes of nine scenes that no constant was chosen on (as if they shared no frame; Clopper and Pearson, 1934).
FALSE_ALARM_BOUND = 0.038
# From here on, which half of the windows of a rig in order stay below, it is worth to look from other starts too.
SUSPICION = 0.0
# A change within a recording: of 48 random splits of kitti_object and kitti_raw_seq into four and four or three and
# three keyframes none gains more than 3.8.
CHANGE_THRESHOLD = 4.0
# By how many sigma another focal length must fit better than any motion.
FOCAL_THRESHOLD = 3.1
# Wrong focal lengths are rare and small; larger ones are another lens or image size, which the lint finds.
FOCAL_PRIOR = 0.03
# Edges seen beside where they are spread the image too: +0.05 to 0.36 % on KITTI. One sigma, and what is accepted
# beyond two of them; fewer keyframes are spread by what moves in them.
FOCAL_BIAS_PERCENT = 0.25
FOCAL_TOLERANCE_PERCENT = 0.3
FOCAL_KEYFRAMES = 5


@dataclass(frozen=True, slots=True)
class CameraLidarTolerance:
    """Accepted motion of the LiDAR against the camera."""

    rotation_deg: float = 0.5
    translation_m: float = 0.10

    def of(self, degree: str) -> float:
        return self.rotation_deg if degree in DEGREES[:3] else self.translation_m


def estimate_motion(
    keyframes: Sequence[Keyframe], T_camera_lidar: Array, starts: Sequence[Array] = (np.zeros(6),)
) -> Estimate:
    """Climb from the given calibration to where LiDAR and image edges agree best.

    Args:
        starts: Motions to climb from; the highest top counts. One start is right for small motions, and
            ``WIDE_STARTS`` for finding out how large a large one is.

    Raises:
        CalibrationError: Without a keyframe.
    """
    if not keyframes:
        raise CalibrationError("camera-LiDAR estimate needs at least one keyframe")
    levels = [Agreement(keyframes, T_camera_lidar, level) for level in range(len(BLUR_PX))]
    motions = list(starts)
    for agreement in levels:
        first, *others = (hill_climb(agreement, motion) for motion in motions)
        others.sort(key=lambda motion: agreement.value(motion)[0], reverse=True)
        # The first start is the likeliest, and a blurred agreement may put it behind others wrongly.
        motions = [first, *others[: -(-len(others) // 3)]]
    # Climbing once more, with nothing known of the slopes, gets off ledges of the sharp agreement.
    motions += [hill_climb(levels[-1], motion) for motion in motions]
    motion = max(motions, key=lambda motion: levels[-1].value(motion)[0])
    height, _ = levels[-1].value(motion)
    ground, _ = levels[-1].value(np.zeros(6))
    return Estimate(motion, levels[-1].covariance(motion), float(np.sqrt(2 * max(height - ground, 0.0))))


@dataclass(frozen=True, slots=True)
class FocalEstimate:
    """How much longer the focal length is than calibrated (a fraction), and by how many sigma that fits better.

    ``motion`` is the LiDAR's that goes with it.
    """

    error: float
    sigma: float
    gain: float
    motion: Array


def estimate_focal(keyframes: Sequence[Keyframe], T_camera_lidar: Array, motion: Array) -> FocalEstimate:
    """Climb on from the best motion with the focal length free as well.

    A longer focal length spreads the image about its centre, near and far alike; a LiDAR that moved back
    spreads what is near only.
    """
    level = len(BLUR_PX) - 1
    prior = Expectation(np.zeros(7), np.diag(np.append(PRIOR_SIGMA, FOCAL_PRIOR) ** 2))
    free = Agreement(keyframes, T_camera_lidar, level, prior)
    top = hill_climb(free, np.append(motion, 0.0))
    fixed, _ = Agreement(keyframes, T_camera_lidar, level).value(motion)
    covariance = free.covariance(top)
    gain = float(np.sqrt(2 * max(free.value(top)[0] - fixed, 0.0)))
    return FocalEstimate(float(top[6]), float(np.sqrt(covariance[6, 6])), gain, top[:6])


@dataclass(frozen=True, slots=True)
class Misalignment:
    """How clearly the edges speak for a motion against "nothing moved".

    Attributes:
        sigma: In standard deviations of what these very scenes would show by chance, see :mod:`null_law`.
        gain: The root of twice the logarithm of the likelihood ratio, as if every edge erred by itself.
        quarrel: How hard parts of the images pull against each other; beyond ``MOST_CHANCE`` nothing is proven.
    """

    sigma: float
    gain: float
    quarrel: float


def misalignment(
    keyframes: Sequence[Keyframe], T_camera_lidar: Array, motion: Array, expected: Expectation
) -> Misalignment:
    """Compare the agreement at the motion with the best one that a rig in place could have.

    Where a poor scene has a second top far away, hardly higher than the first, it stays small while the distance
    of that top in its own deviations would be large.
    """
    return _against(
        _best_in_place(keyframes, T_camera_lidar, expected), keyframes, T_camera_lidar, motion, expected
    )


def _best_in_place(keyframes: Sequence[Keyframe], T_camera_lidar: Array, expected: Expectation) -> Array:
    """Return where a rig in place has its edges agree best."""
    levels = [Agreement(keyframes, T_camera_lidar, level, expected) for level in range(len(BLUR_PX))]
    from_far = expected.mean
    for level in levels:
        from_far = hill_climb(level, from_far)
    tops = (from_far, hill_climb(levels[-1], expected.mean))
    return max(tops, key=lambda top: levels[-1].value(top)[0])


def _against(
    in_place: Array,
    keyframes: Sequence[Keyframe],
    T_camera_lidar: Array,
    motion: Array,
    expected: Expectation,
) -> Misalignment:
    anywhere, _ = Agreement(keyframes, T_camera_lidar, len(BLUR_PX) - 1).value(motion)
    # The motion itself may be one that a rig in place can have, and its top missed by the climbs from there.
    held = Agreement(keyframes, T_camera_lidar, len(BLUR_PX) - 1, expected)
    best = max((in_place, hill_climb(held, motion)), key=lambda top: held.value(top)[0])
    twice_gain = 2 * max(anywhere - held.value(best)[0], 0.0)
    law = null_law(keyframes, T_camera_lidar, best, expected)
    return Misalignment(law.deviations(twice_gain), float(np.sqrt(twice_gain)), law.chance)


def screening(frame: Keyframe, T_camera_lidar: Array, reference: Reference | None = None) -> float:
    """Return the misalignment (sigma) that a single keyframe sees; compare with ``THRESHOLD``."""
    motion = estimate_motion([frame], T_camera_lidar, (np.zeros(6), *WIDE_STARTS)).motion
    return misalignment([frame], T_camera_lidar, motion, expected_of([frame], reference)).sigma


@dataclass(frozen=True, slots=True, eq=False)
class CameraLidarCheck:
    """What one window of keyframes says.

    Attributes:
        motion: As :class:`Estimate`, against the calibration alone (rad, m).
        sigma: One standard deviation of each, with the common bias (or the reference's uncertainty).
        distance: See :class:`Misalignment`, in sigma.
        T_camera_lidar_estimated: For the overlay.
        focal: What the camera's focal length looks like; None without a keyframe.
    """

    verdict: Verdict
    motion: Array
    sigma: Array
    distance: float
    keyframes: int
    T_camera_lidar_estimated: Array
    focal: FocalEstimate | None = None


def check_camera_lidar(
    keyframes: Sequence[Keyframe],
    calibration: RigCalibration,
    camera_frame: str,
    lidar_frame: str,
    reference: Reference | None = None,
    tolerance: CameraLidarTolerance | None = None,
    is_thorough: bool = False,
) -> CameraLidarCheck:
    """Judge one window of keyframes taken at different places.

    Three suffice for half a degree and 10 cm; ten and a reference for a quarter degree. Fewer keyframes, or
    keyframes of one and the same view, are ``insufficient``: a single view often has a false top.

    Args:
        reference: Reading of a good time (:func:`camera_lidar_reference`); by default the calibration's own.
        is_thorough: Climb from ``WIDE_STARTS`` too although nothing looks off from the calibration's own place.

    Raises:
        CalibrationError: If the frames are unknown.
    """
    subject = f"{camera_frame}~{lidar_frame}"
    T_camera_lidar = calibration.transform(camera_frame, lidar_frame)
    reference = reference or calibration.reference(CHECK, subject)
    gates = gates_of(keyframes)
    if not keyframes:
        verdict = Verdict(CHECK, subject, Status.INSUFFICIENT, (), tuple(gates))
        return CameraLidarCheck(verdict, np.zeros(6), np.full(6, np.inf), 0.0, 0, T_camera_lidar)
    everywhere = (np.zeros(6), *WIDE_STARTS)
    estimate = estimate_motion(keyframes, T_camera_lidar, everywhere if is_thorough else everywhere[:1])
    expected = expected_of(keyframes, reference)
    drift, covariance = drift_from(estimate, expected)
    in_place = _best_in_place(keyframes, T_camera_lidar, expected)
    seen = _against(in_place, keyframes, T_camera_lidar, estimate.motion, expected)
    if seen.sigma > SUSPICION and not is_thorough:
        # Something moved; a climb from one start may have stopped on a false top on the way there.
        estimate = estimate_motion(keyframes, T_camera_lidar, everywhere)
        drift, covariance = drift_from(estimate, expected)
        seen = _against(in_place, keyframes, T_camera_lidar, estimate.motion, expected)
    focal = estimate_focal(keyframes, T_camera_lidar, estimate.motion)
    verdict = _judge(subject, drift, covariance, seen, focal, len(keyframes), gates, tolerance, reference)
    return CameraLidarCheck(
        verdict,
        estimate.motion,
        np.sqrt(np.diag(covariance)),
        seen.sigma,
        len(keyframes),
        small_motion(estimate.motion) @ T_camera_lidar,
        focal,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """How the LiDAR's place changed from some keyframes to others.

    Attributes:
        motion: (6,) later minus earlier, rad and m; sigma: its deviations.
        gain: By how many sigma two places fit better than one.
    """

    motion: Array
    sigma: Array
    gain: float


def change_between(earlier: Sequence[Keyframe], later: Sequence[Keyframe], T_camera_lidar: Array) -> Change:
    """Compare where two groups of keyframes of one recording see the LiDAR; a common bias cancels.

    Raises:
        CalibrationError: If one of the groups is empty.
    """
    parts = (earlier, later)
    estimates = [estimate_motion(part, T_camera_lidar) for part in parts]
    both = estimate_motion(
        (*earlier, *later), T_camera_lidar, (np.zeros(6), *(estimate.motion for estimate in estimates))
    )
    gained = 0.0
    for part, estimate in zip(parts, estimates, strict=True):
        agreement = Agreement(part, T_camera_lidar, len(BLUR_PX) - 1)
        gained += agreement.value(estimate.motion)[0] - agreement.value(both.motion)[0]
    spread = sum(np.diag(estimate.covariance) for estimate in estimates) + 2 * DRIFT_SIGMA**2
    return Change(
        estimates[1].motion - estimates[0].motion,
        np.sqrt(spread),
        float(np.sqrt(2 * max(gained, 0.0))),
    )


def gain(frame: Keyframe, T_camera_lidar: Array, motion: Array, level: int = 1) -> float:
    """Return by how much one keyframe's edges agree better after a motion than without; > 0: it had moved.

    In units of a logarithmic likelihood, without the prior. Only the images of the blur ``level`` are used.
    """
    agreement = Agreement([frame], T_camera_lidar, level)
    prior = 0.5 * float(np.square(motion / PRIOR_SIGMA).sum())
    return agreement.value(motion)[0] + prior - agreement.value(np.zeros(6))[0]


def drift_from(estimate: Estimate, expected: Expectation) -> tuple[Array, Array]:
    """Return the motion against where a rig in place is found, and its full covariance."""
    drift = difference(small_motion(estimate.motion), small_motion(expected.mean))
    return drift, estimate.covariance + expected.covariance


def camera_lidar_reference(
    keyframes: Sequence[Keyframe], calibration: RigCalibration, camera_frame: str, lidar_frame: str
) -> Reference:
    """Return the fingerprint of a time when the rig is known to be good (ten keyframes or more).

    Raises:
        CalibrationError: With fewer than ``MIN_KEYFRAMES`` usable keyframes.
    """
    gates = gates_of(keyframes)
    if gates:
        raise CalibrationError(f"no reference for {camera_frame}~{lidar_frame}: {gates[0]}")
    estimate = estimate_motion(keyframes, calibration.transform(camera_frame, lidar_frame))
    sigma = np.sqrt(np.diag(estimate.covariance))
    correlation = estimate.covariance / np.outer(sigma, sigma)
    return Reference(
        CHECK,
        f"{camera_frame}~{lidar_frame}",
        calibration.calibration_id,
        tuple(float(value) for value in estimate.motion),
        tuple(float(value) for value in sigma),
        len(keyframes),
        tuple(tuple(float(value) for value in row) for row in correlation),
    )


def gates_of(keyframes: Sequence[Keyframe]) -> list[str]:
    """Return one sentence for each demand on the scenes that a window does not meet."""
    if not keyframes:
        return ["no keyframe"]
    gates = []
    dark = sum(frame.contrast < MIN_CONTRAST for frame in keyframes)
    if dark:
        gates.append(f"{dark} of {len(keyframes)} images have no contrast: dark, blank or covered")
    depth, _, reflectance = (
        float(np.mean([len(frame.edges[cue]) for frame in keyframes])) for cue in range(3)
    )
    if depth < MIN_DEPTH_EDGES:
        gates.append(
            f"{depth:.0f} depth edges per keyframe in view, {MIN_DEPTH_EDGES} are needed: "
            "empty scene or covered LiDAR"
        )
    if reflectance < MIN_REFLECTANCE_EDGES:
        gates.append(
            f"{reflectance:.0f} reflectance edges per keyframe in view, {MIN_REFLECTANCE_EDGES} are needed: "
            "no paint, signs or texture that the LiDAR sees"
        )
    scenes = distinct_scenes(keyframes)
    if scenes < MIN_KEYFRAMES:
        gates.append(
            f"{len(keyframes)} keyframes show {scenes} different scenes, {MIN_KEYFRAMES} are needed: "
            "standing still, or too few"
        )
    return gates


def _judge(
    subject: str,
    drift: Array,
    covariance: Array,
    seen: Misalignment,
    focal: FocalEstimate,
    count: int,
    gates: Sequence[str],
    tolerance: CameraLidarTolerance | None,
    reference: Reference | None,
) -> Verdict:
    tolerance = tolerance or CameraLidarTolerance()
    to_unit = np.array([180 / np.pi] * 3 + [1.0] * 3)
    sigma = np.sqrt(np.diag(covariance)) * to_unit
    degrees = [
        Degree(name, unit, float(drift[k] * to_unit[k]), float(sigma[k]), tolerance.of(name))
        for k, (name, unit) in enumerate(zip(DEGREES, UNITS, strict=True))
    ]
    focal_sigma = float(np.hypot(100 * focal.sigma, FOCAL_BIAS_PERCENT))
    quantities = (
        *(degree.quantity() for degree in degrees),
        Quantity("misalignment", seen.sigma, "sigma", THRESHOLD),
        Quantity("keyframes", float(count), "1", float(MIN_KEYFRAMES)),
        Quantity(
            "focal",
            100 * focal.error,
            "%",
            None,
            focal_sigma,
        ),
        Quantity("false_alarm_bound", FALSE_ALARM_BOUND, "1"),
    )
    against = "the reference" if reference is not None else "the calibration"
    unsure = [degree for degree in degrees if degree.status is not Status.OK]
    named = (
        (f"not confirmed to tolerance in this scene: {', '.join(degree.name for degree in unsure)}",)
        if unsure
        else ()
    )
    if gates:
        hint = f"what is seen lies {seen.sigma:.1f} sigma from {against}: look again with more scenes"
        hints = (hint,) if seen.sigma > THRESHOLD else ()
        return Verdict(CHECK, subject, Status.INSUFFICIENT, quantities, (*gates, *hints))
    is_focal_off = abs(100 * focal.error) - 2 * focal_sigma > FOCAL_TOLERANCE_PERCENT
    if count >= FOCAL_KEYFRAMES and is_focal_off and focal.gain > max(FOCAL_THRESHOLD, seen.gain):
        reason = (
            f"a focal length {100 * focal.error:+.1f} % longer than calibrated fits {focal.gain:.1f} sigma better "
            "than any place of the LiDAR: lens or image size changed?"
        )
        return Verdict(CHECK, subject, Status.SUSPECT, quantities, (reason, *named))
    if seen.sigma > THRESHOLD:
        beyond = [degree.describe() for degree in degrees if degree.status is Status.FAILED]
        if beyond:
            return Verdict(
                CHECK, subject, Status.FAILED, quantities, tuple(f"{text}: moved" for text in beyond)
            )
        reason = f"edges agree best {seen.sigma:.1f} sigma away from {against}, more than {THRESHOLD:g}"
        return Verdict(CHECK, subject, Status.SUSPECT, quantities, (reason, *named))
    if seen.quarrel > MOST_CHANCE:
        reason = (
            f"parts of the images pull against each other {np.sqrt(seen.quarrel / MOST_CHANCE):.1f} times as hard as "
            "edges do by chance: keyframes contradict each other (a stamp off while turning?), or nothing fits here"
        )
        return Verdict(CHECK, subject, Status.INSUFFICIENT, quantities, (reason,))
    elsewhere = [degree.describe() for degree in degrees if degree.status is Status.FAILED]
    if elsewhere:
        reason = (
            f"edges agree about as well at {elsewhere[0]} as where calibrated: look again with more scenes"
        )
        return Verdict(CHECK, subject, Status.INSUFFICIENT, quantities, (reason,))
    if len(unsure) == len(degrees):
        reason = "the scenes pin no degree of freedom to its tolerance"
        return Verdict(CHECK, subject, Status.INSUFFICIENT, quantities, (reason,))
    return Verdict(CHECK, subject, Status.OK, quantities, named)
