"""Runs every calibration check that a recording allows and says what came out, in words, numbers and pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.agent.calibration_data import (
    CameraLidarSet,
    Image,
    Recording,
    Shot,
    StereoSet,
    TurningSet,
    spread,
)
from sensorium.calibration import camera_lidar, rotation, stereo
from sensorium.calibration.attribution import Window, moved_between, moved_sensors, split_timing
from sensorium.calibration.checks import Degree
from sensorium.calibration.geometry import Array, Intrinsics, apply, rays, skew, small_motion
from sensorium.calibration.lint import View, lint_camera_lidar, lint_stereo, lint_streams
from sensorium.calibration.overlay import edge_overlay
from sensorium.calibration.rig_document import Edge, RigCalibration
from sensorium.calibration.sweep import Edges
from sensorium.errors import CalibrationError, SensoriumError
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict, worst

MAX_PICTURES = 3
MAX_LINT_VIEWS = 6
# 20 ms at 10 deg/s of turning look like 0.2 deg of yaw.
MAX_APART_MS = 20.0
MIN_TIMING_FRAMES = 6
# Accepted between the stamps of camera and LiDAR; readings of a good rig are up to 3 ms off.
MAX_OFFSET_MS = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """A picture that shows what a check saw; ``caption`` says what its colours mean."""

    caption: str
    image: Image


@dataclass(slots=True)
class CheckReport:
    """What came out.

    Attributes:
        findings: Formal faults of the document, or of how it fits the data.
        verdicts: One for each check and pair.
    """

    findings: list[Verdict] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """The most severe verdict; findings count where they are failures, or where no check could judge.

        A pair that could not be judged makes nothing worse than ``insufficient``, and never ``ok``.
        """
        counted = [f for f in self.findings if f.status is Status.FAILED]
        if not any(verdict.status is Status.OK for verdict in self.verdicts):
            counted += [f for f in self.findings if f.status is Status.SUSPECT]
        judged = [verdict for verdict in self.verdicts if not _is_left_out(verdict)]
        return worst([*judged, *counted]) if judged else worst([*counted, _nothing()])

    @property
    def reasons(self) -> list[str]:
        """Sentences for the status, the most severe first."""
        judged = [verdict for verdict in self.verdicts if not _is_left_out(verdict)]
        if not judged and not any(f.status is Status.FAILED for f in self.findings):
            return list(_nothing().reasons)
        found = [
            v for v in (*self.findings, *self.verdicts) if v.status is self.status and not _is_left_out(v)
        ]
        return [f"{verdict.subject}: {reason}" for verdict in found for reason in verdict.reasons]

    @property
    def moved(self) -> tuple[str, ...]:
        """The sensors that explain all alarms best; two from one pair if it cannot be told which."""
        return moved_sensors(verdict for verdict in self.verdicts if not self._is_timing(verdict))

    def _is_timing(self, verdict: Verdict) -> bool:
        return any("(timing)" in reason for reason in verdict.reasons[:1])


def _is_left_out(verdict: Verdict) -> bool:
    """Return whether a verdict does not count: few recordings turn enough about two axes for the IMU's."""
    return verdict.check == rotation.CHECK and verdict.status is Status.INSUFFICIENT


def _nothing() -> Verdict:
    reason = (
        "nothing to compare with: no two cameras with a common view and no camera with a LiDAR were recorded "
        "under this calibration"
    )
    return Verdict("calibration", "", Status.INSUFFICIENT, (), (reason,))


def run_checks(
    recording: Recording, with_pictures: bool = False, show: Callable[[str], None] = lambda _: None
) -> CheckReport:
    """Judge every pair of sensors of a recording. Data that cannot be judged is insufficient, never an error.

    Args:
        show: Told what is being looked at.
    """
    report = CheckReport(list(recording.calibration.findings))
    report.findings += lint_streams(recording.calibration.calibration, recording.sizes)
    for both in recording.stereo:
        subject = f"{both.left}~{both.right}"
        show(f"{subject}: stereo")
        judge = partial(_check_stereo, report, recording, both, with_pictures)
        report.verdicts.append(_guarded(stereo.CHECK, subject, judge))
    for each in recording.camera_lidar:
        subject = f"{each.camera}~{each.lidar}"
        show(f"{subject}: camera and LiDAR")
        judge = partial(_check_camera_lidar, report, recording, each, with_pictures)
        report.verdicts.append(_guarded(camera_lidar.CHECK, subject, judge))
    for pair in recording.turning:
        subject = f"{pair.camera}~{pair.imu}"
        show(f"{subject}: turning")
        judge = partial(_check_turning, recording, pair)
        report.verdicts.append(_guarded(rotation.CHECK, subject, judge))
    for problem in recording.problems:
        subject, _, reason = problem.partition(": ")
        report.verdicts.append(Verdict("calibration", subject, Status.INSUFFICIENT, (), (reason or problem,)))
    return report


