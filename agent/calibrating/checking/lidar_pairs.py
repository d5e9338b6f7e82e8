"""Judges a LiDAR against another LiDAR and against an IMU: surfaces, ground, turning."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.calibrating.checking import timing
from sensorium.agent.calibrating.checking.report import CheckReport, told_only_by_more_motion
from sensorium.agent.calibrating.checking.timing import TurnedPair, with_stamps
from sensorium.agent.calibrating.checking.windows import changes, decided, located
from sensorium.agent.calibrating.recording import Recording
from sensorium.agent.calibrating.sensors import SensorData, TimedSweep
from sensorium.agent.calibrating.shots import Gyro
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.calibration import lidar_lidar, rotation
from sensorium.calibration.geometry import Array
from sensorium.calibration.inertial import check_ground_gravity
from sensorium.calibration.lidar_lidar import Registration, check_lidar_lidar, register_sweeps, sweep_turns
from sensorium.calibration.rotation import Turns, check_imu_rotation, excited_span
from sensorium.drivers.frame import StreamInfo
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict

MIN_PAIRS, MAX_PAIRS = 3, 12
MAX_GROUND_SWEEPS = 6
# A sweep of 0.1 s is smeared by 2 cm and 0.2 deg at these.
MAX_SPEED_M_S = 0.2
MAX_RATE_RAD_S = np.deg2rad(2.0)
TURNING_S = 20.0
# Turning that shows a stamp: 5 ms at 10 deg/s are 0.05 deg. How long a sweep takes at most.
MIN_TURNED_RAD_S = np.deg2rad(10.0)
SWEEP_S = 0.1
MAX_TURN_DEG = 0.25


def judge_lidars(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge two LiDARs by sweeps taken while the rig hardly moved, all along the recording.

    Raises:
        CalibrationError: If a sweep does not decode.
        EpisodeError: If the episode cannot be read.
    """
    data = recording.material.sensors
    first, second = task.infos
    T_known = data.calibration.transform(first.frame_id, second.frame_id)
    pairs, reason = calm_pairs(data, first, second)
    turned = turned_sweeps(data, first, second)
    turn_limits = np.full(3, np.deg2rad(MAX_TURN_DEG))
    if len(pairs) < MIN_PAIRS:
        said = f"{len(pairs)} pairs of sweeps, {MIN_PAIRS} are needed" if pairs else reason
        return report.leave_out(with_stamps(task.insufficient(said), turned, turn_limits, task.frames))
    found = [register_sweeps([a.points], [b.points], T_known) for a, b in pairs]

    def judge(part: Sequence[Registration]) -> Verdict:
        return check_lidar_lidar(part, data.calibration, first.frame_id, second.frame_id)

    pooled, middle = judge(found), len(found) // 2
    if pooled.status is Status.INSUFFICIENT:
        return with_stamps(pooled, turned, turn_limits, task.frames)
    halves = [judge(found[:middle]), judge(found[middle:])] if middle else []
    drift: list[tuple[str, float, float, str]] = []
    if halves and all(half.status is not Status.INSUFFICIENT for half in halves):
        readings = [
            (
                np.array([q.value for q in half.quantities[:6]]),
                np.array([q.sigma for q in half.quantities[:6]]),
            )
            for half in halves
        ]
        units = [q.unit for q in pooled.quantities[:6]]
        limits = [q.threshold or np.inf for q in pooled.quantities[:6]]
        drift = changes(lidar_lidar.DEGREES, units, readings[0], readings[1], limits)
    verdict = decided(pooled, halves, drift)
    if verdict.status is Status.OK:
        return with_stamps(verdict, turned, turn_limits, task.frames)
    verdict = replace(
        verdict, reasons=(*verdict.reasons, "it was read at rest, where no stamp matters: mounting")
    )
    start_s = float(data.sweep_times(first)[0]) / SECOND_NS
    times = tuple(a.time_s - start_s for a, _ in pairs)
    return located(verdict, [judge([each]) for each in found], times)


