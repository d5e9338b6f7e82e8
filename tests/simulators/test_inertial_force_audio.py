from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from simulated_rig import columns, run, world_seconds

from sensorium.calibration.geometry import rotation_exp
from sensorium.drivers.frame import Frame
from sensorium.simulators.force import KNOCK_N, KNOCK_S, TOOL_KG
from sensorium.simulators.imu import inertial_truth
from sensorium.simulators.microphone import heard_s
from sensorium.simulators.rig import MOUNTS
from sensorium.simulators.truth import load_truth
from sensorium.simulators.world import GRAVITY_M_S2, SOUND_M_S, World

QUIET = {
    "acc_noise_m_s2": 0.0,
    "gyro_noise_rad_s": 0.0,
    "acc_bias_m_s2": 0.0,
    "gyro_bias_rad_s": 0.0,
    "acc_walk_m_s3": 0.0,
    "gyro_walk_rad_s2": 0.0,
}


def test_a_noiseless_imu_integrates_to_the_trajectory(tmp_path: Path) -> None:
    infos, frames = run("imu", tmp_path, seconds=5.0, **QUIET)
    readings = columns(infos["imu"], frames["imu"])
    seconds = world_seconds(load_truth(tmp_path)["imu"][: len(readings), 1])
    truth = World(1).motion(seconds).carried_to(MOUNTS["imu"])
    rotation, velocity, position = truth.rotation[0], truth.velocity_m_s[0], truth.position_m[0]
    for k in range(len(readings) - 1):
        step_s = seconds[k + 1] - seconds[k]
        middle = (readings[k] + readings[k + 1]) / 2
        halfway = rotation @ rotation_exp(middle[3:] * step_s / 2)
        acceleration = halfway @ middle[:3] - (0, 0, GRAVITY_M_S2)
        position = position + velocity * step_s + acceleration * step_s**2 / 2
        velocity = velocity + acceleration * step_s
        rotation = rotation @ rotation_exp(middle[3:] * step_s)
    # Rounding to counts of 2.7e-4 rad/s and 1.2e-3 m/s^2 is white, sd 0.29 counts: over 1000 steps of 5 ms
    # the angle walks 0.29 * 2.7e-4 * 5e-3 * sqrt(1000) = 1.2e-5 rad; tilt times g grows to < 1 mm in 5 s.
    turned = np.arccos(np.clip((np.trace(rotation.T @ truth.rotation[-1]) - 1) / 2, -1, 1))
    assert turned < 1e-4
    assert np.linalg.norm(position - truth.position_m[-1]) < 0.01


def test_imu_noise_has_the_stated_density_and_bias(tmp_path: Path) -> None:
    infos, frames = run("imu", tmp_path, seconds=30.0)
    readings = columns(infos["imu"], frames["imu"])
    seconds = world_seconds(load_truth(tmp_path)["imu"][: len(readings), 1])
    error = readings - inertial_truth(World(1).motion(seconds).carried_to(MOUNTS["imu"]))
    white = np.diff(error, axis=0).std(axis=0) / np.sqrt(2)
    stated = np.repeat([1.0e-3, 1.2e-4], 3) * np.sqrt(200)
    # 6000 samples: the standard deviation is known to 1 %; rounding adds up to 0.2 %.
    np.testing.assert_allclose(white, stated, rtol=0.05)
    assert np.all(np.abs(error.mean(axis=0)) < 4 * np.repeat([0.03, 0.002], 3))