def _guarded(check: str, subject: str, judge: Callable[[], Verdict]) -> Verdict:
    try:
        return judge()
    except (SensoriumError, np.linalg.LinAlgError, cv2.error) as err:
        reason = f"could not be judged: {' '.join(str(err).split())}"
        return Verdict(check, subject, Status.INSUFFICIENT, (), (reason,))


# -- two windows


def _decided(
    pooled: Verdict, halves: Sequence[Verdict], drift: Sequence[tuple[str, float, float, str]]
) -> Verdict:
    """Return the verdict over all frames, once its two halves, which share no frame, were heard.

    Args:
        halves: Verdicts of the first and the second half; empty if there were too few frames to halve.
        drift: Name, change from half to half, limit and unit of each degree that changed beyond its limit.
    """
    if pooled.status is Status.FAILED:
        agreeing = sum(half.status is Status.FAILED for half in halves)
        if agreeing < 2:
            reason = (
                f"only {agreeing} of two windows without common frames says so: record more"
                if halves
                else "too few frames for a second window without common frames: record more"
            )
            pooled = replace(pooled, status=Status.SUSPECT, reasons=(*pooled.reasons, reason))
    if drift and pooled.status in (Status.OK, Status.SUSPECT):
        sentences = tuple(
            f"{name} changed by {change:+.3g} {unit} from the first half to the second (limit {limit:.2g}): "
            "a mount may have moved during the recording"
            for name, change, limit, unit in drift
        )
        # Both halves together mean nothing then; what holds now is what the second half says.
        now = halves[-1].quantities
        return replace(pooled, status=Status.SUSPECT, quantities=now, reasons=(*sentences, *pooled.reasons))
    failed = [
        (word, half)
        for word, half in zip(("first", "second"), halves, strict=False)
        if half.status is Status.FAILED
    ]
    if pooled.status is Status.OK and failed:
        word, half = failed[0]
        reasons = (f"the {word} half of the recording alone is beyond tolerance", *half.reasons)
        return replace(pooled, status=Status.SUSPECT, quantities=half.quantities, reasons=reasons)
    return pooled


def _located(verdict: Verdict, windows: Sequence[Verdict], times_s: Sequence[float]) -> Verdict:
    """Say when a pair went from ok to alarm for good, if windows along the recording show it."""
    if len(windows) != len(times_s):
        return verdict
    at = [
        Window(round(time_s * SECOND_NS), round(time_s * SECOND_NS), window)
        for time_s, window in zip(times_s, windows, strict=True)
    ]
    found = moved_between(at)
    is_ok_before = any(
        window.verdict.status is Status.OK for window in at if found and window.end_ns <= found[0]
    )
    if found is None or not is_ok_before:
        return verdict
    start_s, end_s = (instant / SECOND_NS for instant in found)
    sentence = f"it was in place until {start_s:.1f} s and is off from {end_s:.1f} s of the recording on"
    moved = (
        Quantity("moved_after", start_s, "s"),
        Quantity("moved_before", end_s, "s"),
    )
    # Windows share no frames, so two that fail are the proof that one alone is not.
    failed = sum(window.verdict.status is Status.FAILED for window in at if window.start_ns >= found[1])
    return replace(
        verdict,
        status=Status.FAILED if failed >= 2 else Status.SUSPECT,
        quantities=(*verdict.quantities, *moved),
        reasons=(sentence, *verdict.reasons),
    )


def _changes(
    names: Sequence[str],
    units: Sequence[str],
    first: tuple[Array, Array],
    second: tuple[Array, Array],
    tolerance: Sequence[float],
) -> list[tuple[str, float, float, str]]:
    change = second[0] - first[0]
    limit = np.maximum(3 * np.hypot(first[1], second[1]), np.asarray(tolerance))
    return [
        (names[k], float(change[k]), float(limit[k]), units[k])
        for k in range(len(names))
        if abs(change[k]) > limit[k]
    ]


# -- stereo


