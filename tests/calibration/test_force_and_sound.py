"""Force/torque payloads and microphone arrays, on synthetic truth."""

import numpy as np
import pytest

from sensorium.calibration import geometry
from sensorium.calibration.force_torque import Payload, check_force_torque, solve_payload
from sensorium.calibration.microphones import channel_order, check_microphones, delay_between
from sensorium.errors import CalibrationError
from sensorium.verdict import Status

KNOWN = Payload(
    0.5,
    np.array([1.0, -0.5, 2.0]),
    np.array([0.0, 0.01, 0.06]),
    np.array([0.02, 0.0, -0.01]),
    np.zeros(10),
    0,
    0,
)
FORCE_NOISE_N, TORQUE_NOISE_NM = 0.05, 0.003


def poses(
    count: int, mass_kg: float = 0.5, bias_n: float = 0.0, seed: int = 1
) -> tuple[geometry.Array, geometry.Array, geometry.Array]:
    """Readings at rest in poses all around."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions[:6] = np.concatenate([np.eye(3), -np.eye(3)])[: min(count, 6)]
    gravity = 9.81 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    force = mass_kg * gravity + KNOWN.force_bias_n + bias_n + rng.normal(0, FORCE_NOISE_N, (count, 3))
    torque = np.cross(KNOWN.centre_m, mass_kg * gravity) + KNOWN.torque_bias_nm
    return force, torque + rng.normal(0, TORQUE_NOISE_NM, (count, 3)), gravity


def test_payload_and_bias_are_found_from_six_poses() -> None:
    found = solve_payload(*poses(6))
    # Spec 1.12, Monte Carlo p95 with 6 poses: 4.1 g, 1.2 mm, 0.06 N.
    assert found.mass_kg == pytest.approx(0.5, abs=0.008)
    np.testing.assert_allclose(found.centre_m, KNOWN.centre_m, atol=0.003)
    np.testing.assert_allclose(found.force_bias_n, KNOWN.force_bias_n, atol=0.12)


def test_good_sensor_is_ok_and_a_changed_one_is_not() -> None:
    assert check_force_torque(*poses(8), KNOWN, "force").status is Status.OK
    heavier = check_force_torque(*poses(8, mass_kg=0.54), KNOWN, "force")
    assert heavier.status is Status.FAILED
    assert heavier.reasons[0].startswith("mass")
    assert check_force_torque(*poses(8, bias_n=0.5), KNOWN, "force").status is Status.FAILED


def test_poses_in_one_plane_cannot_separate_weight_and_bias() -> None:
    angle = np.linspace(0, 2, 6)
    gravity = 9.81 * np.column_stack([np.cos(angle), np.sin(angle), np.zeros(6)])
    force = 0.5 * gravity + KNOWN.force_bias_n
    torque = np.cross(KNOWN.centre_m, 0.5 * gravity) + KNOWN.torque_bias_nm
    with pytest.raises(CalibrationError, match="second axis"):
        solve_payload(force, torque, gravity)
    assert check_force_torque(force, torque, gravity, KNOWN, "force").status is Status.INSUFFICIENT
    assert check_force_torque(force + 1.0, torque, gravity, KNOWN, "force").status is Status.SUSPECT
    nothing = np.empty((0, 3))
    assert check_force_torque(nothing, nothing, nothing, KNOWN, "force").status is Status.INSUFFICIENT


RATE_HZ = 48000.0
POSITIONS_M = np.array([[0.0, 0, 0], [0.2, 0, 0], [0.0, 0.2, 0], [0.2, 0.2, 0.05]])
SOURCE_M = np.array([2.0, 1.0, 0.5])


def clap(seed: int = 1) -> geometry.Array:
    """A burst of noise that reaches four microphones from one place, with noise of their own."""
    rng = np.random.default_rng(seed)
    samples = np.arange(9600)
    frequency = np.fft.rfftfreq(len(samples))
    burst = rng.normal(size=len(samples)) * np.exp(-(((samples - 3000) / 500.0) ** 2))
    spectrum = np.fft.rfft(burst)
    late = np.linalg.norm(POSITIONS_M - SOURCE_M, axis=1) / 343.0 * RATE_HZ
    heard = [np.fft.irfft(spectrum * np.exp(-2j * np.pi * frequency * delay)) for delay in late - late.min()]
    return np.stack(heard, axis=1) + rng.normal(0, 0.005, (len(samples), 4))


def test_delay_is_found_to_a_fifth_of_a_sample() -> None:
    sound = clap()
    late = np.linalg.norm(POSITIONS_M - SOURCE_M, axis=1) / 343.0 * RATE_HZ
    for k in range(1, 4):
        assert delay_between(sound[:, 0], sound[:, k], 60).samples == pytest.approx(
            late[k] - late[0], abs=0.2
        )


def test_array_faults_are_named() -> None:
    assert check_microphones(clap(), RATE_HZ, "array", POSITIONS_M).status is Status.OK
    inverted = check_microphones(clap() * (1, 1, -1, 1), RATE_HZ, "array", POSITIONS_M)
    assert inverted.status is Status.SUSPECT
    assert inverted.reasons[0].startswith("channel 2 has opposite polarity")
    dead = check_microphones(clap() * (1, 0, 1, 1), RATE_HZ, "array", POSITIONS_M)
    assert dead.status is Status.FAILED
    assert "channel 1 is dead" in dead.reasons[0]
    late = clap()
    late[:, 3] = np.roll(late[:, 3], 60)
    assert check_microphones(late, RATE_HZ, "array", POSITIONS_M).status is Status.SUSPECT


def test_silence_and_unshared_noise_are_insufficient() -> None:
    assert check_microphones(np.zeros((4800, 2)), RATE_HZ, "array").status is Status.INSUFFICIENT
    noise = np.random.default_rng(1).normal(size=(48000, 3))
    assert check_microphones(noise, RATE_HZ, "array").status is Status.INSUFFICIENT


def test_a_clap_at_a_known_place_orders_the_channels() -> None:
    arrivals = np.linalg.norm(POSITIONS_M - SOURCE_M, axis=1)
    assert channel_order(list(arrivals[[2, 0, 3, 1]]), POSITIONS_M, SOURCE_M) == (2, 0, 3, 1)
