"""Judges sensors by themselves: an IMU at rest, a force sensor under gravity, an array of microphones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sensorium.agent.calibrating.checking.report import CheckReport
from sensorium.agent.calibrating.checking.windows import changes, decided, located
from sensorium.agent.calibrating.recording import Recording
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.calibration import inertial
from sensorium.calibration.force_torque import check_force_torque
from sensorium.calibration.inertial import ImuTolerance, Inertial, check_imu_static
from sensorium.calibration.microphones import check_claps, check_microphones
from sensorium.verdict import Status, Verdict

# A window to say when a bias jumped: enough for 0.02 deg/s, short enough for the five seconds asked for.
WINDOW_S = 4.0


def judge_imu(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge an IMU by all its rest, and tell when along it a bias jumped."""
    data = recording.material.sensors
    (info,) = task.infos
    samples = data.inertial(info)
    if samples is None:
        return _nothing(report, task, "nothing was recorded of it")
    model = data.calibration.imus.get(info.frame_id)
    pooled = check_imu_static(samples, task.subject, model)
    if pooled.status is Status.INSUFFICIENT:
        return report.leave_out(pooled)
    rest = inertial.at_rest(samples, model)
    middle = len(rest.time_s) // 2
    parts = [_part(rest, slice(0, middle)), _part(rest, slice(middle, None))]
    least_s = inertial.MIN_STATIC_S / 2
    halves = [check_imu_static(part, task.subject, model, min_s=least_s) for part in parts]
    drift = _drift(parts, is_one_rest=len(data.rest(info)) == 1)
    verdict = decided(pooled, halves if middle / samples.rate_hz >= least_s else (), drift)
    if verdict.status is Status.OK:
        return verdict
    size = round(WINDOW_S * samples.rate_hz)
    starts = range(0, len(rest.time_s) - size + 1, size)
    cut = [_part(rest, slice(start, start + size)) for start in starts]
    windows = [check_imu_static(part, task.subject, model, min_s=0.9 * WINDOW_S) for part in cut]
    return located(verdict, windows, tuple(float(part.time_s.mean() - samples.time_s[0]) for part in cut))


def _part(rest: Inertial, which: slice) -> Inertial:
    return Inertial(rest.time_s[which], rest.acc_m_s2[which], rest.gyro_rad_s[which])


def _drift(parts: Sequence[Inertial], is_one_rest: bool) -> list[tuple[str, float, float, str]]:
    """Return what changed from the first half of the rest to the second.

    Gravity's direction may change from one place to the next, but not while the rig stands.
    """
    tolerance = ImuTolerance()
    names, units, limits = ["gyro_x", "gyro_y", "gyro_z"], ["deg/s"] * 3, [tolerance.gyro_bias_deg_s] * 3
    columns = [np.rad2deg(part.gyro_rad_s) for part in parts]
    if is_one_rest:
        names, units = [*names, "acc_x", "acc_y", "acc_z"], [*units, *["m/s^2"] * 3]
        limits += [tolerance.acc_bias_m_s2] * 3
        columns = [np.hstack([c, part.acc_m_s2]) for c, part in zip(columns, parts, strict=True)]
    first, second = ((c.mean(axis=0), c.std(axis=0) / np.sqrt(len(c))) for c in columns)
    return changes(names, units, first, second, limits)


def judge_force(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge a force sensor by its readings at rest against the payload and biases that are known.

    Raises:
        CalibrationError: If the calibration does not join sensor and IMU.
        EpisodeError: If the episode cannot be read.
    """
    data = recording.material.sensors
    (info,) = task.infos
    known = data.calibration.force_torque.get(info.frame_id)
    if known is None:
        reason = "the calibration knows no bias and payload of it: sensorium calibration solve finds them"
        return _nothing(report, task, reason)
    imu = data.imu_for(info.frame_id)
    poses = data.poses(info)
    if not len(poses):
        what = imu.frame_id if imu is not None else "the IMU"
        return _nothing(report, task, f"{what} was never at rest for a second: stop the rig for some seconds")

    def judge(which: slice) -> Verdict:
        part = poses.part(which)
        return check_force_torque(part.force_n, part.torque_nm, part.gravity_m_s2, known, task.subject)

    pooled, middle = judge(slice(None)), len(poses) // 2
    if pooled.status is Status.INSUFFICIENT:
        return report.leave_out(pooled)
    # Poses alternate between the windows, so that both tilt to all sides.
    halves = [judge(slice(0, None, 2)), judge(slice(1, None, 2))] if middle else []
    return decided(pooled, halves, ())


def judge_array(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge an array of microphones by the claps it heard."""
    data = recording.material.sensors
    (info,) = task.infos
    claps = data.claps(info)
    known = data.calibration.microphones.get(info.frame_id)
    verdict = check_claps(claps.clips, claps.rate_hz, task.subject, known, claps.sides)
    if verdict.status is not Status.INSUFFICIENT:
        return verdict
    if len(claps.loudest):
        # A channel that is dead is so without a clap.
        noise = check_microphones(claps.loudest, claps.rate_hz, task.subject)
        if noise.status is Status.FAILED:
            return replace(noise, reasons=(*noise.reasons, *verdict.reasons))
    return report.leave_out(verdict)


def _nothing(report: CheckReport, task: CheckTask, reason: str) -> Verdict:
    return report.leave_out(task.insufficient(reason))
