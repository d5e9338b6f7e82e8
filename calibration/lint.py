"""Common human faults of a calibration: inverted, swapped, in millimetres, of another resolution, stale.

What a document alone can show is in :func:`lint`; :func:`lint_camera_lidar` and :func:`lint_stereo` ask the
data which other reading of the same numbers would fit far better. Every finding says what was found and what
to do. A document cannot show every fault: a camera that looks to the side may as well be mounted so.
"""

from collections.abc import Mapping
from datetime import date
from difflib import get_close_matches
from itertools import combinations, product

import numpy as np

from sensorium.calibration import lenses
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    inverse,
    rotation_angle,
    unproject,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import ImuModel
from sensorium.verdict import Quantity, Status, Verdict

MAX_DISTANCE_M = 20.0
MIN_DISTANCE_M = 1e-4
MAX_AGE_DAYS = 400
# No board fit is this vague; degrees written as radians and millimetres as metres are.
MAX_SIGMA_RAD = 0.35
MAX_SIGMA_M = 1.0
MAX_CENTRE_SHIFT = 0.25
MIDDLE_SHIFT = 0.1
"""A principal point nearer than a third of this to the middle is in it; farther than this, it is not."""
FOCAL_RANGE = (0.2, 20.0)
MAX_ASPECT = 1.1
MAX_FOLDED_SHARE = 0.02
# What IMUs between a wristwatch's and a ring laser's have, with a decade to spare: densities, then biases.
IMU_RANGES: dict[str, tuple[float, float, str, str]] = {
    "gyro_noise_rad_s": (1e-8, 0.1, "rad/s/sqrt(Hz)", "deg/s given as rad/s"),
    "acc_noise_m_s2": (1e-7, 1.0, "m/s^2/sqrt(Hz)", "micro-g given as m/s^2"),
    "gyro_bias_rad_s": (0.0, 0.5, "rad/s", "deg/s given as rad/s"),
    "acc_bias_m_s2": (0.0, 3.0, "m/s^2", "milli-g given as m/s^2"),
}
# Sensors of one rig are stamped by clocks that agree better; beyond it milliseconds were given as seconds.
MAX_TIME_OFFSET_S = 1.0
# Of cameras that hang on one body: looking the same way, and far enough apart to say in which direction.
MAX_SIDE_BY_SIDE_RAD = np.deg2rad(15)
MIN_SIDE_M = 0.01
_FORWARD_FRAMES = (
    "lidar",
    "velo",
    "ouster",
    "os_sensor",
    "livox",
    "hesai",
    "pandar",
    "base_link",
    "base_footprint",
    "vehicle",
)


def lint(
    calibration: RigCalibration,
    streams: Mapping[str, tuple[int, int] | None] | None = None,
    today: date | None = None,
) -> list[Verdict]:
    """Return what looks wrong in a document by itself; nothing for a sound one.

    Args:
        streams: Frames that will use it; a camera with its image size, others with None.
        today: To tell a stale calibration; None does not look.
    """
    findings: list[Verdict] = []
    for edge in calibration.edges:
        findings += _lint_units(edge)
        findings += _lint_time(edge)
    for name, camera in calibration.cameras.items():
        findings += _lint_camera(name, camera)
    for name, imu in calibration.imus.items():
        findings += _lint_imu(name, imu)
    findings += _lint_axes(calibration)
    findings += _lint_sides(calibration)
    findings += _lint_side_by_side(calibration)
    findings += _lint_loops(calibration)
    if streams is not None:
        findings += lint_streams(calibration, streams)
    if today is not None:
        findings += _lint_date(calibration, today)
    return findings


def lint_verdict(
    check: str, subject: str, status: Status, sentence: str, *quantities: Quantity
) -> list[Verdict]:
    return [Verdict(check, subject, status, quantities, (sentence,))]


