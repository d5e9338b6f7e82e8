"""Bundle adjustment of boards: lenses, camera poses and board poses that fit all corners at once.

Levenberg-Marquardt on robustly weighted corner residuals; the boards' poses are eliminated (Schur complement).
The covariance of what remains is the formal one times what leaving out single views shows on top: corners of
one view share their errors (a board that is not flat, a direction of blur), so the formal one alone is too small.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sensorium.calibration.geometry import Array, Intrinsics, apply, distort, inverse, small_motion
from sensorium.calibration.targets import View
from sensorium.errors import CalibrationError

# What of the lenses is fitted: every number, one factor on both focal lengths of each, or nothing.
Free = Literal["lenses", "focals", "none"]

_STEPS = 60
_STEP = 1e-6
# Corners beyond three robust deviations count less and less (Cauchy weight).
_WEIGHT_SIGMAS = 3.0
_MIN_SIGMA_PX = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What fits all corners.

    Attributes:
        cameras: One per camera, the first is the reference.
        T_camera_reference: Of each camera; the first is the identity.
        poses: T_reference_board of each view.
        covariance: Of the free parameters: each camera's in turn (fx fy cx cy distortion, or the logarithm of
            the factor on fx and fy), then six of each further camera's T_camera_reference (left perturbation:
            rad, then m).
        view_rms_px: (cameras, views) RMS corner distance; NaN where a camera did not see the board.
        inflation: What the formal variances were multiplied by.
    """

    cameras: tuple[Intrinsics, ...]
    T_camera_reference: tuple[Array, ...]
    poses: tuple[Array, ...]
    covariance: Array
    view_rms_px: Array
    sigma_px: float
    inflation: float

    @property
    def rms_px(self) -> float:
        return float(np.sqrt(np.nanmean(np.square(self.view_rms_px))))


def vector_of(camera: Intrinsics) -> Array:
    """Return fx, fy, cx, cy and the distortion."""
    return np.array([camera.fx, camera.fy, camera.cx, camera.cy, *camera.distortion])


def with_vector(camera: Intrinsics, values: Array) -> Intrinsics:
    """Return the camera with other numbers.

    Raises:
        CalibrationError: If they are none of a camera.
    """
    fx, fy, cx, cy, *distortion = (float(value) for value in values)
    return replace(camera, fx=fx, fy=fy, cx=cx, cy=cy, distortion=tuple(distortion))


def pixels_of(points: Array, camera: Intrinsics) -> Array:
    """Return (N, 2) pixels of (N, 3) points in front of the camera, without regard to where a lens folds back."""
    ideal = points[:, :2] / points[:, 2:3]
    return distort(ideal, camera) * (camera.fx, camera.fy) + (camera.cx, camera.cy)


def by_lens(points: Array, camera: Intrinsics) -> Array:
    """Return (N, 2, p) derivatives of the pixels by the camera's own numbers."""
    ideal = points[:, :2] / points[:, 2:3]
    bent = distort(ideal, camera)
    found = np.zeros((len(points), 2, 4 + len(camera.distortion)))
    found[:, 0, 0], found[:, 1, 1] = bent[:, 0], bent[:, 1]
    found[:, 0, 2] = found[:, 1, 3] = 1.0
    for k in range(len(camera.distortion)):
        changed = list(camera.distortion)
        changed[k] += _STEP
        moved = distort(ideal, replace(camera, distortion=tuple(changed)))
        found[:, :, 4 + k] = (moved - bent) * (camera.fx, camera.fy) / _STEP
    return found


def by_point(points: Array, camera: Intrinsics) -> Array:
    """Return (N, 2, 3) derivatives of the pixels by the points."""
    found = np.zeros((len(points), 2, 3))
    step = _STEP * points[:, 2]
    for k in range(3):
        ahead, behind = points.copy(), points.copy()
        ahead[:, k] += step
        behind[:, k] -= step
        found[:, :, k] = (pixels_of(ahead, camera) - pixels_of(behind, camera)) / (2 * step)[:, None]
    return found


