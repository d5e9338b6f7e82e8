"""What a rig document knows of sensors that are no cameras: inertial, force/torque, microphones."""

from dataclasses import dataclass, field

import numpy as np

from sensorium.calibration.geometry import Array
from sensorium.errors import CalibrationError

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ImuModel:
    """What an IMU is known to do, in its own axes; None where nobody measured it.

    Attributes:
        gyro_bias_rad_s, acc_bias_m_s2: What it reads too much.
        gyro_noise_rad_s, acc_noise_m_s2: White noise densities, per square root of hertz (IEEE Std 952).
        gyro_walk_rad_s2, acc_walk_m_s3: Bias random walks, per square root of hertz.
        source: Who says so.
        date: ISO date of the measurement, "" when unknown.

    Raises:
        CalibrationError: If a density is not positive, a random walk negative, or a number not finite.
    """

    gyro_bias_rad_s: Vector | None = None
    acc_bias_m_s2: Vector | None = None
    gyro_noise_rad_s: float | None = None
    acc_noise_m_s2: float | None = None
    gyro_walk_rad_s2: float | None = None
    acc_walk_m_s3: float | None = None
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        for name in ("gyro_noise_rad_s", "acc_noise_m_s2"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise CalibrationError(
                    f"{name} must be positive, found {value:g}: leave out what is not known"
                )
        for name in ("gyro_walk_rad_s2", "acc_walk_m_s3"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise CalibrationError(
                    f"{name} must not be negative, found {value:g}: leave out what is not known"
                )
        for name in ("gyro_bias_rad_s", "acc_bias_m_s2"):
            value = getattr(self, name)
            if value is not None and not np.all(np.isfinite(value)):
                raise CalibrationError(f"{name} must be finite, found {value}")


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """What hangs on a force/torque sensor and what it reads without it (N, N m, kg, m; sensor axes).

    Attributes:
        holds: The sensor reports the force that holds the tool (up, at rest), not the tool's weight.
        sigma: Standard deviations of mass, force bias (3), centre of mass (3), torque bias (3).
        force_rms_n, torque_rms_nm: What the fit left, per axis.
    """

    mass_kg: float = 0.0
    force_bias_n: Array = field(default_factory=lambda: np.zeros(3))
    centre_m: Array = field(default_factory=lambda: np.zeros(3))
    torque_bias_nm: Array = field(default_factory=lambda: np.zeros(3))
    holds: bool = False
    sigma: Array = field(default_factory=lambda: np.zeros(10))
    force_rms_n: float = 0.0
    torque_rms_nm: float = 0.0
    source: str = ""
    date: str = ""

    def force_n(self, gravity_m_s2: Array) -> Array:
        """Return (N, 3) readings at rest under (N, 3) gravity in the sensor's axes."""
        return np.asarray(self._weight(gravity_m_s2) + self.force_bias_n, np.float64)

    def torque_nm(self, gravity_m_s2: Array) -> Array:
        """Return (N, 3) torque readings at rest."""
        return np.asarray(
            np.cross(self.centre_m, self._weight(gravity_m_s2)) + self.torque_bias_nm, np.float64
        )

    def _weight(self, gravity_m_s2: Array) -> Array:
        return np.asarray((-1.0 if self.holds else 1.0) * self.mass_kg * gravity_m_s2, np.float64)


@dataclass(frozen=True, slots=True)
class MicrophoneArray:
    """Where the microphones of an array sit and how each is wired.

    Attributes:
        positions_m: One for each channel, in the array's frame; empty = unknown.
        polarity: +1 or -1 for each channel, against channel 0; empty = all alike.
    """

    positions_m: tuple[Vector, ...] = ()
    polarity: tuple[int, ...] = ()
    source: str = ""
    date: str = ""
