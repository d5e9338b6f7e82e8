"""Force/torque sensor: bias and payload from static poses, and whether they still hold.

At rest the sensor feels the tool's weight and its own bias: F = m g + F0 and T = c x (m g) + T0, with g in the
sensor's axes (from the arm's pose or an IMU). Two linear fits give mass, biases and centre of mass.

Source: spec calibration 1.12.
"""

from dataclasses import dataclass

import numpy as np

from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import Array, skew
from sensorium.calibration.inertial import is_tilted_about_two_axes
from sensorium.calibration.sensor_models import Payload
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "force_torque"
MIN_POSES = 3


def solve_payload(force_n: Array, torque_nm: Array, gravity_m_s2: Array) -> Payload:
    """Fit payload and biases to static poses.

    Args:
        force_n, torque_nm: (N, 3) means over each pose; gravity_m_s2: (N, 3) gravity in sensor axes.

    Raises:
        CalibrationError: With too few poses, or poses that all tilt in one plane.
    """
    count = len(force_n)
    if count < MIN_POSES + 1:
        raise CalibrationError(
            f"{count} static poses, at least {MIN_POSES + 1} are needed: hold the tool still for two seconds in each "
            "of six poses, tilted to every side about two axes"
        )
    if not is_tilted_about_two_axes(gravity_m_s2):
        raise CalibrationError(
            "the poses tilt too little or in one plane, weight and bias cannot be told apart; hold the tool still "
            "in six poses, tilted to every side about two axes"
        )
    design = np.concatenate([np.column_stack([gravity, np.eye(3)]) for gravity in gravity_m_s2])
    first, force_cov, force_rms = _least_squares(design, force_n.reshape(-1))
    mass = float(first[0])
    # T = c x (m g) + T0 = -[m g]x c + T0
    design = np.concatenate([np.hstack([-skew(mass * gravity), np.eye(3)]) for gravity in gravity_m_s2])
    second, torque_cov, torque_rms = _least_squares(design, torque_nm.reshape(-1))
    sigma = np.sqrt(np.concatenate([np.diag(force_cov), np.diag(torque_cov)]))
    # A negative mass: the sensor reports the force that holds the tool, which points up.
    return Payload(abs(mass), first[1:], second[:3], second[3:], mass < 0, sigma, force_rms, torque_rms)


def _least_squares(design: Array, values: Array) -> tuple[Array, Array, float]:
    solution: Array = np.asarray(np.linalg.lstsq(design, values, rcond=None)[0], np.float64)
    left = values - design @ solution
    variance = float(left @ left) / max(len(values) - design.shape[1], 1)
    information = design.T @ design + 1e-12 * np.eye(design.shape[1])
    covariance = np.asarray(variance * np.linalg.inv(information), np.float64)
    return solution, covariance, float(np.sqrt(variance))


@dataclass(frozen=True, slots=True)
class ForceTolerance:
    """Accepted changes: two thirds of what must be found (20 g, 5 mm, 0.2 N)."""

    mass_kg: float = 0.013
    centre_m: float = 0.0035
    force_n: float = 0.13
    torque_nm: float = 0.013


def check_force_torque(
    force_n: Array,
    torque_nm: Array,
    gravity_m_s2: Array,
    known: Payload,
    name: str,
    tolerance: ForceTolerance | None = None,
) -> Verdict:
    """Judge a force/torque sensor at rest against the payload and biases that are known.

    Six poses in all directions judge everything; with fewer, or poses in one plane, what the known model leaves
    unexplained is judged, and that weight, centre and bias cannot be told apart is said.
    """
    tolerance = tolerance or ForceTolerance()
    count = len(force_n)
    if count == 0:
        return Verdict(CHECK, name, Status.INSUFFICIENT, (), ("no static pose",))
    left = np.hstack([force_n - known.force_n(gravity_m_s2), torque_nm - known.torque_nm(gravity_m_s2)])
    mean = left.mean(axis=0)
    poses = Quantity("poses", float(count), "1", float(MIN_POSES))
    try:
        found = solve_payload(force_n, torque_nm, gravity_m_s2)
    except CalibrationError as err:
        # Poses that are alike share what the model gets wrong: no square root of their number.
        spread = np.hypot(left.std(axis=0), np.repeat([known.force_rms_n, known.torque_rms_nm], 3))
        residual = [
            Degree(f"{label}_{axis}", unit, float(mean[3 * part + k]), float(spread[3 * part + k]) / 2, limit)
            for part, (label, unit, limit) in enumerate(
                (("force", "N", tolerance.force_n), ("torque", "N m", tolerance.torque_nm))
            )
            for k, axis in enumerate("xyz")
        ]
        notes = (f"mass, centre and bias are judged together: {err}",)
        return judge(CHECK, name, residual, (), (poses,), notes)
    residuals = (
        Quantity("force_residual", float(np.linalg.norm(mean[:3])), "N"),
        Quantity("torque_residual", float(np.linalg.norm(mean[3:])), "N m"),
        poses,
    )
    degrees = [Degree("mass", "kg", found.mass_kg - known.mass_kg, float(found.sigma[0]), tolerance.mass_kg)]
    for label, unit, values, before, sigma, limit in (
        ("force_bias", "N", found.force_bias_n, known.force_bias_n, found.sigma[1:4], tolerance.force_n),
        ("centre", "m", found.centre_m, known.centre_m, found.sigma[4:7], tolerance.centre_m),
        (
            "torque_bias",
            "N m",
            found.torque_bias_nm,
            known.torque_bias_nm,
            found.sigma[7:],
            tolerance.torque_nm,
        ),
    ):
        degrees += [
            Degree(f"{label}_{axis}", unit, float(values[k] - before[k]), float(sigma[k]), limit)
            for k, axis in enumerate("xyz")
        ]
    return judge(CHECK, name, degrees, (), residuals)
