"""Solvers that need no board: IMUs at rest, turning against an IMU, two LiDARs, force sensors, microphones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sensorium.agent.calibrating.checking.lidar_pairs import calm_pairs, lively_turns, resting_sweeps
from sensorium.agent.calibrating.episode_material import load_turning
from sensorium.agent.calibrating.sensors import SensorData
from sensorium.agent.calibrating.shots import Gyro
from sensorium.agent.calibrating.solving.solver import SolvedPart, Solver, SolveRequest
from sensorium.agent.calibrating.tasks import tasks_of
from sensorium.agent.session.check_kinds import check_kind
from sensorium.calibration import rotation
from sensorium.calibration.camera_rotation import camera_turns
from sensorium.calibration.force_torque import solve_payload
from sensorium.calibration.geometry import Array, small_motion, transform
from sensorium.calibration.inertial import (
    GROUND_CHECK,
    MIN_STATIC_S,
    at_rest,
    check_ground_gravity,
    rest_spans,
    solve_imu_static,
)
from sensorium.calibration.lidar_lidar import DEGREES, check_lidar_lidar, pooled_motion, register_sweeps
from sensorium.calibration.microphones import MIN_CLAPS, find_order, solve_polarity
from sensorium.calibration.rig_document import Edge, Reference, RigCalibration
from sensorium.calibration.rotation import MIN_EXCITATION_RAD_S, MIN_STEPS, Turns, align, unexplained
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.drivers.frame import Modality, StreamInfo
from sensorium.drivers.roles import Role
from sensorium.errors import CalibrationError
from sensorium.sync.episode.reader import Episode
from sensorium.verdict import Quantity, Status, Verdict

# What a solved transform must be known to.
MAX_ROTATION_SIGMA_RAD = np.deg2rad(0.3)
MAX_OFFSET_SIGMA_S = 1.5e-3
MAX_LIDAR_ROTATION_SIGMA_RAD = np.deg2rad(0.15)
MAX_LIDAR_TRANSLATION_SIGMA_M = 0.015
MAX_MASS_SIGMA_KG = 0.005
MAX_REFERENCE_DEG = 3.0
# What is assumed of a place that nobody measured: it may be anywhere on the rig.
UNKNOWN_PLACE_M = 0.5


class SensorMaterial:
    """Opens the recording once for all solvers; their data depends on the calibration in force."""

    def __init__(self) -> None:
        self._streams: tuple[StreamInfo, ...] = ()
        self._path = ""

    def of(self, request: SolveRequest, base: RigCalibration) -> SensorData | None:
        """Return the sensors of an episode, None for other recordings."""
        if request.kind != "episode":
            return None
        if self._path != str(request.path):
            with Episode(request.path) as episode:
                self._streams = tuple(episode.streams.values())
            self._path = str(request.path)
        return SensorData(request.path, list(self._streams), base)

    def cameras(self) -> list[StreamInfo]:
        return [info for info in self._streams if info.modality is Modality.CAMERA]


class _Solver:
    """What these solvers share: they look at an episode, and check nothing that `calibration check` does not."""

    name = ""
    needs = ""

    def __init__(self, material: SensorMaterial) -> None:
        self._material = material

    def solve(self, request: SolveRequest, base: RigCalibration) -> Sequence[SolvedPart]:
        data = self._material.of(request, base)
        return () if data is None else self._solved(request, base, data)

    def check(
        self,
        request: SolveRequest,  # noqa: ARG002 - the protocol's
        calibration: RigCalibration,  # noqa: ARG002
    ) -> Sequence[Verdict]:
        return ()  # agent/checking judges these from any episode, without a board

    def _solved(self, request: SolveRequest, base: RigCalibration, data: SensorData) -> Sequence[SolvedPart]:
        raise NotImplementedError

    def _part(
        self, subject: str, quantities: Sequence[Quantity], reasons: Sequence[str], solved: SolvedPart
    ) -> SolvedPart:
        """Return a part with an ok verdict, or insufficient where a quantity's sigma is beyond its limit."""
        loose = [
            f"{q.name} is known to {q.sigma:.2g} {q.unit} only, {q.threshold:.2g} are needed"
            for q in quantities
            if q.sigma is not None and q.threshold is not None and not q.sigma <= q.threshold
        ]
        status = Status.INSUFFICIENT if loose else Status.OK
        verdict = Verdict(
            f"solve_{self.name.replace('-', '_')}", subject, status, tuple(quantities), (*loose, *reasons)
        )
        return replace(solved, verdict=verdict)

    def _refused(self, subject: str, reason: str) -> SolvedPart:
        verdict = Verdict(f"solve_{self.name.replace('-', '_')}", subject, Status.INSUFFICIENT, (), (reason,))
        return SolvedPart(self.name, verdict, is_opportune=True)

    def _empty(self, subject: str) -> SolvedPart:
        return self._refused(subject, "not solved")


