"""Lens models on the unit sphere: from a point to the plane before fx, fy, cx, cy, and back.

These lenses see beyond 90 degrees, so they take points in any direction, not only x/z and y/z. The plane has no
units; a pixel is ``plane * (fx, fy) + (cx, cy)``.

=============== =============================== ==============================================================
model           coefficients                    source
=============== =============================== ==============================================================
equidistant     k1 k2 k3 k4                     Kannala and Brandt 2006, as in OpenCV's fisheye (kb4)
double_sphere   xi alpha                        Usenko, Demmel, Cremers, 3DV 2018
eucm            alpha beta                      Khomutenko, Garcia, Martinet, RA-L 2016 (beta 1: the unified model)
omni            xi k1 k2 p1 p2                  Mei and Rives, ICRA 2007
fov             w                               Devernay and Faugeras 2001 (ATAN)
=============== =============================== ==============================================================
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Coefficients = tuple[float, ...]

COUNTS = {"equidistant": 4, "double_sphere": 2, "eucm": 2, "omni": 5, "fov": 1}
"""Number of coefficients of each model."""
_STEP = 1e-6
_INVERTED = 1e-7


def problem(model: str, k: Coefficients) -> str:
    """Return why these coefficients make no lens; "" if they do. Their number must be right."""
    if model == "double_sphere" and not (k[0] > -1.0 and 0.0 <= k[1] <= 1.0):
        return f"double_sphere needs xi > -1 and alpha from 0 to 1, found xi {k[0]:g}, alpha {k[1]:g}"
    if model == "eucm" and not (0.0 <= k[0] <= 1.0 and k[1] > 0.0):
        return f"eucm needs alpha from 0 to 1 and beta > 0, found alpha {k[0]:g}, beta {k[1]:g}"
    if model == "omni" and k[0] < 0.0:
        return f"omni needs xi >= 0, found {k[0]:g}"
    if model == "fov" and not 0.0 < k[0] < np.pi:
        return f"fov needs an angle w between 0 and pi, found {k[0]:g}"
    return ""


def magnification(model: str, k: Coefficients) -> float:
    """Return how long the plane's step is for a small step of x/z about the axis: fx times it is the focal length."""
    if model in ("double_sphere", "omni"):
        return 1.0 / (1.0 + k[0])
    return 2 * float(np.tan(k[0] / 2)) / k[0] if model == "fov" else 1.0


def onto_plane(points: Array, model: str, k: Coefficients) -> Array:
    """Return (N, 2) places on the plane of (N, 3) points; meaningless where :func:`is_seen` is false."""
    x, y, z = points.T
    with np.errstate(all="ignore"):
        if model in ("equidistant", "fov"):
            angle = np.arctan2(np.hypot(x, y), z)
            radius = np.hypot(x, y)
            bent = equidistant_radius(angle, k) if model == "equidistant" else _fov_radius(radius, z, k[0])
            scale = np.where(radius > 1e-12 * np.abs(z), bent / radius, magnification(model, k) / z)
            return np.stack([x * scale, y * scale], axis=1)
        if model == "double_sphere":
            distance = np.linalg.norm(points, axis=1)
            shifted = k[0] * distance + z
            norm = k[1] * np.sqrt(x * x + y * y + shifted * shifted) + (1 - k[1]) * shifted
        elif model == "eucm":
            norm = k[0] * np.sqrt(k[1] * (x * x + y * y) + z * z) + (1 - k[0]) * z
        else:
            norm = z + k[0] * np.linalg.norm(points, axis=1)
        ideal = np.stack([x / norm, y / norm], axis=1)
    return brown(ideal, k[1:]) if model == "omni" else ideal


def _fov_radius(radius: Array, z: Array, w: float) -> Array:
    return np.asarray(np.arctan2(2 * np.tan(w / 2) * radius, z) / w, np.float64)


def is_seen(points: Array, model: str, k: Coefficients) -> NDArray[np.bool_]:
    """Return for (N, 3) points whether the lens has one place for each; beyond, far points fold back into view."""
    x, y, z = points.T
    distance = np.linalg.norm(points, axis=1)
    if model == "equidistant":
        seen = np.arctan2(np.hypot(x, y), z) < _largest_angle(k)
    elif model == "fov":
        seen = np.hypot(x, y) + np.maximum(z, 0.0) > 0  # all but straight behind
    elif model == "double_sphere":
        w = _least_forward(k[1])
        seen = z > -(w + k[0]) / np.sqrt(2 * w * k[0] + k[0] * k[0] + 1) * distance
    elif model == "eucm":
        seen = z > -_least_forward(k[0]) * np.sqrt(k[1] * (x * x + y * y) + z * z)
    else:
        seen = z > -min(k[0], 1 / max(k[0], 1e-12)) * distance
        with np.errstate(all="ignore"):
            seen &= np.hypot(x, y) / (z + k[0] * distance) < largest_brown_radius(k[1:])
    return np.asarray(seen & (distance > 1e-12), np.bool_)


def _least_forward(alpha: float) -> float:
    return alpha / (1 - alpha) if alpha <= 0.5 else (1 - alpha) / alpha


def onto_sphere(plane: Array, model: str, k: Coefficients) -> Array:
    """Return (N, 3) unit rays of (N, 2) places on the plane; NaN where no ray comes from."""
    with np.errstate(all="ignore"):
        if model in ("equidistant", "fov"):
            rays = _turned_by(plane, _angles(np.hypot(plane[:, 0], plane[:, 1]), model, k))
        elif model == "omni":
            rays = _from_mirror(invert(lambda ideal: brown(ideal, k[1:]), plane), k[0])
        else:
            rays = _from_spheres(plane, model, k)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    known = np.flatnonzero(np.isfinite(rays).all(axis=1))
    unknown = np.ones(len(rays), np.bool_)
    unknown[known[is_seen(rays[known], model, k)]] = False
    rays[unknown] = np.nan
    return rays