def _lint_units(edge: Edge) -> list[Verdict]:
    subject = f"{edge.parent}~{edge.child}"
    distance_m = float(np.linalg.norm(edge.T_parent_child[:3, 3]))
    found: list[Verdict] = []
    if distance_m > MAX_DISTANCE_M:
        found += lint_verdict(
            "length_unit",
            subject,
            Status.FAILED,
            f"{edge.child} is {distance_m:.6g} m from {edge.parent}: more than {MAX_DISTANCE_M:g} m, so probably "
            f"given in millimetres ({distance_m / 1000:.4g} m); divide the translation by 1000",
            Quantity("distance", distance_m, "m", MAX_DISTANCE_M),
        )
    elif 1e-12 < distance_m < MIN_DISTANCE_M:
        found += lint_verdict(
            "length_unit",
            subject,
            Status.SUSPECT,
            f"{edge.child} is {distance_m * 1000:.3g} mm from {edge.parent}: closer than two sensors can be; "
            "check that the translation is in metres (it may have been divided by 1000 twice)",
            Quantity("distance", distance_m, "m", MIN_DISTANCE_M),
        )
    if edge.covariance is not None:
        sigma = np.sqrt(np.maximum(np.diag(edge.covariance), 0.0))
        if float(sigma[:3].max()) > MAX_SIGMA_RAD or float(sigma[3:].max()) > MAX_SIGMA_M:
            found += lint_verdict(
                "covariance_unit",
                subject,
                Status.SUSPECT,
                f"its standard deviations are {sigma[:3].max():.3g} rad and {sigma[3:].max():.3g} m; "
                "check for degrees given as radians, millimetres given as metres",
                Quantity("sigma_rotation", float(sigma[:3].max()), "rad", MAX_SIGMA_RAD),
                Quantity("sigma_translation", float(sigma[3:].max()), "m", MAX_SIGMA_M),
            )
    return found


def _lint_time(edge: Edge) -> list[Verdict]:
    offset_s = edge.time_offset_s
    if offset_s is None or abs(offset_s) <= MAX_TIME_OFFSET_S:
        return []
    return lint_verdict(
        "time_unit",
        f"{edge.parent}~{edge.child}",
        Status.SUSPECT,
        f"its time offset is {offset_s:g} s; check for milliseconds or nanoseconds given as seconds",
        Quantity("time_offset", offset_s, "s", MAX_TIME_OFFSET_S),
    )


def _lint_imu(name: str, imu: ImuModel) -> list[Verdict]:
    found: list[Verdict] = []
    for key, (least, most, unit, cause) in IMU_RANGES.items():
        known = getattr(imu, key)
        if known is None:
            continue
        size = float(np.max(np.abs(known)))
        if least <= size <= most:
            continue
        found += lint_verdict(
            "imu_unit",
            name,
            Status.SUSPECT,
            f"{key} is {size:.3g} {unit}, which no IMU has ({least:g} to {most:g}): check its unit ({cause})",
            Quantity(key, size, unit, most if size > most else least),
        )
    return found


def _lint_camera(name: str, camera: Intrinsics) -> list[Verdict]:
    found: list[Verdict] = []
    size = f"{camera.width}x{camera.height}"
    shift = _centre_shift(camera, camera.width, camera.height)
    if shift > MAX_CENTRE_SHIFT:
        found += lint_verdict(
            "principal_point",
            name,
            Status.SUSPECT,
            f"the principal point ({camera.cx:.0f}, {camera.cy:.0f}) is far from the middle of {size} images: "
            "calibrated at another resolution or on a crop; use the intrinsics of this image size",
            Quantity("centre_shift", shift, "1", MAX_CENTRE_SHIFT),
        )
    elif shift > MIDDLE_SHIFT and _centre_shift(camera, camera.height, camera.width) < MIDDLE_SHIFT / 3:
        found += lint_verdict(
            "image_size",
            name,
            Status.SUSPECT,
            f"the principal point ({camera.cx:.0f}, {camera.cy:.0f}) is in the middle of "
            f"{camera.height}x{camera.width} images, not of {size}: width and height are probably swapped; "
            "correct the image size",
            Quantity("centre_shift", shift, "1", MIDDLE_SHIFT),
        )
    ratio = camera.f_px / max(camera.width, camera.height)
    if not FOCAL_RANGE[0] < ratio < FOCAL_RANGE[1]:
        found += lint_verdict(
            "focal_length",
            name,
            Status.SUSPECT,
            f"the focal length {camera.f_px:.4g} px does not fit {size} images: it must be in pixels, "
            "not in millimetres or as a share of the width",
            Quantity("focal_length", camera.f_px, "px"),
        )
    aspect = max(camera.fx / camera.fy, camera.fy / camera.fx)
    if aspect > MAX_ASPECT:
        found += lint_verdict(
            "aspect",
            name,
            Status.SUSPECT,
            f"fx and fy differ by {aspect - 1:.0%}: pixels are square; width and height may be swapped or "
            "the image was squeezed after calibration",
            Quantity("aspect", aspect, "1", MAX_ASPECT),
        )
    if not found:
        folded = _folded_share(camera)
        if folded > MAX_FOLDED_SHARE:
            found += lint_verdict(
                "distortion",
                name,
                Status.SUSPECT,
                f"the {camera.model} distortion has no inverse on {folded:.0%} of the image: coefficients of "
                "another model or order, or a board that never reached the corners; calibrate again",
                Quantity("folded", folded, "1", MAX_FOLDED_SHARE),
            )
    return found