class ImuSolver(_Solver):
    """Bias and noise of every IMU from the time it stood still."""

    name = "imu"
    needs = f"an IMU that stands still for {MIN_STATIC_S:.0f} s, better a minute"

    def _solved(self, request: SolveRequest, base: RigCalibration, data: SensorData) -> Sequence[SolvedPart]:
        return [self._one(request, base, data, info) for info in data.imus]

    def _one(
        self, request: SolveRequest, base: RigCalibration, data: SensorData, info: StreamInfo
    ) -> SolvedPart:
        name = info.frame_id
        request.show(f"{name}: bias and noise at rest")
        samples, before = data.inertial(info), base.imus.get(name)
        if samples is None:
            return self._refused(name, "nothing was recorded of it")
        try:
            found = solve_imu_static(samples, before)
        except CalibrationError as err:
            return self._refused(name, str(err))
        found = replace(found, source=request.source, date=request.date)
        still = at_rest(samples, before)
        rest_s, poses = len(still.time_s) / samples.rate_hz, len(rest_spans(samples, before))
        quantities = [
            *_vector(
                "gyro_bias", found.gyro_bias_rad_s, "rad/s", _mean_sigma(found.gyro_noise_rad_s, rest_s)
            ),
            *_vector("acc_bias", found.acc_bias_m_s2, "m/s^2", _mean_sigma(found.acc_noise_m_s2, rest_s)),
            Quantity("gyro_noise", found.gyro_noise_rad_s or 0.0, "rad/s/sqrt(Hz)"),
            Quantity("acc_noise", found.acc_noise_m_s2 or 0.0, "m/s^2/sqrt(Hz)"),
            Quantity("rest", rest_s, "s", MIN_STATIC_S),
            Quantity("rests", float(poses), "1"),
        ]
        reasons = _imu_changes(found, before)
        if not _is_whole_bias(still.acc_m_s2):
            reasons.append(
                "of the accelerometer's bias only the part along gravity was seen; for all of it hold the rig "
                "still in six poses, each axis up and down"
            )

        def apply(document: RigCalibration) -> RigCalibration:
            return replace(document, imus={**document.imus, name: found})

        return self._part(name, quantities, reasons, replace(self._empty(name), apply=apply))


def _is_whole_bias(acc_m_s2: Array) -> bool:
    return bool(np.ptp(acc_m_s2, axis=0).min() > 2.0)


def _mean_sigma(density: float | None, span_s: float) -> float:
    return 2 * (density or 0.0) / float(np.sqrt(max(span_s, 1e-9)))


def _vector(name: str, values: Sequence[float] | None, unit: str, sigma: float) -> list[Quantity]:
    return [
        Quantity(f"{name}_{axis}", float(value), unit, None, sigma)
        for axis, value in zip("xyz", values or (), strict=False)
    ]


def _imu_changes(found: ImuModel, before: ImuModel | None) -> list[str]:
    reasons = []
    if before is not None and before.gyro_bias_rad_s is not None and found.gyro_bias_rad_s is not None:
        change = np.rad2deg(np.subtract(found.gyro_bias_rad_s, before.gyro_bias_rad_s))
        reasons.append(f"gyro bias {_signed(change)} deg/s from the calibration before")
    if before is not None and before.acc_bias_m_s2 is not None and found.acc_bias_m_s2 is not None:
        change = np.subtract(found.acc_bias_m_s2, before.acc_bias_m_s2)
        reasons.append(f"accelerometer bias {_signed(change)} m/s^2 from the calibration before")
    if before is not None and before.gyro_noise_rad_s and found.gyro_noise_rad_s:
        ratio = found.gyro_noise_rad_s / before.gyro_noise_rad_s
        reasons.append(f"gyro noise {ratio:.2f} times that of the calibration before")
    return reasons


def _signed(values: Array) -> str:
    return " ".join(f"{value:+.3f}" for value in values)


class TurningSolver(_Solver):
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


class LidarPairSolver(_Solver):
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