def _from_spheres(plane: Array, model: str, k: Coefficients) -> Array:
    alpha, beta = (k[1], 1.0) if model == "double_sphere" else k
    square = np.square(plane).sum(axis=1)
    # Negative under the root: outside of the circle that the lens fills.
    root = np.sqrt(1 - (2 * alpha - 1) * beta * square)
    z = (1 - beta * alpha * alpha * square) / (alpha * root + 1 - alpha)
    rays = np.column_stack([plane, z])
    if model == "eucm":
        return np.asarray(rays, np.float64)
    xi = k[0]
    scale = (z * xi + np.sqrt(z * z + (1 - xi * xi) * square)) / (z * z + square)
    return np.asarray(rays * scale[:, None] - (0.0, 0.0, xi), np.float64)


def _from_mirror(ideal: Array, xi: float) -> Array:
    square = np.square(ideal).sum(axis=1)
    scale = (xi + np.sqrt(1 + (1 - xi * xi) * square)) / (square + 1)
    rays = np.column_stack([ideal, np.ones(len(ideal))])
    return np.asarray(rays * scale[:, None] - (0.0, 0.0, xi), np.float64)


def _turned_by(plane: Array, angle: Array) -> Array:
    """Return rays at these angles from the axis, towards where the plane's places lie."""
    radius = np.hypot(plane[:, 0], plane[:, 1])
    unit = plane / np.where(radius > 0, radius, 1.0)[:, None]
    return np.column_stack([unit * np.sin(angle)[:, None], np.cos(angle)])


def _angles(radius: Array, model: str, k: Coefficients) -> Array:
    if model == "fov":
        bent = radius * k[0]
        angle = np.arctan2(np.sin(bent), 2 * np.tan(k[0] / 2) * np.cos(bent))
        return np.where(bent < np.pi, angle, np.nan)
    largest = _largest_angle(k)
    table = np.linspace(0.0, largest, 512)
    angle = np.interp(radius, equidistant_radius(table, k), table)
    for _ in range(8):
        t2 = angle * angle
        slope = 1 + t2 * (3 * k[0] + t2 * (5 * k[1] + t2 * (7 * k[2] + t2 * 9 * k[3])))
        angle = angle - (equidistant_radius(angle, k) - radius) / np.where(np.abs(slope) < 1e-6, 1e-6, slope)
        angle = np.clip(angle, 0.0, largest)
    return np.where(np.abs(equidistant_radius(angle, k) - radius) < _INVERTED, angle, np.nan)


def equidistant_radius(angle: Array, k: Coefficients) -> Array:
    """Return how far from the centre of the plane rays at these angles (rad) from the axis arrive."""
    t2 = angle * angle
    return np.asarray(angle * (1 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3])))))


@lru_cache(maxsize=64)
def _largest_angle(k: Coefficients) -> float:
    """Return the angle up to which the radius grows with it, at most half a turn."""
    angles = np.linspace(0.0, np.pi, 4000)
    folds = np.flatnonzero(np.diff(equidistant_radius(angles, k)) <= 0)
    return float(angles[folds[0]]) if folds.size else float(np.pi)


# -- radial and tangential terms (Brown 1966, as in OpenCV), on x/z and y/z or behind a mirror


def brown(ideal: Array, coefficients: Coefficients) -> Array:
    """Return (N, 2) places bent by k1 k2 p1 p2 [k3 [k4 k5 k6]]."""
    x, y = ideal[:, 0], ideal[:, 1]
    k1, k2, p1, p2, k3, k4, k5, k6 = (*coefficients, *(0.0,) * 8)[:8]
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        axis=1,
    )


@lru_cache(maxsize=64)
def largest_brown_radius(coefficients: Coefficients) -> float:
    """Return the ideal radius up to which the distortion grows; beyond it far points fold back into view."""
    # Up to 87 degrees off axis; a normalised radius grows without bound towards 90.
    radii = np.tan(np.linspace(0.0, 1.52, 2000))
    straight = (*coefficients[:2], 0.0, 0.0, *coefficients[4:])
    image = brown(np.stack([radii, np.zeros_like(radii)], axis=1), straight)[:, 0]
    folds = np.flatnonzero(np.diff(image) <= 0)
    return float(radii[folds[0]]) if folds.size else float("inf")


def invert(bend: Callable[[Array], Array], target: Array) -> Array:
    """Return (N, 2) places that ``bend`` maps to ``target``, by Newton steps; NaN where they did not converge."""
    ideal = np.array(target, np.float64)
    step_x, step_y = np.array([_STEP, 0.0]), np.array([0.0, _STEP])
    for _ in range(12):
        residual = bend(ideal) - target
        column_x = (bend(ideal + step_x) - bend(ideal - step_x)) / (2 * _STEP)
        column_y = (bend(ideal + step_y) - bend(ideal - step_y)) / (2 * _STEP)
        determinant = column_x[:, 0] * column_y[:, 1] - column_x[:, 1] * column_y[:, 0]
        determinant = np.where(np.abs(determinant) < 1e-9, 1e-9, determinant)
        ideal[:, 0] -= (column_y[:, 1] * residual[:, 0] - column_y[:, 0] * residual[:, 1]) / determinant
        ideal[:, 1] -= (column_x[:, 0] * residual[:, 1] - column_x[:, 1] * residual[:, 0]) / determinant
        ideal = np.clip(ideal, -20.0, 20.0)
    with np.errstate(invalid="ignore"):
        ideal[np.abs(bend(ideal) - target).max(axis=1) > _INVERTED] = np.nan
    return ideal
