"""Judges a camera with a LiDAR by edges, and tells timing from mounting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sensorium.agent.calibrating.checking.report import CheckReport, Overlay
from sensorium.agent.calibrating.checking.windows import changes, decided, located
from sensorium.agent.calibrating.recording import Recording, spread
from sensorium.agent.calibrating.shots import Shot
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.calibration import agreement, camera_lidar, keyframes, nid
from sensorium.calibration.attribution import TIMING, split_timing
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import Array, Intrinsics, apply, small_motion
from sensorium.calibration.overlay import edge_overlay
from sensorium.calibration.pair_lint import View, lint_camera_lidar
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sweep import Edges
from sensorium.verdict import Quantity, Status, Verdict

MAX_PICTURES = 3
MAX_LINT_VIEWS = 6
MAX_OPINION_VIEWS = 8
# What a mount may slip within one recording unnoticed, by degree (spec calibration 3c).
SLIP_LIMITS = np.array([np.deg2rad(0.15)] * 3 + [0.05] * 3)
# 20 ms at 10 deg/s of turning look like 0.2 deg of yaw.
MAX_APART_MS = 20.0
MIN_TIMING_FRAMES = 6
# Accepted between the stamps of camera and LiDAR; readings of a good rig are up to 3 ms off.
MAX_OFFSET_MS = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A keyframe whose edges are in the camera's axes, so that shots of several calibrations can be pooled."""

    shot: Shot
    keyframe: keyframes.Keyframe