def _centre_shift(camera: Intrinsics, width: int, height: int) -> float:
    """Return how far the principal point is from the middle of images of a size, in shares of it."""
    return max(abs(camera.cx / width - 0.5), abs(camera.cy / height - 0.5))


def _folded_share(camera: Intrinsics) -> float:
    """Return the share of the image where the lens model cannot be inverted."""
    u, v = np.meshgrid(np.linspace(0, camera.width - 1, 24), np.linspace(0, camera.height - 1, 18))
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)
    if camera.model in lenses.COUNTS:
        # A fisheye need not fill the corners of its image.
        middle = np.array([camera.width - 1, camera.height - 1]) / 2
        pixels = pixels[np.linalg.norm(pixels - middle, axis=1) <= middle.min()]
    with np.errstate(all="ignore"):
        rays = unproject(pixels, camera)
    return float(np.isnan(rays[:, 0]).mean())


def _lint_axes(calibration: RigCalibration) -> list[Verdict]:
    """Judge cameras against frames whose x is forward and z up: inverted transforms, axes of another kind."""
    found: list[Verdict] = []
    bodies = [
        name
        for name in calibration.frames
        if name not in calibration.cameras and any(hint in name.lower() for hint in _FORWARD_FRAMES)
    ]
    for body, camera in product(bodies, calibration.cameras):
        if not calibration.has_transform(body, camera):
            continue
        R = calibration.transform(body, camera)[:3, :3]
        subject, looks_up, up = f"{camera}~{body}", float(R[2, 2]), float(-R[2, 1])
        if up > 0.5 or looks_up < -0.5:
            continue  # upright, or looks at the ground
        if float(-R.T[2, 1]) > 0.9 and abs(float(R.T[2, 2])) < 0.5:
            found += lint_verdict(
                "inverted",
                subject,
                Status.SUSPECT,
                f"as given, the image's up points along the {_axis(-R[:, 1])} of {body}; inverted, the camera "
                f"would stand upright: the transform probably maps the other way; use its inverse, or ignore "
                "this if the camera is mounted on its side",
            )
        elif looks_up > 0.7:
            is_body = rotation_angle(R) < np.deg2rad(20)
            reason = (
                f"its axes are those of {body} (x forward, z up) instead of a camera's (x right, y down, "
                "z forward): multiply its rotation by the optical one"
                if is_body
                else "two axes were probably swapped"
            )
            found += lint_verdict(
                "axis_swap",
                subject,
                Status.SUSPECT,
                f"{camera} looks at the sky of {body}: {reason}, or ignore this if it is mounted so",
            )
    return found


def _axis(direction: Array) -> str:
    k = int(np.argmax(np.abs(direction)))
    return f"{'-' if direction[k] < 0 else ''}{'xyz'[k]} axis"


def _lint_sides(calibration: RigCalibration) -> list[Verdict]:
    found: list[Verdict] = []
    for left in calibration.cameras:
        right = left.replace("left", "right").replace("Left", "Right")
        if right == left or right not in calibration.cameras or not calibration.has_transform(left, right):
            continue
        T = calibration.transform(left, right)
        x = float(T[0, 3])
        if x < 0 and abs(x) > 0.7 * float(np.linalg.norm(T[:3, 3])) and T[2, 2] > 0.7:
            found += lint_verdict(
                "left_right",
                f"{left}~{right}",
                Status.FAILED,
                f"{right} stands {-x:.3g} m to the left of {left}: the names are swapped, or the transform is "
                "inverted",
                Quantity("baseline_x", x, "m", 0.0),
            )
    return found


def _lint_side_by_side(calibration: RigCalibration) -> list[Verdict]:
    """Judge cameras that hang on one IMU or body by how they stand to each other: side by side only if inverted."""
    found: list[Verdict] = []
    for (body, first), (other_body, second) in combinations(_mounts(calibration), 2):
        if body != other_body:
            continue
        T_first, T_second = calibration.transform(body, first), calibration.transform(body, second)
        given, other = inverse(T_first) @ T_second, T_first @ inverse(T_second)
        if rotation_angle(given[:3, :3]) > MAX_SIDE_BY_SIDE_RAD or np.linalg.norm(given[:3, 3]) < MIN_SIDE_M:
            continue
        along, along_other = (abs(float(T[0, 3])) / float(np.linalg.norm(T[:3, 3])) for T in (given, other))
        if along < 0.3 and along_other > 0.9:
            found += lint_verdict(
                "inverted",
                f"{first}~{second}",
                Status.SUSPECT,
                f"as given, {second} stands above or before {first}; if their transforms to {body} map the other way, "
                "they stand side by side: check which way the file's key maps (T_cam_imu, T_imu_cam, Tbc), or ignore "
                "this if one is mounted above the other",
            )
    return found


