"""Solvers of one sensor: an IMU against gravity, a force sensor against its payload, microphones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sensorium.agent.calibrating.sensors import SensorData
from sensorium.agent.calibrating.solving.solver import SolvedPart, SolveRequest
from sensorium.calibration.force_torque import solve_payload
from sensorium.calibration.geometry import Array
from sensorium.calibration.inertial import (
    MIN_STATIC_S,
    at_rest,
    rest_spans,
    solve_imu_static,
)
from sensorium.calibration.microphones import MIN_CLAPS, find_order, solve_polarity
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.drivers.frame import Modality, StreamInfo
from sensorium.drivers.roles import Role
from sensorium.errors import CalibrationError
from sensorium.sync.episode.reader import Episode
from sensorium.verdict import Quantity, Status, Verdict

MAX_MASS_SIGMA_KG = 0.005
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


class SensorSolver:
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


class ImuSolver(SensorSolver):
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


class ForceSolver(SensorSolver):
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


class MicrophoneSolver(SensorSolver):
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
