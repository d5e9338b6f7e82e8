"""Offsets from content: right when the scene tells, refused when it does not."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from simulated_rig import columns, run

from sensorium.calibration.geometry import rotation_exp, rotation_from_quaternion, rotation_log
from sensorium.calibration.gyro import GyroIntegral
from sensorium.errors import ClockError
from sensorium.simulators.microphone import clap_wave
from sensorium.simulators.rig import CAMERA, MOUNTS
from sensorium.simulators.truth import load_truth
from sensorium.sync.clocks.model import Uncertainty
from sensorium.sync.content.events import event_offset
from sensorium.sync.content.image_rotation import RotationFinder, gyro_offset
from sensorium.sync.content.offset import NO_DELAY, ContentOffset, Delay, judge
from sensorium.sync.content.onsets import audio_onsets, flash_onset, force_onsets
from sensorium.sync.content.rotation import rotation_offset
from sensorium.verdict import Status

Floats = NDArray[np.float64]
ORIGIN_NS = 10**13
EXACT = Uncertainty(0.0, 0.0, 0.0)


def stamps_of(time_s: Floats) -> NDArray[np.int64]:
    return ORIGIN_NS + np.rint(time_s * 1e9).astype(np.int64)


class Turning:
    """A rig that turns as a sum of sines, seen by a camera and felt by a gyro ``offset_s`` later."""

    def __init__(
        self, seed: int, offset_s: float = 0.0, length_s: float = 20.0, noise_deg: float = 0.03
    ) -> None:
        rng = np.random.default_rng(seed)
        self.frame_s = np.arange(0, length_s, 1 / 30)
        self.gyro_s = np.arange(-0.3, length_s + 0.3, 1 / 200)
        omega = 2 * np.pi * rng.uniform(0.1, 1.5, (20, 3))
        phase = rng.uniform(0, 2 * np.pi, (20, 3))
        size = rng.standard_normal((20, 3)) * 0.5 / np.sqrt(10)
        u, _, vt = np.linalg.svd(rng.standard_normal((3, 3)))
        self.mounting = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
        angle = (np.sin(self.frame_s[:, None, None] * omega + phase) * (size / omega)).sum(axis=1)
        rate = (np.cos(self.gyro_s[:, None, None] * omega + phase) * size).sum(axis=1)
        self.turns = np.diff(angle, axis=0) @ self.mounting.T
        self.turns += rng.normal(0, np.radians(noise_deg), self.turns.shape)
        self.bias = rng.normal(0, 0.01, 3)
        self.rates = rate + self.bias + rng.normal(0, 1.7e-3, rate.shape)
        self.offset_s = offset_s

    def find(self, visual_delay: Delay = NO_DELAY, gyro_delay: Delay = NO_DELAY) -> ContentOffset:
        gyro_ns = stamps_of(self.gyro_s + self.offset_s)
        return rotation_offset(
            stamps_of(self.frame_s),
            self.turns,
            gyro_ns,
            self.rates,
            visual_delay=visual_delay,
            gyro_delay=gyro_delay,
        )


@pytest.mark.parametrize("seed", range(6))
def test_gyro_and_images_find_their_offset_mounting_and_bias(seed: int) -> None:
    rig = Turning(seed, offset_s=np.linspace(-0.08, 0.08, 6)[seed])
    found = rig.find()
    assert found.is_informative
    # Five sigma: six trials must not fail by chance.
    assert abs(found.offset_ns - rig.offset_s * 1e9) < 5 * found.sigma_ns
    assert found.sigma_ns < 0.3e6
    assert found.rotation is not None
    assert np.abs(found.rotation.T - rig.mounting).max() < 0.01
    assert np.abs(np.array(found.bias_rad_s) - rig.bias).max() < 0.002


def test_lost_tracks_and_missing_frames_do_not_steer() -> None:
    rig = Turning(3, offset_s=0.031)
    rng = np.random.default_rng(3)
    rig.turns[rng.integers(0, len(rig.turns), 20)] += rng.normal(0, 0.05, (20, 3))
    rig.turns[100:110] = np.nan
    found = rig.find()
    assert found.is_informative
    assert found.count < len(rig.turns) - 9
    assert abs(found.offset_ns - 31e6) < 5 * found.sigma_ns


def test_noise_that_differs_by_axis_leaves_the_clean_axis_in_charge() -> None:
    rig = Turning(4, offset_s=-0.02, noise_deg=0.01)
    rng = np.random.default_rng(4)
    disturbed = np.convolve(rng.normal(0, 1, len(rig.turns)), np.hanning(45), "same")
    rig.turns[:, 0] += np.radians(0.5) * disturbed / disturbed.std()
    found = rig.find()
    assert abs(found.offset_ns + 20e6) < 5 * found.sigma_ns
    assert found.sigma_ns < 0.2e6


def test_turning_between_two_instants_is_right_to_second_order() -> None:
    # A cone: the axis of rotation itself turns, which a sum of rates does not see.
    time_s = np.arange(0, 1, 1 / 400)
    rates = np.stack([np.cos(6 * time_s), np.sin(6 * time_s), np.full(len(time_s), 0.5)], axis=1)
    turned = GyroIntegral(time_s, rates).turned(np.array([0.2013]), np.array([0.3013]))[0]
    fine_s = np.linspace(0.2013, 0.3013, 4001)
    middle_s = 0.5 * (fine_s[1:] + fine_s[:-1])
    exact = np.eye(3)
    summed = np.zeros(3)
    for at in middle_s:
        step = np.array([np.cos(6 * at), np.sin(6 * at), 0.5]) * (fine_s[1] - fine_s[0])
        exact, summed = exact @ rotation_exp(step), summed + step
    assert np.linalg.norm(turned - rotation_log(exact)) < 0.05 * np.linalg.norm(summed - rotation_log(exact))


def test_a_real_gyro_and_pose_truth_answer_to_the_shift_between_them(shared_data: Path) -> None:
    folder = shared_data / "calibration" / "euroc_imu_vs_pose"
    tables = [np.genfromtxt(folder / name, delimiter=",") for name in ("imu0.csv", "gt0.csv")]
    imu, poses = tables
    gyro_ns, pose_ns = (
        np.loadtxt(folder / name, delimiter=",", usecols=0, dtype=np.int64)
        for name in ("imu0.csv", "gt0.csv")
    )
    rotations = [rotation_from_quaternion(row[[5, 6, 7, 4]]) for row in poses]
    turns = np.array([rotation_log(before.T @ after) for before, after in pairwise(rotations)])
    turns += np.random.default_rng(1).normal(0, np.radians(0.05), turns.shape)
    plain = rotation_offset(pose_ns, turns, gyro_ns, imu[:, 1:4])
    late = rotation_offset(pose_ns, turns, gyro_ns + 20_000_000, imu[:, 1:4])
    # Truth is fused with this very gyro: 0, or up to -1.2 ms where the motion capture alone decides.
    assert abs(plain.offset_ns) < 1.2e6 + 3 * plain.sigma_ns
    assert late.offset_ns - plain.offset_ns == pytest.approx(20e6, abs=0.05e6)
    assert plain.rotation is not None
    assert np.degrees(np.linalg.norm(rotation_log(plain.rotation))) < 0.5


def test_known_delays_are_taken_off_and_their_bounds_stated() -> None:
    rig = Turning(1)
    plain = rig.find()
    shifted = rig.find(visual_delay=Delay(5e6, 1e5), gyro_delay=Delay(2e6, 2e5))
    assert shifted.offset_ns - plain.offset_ns == pytest.approx(3e6, abs=2e3)
    assert shifted.bound_ns == 3e5


@pytest.mark.parametrize("kind", ["still", "constant", "periodic", "other body", "edge"])
def test_a_scene_without_information_is_refused(kind: str) -> None:
    rig = Turning(5, offset_s=0.145 if kind == "edge" else 0.0)
    rng = np.random.default_rng(5)
    if kind in ("still", "constant"):
        rate = np.array([0.4, -0.2, 0.1]) * (kind == "constant")
        rig.turns = np.tile(rig.mounting @ rate / 30, (len(rig.turns), 1))
        rig.turns += rng.normal(0, np.radians(0.05), rig.turns.shape)
        rig.rates = rate + rng.normal(0, 1.7e-3, rig.rates.shape)
    elif kind == "periodic":
        omega = 2 * np.pi * 10.0  # a period of 100 ms: shifts of 100 ms look alike
        rig.turns = np.zeros_like(rig.turns)
        rig.turns[:, 0] = np.diff(np.sin(omega * rig.frame_s)) * 0.05
        rig.turns += rng.normal(0, np.radians(0.05), rig.turns.shape)
        rig.rates = rng.normal(0, 1.7e-3, rig.rates.shape)
        rig.rates[:, 1] += 0.05 * omega * np.cos(omega * rig.gyro_s)
    elif kind == "other body":
        rig.rates = Turning(99).rates
    elif kind == "edge":
        rig.offset_s = 0.2
    found = rig.find()
    assert not found.is_informative
    verdict = judge(found, "cam~imu", EXACT, EXACT)
    assert verdict.status is Status.INSUFFICIENT
    assert verdict.reasons


def test_too_few_steps_are_refused_and_nonsense_is_an_error() -> None:
    rig = Turning(1, length_s=1.5)
    assert "are needed" in rig.find().reasons[0]
    rig.gyro_s = rig.gyro_s[::-1]
    with pytest.raises(ClockError, match="do not ascend"):
        rig.find()


def test_the_simulated_camera_and_imu_prove_that_they_share_a_timeline(tmp_path: Path) -> None:
    seconds, seed = 8.0, 2
    _, frames = run("camera_left", tmp_path, seconds=seconds, seed=seed, rate_hz=10.0, size=(320, 240))
    info, blocks = run("imu", tmp_path, seconds=seconds, seed=seed)
    truth = load_truth(tmp_path)
    seqs = [frame.seq for frame in frames["camera_left"]]
    capture_ns = truth["camera_left"][seqs, 1]
    scale = CAMERA.width / 320

    def undistort(points: Floats) -> Floats:
        centre = np.array([159.5, 119.5])
        return np.asarray((points - centre) * scale / CAMERA.fx, np.float64)

    finder = RotationFinder(undistort)
    for frame in frames["camera_left"]:
        image = cv2.imdecode(np.frombuffer(frame.payload, np.uint8), cv2.IMREAD_GRAYSCALE)
        finder.add(np.asarray(image, np.uint8))
    rates = columns(info["imu"], blocks["imu"])[:, 3:]
    gyro_ns = truth["imu"][: len(rates), 1]
    found = gyro_offset(finder, capture_ns, gyro_ns, rates)
    assert found.is_informative
    # The rig also shifts, which a camera confuses with turning: 3 ms is a tenth of the frame period.
    assert abs(found.offset_ns) < 3e6
    told = Uncertainty(1e6, 0.0, 0.0)
    assert judge(found, "camera_left~imu", told, told).status is Status.OK
    late = rotation_offset(capture_ns, finder.turns(), gyro_ns + 30_000_000, rates)
    assert judge(late, "camera_left~imu", told, told).status is Status.FAILED
    true_mounting = MOUNTS["imu"][:3, :3].T @ MOUNTS["camera_left"][:3, :3]
    assert found.rotation is not None
    assert np.degrees(np.abs(found.rotation - true_mounting)).max() < 6


def clap(at_s: float, rate_hz: float = 48_000.0, length_s: float = 0.5, seed: int = 1) -> Floats:
    time_s = np.arange(0, length_s, 1 / rate_hz)
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time_s))
    hum = 0.05 * np.sin(2 * np.pi * 50 * time_s) + 0.03 * np.sin(2 * np.pi * 440 * time_s)
    return np.asarray(clap_wave(time_s - at_s) + hum + noise, np.float64)


@settings(max_examples=8, deadline=None)
@given(at_s=st.floats(0.1, 0.4), seed=st.integers(0, 100))
def test_the_onset_of_a_clap_is_found_to_a_sample(at_s: float, seed: int) -> None:
    onsets = audio_onsets(clap(at_s, seed=seed), 48_000.0)
    assert len(onsets) == 1
    assert abs(onsets[0].sample - at_s * 48_000) < 1.0
    assert onsets[0].sigma < 0.5


@settings(max_examples=15, deadline=None)
@given(
    at=st.floats(100, 300),
    width=st.floats(4, 12),
    height=st.floats(-40, 40).filter(lambda height: abs(height) > 10),
    seed=st.integers(0, 100),
)
def test_the_onset_of_a_knock_is_found_within_its_sigma(
    at: float, width: float, height: float, seed: int
) -> None:
    sample = np.arange(400.0)
    phase = (sample - at) / width
    force = 3.0 + np.where((phase > 0) & (phase < 1), height * np.sin(np.pi * phase), 0.0)
    force += np.random.default_rng(seed).normal(0, 0.01 * abs(height), 400)
    onsets = force_onsets(force, 1000.0)
    assert len(onsets) == 1
    assert abs(onsets[0].sample - at) < max(6 * onsets[0].sigma, 0.12)


def test_silence_and_steady_noise_have_no_events() -> None:
    rng = np.random.default_rng(1)
    assert audio_onsets(np.zeros(48_000), 48_000.0) == []
    assert audio_onsets(rng.normal(0, 0.1, 48_000), 48_000.0) == []
    assert force_onsets(rng.normal(0, 0.1, 4000), 1000.0) == []
    assert force_onsets(np.zeros(4000), 1000.0) == []
    swinging = 5 * np.sin(2 * np.pi * 0.5 * np.arange(4000) / 1000) + rng.normal(0, 0.05, 4000)
    assert force_onsets(swinging, 1000.0) == []


def test_claps_heard_and_felt_give_the_offset_once_sound_has_travelled() -> None:
    at_s = np.array([1.37, 3.72, 6.11, 8.83])
    heard_ns = at_s * 1e9 + 2.0 / 343.2 * 1e9 + 4e6
    felt_ns = at_s * 1e9
    found = event_offset(
        felt_ns,
        np.append(heard_ns, 5e9),
        first_sigma_ns=2e4,
        second_sigma_ns=5e3,
        second_delay=Delay.of_sound(2.0, 0.01),
    )
    assert found.count == 4
    assert found.offset_ns == pytest.approx(4e6, abs=1e3)
    # 10 mm of distance, 3.5 % of the speed of sound between 0 and 40 degrees.
    assert found.bound_ns == pytest.approx(0.01 / 343.2 * 1e9 + 0.035 * 2.0 / 343.2 * 1e9)
    assert judge(found, "force~mic", EXACT, EXACT).status is Status.FAILED
    assert judge(found, "force~mic", Uncertainty(4e6, 0, 0), EXACT).status is Status.OK


def test_regular_claps_and_silence_prove_nothing() -> None:
    regular = np.arange(0.0, 1e9, 1e8)
    found = event_offset(regular, regular + 3e7, first_sigma_ns=2e4)
    assert "too regular" in found.reasons[0]
    silent = event_offset(np.array([]), regular)
    assert judge(silent, "force~mic", EXACT, EXACT).status is Status.INSUFFICIENT


def test_a_lamp_is_timed_within_the_dark_between_two_exposures() -> None:
    start_ns = np.arange(0.0, 20 * 33e6, 33e6)
    for on_ns in np.linspace(300e6, 340e6, 9):
        lit = np.clip((start_ns + 4e6 - on_ns) / 4e6, 0, 1)
        rng = np.random.default_rng(int(on_ns))
        found = flash_onset(start_ns, 4e6, 40 + 150 * lit + rng.normal(0, 0.5, 20))
        assert found is not None
        assert abs(found[0] - on_ns) <= found[1] * 1.01
    assert flash_onset(start_ns, 4e6, np.full(20, 40.0)) is None