def _mounts(calibration: RigCalibration) -> list[tuple[str, str]]:
    """Return the body and the camera of each transform that joins the two; of each camera the first."""
    found: dict[str, str] = {}
    for edge in calibration.edges:
        for body, camera in ((edge.parent, edge.child), (edge.child, edge.parent)):
            if camera in calibration.cameras and body not in calibration.cameras:
                found.setdefault(camera, body)
    return [(body, camera) for camera, body in found.items()]


def _lint_loops(calibration: RigCalibration) -> list[Verdict]:
    found: list[Verdict] = []
    for loop in calibration.loops():
        if not loop.is_closed:
            rotation_deg = float(np.rad2deg(loop.rotation_rad))
            found += lint_verdict(
                "loop_closure",
                "~".join(loop.frames),
                Status.FAILED,
                f"the transforms along this loop do not close: {rotation_deg:.2f} deg, "
                f"{loop.translation_m * 100:.1f} cm apart; remove or correct one of them",
                Quantity("rotation", rotation_deg, "deg", 0.2),
                Quantity("translation", loop.translation_m, "m", 0.01),
            )
    return found


def lint_streams(calibration: RigCalibration, streams: Mapping[str, tuple[int, int] | None]) -> list[Verdict]:
    """Return where the document does not fit the streams of a rig: image sizes, frames that it lacks.

    Args:
        streams: Frame of each stream that needs a calibration; a camera with its image size, others with None.
    """
    found: list[Verdict] = []
    for frame, size in streams.items():
        camera = calibration.cameras.get(frame)
        if camera is not None and size is not None and size != (camera.width, camera.height):
            found += _wrong_size(frame, camera, size)
        if frame in calibration.frames and (size is None or camera is not None):
            continue
        near = get_close_matches(frame, calibration.frames, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near and near[0] != frame else "add it to the calibration"
        what = "intrinsics" if frame in calibration.frames else "entry"
        found += lint_verdict(
            "unknown_frame",
            frame,
            Status.INSUFFICIENT,
            f"the calibration has no {what} for {frame}; it has: {', '.join(calibration.frames)}; {hint}",
        )
    return found


def _wrong_size(frame: str, camera: Intrinsics, size: tuple[int, int]) -> list[Verdict]:
    scale = (size[0] / camera.width, size[1] / camera.height)
    if abs(scale[0] / scale[1] - 1) < 0.01:
        advice = f"scaled by {scale[0]:.3g}: record at the calibrated size, or scale the intrinsics with it"
    elif size == (camera.height, camera.width):
        advice = "width and height are swapped: the image was turned; calibrate as it is recorded"
    else:
        advice = "another crop or sensor mode: calibrate in the mode that is recorded"
    return lint_verdict(
        "image_size",
        frame,
        Status.FAILED,
        f"images are {size[0]}x{size[1]}, the calibration holds for {camera.width}x{camera.height}: {advice}",
        Quantity("width", float(size[0]), "px", float(camera.width)),
        Quantity("height", float(size[1]), "px", float(camera.height)),
    )


def _lint_date(calibration: RigCalibration, today: date) -> list[Verdict]:
    found: list[Verdict] = []
    dated = [("rig", calibration.date)] + [(f"{e.parent}~{e.child}", e.date) for e in calibration.edges]
    for subject, text in dated:
        if not text:
            continue
        try:
            age = (today - date.fromisoformat(text[:10])).days
        except ValueError:
            sentence = f"its date {text!r} is not of the form YYYY-MM-DD; correct it"
            found += lint_verdict("date", subject, Status.SUSPECT, sentence)
            continue
        if age > MAX_AGE_DAYS:
            sentence = f"calibrated on {text}, {age} days ago: mounts and lenses move; calibrate again"
        elif age < -1:
            sentence = f"its date {text} lies in the future: correct it, or the clock of this machine"
        else:
            continue
        quantity = Quantity("age", float(age), "d", float(MAX_AGE_DAYS))
        found += lint_verdict("date", subject, Status.SUSPECT, sentence, quantity)
    return found