def test_force_carries_the_tool_and_feels_each_clap(tmp_path: Path) -> None:
    infos, frames = run("force", tmp_path, seconds=5.0)
    assert {column.dtype for column in infos["force"].columns} == {"<i4"}
    readings = columns(infos["force"], frames["force"])
    seconds = world_seconds(load_truth(tmp_path)["force"][: len(readings), 1])
    calm = readings.copy()
    for clap in World(1).claps(0.0, 5.0):
        during = (seconds >= clap.at_s) & (seconds < clap.at_s + KNOCK_S)
        before = (seconds >= clap.at_s - 0.01) & (seconds < clap.at_s)
        rise = readings[during, 2] - readings[before, 2].mean()
        assert rise.max() > 0.9 * KNOCK_N
        # The half-sine's centre of gravity is its middle; 1 ms sampling, 0.25 % noise.
        centre_s = np.sum(rise * seconds[during]) / np.sum(rise)
        assert abs(centre_s - clap.at_s - KNOCK_S / 2) < 2e-4
        calm[during] = np.nan
    weight = np.linalg.norm(np.nanmean(calm[:, :3], axis=0))
    assert abs(weight - TOOL_KG * GRAVITY_M_S2) < 0.05 * TOOL_KG * GRAVITY_M_S2


def _sound(frames: list[Frame], channels: int) -> NDArray[np.float64]:
    return np.vstack([np.frombuffer(frame.payload, "<i2").reshape(-1, channels) for frame in frames]) / 32767


def test_a_clap_is_heard_after_its_sound_has_travelled(tmp_path: Path) -> None:
    _, frames = run("microphone", tmp_path, seconds=5.0, channels=2)
    sound = _sound(frames["microphone"], 2)
    truth = load_truth(tmp_path)["microphone"]
    # The first sample of each block is known; the samples between lie evenly.
    numbers = np.arange(len(sound))
    seconds = np.interp(
        numbers, truth[: len(frames["microphone"]), 0], world_seconds(truth[: len(frames["microphone"]), 1])
    )
    world = World(1)
    for clap in world.claps(0.0, 4.9):
        mount = MOUNTS["microphone"]
        onsets = []
        for channel in range(2):
            loud = (np.abs(sound[:, channel]) > 0.1) & (seconds >= clap.at_s)
            onsets.append(seconds[np.flatnonzero(loud)[0]])
        expected = heard_s(world, clap, mount)
        distance_m = np.linalg.norm((world.pose(expected) @ mount)[:3, 3] - clap.place_m)
        assert abs((expected - clap.at_s) * SOUND_M_S - distance_m) < 1e-6
        assert distance_m > 2.0
        # 0.1 of full scale is reached within 0.1 ms; the channels are 5 cm (0.15 ms) off the middle.
        assert abs(np.mean(onsets) - expected) < 1.5e-4
        assert abs(onsets[0] - onsets[1]) < 0.10 / SOUND_M_S + 1e-4


def test_audio_blocks_count_samples_and_run_at_the_device_rate(tmp_path: Path) -> None:
    infos, frames = run("microphone", tmp_path, seconds=5.0)
    ticks = np.concatenate(
        [frame.device_ticks for frame in frames["microphone"] if frame.device_ticks is not None]
    )
    np.testing.assert_array_equal(ticks, 480 * np.arange(len(ticks)))
    capture_ns = load_truth(tmp_path)["microphone"][:, 1]
    skew_ppm = ((capture_ns[-1] - capture_ns[0]) / ((len(capture_ns) - 1) * 10_000_000) - 1) * 1e6
    # 47 ppm by the rig file, plus up to 4 + 2 ppm of warm-up and thermal wave.
    assert 47 - 2.1 < skew_ppm < 47 + 6.1
    assert infos["microphone"].latency.min_ns == 12_000_000


def test_a_dropped_block_leaves_a_gap_that_the_counter_shows(tmp_path: Path) -> None:
    faults = [{"kind": "drop", "at_s": 0.5, "count": 2}]
    _, frames = run("microphone", tmp_path, seconds=1.0, faults=faults)
    seqs = [frame.seq for frame in frames["microphone"]]
    assert sorted(np.diff(seqs))[-1] == 3 * 480
    assert [
        int(frame.device_ticks[0]) for frame in frames["microphone"] if frame.device_ticks is not None
    ] == seqs