def _check_stereo(
    report: CheckReport, recording: Recording, chosen: StereoSet, with_pictures: bool
) -> Verdict:
    calibration, left, right = recording.calibration.calibration, chosen.left, chosen.right
    subject = f"{left}~{right}"
    matches, last = [], None
    for load in chosen.pairs:
        last = load()
        for image, name in zip(last, (left, right), strict=True):
            camera = calibration.camera(name)
            if (image.shape[1], image.shape[0]) != (camera.width, camera.height):
                raise CalibrationError(
                    f"images of {name} are {image.shape[1]}x{image.shape[0]}, its calibration is for "
                    f"{camera.width}x{camera.height}"
                )
        matches.append(stereo.match_pair(*last))
    faults = lint_stereo(matches, calibration, left, right)
    report.findings += faults
    pooled = stereo.check_matches(matches, calibration, left, right)
    if with_pictures and last is not None and matches:
        report.overlays.append(_stereo_overlay(last[1], matches[-1], calibration, left, right))
    if faults:
        return replace(pooled.verdict, status=Status.FAILED, reasons=faults[0].reasons)
    middle = len(matches) // 2
    if middle == 0:
        return _decided(pooled.verdict, (), ())
    halves = [
        stereo.check_matches(part, calibration, left, right) for part in (matches[:middle], matches[middle:])
    ]
    drift: list[tuple[str, float, float, str]] = []
    if all(half.verdict.status is not Status.INSUFFICIENT for half in halves):
        limits = [quantity.threshold or np.inf for quantity in pooled.verdict.quantities[:5]]
        readings = [(half.estimate_deg, half.sigma_deg) for half in halves]
        drift = _changes(stereo.DEGREES, ["deg"] * 5, readings[0], readings[1], limits)
    verdict = _decided(pooled.verdict, [half.verdict for half in halves], drift)
    if verdict.status is not Status.OK:
        windows = [stereo.check_matches([one], calibration, left, right).verdict for one in matches]
        verdict = _located(verdict, windows, chosen.times_s)
    counted = (*verdict.quantities, Quantity("pairs", float(len(matches)), "1"))
    return Verdict(verdict.check, subject, verdict.status, counted, verdict.reasons)


def _stereo_overlay(
    image: Image, matches: stereo.Matches, calibration: RigCalibration, left: str, right: str
) -> Overlay:
    """Return the right image with every match, green on its epipolar line, red 2 px or more beside it."""
    canvas: Any = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    canvas = np.asarray(canvas * 0.7, np.uint8)
    misses = _epipolar_misses(matches, calibration, left, right)
    for (u, v), miss in zip(matches[1], misses, strict=True):
        if np.isfinite(miss):
            share = min(abs(float(miss)) / 2.0, 1.0)
            colour = (40, int(255 * (1 - share)), int(255 * share))
            cv2.circle(canvas, (round(u), round(v)), 3, colour, -1, cv2.LINE_AA)
    median = float(np.nanmedian(np.abs(misses))) if len(misses) else float("nan")
    caption = f"{left}~{right}: matches on {right}, green on their epipolar line, red 2 px off; median {median:.2f} px"
    return Overlay(caption, np.asarray(canvas, np.uint8))


def _epipolar_misses(matches: stereo.Matches, calibration: RigCalibration, left: str, right: str) -> Array:
    T_right_left = calibration.transform(right, left)
    essential = skew(T_right_left[:3, 3]) @ T_right_left[:3, :3]
    camera = calibration.camera(right)
    lines = rays(matches[0], calibration.camera(left)) @ essential.T
    points = rays(matches[1], camera)
    with np.errstate(all="ignore"):
        distance = np.einsum("ij,ij->i", points, lines) / np.hypot(lines[:, 0], lines[:, 1])
    return np.asarray(distance * camera.f_px, np.float64)


# -- camera and LiDAR


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A keyframe whose edges are in the camera's axes, so that shots of several calibrations can be pooled."""

    shot: Shot
    keyframe: camera_lidar.Keyframe


def _check_camera_lidar(
    report: CheckReport, recording: Recording, chosen: CameraLidarSet, with_pictures: bool
) -> Verdict:
    camera, lidar = chosen.camera, chosen.lidar
    prepared = [_prepare(load()) for load in chosen.shots]
    calibration = RigCalibration(edges=(Edge(camera, lidar, np.eye(4)),))
    reference = recording.calibration.calibration.reference(camera_lidar.CHECK, f"{camera}~{lidar}")

    def judge(part: Sequence[_Prepared]) -> camera_lidar.CameraLidarCheck:
        frames = [each.keyframe for each in part]
        return camera_lidar.check_camera_lidar(frames, calibration, camera, lidar, reference)

    pooled = judge(prepared)
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
        verdict = _heard_twice(pooled, prepared, judge)
        verdict = _with_timing(verdict, prepared)
        if verdict.status in (Status.SUSPECT, Status.FAILED) and len(chosen.times_s) == len(prepared):
            starts = range(0, len(prepared) - camera_lidar.MIN_KEYFRAMES + 1, camera_lidar.MIN_KEYFRAMES)
            parts = [slice(start, start + camera_lidar.MIN_KEYFRAMES) for start in starts]
            times = tuple(float(np.mean(chosen.times_s[part])) for part in parts)
            verdict = _located(verdict, [judge(prepared[part]).verdict for part in parts], times)
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
        return _decided(pooled.verdict, (), ())
    halves = [judge(prepared[:middle]), judge(prepared[middle:])]
    drift: list[tuple[str, float, float, str]] = []
    if all(half.verdict.status is not Status.INSUFFICIENT for half in halves):
        to_unit = np.array([180 / np.pi] * 3 + [1.0] * 3)
        limits = [quantity.threshold or np.inf for quantity in pooled.verdict.quantities[:6]]
        readings = [(half.motion * to_unit, half.sigma * to_unit) for half in halves]
        drift = _changes(camera_lidar.DEGREES, camera_lidar.UNITS, readings[0], readings[1], limits)
    return _decided(pooled.verdict, [half.verdict for half in halves], drift)


