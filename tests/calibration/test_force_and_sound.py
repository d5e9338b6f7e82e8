"""Force/torque payloads and microphone arrays, on synthetic truth."""

import numpy as np
import pytest

from sensorium.calibration import geometry
from sensorium.calibration.force_torque import check_force_torque, solve_payload
from sensorium.calibration.microphones import (
    check_claps,
    check_microphones,
    delay_between,
    solve_polarity,
)
from sensorium.calibration.sensor_models import MicrophoneArray, Payload
from sensorium.errors import CalibrationError
from sensorium.verdict import Status

KNOWN = Payload(
    0.5,
    np.array([1.0, -0.5, 2.0]),
    np.array([0.0, 0.01, 0.06]),
    np.array([0.02, 0.0, -0.01]),
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
    force, torque = KNOWN.force_n(gravity), KNOWN.torque_nm(gravity)
    with pytest.raises(CalibrationError, match="about two axes"):
        solve_payload(force, torque, gravity)
    # What the known model leaves is judged all the same, and what that cannot tell is named.
    good = check_force_torque(force, torque, gravity, KNOWN, "force")
    assert good.status is Status.OK
    assert "judged together" in good.reasons[-1]
    assert check_force_torque(force + 0.2, torque, gravity, KNOWN, "force").status is Status.FAILED
    nothing = np.empty((0, 3))
    assert check_force_torque(nothing, nothing, nothing, KNOWN, "force").status is Status.INSUFFICIENT


def test_one_pose_held_for_long_is_no_set_of_poses() -> None:
    rng = np.random.default_rng(3)
    gravity = np.array([0.0, 0.0, -9.81]) + rng.normal(0, 0.01, (12, 3))
    with pytest.raises(CalibrationError, match="six poses"):
        solve_payload(KNOWN.force_n(gravity), KNOWN.torque_nm(gravity), gravity)


def test_a_sensor_that_reports_the_holding_force_is_recognised() -> None:
    force, torque, gravity = poses(8)
    found = solve_payload(force, torque, -gravity)
    assert found.holds
    assert found.mass_kg == pytest.approx(0.5, abs=0.008)
    np.testing.assert_allclose(found.centre_m, KNOWN.centre_m, atol=0.003)
    assert check_force_torque(force, torque, -gravity, found, "force").status is Status.OK


RATE_HZ = 48000.0
# No symmetry: a turned or mirrored square would hear the same under another order.
POSITIONS_M = np.array([[0.0, 0, 0], [0.2, 0, 0], [0.03, 0.12, 0], [0.25, 0.3, 0.05]])
FIFTH_M = np.array([-0.1, 0.22, 0.1])
SOURCE_M = np.array([2.0, 1.0, 0.5])


def clap(
    seed: int = 1, source_m: geometry.Array = SOURCE_M, places_m: geometry.Array = POSITIONS_M
) -> geometry.Array:
    """A burst of noise that reaches four microphones from one place, with noise of their own."""
    rng = np.random.default_rng(seed)
    samples = np.arange(9600)
    frequency = np.fft.rfftfreq(len(samples))
    burst = rng.normal(size=len(samples)) * np.exp(-(((samples - 3000) / 500.0) ** 2))
    spectrum = np.fft.rfft(burst)
    late = np.linalg.norm(places_m - source_m, axis=1) / 343.0 * RATE_HZ
    heard = [np.fft.irfft(spectrum * np.exp(-2j * np.pi * frequency * delay)) for delay in late - late.min()]
    return np.stack(heard, axis=1) + rng.normal(0, 0.005, (len(samples), len(places_m)))


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
    late[:, 3] = np.roll(late[:, 3], 120)
    assert check_microphones(late, RATE_HZ, "array", POSITIONS_M).status is Status.SUSPECT


def test_silence_and_unshared_noise_are_insufficient() -> None:
    assert check_microphones(np.zeros((4800, 2)), RATE_HZ, "array").status is Status.INSUFFICIENT
    noise = np.random.default_rng(1).normal(size=(48000, 3))
    assert check_microphones(noise, RATE_HZ, "array").status is Status.INSUFFICIENT


SOURCES_M = np.array([[2.0, 1.0, 0.5], [-1.0, 2.0, 0.2], [0.5, -2.0, 0.8], [-2.0, -1.0, 0.0]])
FIVE_M = np.vstack([POSITIONS_M, FIFTH_M])


def array_at(places_m: geometry.Array) -> MicrophoneArray:
    return MicrophoneArray(tuple((float(x), float(y), float(z)) for x, y, z in places_m))


ARRAY = array_at(POSITIONS_M)
CLAPS = [clap(seed, source) for seed, source in enumerate(SOURCES_M)]


def test_claps_from_anywhere_show_order_and_polarity_of_five_microphones() -> None:
    claps = [clap(seed, source, FIVE_M) for seed, source in enumerate(SOURCES_M)]
    good = check_claps(claps, RATE_HZ, "array", array_at(FIVE_M))
    assert (good.status, good.reasons) == (Status.OK, ())
    swapped = check_claps([sound[:, [0, 2, 1, 3, 4]] for sound in claps], RATE_HZ, "array", array_at(FIVE_M))
    assert swapped.status is Status.FAILED
    assert "channels 1, 2 are swapped" in swapped.reasons[0]


def test_four_microphones_need_sides_for_the_order_but_not_for_the_polarity() -> None:
    sides = [source / np.linalg.norm(source) for source in SOURCES_M]
    mixed = [sound[:, [0, 2, 1, 3]] for sound in CLAPS]
    assert "was not judged" in check_claps(mixed, RATE_HZ, "array", ARRAY).reasons[-1]
    assert check_claps(CLAPS, RATE_HZ, "array", ARRAY, sides).reasons == ()
    assert "channels 1, 2 are swapped" in check_claps(mixed, RATE_HZ, "array", ARRAY, sides).reasons[0]
    inverted = check_claps([sound * (1, 1, -1, 1) for sound in CLAPS], RATE_HZ, "array", ARRAY)
    assert inverted.status is Status.FAILED
    assert "channel 2 has opposite polarity" in " ".join(inverted.reasons)
    assert solve_polarity([sound * (1, 1, -1, 1) for sound in CLAPS]) == (1, 1, -1, 1)


def test_two_microphones_need_a_clap_from_a_known_side() -> None:
    pair = MicrophoneArray(ARRAY.positions_m[:2])
    sounds = [sound[:, :2] for sound in CLAPS[:1] * 3]
    unsure = check_claps(sounds, RATE_HZ, "pair", pair)
    assert unsure.status is Status.OK
    assert "order of the channels was not judged" in unsure.reasons[-1]
    sides = [SOURCE_M / np.linalg.norm(SOURCE_M)] * 3
    assert check_claps(sounds, RATE_HZ, "pair", pair, sides).reasons == ()
    swapped = check_claps([sound[:, ::-1] for sound in sounds], RATE_HZ, "pair", pair, sides)
    assert swapped.status is Status.FAILED
    assert "swapped" in swapped.reasons[0]


def test_silence_gives_no_verdict_on_an_array() -> None:
    assert check_claps([], RATE_HZ, "array", ARRAY).status is Status.INSUFFICIENT
    noise = np.random.default_rng(1).normal(size=(3, 4800, 4))
    assert check_claps(list(noise), RATE_HZ, "array", ARRAY).status is Status.INSUFFICIENT
