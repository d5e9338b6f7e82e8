"""Force/torque sensor: bias and payload from static poses, and whether they still hold.

At rest the sensor feels the tool's weight and its own bias: F = m g + F0 and T = c x (m g) + T0, with g in the
sensor's axes (from the arm's pose or an IMU). Two linear fits give mass, biases and centre of mass.

Source: spec calibration 1.12.
"""

from dataclasses import dataclass

import numpy as np

from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import Array, skew
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "force_torque"
MIN_POSES = 3
# Gravity directions closer to one plane than this leave mass and bias mixed up.
MAX_CONDITION = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """What hangs on a force/torque sensor and what it reads without it (N, N m, kg, m; sensor axes).

    Attributes:
        sigma: Standard deviations of mass, force bias (3), centre of mass (3), torque bias (3).
    """

    mass_kg: float
    force_bias_n: Array
    centre_m: Array
    torque_bias_nm: Array
    sigma: Array
    force_rms_n: float
    torque_rms_nm: float


def _condition(gravity_m_s2: Array) -> float:
    spread = np.linalg.svd(gravity_m_s2 - gravity_m_s2.mean(axis=0), compute_uv=False)
    return float(spread[0] / max(spread[-1], 1e-12))


def solve_payload(force_n: Array, torque_nm: Array, gravity_m_s2: Array) -> Payload:
    """Fit payload and biases to static poses.

    Args:
        force_n, torque_nm: (N, 3) means over each pose; gravity_m_s2: (N, 3) gravity in sensor axes.

    Raises:
        CalibrationError: With too few poses, or poses that all tilt in one plane.
    """
    count = len(force_n)
    if count < MIN_POSES + 1:
        raise CalibrationError(f"{count} static poses; at least {MIN_POSES + 1} are needed to fit a payload")
    condition = _condition(gravity_m_s2)
    if condition > MAX_CONDITION:
        raise CalibrationError(
            f"the poses tilt in nearly one plane (condition {condition:.0f}, limit {MAX_CONDITION:.0f}); "
            "turn the tool about a second axis"
        )
    design = np.concatenate([np.column_stack([gravity, np.eye(3)]) for gravity in gravity_m_s2])
    first, force_cov, force_rms = _least_squares(design, force_n.reshape(-1))
    mass = float(first[0])
    # T = c x (m g) + T0 = -[m g]x c + T0
    design = np.concatenate([np.hstack([-skew(mass * gravity), np.eye(3)]) for gravity in gravity_m_s2])
    second, torque_cov, torque_rms = _least_squares(design, torque_nm.reshape(-1))
    sigma = np.sqrt(np.concatenate([np.diag(force_cov), np.diag(torque_cov)]))
    return Payload(mass, first[1:], second[:3], second[3:], sigma, force_rms, torque_rms)


def _least_squares(design: Array, values: Array) -> tuple[Array, Array, float]:
    solution: Array = np.asarray(np.linalg.lstsq(design, values, rcond=None)[0], np.float64)
    left = values - design @ solution
    variance = float(left @ left) / max(len(values) - design.shape[1], 1)
    information = design.T @ design + 1e-12 * np.eye(design.shape[1])
    covariance = np.asarray(variance * np.linalg.inv(information), np.float64)
    return solution, covariance, float(np.sqrt(variance))


@dataclass(frozen=True, slots=True)
class ForceTolerance:
    """Accepted changes of payload and bias."""

    mass_kg: float = 0.02
    centre_m: float = 0.005
    force_n: float = 0.2
    torque_nm: float = 0.02


def check_force_torque(
    force_n: Array,
    torque_nm: Array,
    gravity_m_s2: Array,
    known: Payload,
    name: str,
    tolerance: ForceTolerance | None = None,
) -> Verdict:
    """Judge a force/torque sensor at rest against the payload and biases that are known.

    Six poses in all directions judge everything; with fewer, or poses in one plane, the residuals alone tell
    whether the known model still explains them.
    """
    tolerance = tolerance or ForceTolerance()
    count = len(force_n)
    if count == 0:
        return Verdict(CHECK, name, Status.INSUFFICIENT, (), ("no static pose",))
    expected = known.mass_kg * gravity_m_s2
    left_n = force_n - expected - known.force_bias_n
    left_nm = torque_nm - np.cross(known.centre_m, expected) - known.torque_bias_nm
    residuals = (
        Quantity("force_residual", float(np.linalg.norm(left_n.mean(axis=0))), "N", tolerance.force_n),
        Quantity("torque_residual", float(np.linalg.norm(left_nm.mean(axis=0))), "N m", tolerance.torque_nm),
        Quantity("poses", float(count), "1", float(MIN_POSES)),
    )
    try:
        found = solve_payload(force_n, torque_nm, gravity_m_s2)
    except CalibrationError as err:
        loud = [f"{each.name} {each.value:.2g} {each.unit}" for each in residuals[:2] if _is_beyond(each)]
        if loud:
            return Verdict(CHECK, name, Status.SUSPECT, residuals, (*loud, str(err)))
        return Verdict(CHECK, name, Status.INSUFFICIENT, residuals, (str(err),))
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


def _is_beyond(quantity: Quantity) -> bool:
    return quantity.threshold is not None and quantity.value > quantity.threshold