def judge_camera_lidar(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge a camera and a LiDAR by all their keyframes, then by what parts of them say, and tell timing apart.

    Raises:
        CalibrationError: If an image or a sweep does not decode.
    """
    chosen, (camera, lidar) = recording.material.camera_lidar(task), task.frames
    prepared = [_prepare(load()) for load in chosen.shots]
    calibration = RigCalibration(edges=(Edge(camera, lidar, np.eye(4)),))
    reference = recording.calibration.calibration.reference(camera_lidar.CHECK, task.subject)

    def judge(part: Sequence[_Prepared], is_thorough: bool = False) -> camera_lidar.CameraLidarCheck:
        frames = [each.keyframe for each in part]
        return camera_lidar.check_camera_lidar(
            frames, calibration, camera, lidar, reference, is_thorough=is_thorough
        )

    pooled = judge(prepared, True)
    verdict = pooled.verdict
    faults = _faults(prepared, task.subject)
    report.findings += faults
    if faults:
        verdict = replace(verdict, status=Status.FAILED, reasons=faults[0].reasons)
    elif verdict.status is not Status.INSUFFICIENT:
        verdict = _with_slip(_heard_twice(pooled, prepared, judge), prepared)
        verdict = _with_second_opinion(verdict, prepared, pooled.motion)
        verdict = with_timing(verdict, _turned(prepared))
        verdict = _located(verdict, prepared, chosen.times_s, judge)
    if chosen.apart_ns is not None and prepared:
        verdict = _with_time(verdict, chosen.apart_ns)
    if report.with_pictures:
        motion = None if verdict.status is Status.INSUFFICIENT else small_motion(pooled.motion)
        chosen_views = [prepared[index] for index in spread(len(prepared), MAX_PICTURES)]
        report.overlays += [_edge_picture(each, motion, task.subject) for each in chosen_views]
    return verdict


_Judge = Callable[[Sequence[_Prepared]], camera_lidar.CameraLidarCheck]


def _faults(prepared: Sequence[_Prepared], subject: str) -> list[Verdict]:
    """Return what another reading of the same numbers would explain: the inverse, turned axes, millimetres."""
    if not prepared:
        return []
    views = [_view(prepared[index]) for index in spread(len(prepared), MAX_LINT_VIEWS)]
    T_first = prepared[0].shot.T_camera_lidar
    return list(lint_camera_lidar([_in_first(view, T_first) for view in views], T_first, subject))


def _turned(prepared: Sequence[_Prepared]) -> list[tuple[agreement.Estimate, Array]]:
    """Return what each keyframe alone says and how fast the camera turned in it, if enough of them know."""
    known = [(each.keyframe, each.shot.turning_rad_s) for each in prepared]
    turned = [(frame, rate) for frame, rate in known if rate is not None]
    if len(turned) < MIN_TIMING_FRAMES:
        return []
    return [(camera_lidar.estimate_motion([frame], np.eye(4)), rate) for frame, rate in turned]


def _located(
    verdict: Verdict, prepared: Sequence[_Prepared], times_s: Sequence[float], judge: _Judge
) -> Verdict:
    """Say of an alarm when along the recording it began, from windows of the fewest keyframes that can be judged."""
    if verdict.status not in (Status.SUSPECT, Status.FAILED) or len(times_s) != len(prepared):
        return verdict
    size = camera_lidar.MIN_KEYFRAMES
    parts = [slice(start, start + size) for start in range(0, len(prepared) - size + 1, size)]
    times = tuple(float(np.mean(times_s[part])) for part in parts)
    return located(verdict, [judge(prepared[part]).verdict for part in parts], times)


def _heard_twice(
    pooled: camera_lidar.CameraLidarCheck,
    prepared: Sequence[_Prepared],
    judge: _Judge,
) -> Verdict:
    """Return the verdict after the first and the second half were judged alone."""
    middle = len(prepared) // 2
    if middle < camera_lidar.MIN_KEYFRAMES:
        return decided(pooled.verdict, (), ())
    halves = [judge(prepared[:middle]), judge(prepared[middle:])]
    drift: list[tuple[str, float, float, str]] = []
    if all(half.verdict.status is not Status.INSUFFICIENT for half in halves):
        to_unit = np.array([180 / np.pi] * 3 + [1.0] * 3)
        limits = [quantity.threshold or np.inf for quantity in pooled.verdict.quantities[:6]]
        readings = [(half.motion * to_unit, half.sigma * to_unit) for half in halves]
        drift = changes(camera_lidar.DEGREES, camera_lidar.UNITS, readings[0], readings[1], limits)
    return decided(pooled.verdict, [half.verdict for half in halves], drift)


def _with_slip(verdict: Verdict, prepared: Sequence[_Prepared]) -> Verdict:
    """Compare the first with the last third: a mount that slipped, by less than the tolerance even."""
    third = len(prepared) // 3
    if third < camera_lidar.MIN_KEYFRAMES:
        return verdict
    frames = [each.keyframe for each in prepared]
    change = camera_lidar.change_between(frames[:third], frames[-third:], np.eye(4))
    slip = Quantity("change_first_to_last_third", change.gain, "sigma", camera_lidar.CHANGE_THRESHOLD)
    verdict = replace(verdict, quantities=(*verdict.quantities, slip))
    beyond = np.flatnonzero(np.abs(change.motion) > SLIP_LIMITS)
    if change.gain < camera_lidar.CHANGE_THRESHOLD or not len(beyond):
        return verdict
    to_unit = [180 / np.pi] * 3 + [1.0] * 3
    named = ", ".join(
        f"{camera_lidar.DEGREES[k]} {change.motion[k] * to_unit[k]:+.2g} {camera_lidar.UNITS[k]}"
        for k in beyond
    )
    reason = (
        f"two places fit {change.gain:.1f} sigma better than one: {named} from the first third to the last; "
        "a mount may have slipped during the recording"
    )
    status = Status.SUSPECT if verdict.status is Status.OK else verdict.status
    return replace(verdict, status=status, reasons=(*verdict.reasons, reason))


def _with_second_opinion(verdict: Verdict, prepared: Sequence[_Prepared], motion: Array) -> Verdict:
    """Ask reflectance and grey values, which know nothing of edges, whether they place the LiDAR there too."""
    chosen = [prepared[index].shot for index in spread(len(prepared), MAX_OPINION_VIEWS)]
    if len(chosen) < nid.MIN_VIEWS:
        return verdict
    views = [
        nid.reflectance_view(shot.image, shot.points, shot.camera, shot.T_camera_lidar) for shot in chosen
    ]
    opinion = nid.second_opinion(views, motion)
    numbers = tuple(
        Quantity(f"second_opinion_{name}", float(gap), "deg", None, float(sigma))
        for name, gap, sigma in zip(camera_lidar.DEGREES[:3], opinion.gap_deg, opinion.sigma_deg, strict=True)
    )
    verdict = replace(verdict, quantities=(*verdict.quantities, *numbers))
    if not opinion.disagrees.any():
        return verdict
    named = ", ".join(
        f"{name} {gap:+.2f} ± {sigma:.2f} deg"
        for name, gap, sigma, is_other in zip(
            camera_lidar.DEGREES[:3], opinion.gap_deg, opinion.sigma_deg, opinion.disagrees, strict=True
        )
        if is_other
    )
    reason = f"reflectance and grey values fit best elsewhere than the edges: {named}"
    status = Status.SUSPECT if verdict.status is Status.OK else verdict.status
    return replace(verdict, status=status, reasons=(*verdict.reasons, reason))


def with_timing(verdict: Verdict, single: Sequence[tuple[agreement.Estimate, Array]]) -> Verdict:
    """Tell whether an apparent motion follows the rig's turning: then a stamp is off, not the mount.

    Args:
        single: Estimate of each keyframe alone with the camera's angular rate (rad/s, camera axes) in it.
    """
    if len(single) < MIN_TIMING_FRAMES:
        return verdict
    split = split_timing(
        np.array([estimate.motion for estimate, _ in single]),
        np.array([estimate.covariance for estimate, _ in single]),
        np.array([rate for _, rate in single]),
    )
    offset_ms, sigma_ms = split.offset_s * 1e3, split.offset_sigma_s * 1e3
    offset = Quantity("time_offset", offset_ms, "ms", MAX_OFFSET_MS, sigma_ms)
    verdict = replace(verdict, quantities=(*verdict.quantities, offset))
    said = f"{offset_ms:+.1f} ± {sigma_ms:.1f} ms"
    if not split.is_timing or abs(offset_ms) - 2 * sigma_ms < MAX_OFFSET_MS:
        if verdict.status is Status.OK:
            return verdict
        return replace(
            verdict,
            reasons=(
                *verdict.reasons,
                f"it does not follow the rig's turning (time offset {said}): mounting",
            ),
        )
    reason = (
        f"it follows the rig's turning: the LiDAR is stamped {said} too early against the camera {TIMING}"
    )
    sigma = np.sqrt(np.diag(split.mount_covariance) + agreement.BIAS_SIGMA**2)
    to_unit = np.array([180 / np.pi] * 3 + [1.0] * 3)
    limits = np.array([quantity.threshold or np.inf for quantity in verdict.quantities[:6]])
    is_mount_right = bool(np.all((np.abs(split.mount) - 2 * sigma) * to_unit < limits))
    if is_mount_right:
        reasons = (reason, "the mount itself is within tolerance: correct the stamps, not the calibration")
        return replace(verdict, status=Status.SUSPECT, reasons=(*reasons, *verdict.reasons))
    return replace(verdict, reasons=(*verdict.reasons, reason, "and the mount has moved as well"))


def _with_time(verdict: Verdict, apart_ns: int) -> Verdict:
    """Add how far image and sweep are apart in time; where something looks off, say what that can do."""
    apart = Quantity("time_apart", apart_ns / 1e6, "ms", MAX_APART_MS)
    reasons = verdict.reasons
    is_turning_known = any(quantity.name == "time_offset" for quantity in verdict.quantities)
    is_off = verdict.status in (Status.SUSPECT, Status.FAILED)
    if is_off and apart.value > MAX_APART_MS and not is_turning_known:
        reasons = (
            *reasons,
            f"image and sweep are up to {apart.value:.0f} ms apart: at 10 deg/s of turning that alone looks like "
            f"{apart.value / 100:.1f} deg; repeat it standing still to tell timing from mounting",
        )
    return replace(verdict, quantities=(*verdict.quantities, apart), reasons=reasons)


def _prepare(shot: Shot) -> _Prepared:
    frame = keyframes.keyframe(
        shot.image, shot.points, shot.camera, shot.T_camera_lidar, shot.ring, shot.as_measured
    )
    edges = tuple(Edges(apply(shot.T_camera_lidar, part.xyz), part.weight) for part in frame.edges)
    return _Prepared(shot, replace(frame, edges=edges))


def _view(prepared: _Prepared) -> tuple[View, Array]:
    shot = prepared.shot
    return View.of(prepared.keyframe, shot.points, shot.ring), shot.T_camera_lidar


def _in_first(view: tuple[View, Array], T_first: Array) -> View:
    """Return a view as if it had been taken under the first view's calibration."""
    found, T = view
    to_first = np.linalg.inv(T_first) @ T
    return View(found.keyframe, tuple((apply(to_first, xyz), weight) for xyz, weight in found.edges))


def _edge_picture(prepared: _Prepared, motion: Array | None, subject: str) -> Overlay:
    edges = np.concatenate([part.xyz for part in prepared.keyframe.edges])
    camera: Intrinsics = prepared.shot.camera
    image = edge_overlay(prepared.shot.image, edges, camera, np.eye(4), motion)
    estimated = ", green as estimated" if motion is not None else "; no estimate"
    return Overlay(f"{subject}: LiDAR edges, red as calibrated{estimated}", image)