def by_motion(points: Array) -> Array:
    """Return (N, 3, 6) derivatives of points by a small motion of their frame (left perturbation)."""
    found = np.zeros((len(points), 3, 6))
    x, y, z = points.T
    found[:, 0, 1], found[:, 0, 2] = z, -y
    found[:, 1, 0], found[:, 1, 2] = -z, x
    found[:, 2, 0], found[:, 2, 1] = y, -x
    found[:, 0, 3] = found[:, 1, 4] = found[:, 2, 5] = 1.0
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    cameras: tuple[Intrinsics, ...]
    extrinsics: tuple[Array, ...]
    poses: tuple[Array, ...]


@dataclass(slots=True, eq=False)
class _Sums:
    """Normal equations, one slice for each view."""

    shared: Array  # (V, p, p)
    mixed: Array  # (V, p, 6)
    posed: Array  # (V, 6, 6)
    shared_pull: Array  # (V, p)
    posed_pull: Array  # (V, 6)

    def reduced(self, damping: float = 0.0) -> tuple[Array, Array]:
        """Return (V, p, p) and (V, p): each view's information about and pull on what all views share."""
        posed = self.posed + damping * np.einsum("vii,ij->vij", self.posed, np.eye(6))
        solved = np.linalg.solve(posed, np.concatenate([_T(self.mixed), self.posed_pull[..., None]], axis=2))
        information = self.shared - self.mixed @ solved[:, :, :-1]
        pull = self.shared_pull - (self.mixed @ solved[:, :, -1:])[..., 0]
        return information, pull


def _T(blocks: Array) -> Array:
    return np.swapaxes(blocks, 1, 2)


class _Problem:
    """The corners, and which parameters are free."""

    def __init__(
        self, board: Array, views: Sequence[Sequence[View | None]], free: Free, is_mount_free: bool
    ) -> None:
        self.board = board
        self.views = views
        self.free = free
        self.is_mount_free = is_mount_free
        self.count = len(views[0])

    def offsets(self, state: _State) -> tuple[list[int], list[int], int]:
        """Return where each camera's lens and pose begin among the shared parameters, and their number."""
        sizes = [
            {"lenses": len(vector_of(camera)), "focals": 1, "none": 0}[self.free] for camera in state.cameras
        ]
        lenses = [int(sum(sizes[:k])) for k in range(len(sizes))]
        poses = [sum(sizes) + 6 * (k - 1) for k in range(len(sizes))]
        return lenses, poses, sum(sizes) + (6 * (len(sizes) - 1) if self.is_mount_free else 0)

    def residuals(self, state: _State) -> list[list[Array | None]]:
        """Return by camera and view (N, 2) seen minus predicted corners, or None.

        Raises:
            CalibrationError: If a board came to lie behind its camera.
        """
        found: list[list[Array | None]] = []
        for camera, T, seen in zip(state.cameras, state.extrinsics, self.views, strict=True):
            row: list[Array | None] = []
            for pose, view in zip(state.poses, seen, strict=True):
                if view is None:
                    row.append(None)
                    continue
                points = apply(T @ pose, self.board[view.ids])
                if points[:, 2].min() < 1e-6:
                    raise CalibrationError("a board came to lie behind its camera")
                row.append(view.pixels - pixels_of(points, camera))
            found.append(row)
        return found

    def sums(self, state: _State, residuals: list[list[Array | None]], sigma_px: float) -> _Sums:
        lenses, poses, size = self.offsets(state)
        views = self.count
        sums = _Sums(
            np.zeros((views, size, size)),
            np.zeros((views, size, 6)),
            np.zeros((views, 6, 6)),
            np.zeros((views, size)),
            np.zeros((views, 6)),
        )
        for c, camera in enumerate(state.cameras):
            T = state.extrinsics[c]
            for v, view in enumerate(self.views[c]):
                residual = residuals[c][v]
                if view is None or residual is None:
                    continue
                at_reference = apply(state.poses[v], self.board[view.ids])
                points = apply(T, at_reference)
                slope = by_point(points, camera)
                jacobian = np.zeros((len(points), 2, size))
                if self.free != "none":
                    own = by_lens(points, camera)
                    if self.free == "focals":
                        own = own[:, :, :1] * camera.fx + own[:, :, 1:2] * camera.fy
                    jacobian[:, :, lenses[c] : lenses[c] + own.shape[2]] = own
                if c > 0 and self.is_mount_free:
                    jacobian[:, :, poses[c] : poses[c] + 6] = slope @ by_motion(points)
                posed = slope @ (T[:3, :3] @ by_motion(at_reference))
                weight = weights(residual, sigma_px)
                flat, pose = jacobian.reshape(2 * len(points), size), posed.reshape(-1, 6)
                both = np.repeat(weight, 2)[:, None]
                sums.shared[v] += (flat * both).T @ flat
                sums.mixed[v] += (flat * both).T @ pose
                sums.posed[v] += (pose * both).T @ pose
                sums.shared_pull[v] += (flat * both).T @ residual.ravel()
                sums.posed_pull[v] += (pose * both).T @ residual.ravel()
        return sums

    def moved(self, state: _State, shared: Array, posed: Array) -> _State:
        lenses, poses, _ = self.offsets(state)
        cameras, extrinsics = list(state.cameras), list(state.extrinsics)
        for c, camera in enumerate(state.cameras):
            if self.free == "lenses":
                values = vector_of(camera)
                cameras[c] = with_vector(camera, values + shared[lenses[c] : lenses[c] + len(values)])
            elif self.free == "focals":
                factor = float(np.exp(shared[lenses[c]]))
                cameras[c] = replace(camera, fx=camera.fx * factor, fy=camera.fy * factor)
            if c > 0 and self.is_mount_free:
                extrinsics[c] = small_motion(shared[poses[c] : poses[c] + 6]) @ extrinsics[c]
        boards = [small_motion(posed[v]) @ pose for v, pose in enumerate(state.poses)]
        return _State(tuple(cameras), tuple(extrinsics), tuple(boards))


