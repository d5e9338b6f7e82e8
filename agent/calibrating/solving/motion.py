"""Solvers that need no board: IMUs at rest, turning against an IMU, two LiDARs, force sensors, microphones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sensorium.agent.calibrating.checking.lidar_pairs import calm_pairs, lively_turns, resting_sweeps
from sensorium.agent.calibrating.episode_material import load_turning
from sensorium.agent.calibrating.sensors import SensorData
from sensorium.agent.calibrating.shots import Gyro
from sensorium.agent.calibrating.solving.single import (
    UNKNOWN_PLACE_M,
    ForceSolver,
    ImuSolver,
    MicrophoneSolver,
    SensorMaterial,
    SensorSolver,
)
from sensorium.agent.calibrating.solving.solver import SolvedPart, Solver, SolveRequest
from sensorium.agent.calibrating.tasks import tasks_of
from sensorium.agent.session.check_kinds import check_kind
from sensorium.calibration import rotation
from sensorium.calibration.camera_rotation import camera_turns
from sensorium.calibration.edges import Edge, Reference
from sensorium.calibration.geometry import Array, small_motion, transform
from sensorium.calibration.inertial import (
    GROUND_CHECK,
    check_ground_gravity,
)
from sensorium.calibration.lidar_lidar import DEGREES, check_lidar_lidar, pooled_motion, register_sweeps
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.rotation import MIN_EXCITATION_RAD_S, MIN_STEPS, Turns, align, unexplained
from sensorium.drivers.frame import Modality, StreamInfo
from sensorium.verdict import Quantity, Status

# What a solved transform must be known to.
MAX_ROTATION_SIGMA_RAD = np.deg2rad(0.3)
MAX_OFFSET_SIGMA_S = 1.5e-3
MAX_LIDAR_ROTATION_SIGMA_RAD = np.deg2rad(0.15)
MAX_LIDAR_TRANSLATION_SIGMA_M = 0.015
MAX_REFERENCE_DEG = 3.0


class TurningSolver(SensorSolver):
    """Rotation and time offset of an IMU against a camera (else a LiDAR), from turning that both saw."""

    name = "turning"
    needs = "a camera with known lens (or a LiDAR) and an IMU, turned about all axes for ten seconds"

    def _solved(self, request: SolveRequest, base: RigCalibration, data: SensorData) -> Sequence[SolvedPart]:
        cameras = [info for info in self._material.cameras() if info.frame_id in base.cameras]
        seers = sorted(cameras, key=lambda info: info.frame_id) or data.lidars
        if not seers or not data.imus:
            return ()
        # One IMU: those inside other sensors sit as their maker says, to better than this.
        imu = data.imu_for(seers[0].frame_id) or max(data.imus, key=lambda info: info.rate_hz)
        return [self._one(request, base, data, seers[0], imu)]

    def _one(
        self, request: SolveRequest, base: RigCalibration, data: SensorData, seer: StreamInfo, imu: StreamInfo
    ) -> SolvedPart:
        subject = f"{seer.frame_id}~{imu.frame_id}"
        request.show(f"{subject}: turning")
        samples = data.inertial(imu)
        if samples is None:
            return self._refused(subject, f"nothing was recorded of {imu.frame_id}")
        turns = self._turns(base, data, seer, Gyro(imu.frame_id, samples.time_s, samples.gyro_rad_s))
        if turns is None or len(turns.start_s) < MIN_STEPS:
            return self._refused(
                subject,
                "the rig did not turn enough: turn it by hand about all three axes, 20 to 60 deg/s, for ten seconds",
            )
        found = align(turns, samples.time_s, samples.gyro_rad_s)
        if found.excitation_rad_s[1] < MIN_EXCITATION_RAD_S:
            return self._refused(subject, _missing_motion(turns, found.excitation_rad_s))
        if reason := unexplained(found):
            return self._refused(subject, reason)
        return self._joined(request, base, (seer.frame_id, imu.frame_id), found)

    def _turns(self, base: RigCalibration, data: SensorData, seer: StreamInfo, gyro: Gyro) -> Turns | None:
        if seer.modality is Modality.CAMERA:
            seen = load_turning(data.path, seer, gyro)
            return camera_turns(seen.images, seen.image_s, base.camera(seer.frame_id))
        imu = next(info for info in data.imus if info.frame_id == gyro.frame)
        return lively_turns(data, seer, imu)

    def _joined(
        self, request: SolveRequest, base: RigCalibration, frames: tuple[str, str], found: rotation.Alignment
    ) -> SolvedPart:
        seer, imu = frames
        reasons = ["translation cannot be seen from rotation rates: it is kept as it was"]
        place, place_sigma_m = np.zeros(3), UNKNOWN_PLACE_M
        if base.has_transform(seer, imu):
            before = base.transform(seer, imu)
            place, place_sigma_m = before[:3, 3], _place_sigma(base, frames)
        else:
            reasons = [f"where {imu} sits is not known: measure it by hand; its rotation is what was solved"]
        covariance = np.zeros((6, 6))
        covariance[:3, :3] = found.covariance
        covariance[3:, 3:] = place_sigma_m**2 * np.eye(3)
        # The IMU's stamps on the sensor's clock: the other way round than the alignment has it.
        edge = Edge(
            seer,
            imu,
            transform(found.R_sensor_imu, place),
            covariance,
            request.source,
            request.date,
            time_offset_s=-found.offset_s,
        )
        sigma = np.sqrt(np.diag(found.covariance))
        rpy = [
            Quantity(
                f"sigma_{axis}",
                float(np.rad2deg(sigma[k])),
                "deg",
                float(np.rad2deg(MAX_ROTATION_SIGMA_RAD)),
                float(np.rad2deg(sigma[k])),
            )
            for k, axis in enumerate("xyz")
        ]
        offset = Quantity(
            "time_offset", 1e3 * found.offset_s, "ms", 1e3 * MAX_OFFSET_SIGMA_S, 1e3 * found.offset_sigma_s
        )
        extra = [
            Quantity("residual", float(np.rad2deg(found.residual_rad_s)), "deg/s"),
            Quantity("excitation_second_axis", float(np.rad2deg(found.excitation_rad_s[1])), "deg/s"),
        ]
        subject = f"{seer}~{imu}"
        return self._part(
            subject, [*rpy, offset, *extra], reasons, replace(self._empty(subject), edges=(edge,))
        )


def _place_sigma(base: RigCalibration, frames: tuple[str, str]) -> float:
    for edge in base.edges:
        if {edge.parent, edge.child} == set(frames) and edge.covariance is not None:
            return float(np.sqrt(max(np.diag(edge.covariance)[3:].max(), 1e-8)))
    return 0.02  # a drawing, or a rule


def _missing_motion(turns: Turns, excitation_rad_s: Array) -> str:
    """Say about which axes of the sensor the rig should have turned more."""
    rates = turns.rate_rad_s - turns.rate_rad_s.mean(axis=0)
    rms = np.sqrt(np.square(rates).mean(axis=0))
    quiet = ["xyz"[k] for k in range(3) if rms[k] < MIN_EXCITATION_RAD_S]
    said = " and ".join(quiet) or "a second axis"
    return (
        f"the rig turned at {np.rad2deg(excitation_rad_s[1]):.1f} deg/s rms about its second axis, "
        f"{np.rad2deg(MIN_EXCITATION_RAD_S):.0f} are needed: turn it about {said} (axes of the sensor) as well"
    )


class LidarPairSolver(SensorSolver):
    """Where two LiDARs are to each other, from surfaces that both see while the rig stands."""

    name = "lidars"
    needs = "two LiDARs whose rough place is known (3 deg, 20 cm), standing still for some seconds"

    def _solved(self, request: SolveRequest, base: RigCalibration, data: SensorData) -> Sequence[SolvedPart]:
        return [
            self._one(request, base, data, *task.infos)
            for task in tasks_of(check_kind("lidar_lidar"), data.streams, base)
        ]

    def _one(
        self,
        request: SolveRequest,
        base: RigCalibration,
        data: SensorData,
        first: StreamInfo,
        second: StreamInfo,
    ) -> SolvedPart:
        subject = f"{first.frame_id}~{second.frame_id}"
        request.show(f"{subject}: registering sweeps")
        pairs, reason = calm_pairs(data, first, second)
        if not pairs:
            return self._refused(subject, reason)
        T = base.transform(first.frame_id, second.frame_id)
        covariance = np.full((6, 6), np.inf)
        for _ in range(3):  # a registration is pulled to where it starts
            found = [register_sweeps([a.points], [b.points], T) for a, b in pairs]
            motion, covariance = pooled_motion(found, T)
            if not np.isfinite(covariance).all():
                return self._refused(
                    subject, "the two see too few common surfaces: go where walls are in view of both"
                )
            T = T @ small_motion(motion)
        # From the second's axes, where the motion is measured, to the first's, where an edge has its covariance.
        carried = _in_parent(T, covariance)
        edge = Edge(first.frame_id, second.frame_id, T, carried, request.source, request.date)
        sigma = np.sqrt(np.diag(covariance))
        limits = [MAX_LIDAR_ROTATION_SIGMA_RAD] * 3 + [MAX_LIDAR_TRANSLATION_SIGMA_M] * 3
        moved = check_lidar_lidar(
            [register_sweeps([a.points], [b.points], T) for a, b in pairs[:1]],
            base.with_transform(first.frame_id, second.frame_id, T, request.source),
            first.frame_id,
            second.frame_id,
        )
        quantities = []
        for k, name in enumerate(DEGREES):
            scale = 180 / np.pi if k < 3 else 1.0
            value, limit = float(sigma[k] * scale), float(limits[k] * scale)
            quantities.append(Quantity(f"sigma_{name}", value, "deg" if k < 3 else "m", limit, value))
        quantities += [q for q in moved.quantities if q.name in ("matches", "plane_rms")]
        quantities.append(Quantity("sweeps", float(len(pairs)), "1"))
        return self._part(subject, quantities, (), replace(self._empty(subject), edges=(edge,)))


def _in_parent(T_parent_child: Array, covariance: Array) -> Array:
    """Return the covariance of a motion in the child's axes as one of the edge, in the parent's."""
    R, t = T_parent_child[:3, :3], T_parent_child[:3, 3]
    lever = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    carry = np.block([[R, np.zeros((3, 3))], [lever @ R, R]])
    return np.asarray(carry @ covariance @ carry.T, np.float64)


class GroundReferenceSolver(SensorSolver):
    """The reading of ground against gravity to judge later drift by; last, because it belongs to one document."""

    name = "ground-reference"
    needs = "a LiDAR with level ground in view and an IMU, at rest for some seconds"

    def _solved(
        self,
        request: SolveRequest,  # noqa: ARG002 - says nothing while it looks
        base: RigCalibration,
        data: SensorData,
    ) -> Sequence[SolvedPart]:
        tasks = tasks_of(check_kind("ground_gravity"), data.streams, base)
        return [self._one(base, data, *task.infos) for task in tasks]

    def _one(self, base: RigCalibration, data: SensorData, lidar: StreamInfo, imu: StreamInfo) -> SolvedPart:
        subject = f"{lidar.frame_id}~{imu.frame_id}"
        resting = resting_sweeps(data, lidar, imu)
        if resting is None:
            return self._refused(subject, f"{imu.frame_id} was never at rest for a second")
        points = [sweep.points for sweep in resting[0]]
        bare = replace(base, references=())
        read = check_ground_gravity(points, resting[1], bare, lidar.frame_id, imu.frame_id)
        if read.status is Status.INSUFFICIENT:
            return self._refused(subject, read.reasons[0])
        tilt = read.quantities[:2]
        if max(abs(q.value) for q in tilt) > MAX_REFERENCE_DEG:
            return self._refused(
                subject,
                f"ground and gravity differ by {max(abs(q.value) for q in tilt):.1f} deg: stand on level ground, "
                "solve the transforms first",
            )
        mean = tuple(q.value for q in tilt)
        sigma = tuple(q.sigma or 0.0 for q in tilt)

        def apply(document: RigCalibration) -> RigCalibration:
            known = Reference(GROUND_CHECK, subject, document.calibration_id, mean, sigma, len(points))
            return document.with_reference(known)

        quantities = [replace(q, threshold=None) for q in tilt]
        return self._part(subject, quantities, (), replace(self._empty(subject), apply=apply))


def motion_solvers() -> tuple[Solver, ...]:
    """Return the solvers of this module in their order: biases first, then what uses them."""
    material = SensorMaterial()
    return (
        ImuSolver(material),
        TurningSolver(material),
        LidarPairSolver(material),
        ForceSolver(material),
        MicrophoneSolver(material),
        GroundReferenceSolver(material),
    )
