"""The parts of a rig calibration: transforms between frames, references of how they scattered, loops."""

from dataclasses import dataclass

import numpy as np

from sensorium.calibration.geometry import Array, nearest_rotation
from sensorium.errors import CalibrationError

FORMAT = "sensorium-calibration/1"
LOOP_ROTATION_RAD = np.deg2rad(0.2)
LOOP_TRANSLATION_M = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """One known transform.

    Attributes:
        T_parent_child: 4x4, maps child points into the parent; metres.
        covariance: 6x6 of the left perturbation (rotation rad, translation m, in parent axes), or None.
        source: Who says so: a tool, a drawing, a person.
        date: ISO date of the measurement, "" when unknown.
        board_rms_px: Residual of the board fit it came from, or None.
        time_offset_s: What to add to the child's stamps to have them on the parent's clock; None when unknown.
    """

    parent: str
    child: str
    T_parent_child: Array
    covariance: Array | None = None
    source: str = ""
    date: str = ""
    board_rms_px: float | None = None
    time_offset_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """The fingerprint of a pair: what a check read when the calibration was known to be good.

    Every check without a target has its own constant bias; drift is judged against this reading.

    Attributes:
        pair: The two frames, ``a~b``.
        calibration_id: The calibration in force when it was taken; another one makes it void.
        mean: One value per degree of freedom, in the check's own order and units.
        sigma: Standard deviation of each mean.
        count: Pairs or keyframes behind it.
        correlation: By row, how the means' errors go together; empty where each is known by itself.
    """

    check: str
    pair: str
    calibration_id: str
    mean: tuple[float, ...]
    sigma: tuple[float, ...]
    count: int
    correlation: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """How far a loop of transforms is from closing."""

    frames: tuple[str, ...]
    rotation_rad: float
    translation_m: float

    @property
    def is_closed(self) -> bool:
        return self.rotation_rad <= LOOP_ROTATION_RAD and self.translation_m <= LOOP_TRANSLATION_M


def require_rigid(edge: Edge) -> None:
    """Refuse a transform that no two sensors can have.

    Raises:
        CalibrationError: If the matrix is not rigid, the covariance none, or the time offset not finite.
    """
    T, name = edge.T_parent_child, f"transform {edge.parent} -> {edge.child}"
    if T.shape != (4, 4) or not np.all(np.isfinite(T)):
        raise CalibrationError(f"{name}: needs a finite 4x4 matrix, found shape {T.shape}")
    if not np.array_equal(T[3], (0.0, 0.0, 0.0, 1.0)):
        raise CalibrationError(f"{name}: the last row must be 0 0 0 1, found {T[3].tolist()}")
    gap = float(np.abs(T[:3, :3] - nearest_rotation(T[:3, :3])).max())
    # Published calibrations carry 6-7 digits; a wrong matrix (transposed block, scaled) is off by far more.
    if gap > 1e-4:
        raise CalibrationError(f"{name}: the upper left 3x3 block is not a rotation (off by {gap:.2g})")
    if edge.covariance is not None:
        _require_covariance(edge.covariance, name)
    if edge.time_offset_s is not None and not np.isfinite(edge.time_offset_s):
        raise CalibrationError(f"{name}: its time offset must be finite, found {edge.time_offset_s}")


def _require_covariance(covariance: Array, name: str) -> None:
    if covariance.shape != (6, 6) or not np.all(np.isfinite(covariance)):
        raise CalibrationError(f"{name}: needs a finite 6x6 covariance, found shape {covariance.shape}")
    if float(np.diag(covariance).min()) < 0:
        raise CalibrationError(f"{name}: a variance is negative, found {np.diag(covariance).tolist()}")
    # By the deviations, so that rad and m are compared alike; rounding to six digits passes.
    sigma = np.sqrt(np.maximum(np.diag(covariance), 1e-30))
    correlation = covariance / np.outer(sigma, sigma)
    if float(np.abs(correlation - correlation.T).max()) > 1e-3 or float(np.abs(correlation).max()) > 1.001:
        raise CalibrationError(
            f"{name}: its covariance is none: not symmetric, or a correlation beyond 1; give the 6x6 of rotation "
            "(rad) before translation (m)"
        )