def weights(residual: Array, sigma_px: float) -> Array:
    """Return (N,) weights of corners by their distance from the prediction."""
    return np.asarray(1 / (1 + np.square(residual).sum(axis=1) / np.square(_WEIGHT_SIGMAS * sigma_px)))


def _spread(residuals: list[list[Array | None]]) -> float:
    """Return the robust deviation of one coordinate of a corner, px."""
    every = np.concatenate([part.ravel() for row in residuals for part in row if part is not None])
    return max(1.4826 * float(np.median(np.abs(every))), _MIN_SIGMA_PX)


def _cost(residuals: list[list[Array | None]], sigma_px: float) -> float:
    scale = np.square(_WEIGHT_SIGMAS * sigma_px)
    return sum(
        float(scale * np.log1p(np.square(part).sum(axis=1) / scale).sum())
        for row in residuals
        for part in row
        if part is not None
    )


def adjust(
    board: Array,
    views: Sequence[Sequence[View | None]],
    cameras: Sequence[Intrinsics],
    T_camera_reference: Sequence[Array],
    poses: Sequence[Array],
    free: Free = "lenses",
    is_mount_free: bool = True,
) -> Fit:
    """Fit lenses, camera poses (those that are free) and board poses to all corners, from a start near by.

    Args:
        board: (N, 3) all corners of the board, m.
        views: By camera, then by board pose; None where a camera did not see it.

    Raises:
        CalibrationError: If the corners do not determine the parameters.
    """
    problem = _Problem(board, views, free, is_mount_free)
    state = _State(tuple(cameras), tuple(T_camera_reference), tuple(poses))
    residuals = problem.residuals(state)
    sigma_px, damping, stalled = _spread(residuals), 1e-3, 0
    cost = _cost(residuals, sigma_px)
    for _ in range(_STEPS):
        sums = problem.sums(state, residuals, sigma_px)
        tried = _step(problem, state, sums, damping)
        found = None
        if tried is not None:
            try:
                found = problem.residuals(tried)
            except CalibrationError:
                found = None
        lower = _cost(found, sigma_px) if found is not None else np.inf
        if tried is None or found is None or not lower < cost:
            damping *= 8
            if damping > 1e8:
                break
            continue
        gain = 1 - lower / max(cost, 1e-300)
        state, residuals, damping = tried, found, max(damping / 8, 1e-9)
        stalled = stalled + 1 if gain < 1e-7 else 0
        if stalled >= 2:
            break
        sigma_px = _spread(residuals)
        cost = _cost(residuals, sigma_px)
    return _fit(problem, state, residuals, sigma_px)


