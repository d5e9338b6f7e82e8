"""Smooth closed motion of the rig's body, with every derivative an IMU needs in closed form."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PERIOD_S = 10.0
"""The motion repeats after this time, so that a loop of images can be rendered once and shown for hours."""

# Rows: (axis, harmonic of 1 / PERIOD_S, amplitude). Positions in metres around HOME_M, angles in radians.
# Angular rates reach about 25 deg/s (15 rms) on each axis, enough to align gyro and images within seconds.
_POSITION_TERMS = ((0, 1, 0.40), (0, 3, 0.05), (1, 1, 0.35), (1, 2, 0.12), (2, 2, 0.08), (2, 3, 0.04))
_ANGLE_TERMS = ((0, 4, 0.10), (0, 1, 0.05), (1, 3, 0.11), (1, 2, 0.05), (2, 1, 0.30), (2, 3, 0.10))
HOME_M = (0.8, 0.0, 1.3)


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """State of a rigid body at (n,) instants; "body" vectors are in its own axes.

    Attributes:
        rotation: (n, 3, 3) R_world_body.
        position_m, velocity_m_s, acceleration_m_s2: (n, 3) in the world.
        rate_rad_s, angular_acceleration_rad_s2: (n, 3) in the body.
    """

    rotation: Array
    position_m: Array
    velocity_m_s: Array
    acceleration_m_s2: Array
    rate_rad_s: Array
    angular_acceleration_rad_s2: Array

    @property
    def transforms(self) -> Array:
        """(n, 4, 4) T_world_body."""
        out = np.zeros((len(self.position_m), 4, 4))
        out[:, :3, :3] = self.rotation
        out[:, :3, 3] = self.position_m
        out[:, 3, 3] = 1.0
        return out

    def carried_to(self, T_body_sensor: Array) -> "Motion":
        """Return the motion of a sensor fixed to this body (lever arm and rotation)."""
        arm, turn = T_body_sensor[:3, 3], T_body_sensor[:3, :3]
        swing = np.cross(self.rate_rad_s, np.broadcast_to(arm, self.rate_rad_s.shape))
        pull = np.cross(self.angular_acceleration_rad_s2, np.broadcast_to(arm, swing.shape)) + np.cross(
            self.rate_rad_s, swing
        )
        return Motion(
            self.rotation @ turn,
            self.position_m + self.rotation @ arm,
            self.velocity_m_s + np.einsum("nij,nj->ni", self.rotation, swing),
            self.acceleration_m_s2 + np.einsum("nij,nj->ni", self.rotation, pull),
            self.rate_rad_s @ turn,
            self.angular_acceleration_rad_s2 @ turn,
        )


class Trajectory:
    """Sums of sinusoids in position and in roll, pitch, yaw (R = Rz Ry Rx); phases come from the seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0x7261])
        self._position = _Harmonics(_POSITION_TERMS, rng.uniform(0, 2 * np.pi, len(_POSITION_TERMS)))
        self._angles = _Harmonics(_ANGLE_TERMS, rng.uniform(0, 2 * np.pi, len(_ANGLE_TERMS)))

    def motion(self, world_s: Array) -> Motion:
        """Return the body's state at (n,) world times in seconds."""
        offset, velocity, acceleration = self._position.derivatives(world_s)
        place = (offset + np.asarray(HOME_M), velocity, acceleration)
        return _motion(place, self._angles.derivatives(world_s))


def _motion(place: tuple[Array, Array, Array], angles: tuple[Array, Array, Array]) -> Motion:
    """Return the state from position and roll, pitch, yaw with their first two derivatives, each (n, 3)."""
    position_m, velocity, acceleration = place
    angle, angle_rate, angle_acceleration = angles
    sin, cos = np.sin(angle).T, np.cos(angle).T
    # Body rates of yaw-pitch-roll angles (Diebel 2006, "Representing Attitude") and their derivative.
    (sr, sp, _), (cr, cp, _) = sin, cos
    dr, dp, dy = angle_rate.T
    ddr, ddp, ddy = angle_acceleration.T
    rate = np.stack([dr - sp * dy, cr * dp + sr * cp * dy, -sr * dp + cr * cp * dy], axis=1)
    turn = np.stack(
        [
            ddr - cp * dp * dy - sp * ddy,
            -sr * dr * dp + cr * ddp + (cr * cp * dr - sr * sp * dp) * dy + sr * cp * ddy,
            -cr * dr * dp - sr * ddp + (-sr * cp * dr - cr * sp * dp) * dy + cr * cp * ddy,
        ],
        axis=1,
    )
    return Motion(_rotations(sin, cos), position_m, velocity, acceleration, rate, turn)


class Tour:
    """Goes from pose to pose and holds still at each, for ever; moves along the quintic that starts and ends at
    rest (Flash and Hogan 1985).

    Args:
        poses: (n, 6) x, y, z (m), roll, pitch, yaw (rad) in the world.
    """

    def __init__(self, poses: Array, hold_s: float = 1.0, move_s: float = 0.75) -> None:
        self._poses = np.asarray(poses, np.float64)
        self.hold_s, self.move_s = hold_s, move_s

    @property
    def period_s(self) -> float:
        return len(self._poses) * (self.hold_s + self.move_s)

    def motion(self, world_s: Array) -> Motion:
        """Return the body's state at (n,) world times in seconds."""
        leg, since_s = np.divmod(np.asarray(world_s, np.float64), self.hold_s + self.move_s)
        start = self._poses[leg.astype(np.int64) % len(self._poses)]
        step = self._poses[(leg.astype(np.int64) + 1) % len(self._poses)] - start
        u = np.clip((since_s - self.hold_s) / self.move_s, 0.0, 1.0)[:, None]
        share = u**3 * (10 - 15 * u + 6 * u**2)
        rate = 30 * u**2 * (1 - u) ** 2 / self.move_s
        change = 60 * u * (1 - u) * (1 - 2 * u) / self.move_s**2
        place, speed, acceleration = start + share * step, rate * step, change * step
        return _motion(
            (place[:, :3], speed[:, :3], acceleration[:, :3]),
            (place[:, 3:], speed[:, 3:], acceleration[:, 3:]),
        )


class _Harmonics:
    """Three axes of sinusoids and their first two derivatives."""

    def __init__(self, terms: tuple[tuple[int, int, float], ...], phases: Array) -> None:
        self._omega = np.array([2 * np.pi * harmonic / PERIOD_S for _, harmonic, _ in terms])
        self._phase = phases
        self._mix = np.zeros((len(terms), 3))
        for row, (axis, _, amplitude) in enumerate(terms):
            self._mix[row, axis] = amplitude

    def derivatives(self, t: Array) -> tuple[Array, Array, Array]:
        argument = np.multiply.outer(t, self._omega) + self._phase
        sin, cos = np.sin(argument), np.cos(argument)
        return sin @ self._mix, (cos * self._omega) @ self._mix, -(sin * self._omega**2) @ self._mix


def _rotations(sin: Array, cos: Array) -> Array:
    (sr, sp, sy), (cr, cp, cy) = sin, cos
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.moveaxis(np.array(rows), 2, 0)