def _with_timing(verdict: Verdict, prepared: Sequence[_Prepared]) -> Verdict:
    """Tell whether an apparent motion follows the rig's turning: then a stamp is off, not the mount."""
    turning = [(each, each.shot.turning_rad_s) for each in prepared if each.shot.turning_rad_s is not None]
    if len(turning) < MIN_TIMING_FRAMES:
        return verdict
    single = [camera_lidar.estimate_motion([each.keyframe], np.eye(4)) for each, _ in turning]
    split = split_timing(
        np.array([estimate.motion for estimate in single]),
        np.array([estimate.covariance for estimate in single]),
        np.array([rate for _, rate in turning]),
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
        f"it follows the rig's turning: the LiDAR is stamped {said} too early against the camera (timing)"
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


# -- camera and IMU


def _check_turning(recording: Recording, pair: TurningSet) -> Verdict:
    calibration = recording.calibration.calibration
    found = pair.load()
    camera = calibration.camera(pair.camera)
    for image in found.images[:1]:
        if (image.shape[1], image.shape[0]) != (camera.width, camera.height):
            raise CalibrationError(
                f"images of {pair.camera} are {image.shape[1]}x{image.shape[0]}, its calibration is for "
                f"{camera.width}x{camera.height}"
            )
    turns = rotation.camera_turns(found.images, found.image_s, camera)
    if len(turns.start_s) < rotation.MIN_STEPS:
        reason = f"the turning was seen in {len(turns.start_s)} steps, {rotation.MIN_STEPS} are needed"
        return Verdict(rotation.CHECK, f"{pair.camera}~{pair.imu}", Status.INSUFFICIENT, (), (reason,))
    verdict = rotation.check_imu_rotation(
        turns, found.gyro_s, found.gyro_rad_s, calibration, pair.camera, pair.imu
    )
    judged = degrees(verdict)
    if verdict.status is Status.SUSPECT and all(abs(q.value) < (q.threshold or 0.0) for q, _ in judged):
        # Ten seconds of handheld motion leave 0.2 deg; inside the tolerance, only not by two sigma.
        reason = "the motion does not pin every degree to its tolerance; turn more about all axes"
        return replace(verdict, status=Status.INSUFFICIENT, reasons=(reason, *verdict.reasons))
    return verdict


# -- degrees and pictures for people


def degrees(verdict: Verdict) -> list[tuple[Quantity, Status]]:
    """Return the degrees of freedom of a verdict, each with its own status."""
    found = []
    for quantity in verdict.quantities:
        if quantity.sigma is None or quantity.threshold is None:
            continue
        degree = Degree(quantity.name, quantity.unit, quantity.value, quantity.sigma, quantity.threshold)
        status = degree.status if np.isfinite(quantity.sigma) else Status.INSUFFICIENT
        if verdict.status is Status.INSUFFICIENT:
            status = Status.INSUFFICIENT
        elif status is Status.FAILED and verdict.status is not Status.FAILED:
            status = Status.SUSPECT  # one window, or a degree that only drift can prove
        found.append((quantity, status))
    return found


def montage(overlays: Sequence[Overlay], width_px: int = 1242) -> Image:
    """Return all pictures one above the other, each under its caption."""
    rows: list[NDArray[np.uint8]] = []
    for overlay in overlays:
        height = max(round(overlay.image.shape[0] * width_px / overlay.image.shape[1]), 1)
        bar = np.full((28, width_px, 3), 24, np.uint8)
        cv2.putText(
            bar,
            overlay.caption[:150],
            (8, 19),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5,
            (230, 230, 230),
            1,
            cv2.LINE_AA,
        )
        scaled = cv2.resize(overlay.image, (width_px, height), interpolation=cv2.INTER_AREA)
        rows += [bar, np.asarray(scaled, np.uint8)]
    return np.concatenate(rows) if rows else np.zeros((1, 1, 3), np.uint8)