def _step(problem: _Problem, state: _State, sums: _Sums, damping: float) -> _State | None:
    information, pull = sums.reduced(damping)
    total = information.sum(axis=0)
    try:
        shared = (
            np.linalg.solve(total + damping * np.diag(np.diag(total)), pull.sum(axis=0))
            if total.size
            else np.zeros(0)
        )
        posed_information = sums.posed + damping * np.einsum("vii,ij->vij", sums.posed, np.eye(6))
        rest = sums.posed_pull - np.einsum("vpk,p->vk", sums.mixed, shared)
        posed = np.linalg.solve(posed_information, rest[..., None])[..., 0]
        return problem.moved(state, shared, posed)
    except (np.linalg.LinAlgError, CalibrationError):
        return None


def _fit(problem: _Problem, state: _State, residuals: list[list[Array | None]], sigma_px: float) -> Fit:
    sums = problem.sums(state, residuals, sigma_px)
    information, pull = sums.reduced()
    total = information.sum(axis=0)
    rms = np.array(
        [
            [np.nan if part is None else np.sqrt(np.mean(np.square(part).sum(axis=1))) for part in row]
            for row in residuals
        ]
    )
    size = total.shape[0]
    observed = sum(2 * len(part) for row in residuals for part in row if part is not None)
    freedom = max(observed - size - 6 * problem.count, 1)
    squares = sum(
        float((weights(part, sigma_px)[:, None] * np.square(part)).sum())
        for row in residuals
        for part in row
        if part is not None
    )
    noise_px = np.sqrt(squares / freedom)
    if not size:
        return Fit(state.cameras, state.extrinsics, state.poses, np.zeros((0, 0)), rms, noise_px, 1.0)
    formal = inverse_or_infinite(total) * noise_px**2
    inflation = _inflation(information, pull, formal)
    return Fit(
        state.cameras, state.extrinsics, state.poses, formal * inflation, rms, float(noise_px), inflation
    )


def inverse_or_infinite(information: Array) -> Array:
    """Return the inverse of an information matrix; huge variances where it is singular."""
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    values, vectors = np.linalg.eigh(information / np.outer(scale, scale))
    inverted = (vectors / np.maximum(values, 1e-14)) @ vectors.T
    return np.asarray(inverted / np.outer(scale, scale), np.float64)


def _inflation(information: Array, pull: Array, formal: Array) -> float:
    """Return by how much the parameters' variances grow when they are judged by leaving out single views.

    One Newton step from the common solution to that without a view is exact enough (the "infinitesimal
    jackknife" with the view's own information taken out); then the jackknife's variance (Efron 1982).
    """
    count = len(information)
    if count < 3:
        return 1.0
    total = information.sum(axis=0)
    changes = []
    for own, force in zip(information, pull, strict=True):
        rest = total - own
        if np.linalg.cond(rest) > 1e18:
            return 1.0
        changes.append(np.linalg.solve(rest, force))
    variance = (count - 1) / count * np.square(changes).sum(axis=0)
    return float(max(1.0, np.mean(variance / np.diag(formal))))


def relative_pose(first: Sequence[Array | None], second: Sequence[Array | None]) -> Array:
    """Return T_second_first that most of the common boards agree on (the medoid).

    Raises:
        CalibrationError: Without a common board.
    """
    found = [b @ inverse(a) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not found:
        raise CalibrationError("no board was seen by both")
    rotations = np.array([T[:3, :3] for T in found])
    shifts = np.array([T[:3, 3] for T in found])
    turn = np.arccos(np.clip((np.einsum("aij,bij->ab", rotations, rotations) - 1) / 2, -1, 1))
    apart = np.linalg.norm(shifts[:, None] - shifts[None], axis=2)
    size = max(float(np.median(apart)), 1e-6) / max(float(np.median(turn)), 1e-6)
    return found[int(np.argmin(np.median(turn * size + apart, axis=1)))]
