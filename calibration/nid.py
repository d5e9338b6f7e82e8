"""A second opinion on where a LiDAR stands: do its reflectance and the image's grey tell the same story?

Where points are projected rightly, knowing a point's reflectance says most about the grey value under it. The
normalised information distance (NID) of the two is least there. It needs no edges, so it errs for other reasons
than the edge check does: it is noisier from scene to scene, but has no common bias.

Source: Koide et al., "General, single-shot, target-less and automatic LiDAR-camera extrinsic calibration toolbox",
ICRA 2023; spec calibration 1.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Array, Intrinsics, apply, in_image, project, small_motion
from sensorium.calibration.keyframes import straightened

BINS = 16
MAX_POINTS = 20_000
# A point this far behind the nearest one of its cell is hidden from a camera beside the LiDAR.
CELL_PX = 8
HIDDEN_SHARE, HIDDEN_M = 0.05, 0.5
# Angles that are tried on either side, and what two opinions may differ by beyond two sigma.
STEPS_RAD = np.deg2rad(np.arange(-1.0, 1.001, 0.1))
AGREEING_DEG = 0.3
MIN_VIEWS = 5


@dataclass(frozen=True, slots=True, eq=False)
class ReflectanceView:
    """Points that one image shows, in the camera's axes, with their reflectance in ``BINS`` equally filled bins.

    Attributes:
        grey: The image by rank, 0 .. BINS - 1.
    """

    camera: Intrinsics
    xyz: Array
    bins: NDArray[np.intp]
    grey: NDArray[np.float32]


def reflectance_view(
    image: NDArray[np.uint8], points: NDArray[np.floating], camera: Intrinsics, T_camera_lidar: Array
) -> ReflectanceView:
    """Reduce an image and the sweep taken with it; points hidden from the camera are left out.

    Args:
        points: (N, 4) rows x, y, z, intensity in the LiDAR's frame.
    """
    grey, pinhole = straightened(image, camera)
    rows = np.asarray(points, np.float64)
    rows = rows[np.isfinite(rows[:, :4]).all(axis=1) & (np.square(rows[:, :3]).sum(axis=1) > 0.01)]
    xyz = apply(T_camera_lidar, rows[:, :3])
    pixels = project(xyz, pinhole)
    inside = in_image(pixels, pinhole, 0.0) & (xyz[:, 2] > 0.5)
    xyz, pixels, intensity = xyz[inside], pixels[inside], rows[inside, 3]
    columns = -(-pinhole.width // CELL_PX)
    cell = (pixels[:, 1] // CELL_PX).astype(np.intp) * columns + (pixels[:, 0] // CELL_PX).astype(np.intp)
    nearest = np.full(int(cell.max(initial=0)) + 1, np.inf)
    np.minimum.at(nearest, cell, xyz[:, 2])
    seen = np.flatnonzero(xyz[:, 2] < nearest[cell] * (1 + HIDDEN_SHARE) + HIDDEN_M)
    seen = seen[:: max(-(-len(seen) // MAX_POINTS), 1)]
    soft = cv2.GaussianBlur(grey, (0, 0), 1.5)
    share = np.searchsorted(np.sort(soft.ravel()), soft.ravel()).reshape(soft.shape) / soft.size
    return ReflectanceView(
        pinhole,
        xyz[seen],
        _equal_bins(intensity[seen]),
        np.asarray(share * (BINS - 1), np.float32),
    )


def _equal_bins(values: Array) -> NDArray[np.intp]:
    share = np.searchsorted(np.sort(values), values) / max(len(values), 1)
    return np.minimum((share * BINS).astype(np.intp), BINS - 1)


def information_distance(view: ReflectanceView, motion: Array) -> float:
    """Return the NID (0 = one tells the other, 1 = nothing in common) after a motion of the LiDAR."""
    pixels = np.asarray(project(apply(small_motion(motion), view.xyz), view.camera), np.float32)
    if not len(pixels):
        return 1.0
    count = len(pixels)
    padded = np.full((-(-count // 256) * 256, 2), -1e4, np.float32)  # cv2.remap takes no very long rows
    padded[:count] = np.nan_to_num(pixels, nan=-1e4)
    u, v = (padded[:, axis].reshape(-1, 256) for axis in (0, 1))
    sampled = cv2.remap(view.grey, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=-1.0)
    grey = np.asarray(sampled, np.float64).ravel()[:count]
    inside = grey >= 0
    lower = np.minimum(grey[inside].astype(np.intp), BINS - 2)
    share = grey[inside] - lower
    index = view.bins[inside] * BINS + lower
    joint = np.bincount(index, 1 - share, BINS * BINS) + np.bincount(index + 1, share, BINS * BINS)
    joint = joint.reshape(BINS, BINS) / max(joint.sum(), 1e-12)
    both = _entropy(joint.ravel())
    return float((2 * both - _entropy(joint.sum(axis=0)) - _entropy(joint.sum(axis=1))) / max(both, 1e-12))


def _entropy(share: Array) -> float:
    known = share[share > 0]
    return float(-(known * np.log(known)).sum())


@dataclass(frozen=True, slots=True, eq=False)
class SecondOpinion:
    """How far the reflectance's best angles lie from the edges', about the camera's x, y and z.

    Attributes:
        gap_deg, sigma_deg: (3,) and how they scatter when single views are left out (jackknife).
    """

    gap_deg: Array
    sigma_deg: Array

    @property
    def disagrees(self) -> NDArray[np.bool_]:
        """(3,) True where it lies further off than two sigma and ``AGREEING_DEG``."""
        return np.asarray(np.abs(self.gap_deg) > AGREEING_DEG + 2 * self.sigma_deg)


def second_opinion(views: Sequence[ReflectanceView], motion: Array) -> SecondOpinion:
    """Turn the LiDAR about each axis from where the edges place it, and see where the NID is least."""
    gaps, sigmas = [], []
    for axis in range(3):
        profile = np.array(
            [
                [
                    information_distance(view, np.asarray(motion) + angle * np.eye(6)[axis])
                    for angle in STEPS_RAD
                ]
                for view in views
            ]
        )
        total = profile.sum(axis=0)
        gaps.append(_least(total))
        without = np.array([_least(total - own) for own in profile])
        count = len(views)
        sigmas.append(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))
    return SecondOpinion(np.rad2deg(gaps), np.rad2deg(sigmas))


def _least(profile: Array) -> float:
    """Return the angle of the least value, between the steps by a parabola."""
    best = int(np.clip(np.argmin(profile), 1, len(profile) - 2))
    before, at, after = profile[best - 1 : best + 2]
    bend = before - 2 * at + after
    shift = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return float(STEPS_RAD[best] + np.clip(shift, -1, 1) * (STEPS_RAD[1] - STEPS_RAD[0]))