class ForceSolver(_Solver):
    """Bias of a force/torque sensor, and mass and centre of what hangs on it."""

    name = "force-torque"
    needs = "a force/torque sensor and an IMU on the same body, held still in six poses tilted to all sides"

    def _solved(self, request: SolveRequest, base: RigCalibration, data: SensorData) -> Sequence[SolvedPart]:
        return [self._one(request, base, data, info) for info in data.having(Role.WRENCH)]

    def _one(
        self, request: SolveRequest, base: RigCalibration, data: SensorData, info: StreamInfo
    ) -> SolvedPart:
        name = info.frame_id
        request.show(f"{name}: bias and payload")
        try:
            poses = data.poses(info)
        except CalibrationError as err:
            return self._refused(name, str(err))
        before, reasons = base.force_torque.get(name), []
        try:
            found = solve_payload(poses.force_n, poses.torque_nm, poses.gravity_m_s2)
        except CalibrationError as err:
            if before is None or not len(poses):
                return self._refused(name, str(err))
            left_n = poses.force_n - before.force_n(poses.gravity_m_s2)
            left_nm = poses.torque_nm - before.torque_nm(poses.gravity_m_s2)
            found = replace(
                before,
                force_bias_n=before.force_bias_n + left_n.mean(axis=0),
                torque_bias_nm=before.torque_bias_nm + left_nm.mean(axis=0),
            )
            reasons.append(f"only the biases, under the payload as it was known: {err}")
        found = replace(found, source=request.source, date=request.date)
        if before is not None:
            change_n = found.force_bias_n - before.force_bias_n
            reasons.append(
                f"mass {found.mass_kg - before.mass_kg:+.3f} kg, force bias {_signed(change_n)} N from the "
                "calibration before"
            )

        def apply(document: RigCalibration) -> RigCalibration:
            return replace(document, force_torque={**document.force_torque, name: found})

        return self._part(
            name, _payload_quantities(found, len(poses)), reasons, replace(self._empty(name), apply=apply)
        )


def _payload_quantities(found: Payload, poses: int) -> list[Quantity]:
    sigma = found.sigma
    quantities = [Quantity("mass", found.mass_kg, "kg", MAX_MASS_SIGMA_KG, float(sigma[0]))]
    for label, values, unit, first in (
        ("force_bias", found.force_bias_n, "N", 1),
        ("centre", found.centre_m, "m", 4),
        ("torque_bias", found.torque_bias_nm, "N m", 7),
    ):
        quantities += [
            Quantity(f"{label}_{axis}", float(values[k]), unit, None, float(sigma[first + k]))
            for k, axis in enumerate("xyz")
        ]
    return [*quantities, Quantity("poses", float(poses), "1")]


class MicrophoneSolver(_Solver):
    """Polarity of every channel, and at which microphone it hangs."""

    name = "microphones"
    needs = (
        f"an array of microphones and {MIN_CLAPS} claps (the order: from a marked side, or from all around)"
    )

    def _solved(self, request: SolveRequest, base: RigCalibration, data: SensorData) -> Sequence[SolvedPart]:
        return [self._one(request, base, data, info) for info in data.having(Role.ARRAY)]

    def _one(
        self, request: SolveRequest, base: RigCalibration, data: SensorData, info: StreamInfo
    ) -> SolvedPart:
        name = info.frame_id
        request.show(f"{name}: polarity and order from claps")
        claps, before = data.claps(info), base.microphones.get(name)
        if len(claps.clips) < MIN_CLAPS:
            reason = (
                f"{len(claps.clips)} claps were heard, {MIN_CLAPS} are needed: clap from different places"
            )
            return self._refused(name, reason)
        polarity = solve_polarity(claps.clips)
        if polarity is None:
            return self._refused(
                name, "the claps disagree on a channel's polarity: clap closer, away from walls"
            )
        positions = before.positions_m if before is not None else ()
        reasons, margin = [], 0.0
        if before is not None and before.polarity and before.polarity != polarity:
            reasons.append(f"polarity was {list(before.polarity)}, is {list(polarity)}")
        if positions:
            signed = [clip * np.array(polarity) for clip in claps.clips]
            order, margin = find_order(signed, claps.rate_hz, np.array(positions), claps.sides)
            if order is None:
                reasons.append(
                    "the order was not solved: mark claps from known sides (sensorium mark 'clap left')"
                )
            elif order != tuple(range(len(positions))):
                positions = tuple(positions[k] for k in order)
                reasons.append(f"channels hang at other microphones than the document said: {list(order)}")
        else:
            reasons.append("the order was not solved: the document has no positions of the microphones")
        found = MicrophoneArray(positions, polarity, request.source, request.date)
        quantities = [
            *(Quantity(f"polarity_{k}", float(sign), "1") for k, sign in enumerate(polarity)),
            Quantity("order_margin", margin, "samples"),
            Quantity("claps", float(len(claps.clips)), "1", float(MIN_CLAPS)),
        ]

        def apply(document: RigCalibration) -> RigCalibration:
            return replace(document, microphones={**document.microphones, name: found})

        return self._part(name, quantities, reasons, replace(self._empty(name), apply=apply))


class GroundReferenceSolver(_Solver):
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
