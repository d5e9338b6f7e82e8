"""Judges a camera with a LiDAR by edges, and tells timing from mounting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sensorium.agent.calibrating.checking.report import CheckReport, Overlay
from sensorium.agent.calibrating.checking.windows import changes, decided, located
from sensorium.agent.calibrating.recording import CameraLidarSet, Recording, spread
from sensorium.agent.calibrating.shots import Shot
from sensorium.calibration import camera_lidar, nid
from sensorium.calibration.attribution import TIMING, split_timing
from sensorium.calibration.geometry import Array, Intrinsics, apply, small_motion
from sensorium.calibration.lint import View, lint_camera_lidar
from sensorium.calibration.overlay import edge_overlay
from sensorium.calibration.rig_document import Edge, RigCalibration
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
    keyframe: camera_lidar.Keyframe


def check_camera_lidar(
    report: CheckReport, recording: Recording, chosen: CameraLidarSet, with_pictures: bool
) -> Verdict:
    camera, lidar = chosen.camera, chosen.lidar
    prepared = [_prepare(load()) for load in chosen.shots]
    calibration = RigCalibration(edges=(Edge(camera, lidar, np.eye(4)),))
    reference = recording.calibration.calibration.reference(camera_lidar.CHECK, f"{camera}~{lidar}")

    def judge(part: Sequence[_Prepared], is_thorough: bool = False) -> camera_lidar.CameraLidarCheck:
        frames = [each.keyframe for each in part]
        return camera_lidar.check_camera_lidar(
            frames, calibration, camera, lidar, reference, is_thorough=is_thorough
        )

    pooled = judge(prepared, True)
    verdict = pooled.verdict
    faults: list[Verdict] = []
    if verdict.status is not Status.OK and prepared:
        views = [_view(prepared[index]) for index in spread(len(prepared), MAX_LINT_VIEWS)]
        T_first = prepared[0].shot.T_camera_lidar
        faults = lint_camera_lidar([_in_first(v, T_first) for v in views], T_first, f"{camera}~{lidar}")
        report.findings += faults
    if faults:
        verdict = replace(verdict, status=Status.FAILED, reasons=faults[0].reasons)
    elif verdict.status is not Status.INSUFFICIENT:
        verdict = _with_slip(_heard_twice(pooled, prepared, judge), prepared)
        verdict = _with_second_opinion(verdict, prepared, pooled.motion)
        turning = [(each, each.shot.turning_rad_s) for each in prepared]
        single = [
            (camera_lidar.estimate_motion([each.keyframe], np.eye(4)), rate)
            for each, rate in turning
            if rate is not None and sum(known is not None for _, known in turning) >= MIN_TIMING_FRAMES
        ]
        verdict = with_timing(verdict, single)
        if verdict.status in (Status.SUSPECT, Status.FAILED) and len(chosen.times_s) == len(prepared):
            starts = range(0, len(prepared) - camera_lidar.MIN_KEYFRAMES + 1, camera_lidar.MIN_KEYFRAMES)
            parts = [slice(start, start + camera_lidar.MIN_KEYFRAMES) for start in starts]
            times = tuple(float(np.mean(chosen.times_s[part])) for part in parts)
            verdict = located(verdict, [judge(prepared[part]).verdict for part in parts], times)
    if chosen.apart_ns is not None and prepared:
        verdict = _with_time(verdict, chosen.apart_ns)
    if with_pictures:
        motion = None if verdict.status is Status.INSUFFICIENT else small_motion(pooled.motion)
        for index in spread(len(prepared), MAX_PICTURES):
            report.overlays.append(_edge_picture(prepared[index], motion, f"{camera}~{lidar}"))
    return verdict


def _heard_twice(
    pooled: camera_lidar.CameraLidarCheck,
    prepared: Sequence[_Prepared],
    judge: Callable[[Sequence[_Prepared]], camera_lidar.CameraLidarCheck],
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


def with_timing(verdict: Verdict, single: Sequence[tuple[camera_lidar.Estimate, Array]]) -> Verdict:
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
    sigma = np.sqrt(np.diag(split.mount_covariance) + camera_lidar.BIAS_SIGMA**2)
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
    frame = camera_lidar.keyframe(shot.image, shot.points, shot.camera, shot.T_camera_lidar, shot.ring)
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
