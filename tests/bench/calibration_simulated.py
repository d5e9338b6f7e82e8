"""Checks on the simulated rig and on synthetic noise, whose truth is known."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from calibration_rates import ALARM, LEVELS, in_parallel, is_alarm, random_motion, rate

from sensorium.agent.calibrating.checking.run import run_checks
from sensorium.agent.calibrating.recording import CameraLidarSet, PreparedMaterial, Recording, StereoSet
from sensorium.agent.calibrating.shots import Shot
from sensorium.calibration import geometry
from sensorium.calibration.camera_rotation import camera_turns
from sensorium.calibration.edges import Edge
from sensorium.calibration.force_torque import check_force_torque
from sensorium.calibration.formats.detect import ImportResult
from sensorium.calibration.inertial import Inertial, check_ground_gravity, check_imu_static
from sensorium.calibration.lidar_lidar import check_lidar_lidar, register_sweeps
from sensorium.calibration.microphones import SOUND_M_S, check_claps
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.rotation import Turns, check_imu_rotation
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.drivers.payloads.ouster import beam_rays
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.emulators.ouster_encoder import default_metadata
from sensorium.simulators.imu import InertialNoise, SimulatedImuConfig, inertial_truth
from sensorium.simulators.render import Renderer
from sensorium.simulators.world import World
from sensorium.verdict import Status, Verdict


class SimulatedRoom:
    """The simulated rig frozen at instants of its motion: what a de-skewed recording of it holds."""

    def __init__(self, seed: int) -> None:
        self.rig = rig_calibration(seed)
        self.world = World(seed)
        self.rng = np.random.default_rng(seed)
        self._renderers = {
            name: Renderer(self.world.scene, camera, self.rng) for name, camera in self.rig.cameras.items()
        }

    def image(self, name: str, world_s: float, moved: geometry.Array | None = None) -> Any:
        """Return a camera's picture; ``moved`` is where the camera is in its own former axes."""
        return self._renderers[name].image(self.pose(name, world_s, moved), world_s)

    def sweep(
        self, world_s: float, moved: geometry.Array | None = None, rings: int = 64, columns: int = 1024
    ) -> tuple[Any, Any]:
        """Return points (N, 4) and rings of the LiDAR."""
        directions, offsets = (
            part.reshape(-1, 3) for part in beam_rays(default_metadata(rings, columns, 10.0))
        )
        T = self.pose("lidar", world_s, moved)
        R = T[:3, :3].astype(np.float32)
        origins = (offsets @ R.T + T[:3, 3]).astype(np.float32)
        hits = self.world.scene.cast(origins, (directions @ R.T).astype(np.float32))
        range_m = hits.range_m + self.rng.normal(0, 0.008, len(directions))
        reflectivity = hits.reflectivity + self.rng.normal(0, 2.0, len(directions))
        points = np.column_stack([offsets + directions * range_m[:, None], reflectivity])
        return points, np.repeat(np.arange(rings), columns)

    def pose(self, name: str, world_s: float, moved: geometry.Array | None = None) -> geometry.Array:
        T = self.world.pose(world_s) @ self.rig.transform("body", name)
        return T if moved is None else T @ moved


def simulated(_: Path) -> dict[str, Any]:
    """Checks for which no recording with truth exists: on the simulated room and synthetic noise."""
    return {
        "lidar_lidar": _simulated_lidars(60),
        "ground_gravity": _simulated_ground(60),
        "imu_static_60s": _simulated_rest(100),
        "imu_camera_20s": _simulated_rotation(12),
        "force_torque_6_poses": _simulated_poses(200),
        "microphones_5_claps": _simulated_claps(60),
    }