def turned_sweeps(data: SensorData, first: StreamInfo, second: StreamInfo) -> list[TurnedPair]:
    """Return how sweeps of both, taken while the rig turned, have the second LiDAR turned; none without an IMU.

    Each sweep is straightened to its own instant, so a stamp that is off shows as turning between the two.

    Raises:
        CalibrationError: If a sweep does not decode.
        EpisodeError: If the episode cannot be read.
    """
    imu = data.imu_for(second.frame_id)
    samples = None if imu is None else data.inertial(imu)
    times, others = data.sweep_times(first), data.sweep_times(second)
    if imu is None or samples is None or not len(times) or not len(others):
        return []
    gyro = Gyro(imu.frame_id, samples.time_s, samples.gyro_rad_s)
    nearest = [int(others[np.abs(others - at_ns).argmin()]) for at_ns in times]
    fast = [
        k
        for k, at_ns in enumerate(nearest)
        if gyro.covers(at_ns / SECOND_NS, at_ns / SECOND_NS + SWEEP_S)
        and float(np.linalg.norm(gyro.at(at_ns / SECOND_NS))) > MIN_TURNED_RAD_S
    ]
    chosen = _spread(np.array(fast, np.intp), MAX_PAIRS)
    if len(chosen) < timing.MIN_PAIRS:
        return []
    of_first = data.sweeps(first, [int(times[k]) for k in chosen])
    wanted = sorted({nearest[k] for k in chosen})
    of_second = dict(zip(wanted, data.sweeps(second, wanted), strict=True))
    R_second_imu = data.calibration.transform(second.frame_id, imu.frame_id)[:3, :3]
    T_known = data.calibration.transform(first.frame_id, second.frame_id)
    found = []
    for k, a in zip(chosen, of_first, strict=True):
        b = of_second[nearest[k]]
        motion, covariance = lidar_lidar.pooled_motion(
            [register_sweeps([a.points], [b.points], T_known)], T_known
        )
        if np.isfinite(covariance).all():
            sigma = np.sqrt(np.diag(covariance)[:3])
            rate = R_second_imu @ gyro.at(b.time_s)
            found.append(TurnedPair(motion[:3], sigma, rate, b.time_s - a.time_s))
    return found


def calm_pairs(
    data: SensorData, first: StreamInfo, second: StreamInfo
) -> tuple[list[tuple[TimedSweep, TimedSweep]], str]:
    """Return sweeps of both taken together while the rig hardly moved, or why there are none.

    How far the rig moves is read from two sweeps of the first LiDAR that follow upon each other.

    Raises:
        CalibrationError: If a sweep does not decode.
        EpisodeError: If the episode cannot be read.
    """
    times, others = data.sweep_times(first), data.sweep_times(second)
    if len(times) < 2 or not len(others):
        return [], "no sweeps of both"
    starts = _spread(np.arange(len(times) - 1), 2 * MAX_PAIRS)
    chosen = {int(times[k + step]) for k in starts for step in (0, 1)}
    nearest = {int(times[k]): int(others[np.abs(others - times[k]).argmin()]) for k in starts}
    of_first = data.sweeps(first, chosen)
    of_second = data.sweeps(second, nearest.values())
    by_time = dict(zip(sorted(chosen), of_first, strict=True))
    other_by_time = dict(zip(sorted(set(nearest.values())), of_second, strict=True))
    calm: list[tuple[TimedSweep, TimedSweep]] = []
    fastest = 0.0
    for k in starts:
        a, after = by_time[int(times[k])], by_time[int(times[k + 1])]
        b = other_by_time[nearest[int(times[k])]]
        turns, moved = sweep_turns([a.points, after.points], np.array([a.time_s, after.time_s]))
        if not len(moved):
            # Hardly anything in view: whether it moves cannot be told, and the registration will say so.
            calm.append((a, b))
            continue
        speed = float(moved[0]) / (after.time_s - a.time_s)
        rate = float(np.linalg.norm(turns.rate_rad_s[0]))
        fastest = max(fastest, speed)
        apart_m = speed * abs(a.time_s - b.time_s)
        if speed < MAX_SPEED_M_S and rate < MAX_RATE_RAD_S and apart_m < 0.01:
            calm.append((a, b))
    reason = (
        f"the rig was never still (up to {fastest:.1f} m/s): two LiDARs are compared below {MAX_SPEED_M_S:g} m/s "
        f"and {np.rad2deg(MAX_RATE_RAD_S):.0f} deg/s; stop for some seconds"
    )
    return [calm[k] for k in _spread(np.arange(len(calm)), MAX_PAIRS)], reason