def _simulated_lidars(trials: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    T_first_second = geometry.small_motion((0.1, -0.3, 0.8, -0.2, 0.15, -0.3))
    known = RigCalibration(edges=(Edge("first", "second", T_first_second),))
    found: dict[str, list[bool]] = {"0.5deg": [], "5cm": [], "false_alarm": []}
    rooms = [SimulatedRoom(seed) for seed in (1, 2)]
    for trial in range(trials):
        room, world_s = rooms[trial % 2], float(rng.uniform(0, 10))
        first = [room.sweep(world_s)[0] for _ in range(3)]
        for name, values in found.items():
            change = geometry.small_motion(random_motion(rng, *LEVELS.get(name, (0.0, 0.0))))
            second = [room.sweep(world_s, T_first_second @ change, 32, 512)[0] for _ in range(3)]
            seen = register_sweeps(first, second, T_first_second)
            values.append(is_alarm(check_lidar_lidar([seen], known, "first", "second")))
    calm = found.pop("false_alarm")
    return {
        **{name: rate(values, trials) for name, values in found.items()},
        "false_alarm": rate(calm, trials, "rate"),
    }


def _simulated_ground(trials: int) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    hits: list[bool] = []
    calm: list[bool] = []
    unjudged = 0
    rooms = [SimulatedRoom(seed) for seed in (1, 2)]
    for trial in range(trials):
        room, world_s = rooms[trial % 2], float(rng.uniform(0, 10))
        up = room.pose("imu", world_s)[:3, :3].T @ np.array([0.0, 0.0, 9.81])
        acc = up + rng.normal(0, 0.02, (400, 3))
        heading = rng.uniform(0, 2 * np.pi)
        tilt = np.deg2rad(0.5) * np.array([np.cos(heading), np.sin(heading), 0, 0, 0, 0])
        for motion, values in ((np.zeros(6), calm), (tilt, hits)):
            sweeps = [room.sweep(world_s, geometry.small_motion(motion))[0] for _ in range(3)]
            verdict = check_ground_gravity(sweeps, acc, room.rig, "lidar", "imu")
            unjudged += verdict.status is Status.INSUFFICIENT
            if verdict.status is not Status.INSUFFICIENT:
                values.append(is_alarm(verdict))
    return {
        "tilt_0.5deg": rate(hits, len(hits)),
        "false_alarm": rate(calm, len(calm), "rate"),
        "insufficient": unjudged,
    }


def _simulated_rest(trials: int) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    still = (0.0, 0.0, 0.0)
    model = ImuModel(still, still, 2e-4, 2e-3)
    time_s = np.arange(0, 60, 0.005)
    found: dict[str, list[bool]] = {
        "bias_0.3deg_s": [],
        "noise_x3": [],
        "gravity_0.1m_s2": [],
        "false_alarm": [],
    }
    for _ in range(trials):
        for name, values in found.items():
            loud = np.sqrt(200.0) * (3.0 if name == "noise_x3" else 1.0)
            rate_rad_s = rng.normal(0, 2e-4 * loud, (len(time_s), 3))
            acc = rng.normal(0, 2e-3 * loud, (len(time_s), 3)) + np.array([0, 0, 9.81])
            if name == "bias_0.3deg_s":
                rate_rad_s[:, rng.integers(3)] += np.deg2rad(0.3)
            if name == "gravity_0.1m_s2":
                acc[:, 2] += 0.1
            samples = Inertial(time_s, acc, rate_rad_s)
            values.append(is_alarm(check_imu_static(samples, "imu", model)))
    calm = found.pop("false_alarm")
    return {
        **{name: rate(values, trials) for name, values in found.items()},
        "false_alarm": rate(calm, trials, "rate"),
    }


def _simulated_poses(trials: int) -> dict[str, Any]:
    """Readings of six poses to all sides with the noise of spec 1.12: 0.05 N and 3 mN m."""
    rng = np.random.default_rng(4)
    known = Payload(
        0.5, np.array([1.0, -0.5, 2.0]), np.array([0.0, 0.01, 0.06]), np.array([0.02, 0.0, -0.01])
    )
    found: dict[str, list[bool]] = {"20g": [], "5mm": [], "0.2N": [], "false_alarm": []}
    for _ in range(trials):
        gravity = 9.81 * np.concatenate([np.eye(3), -np.eye(3)]) @ geometry.rotation_exp(rng.normal(0, 1, 3))
        axis = np.eye(3)[rng.integers(3)]
        for name, values in found.items():
            changed = {
                "20g": replace(known, mass_kg=known.mass_kg + 0.02),
                "5mm": replace(known, centre_m=known.centre_m + 0.005 * axis),
                "0.2N": replace(known, force_bias_n=known.force_bias_n + 0.2 * axis),
            }.get(name, known)
            force = changed.force_n(gravity) + rng.normal(0, 0.05, (6, 3))
            torque = changed.torque_nm(gravity) + rng.normal(0, 0.003, (6, 3))
            values.append(is_alarm(check_force_torque(force, torque, gravity, known, "force")))
    calm = found.pop("false_alarm")
    return {
        **{name: rate(values, trials) for name, values in found.items()},
        "false_alarm": rate(calm, trials, "rate"),
    }


def _simulated_claps(trials: int) -> dict[str, Any]:
    """Five bursts 1 to 4 m away, heard by two or four microphones whose document says from which side, or by six.

    Claps come from within 40 degrees of the stated side; 48 kHz, 30 dB over the noise. Two channels swapped, one
    inverted.
    """
    rng = np.random.default_rng(5)
    places = np.array(
        [[0, 0, 0], [0.2, 0, 0], [0.03, 0.12, 0], [0.25, 0.3, 0.05], [-0.1, 0.22, 0.1], [0.1, -0.15, 0.02]]
    )
    sides = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    found: dict[str, list[bool]] = {}
    for count, is_marked in ((2, True), (4, True), (6, False)):
        known = MicrophoneArray(tuple((float(x), float(y), float(z)) for x, y, z in places[:count]))
        for _ in range(trials):
            # Two microphones hear a difference along their line only.
            stated = sides[rng.integers(0, 2 if count == 2 else 4, 5)]
            clips = [_burst(rng, places[:count], side) for side in stated]
            first, second = rng.choice(count, 2, replace=False)
            order = np.arange(count)
            order[[first, second]] = second, first
            signs = np.where(np.arange(count) == first, -1.0, 1.0)
            kind = f"{count}_channels" + ("_marked" if is_marked else "")
            for name, heard in (
                ("swapped", [clip[:, order] for clip in clips]),
                ("inverted", [clip * signs for clip in clips]),
                ("false_alarm", clips),
            ):
                verdict = check_claps(heard, 48e3, "array", known, list(stated) if is_marked else ())
                found.setdefault(f"{kind}_{name}", []).append(is_alarm(verdict))
    return {
        name: rate(values, trials, "rate" if name.endswith("false_alarm") else "tpr")
        for name, values in found.items()
    }


def _burst(rng: np.random.Generator, places_m: geometry.Array, side: geometry.Array) -> geometry.Array:
    sample = np.arange(2880)
    burst = rng.normal(size=len(sample)) * np.exp(-(((sample - 900) / 200.0) ** 2))
    turn = geometry.rotation_exp(rng.uniform(0, np.deg2rad(40)) * _unit(rng))
    late = np.linalg.norm(places_m - turn @ side * rng.uniform(1, 4), axis=1) / SOUND_M_S * 48e3
    shift = np.exp(-2j * np.pi * np.outer(late - late.min(), np.fft.rfftfreq(len(sample))))
    heard = np.fft.irfft(np.fft.rfft(burst) * shift, axis=1).T
    return np.asarray(heard + rng.normal(0, 0.03, heard.shape))


def _unit(rng: np.random.Generator) -> geometry.Array:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def _simulated_rotation(rooms: int) -> dict[str, Any]:
    hits: dict[str, list[bool]] = {"rotation_1deg_one_axis": [], "offset_5ms": []}
    calm: list[bool] = []
    readings: list[list[float]] = []
    for seed in range(1, rooms + 1):
        room = SimulatedRoom(seed)
        time_s = np.arange(0.3, 20.3, 0.1)
        images = [room.image("camera_left", t) for t in time_s]
        turns = camera_turns(images, time_s, room.rig.camera("camera_left"))
        gyro_s = np.arange(0, 21, 0.005)
        truth = inertial_truth(room.world.motion(gyro_s).carried_to(room.rig.transform("body", "imu")))
        gyro = InertialNoise(SimulatedImuConfig(), np.random.default_rng(seed)).measured(truth)[:, 3:]
        T = room.rig.transform("camera_left", "imu")

        def judged(
            late_s: float,
            change: geometry.Array,
            turns: Turns = turns,
            T: geometry.Array = T,
            gyro_s: geometry.Array = gyro_s,
            gyro: geometry.Array = gyro,
        ) -> Verdict:
            known = RigCalibration(edges=(Edge("camera", "imu", geometry.small_motion(change) @ T),))
            return check_imu_rotation(turns.shifted(-late_s), gyro_s, gyro, known, "camera", "imu")

        quiet = judged(0.0, np.zeros(6))
        calm.append(is_alarm(quiet))
        readings.append([round(quantity.value, 3) for quantity in quiet.quantities[:4]])
        # About one axis of the camera: the tolerance of 1 degree holds per axis.
        single = [sign * np.deg2rad(1.0) * np.eye(6)[axis] for axis in range(3) for sign in (-1, 1)]
        hits["rotation_1deg_one_axis"] += [is_alarm(judged(0.0, motion)) for motion in single]
        hits["offset_5ms"] += [is_alarm(judged(late_s, np.zeros(6))) for late_s in (-0.005, 0.005)]
    return {
        **{name: rate(values, rooms) for name, values in hits.items()},
        "false_alarm": rate(calm, rooms, "rate"),
        "null_deg_ms": readings,
    }


def bump(_: Path, runs: int = 4, workers: int = 2) -> dict[str, Any]:
    """One sensor of the simulated rig is bumped by 1 deg and 2 cm in mid-episode; as many runs without a bump.

    The room, the pictures (two cameras, 640x480) and the sweeps (64 rings) are simulated, as if straightened with
    a perfect gyro; what judges them is the check of a finished episode that the agent runs.
    """
    parts: dict[str, Callable[[], dict[str, Any]]] = {}
    for run in range(runs):
        parts[f"run {run}, bumped"] = partial(_bumped_run, run, True)
        parts[f"run {run}, calm"] = partial(_bumped_run, run, False)
    found = in_parallel(parts, workers)
    bumped = [found[f"run {run}, bumped"] for run in range(runs)]
    calm = [found[f"run {run}, calm"] for run in range(runs)]
    right = [one["found"] and one["right"] and one["within_5s"] for one in bumped]
    return {
        **{key: rate([one[key] for one in bumped], runs) for key in ("found", "right", "within_5s")},
        "found_right_and_within_5s": rate(right, runs),
        "false_alarm": rate([one["found"] for one in calm], runs, "rate"),
        "not_ok_without_a_bump": sum(one["status"] != "ok" for one in calm),
        "missed": [(one["truth"], one["said"]) for one, good in zip(bumped, right, strict=True) if not good],
        "false": [one["said"] for one in calm if one["found"]],
    }


def _bumped_run(run: int, is_bumped: bool) -> dict[str, Any]:
    rng = np.random.default_rng([run, 5])
    name = ("camera_left", "camera_right", "lidar")[run % 3]
    at_s = float(rng.uniform(7.0, 14.0))
    change = geometry.small_motion(random_motion(rng, 1.0, 0.0) + random_motion(rng, 0.0, 0.02))
    report = run_checks(_episode(run + 1, name if is_bumped else "", at_s, change))
    bounds = [
        quantity.value
        for verdict in report.verdicts
        if is_alarm(verdict)
        for quantity in verdict.quantities
        if quantity.name in ("moved_after", "moved_before")
    ]
    middle_s = (min(bounds) + max(bounds)) / 2 if bounds else float("nan")
    return {
        "found": report.status in ALARM,
        "status": report.status.value,
        "right": report.moved == (name,),
        "within_5s": abs(middle_s - at_s) <= 5.0,
        "truth": f"{name} at {at_s:.1f} s",
        "said": f"{', '.join(report.moved)} at {middle_s:.1f} s: {'; '.join(report.reasons[:3])}",
    }


def _episode(seed: int, bumped: str, at_s: float, change: geometry.Array) -> Recording:
    """Return 20 s of the simulated rig: 18 stereo pairs with a sweep each, 1.1 s apart."""
    room = SimulatedRoom(seed)
    times = tuple(0.4 + 1.1 * k for k in range(18))
    names = ("camera_left", "camera_right")
    pairs: list[tuple[Any, Any]] = []
    sweeps: list[tuple[Any, Any]] = []
    for t in times:
        moved = {bumped: change} if bumped and t >= at_s else {}
        left, right = (room.image(name, t, moved.get(name)) for name in names)
        pairs.append((left, right))
        sweeps.append(room.sweep(t, moved.get("lidar")))

    def shots(side: int) -> list[Callable[[], Shot]]:
        camera, T = room.rig.camera(names[side]), room.rig.transform(names[side], "lidar")
        return [
            partial(Shot, pair[side], points, ring, camera, T)
            for pair, (points, ring) in zip(pairs, sweeps, strict=True)
        ]

    material = PreparedMaterial(
        [StereoSet(*names, [partial(tuple, pair) for pair in pairs], times)],
        [CameraLidarSet(name, "lidar", shots(side), None, times) for side, name in enumerate(names)],
    )
    return Recording(
        Path(f"simulated-{seed}"),
        "episode",
        ImportResult(room.rig, (), "sensorium"),
        material,
        material.tasks,
    )