def _spread(indices: NDArray[np.intp], wanted: int) -> list[int]:
    if len(indices) <= wanted:
        return [int(index) for index in indices]
    return [int(index) for index in indices[np.linspace(0, len(indices) - 1, wanted).astype(int)]]


def judge_ground(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge the ground that a LiDAR sees against the gravity that an IMU feels, over the longest rest.

    Raises:
        CalibrationError: If a sweep does not decode.
        EpisodeError: If the episode cannot be read.
    """
    data = recording.material.sensors
    lidar, imu = task.infos
    found = resting_sweeps(data, lidar, imu)
    if found is None:
        reason = f"{imu.frame_id} was never at rest for a second: stop the rig for some seconds"
        return report.leave_out(task.insufficient(reason))
    sweeps, acc = found

    def judge(part: Sequence[TimedSweep]) -> Verdict:
        points = [sweep.points for sweep in part]
        return check_ground_gravity(points, acc, data.calibration, lidar.frame_id, imu.frame_id)

    pooled = judge(sweeps)
    if pooled.status is Status.INSUFFICIENT:
        return report.leave_out(pooled)  # many a LiDAR has no ground in view
    return decided(pooled, [judge(sweeps[::2]), judge(sweeps[1::2])], ())


def resting_sweeps(
    data: SensorData, lidar: StreamInfo, imu: StreamInfo
) -> tuple[list[TimedSweep], Array] | None:
    """Return sweeps of the longest rest, and (N, 3) specific force over it; None where there was no rest.

    Raises:
        CalibrationError: If a sweep does not decode.
        EpisodeError: If the episode cannot be read.
    """
    samples, rest = data.inertial(imu), data.rest(imu)
    if samples is None or not rest:
        return None
    start_s, end_s = max(rest, key=lambda span: span[1] - span[0])
    times = data.sweep_times(lidar)
    # A sweep is stamped by its first packet and lasts up to a tenth of a second.
    inside = times[(times >= start_s * SECOND_NS) & (times < (end_s - 0.1) * SECOND_NS)]
    chosen = inside[_spread(np.arange(len(inside)), MAX_GROUND_SWEEPS)]
    return data.sweeps(lidar, chosen.tolist()), samples.between(start_s, end_s).acc_m_s2


def lively_turns(data: SensorData, lidar: StreamInfo, imu: StreamInfo) -> Turns | None:
    """Return how a LiDAR turned over the twenty seconds in which an IMU felt most; None where it felt little.

    Raises:
        CalibrationError: If a sweep does not decode.
        EpisodeError: If the episode cannot be read.
    """
    samples = data.inertial(imu)
    span = None if samples is None else excited_span(samples.time_s, samples.gyro_rad_s, TURNING_S)
    if span is None:
        return None
    times = data.sweep_times(lidar)
    chosen = times[(times >= span[0] * SECOND_NS) & (times < span[1] * SECOND_NS)]
    sweeps = data.sweeps(lidar, chosen.tolist())
    return sweep_turns([sweep.points for sweep in sweeps], np.array([sweep.time_s for sweep in sweeps]))[0]


def judge_lidar_turning(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge rotation and time offset of a LiDAR against an IMU over the most lively twenty seconds.

    Raises:
        CalibrationError: If a sweep does not decode.
        EpisodeError: If the episode cannot be read.
    """
    data = recording.material.sensors
    lidar, imu = task.infos
    samples, turns = data.inertial(imu), lively_turns(data, lidar, imu)
    if samples is None or turns is None:
        reason = "the rig hardly turns, or about one axis only: turn it about all axes for ten seconds"
        return report.leave_out(task.insufficient(reason))
    if len(turns.start_s) < rotation.MIN_STEPS:
        reason = f"the turning was seen in {len(turns.start_s)} steps, {rotation.MIN_STEPS} are needed"
        return report.leave_out(task.insufficient(reason))
    verdict = check_imu_rotation(
        turns, samples.time_s, samples.gyro_rad_s, data.calibration, lidar.frame_id, imu.frame_id
    )
    return report.leave_out(told_only_by_more_motion(verdict))
