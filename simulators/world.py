"""The simulated world: a room with known geometry, a moving rig, and events that are seen, heard and felt."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.simulators.surfaces import Array, Box, BoxScene, Image, Surface, rich_texture
from sensorium.simulators.trajectory import HOME_M, PERIOD_S, Motion, Tour, Trajectory

GRAVITY_M_S2 = 9.81
SOUND_M_S = 343.0
ROOM_M = (8.0, 6.0, 3.0)
"""Length, width, height; the origin is the middle of the floor, x forward, y left, z up."""

BOARD_CORNERS = (9, 6)
BOARD_SQUARE_M = 0.12
LAMP_SECONDS = 0.08
"""How long the lamp at the clap's place shines from the instant of the clap."""

_WALL_PIXELS_PER_M = 128
_BOARD_PIXELS_PER_M = 400
_BOARD_CENTRE_M = (3.97, 0.25, 1.45)
_BOARD_SIZE_M = (0.06, 1.5, 1.14)
_LAMP_CENTRE_M = (3.97, -0.85, 1.75)
_CLAPS_S = (1.37, 3.72, 6.11, 8.83)

# Where the rig stops to look at the board: azimuth and elevation off the board's normal (deg), distance (m), where
# a camera in the body's middle would see its centre (rad right of and below the axis), roll (deg). Found by trial:
# nothing stands between, and most stops show the whole pattern to both cameras, near every corner of the image.
_BOARD_STOPS = (
    (0, 0, 1.3, 0.0, 0.0, 0),
    (0, 0, 1.45, 0.19, 0.22, 0),
    (0, 0, 1.45, -0.19, 0.22, 0),
    (0, 0, 1.45, -0.19, -0.22, 0),
    (0, 0, 1.45, 0.19, -0.22, 0),
    (33, 0, 1.28, -0.06, 0.08, 0),
    (-30, 0, 1.5, 0.14, 0.14, 0),
    (0, 12, 1.45, 0.0, -0.14, 0),
    (0, -28, 1.5, 0.0, 0.14, 0),
    (28, 12, 1.3, 0.15, 0.1, 8),
    (-28, 12, 1.45, -0.21, 0.165, -8),
    (30, -25, 1.45, 0.19, -0.19, -10),
    (-28, -21, 1.45, -0.19, -0.19, 10),
    (33, 0, 1.28, 0.1, -0.12, 0),
    (-30, 0, 1.5, -0.2, -0.22, 0),
    (10, -5, 1.8, 0.3, 0.21, 0),
    (10, -5, 1.8, 0.22, 0.26, 5),
    (-8, -10, 1.8, -0.3, 0.21, 0),
    (-8, -10, 1.8, -0.22, 0.26, -5),
    (-15, -8, 1.9, -0.3, -0.26, 12),
    (12, -8, 1.6, 0.19, -0.23, -12),
    (33, -20, 1.3, 0.0, 0.0, 0),
    (-33, -15, 1.3, 0.0, 0.0, 0),
    (24, 8, 1.3, -0.1, -0.12, 0),
)


MotionName = Literal["walk", "board", "still", "tilts"]

# Roll and pitch (deg) of the poses of ``tilts``.
_TILTS_DEG = ((0, 0), (90, 0), (180, 0), (-90, 0), (0, 80), (0, -80), (45, 40), (-50, -35))


@dataclass(frozen=True, slots=True)
class Clap:
    """Something that flashes, sounds and hits at one instant of world time, ``at_s``, at one place."""

    at_s: float
    place_m: tuple[float, float, float]


class World:
    """Everything that is true, as a function of the seed and of world time (seconds from the common start).

    The claps repeat every ``PERIOD_S``, for ever; so does the walk. The tour that shows the board to the rig
    repeats every ``trajectory.period_s``.

    Args:
        motion: ``walk``; ``board``: the rig goes from stop to stop before the board and holds still at each;
            ``still``: it stands level; ``tilts``: an arm holds it still in eight poses, tilted to all sides.
    """

    def __init__(self, seed: int, motion: MotionName = "walk") -> None:
        self.seed = seed
        self.trajectory: Trajectory | Tour = _trajectory(seed, motion)
        self._claps_s = np.array(_CLAPS_S)

    @property
    def scene(self) -> "RoomScene":
        """The geometry; made on first use, because IMUs and microphones do without."""
        return _scene(self.seed)

    def motion(self, world_s: NDArray[np.float64]) -> Motion:
        """Return the body's state at (n,) world times."""
        return self.trajectory.motion(world_s)

    def pose(self, world_s: float) -> Array:
        """Return T_world_body, 4x4, at one world time."""
        transforms: Array = self.trajectory.motion(np.array([world_s])).transforms
        return np.asarray(transforms[0])

    def claps(self, from_s: float, to_s: float) -> list[Clap]:
        """Return the claps with from_s <= at_s < to_s, in order."""
        first, last = int(np.floor(from_s / PERIOD_S)), int(np.floor(to_s / PERIOD_S))
        times = [lap * PERIOD_S + at for lap in range(first, last + 1) for at in self._claps_s]
        return [Clap(float(at), _LAMP_CENTRE_M) for at in times if from_s <= at < to_s]

    @property
    def board_points_m(self) -> Array:
        """(54, 3) inner corners of the chessboard in the world, row by row from the top left as seen."""
        columns, rows = BOARD_CORNERS
        face = self.scene.board.faces[0]
        margin = (np.array(face.size_m) - (np.array(BOARD_CORNERS) + 1) * BOARD_SQUARE_M) / 2 + BOARD_SQUARE_M
        return np.array(
            [
                face.corner_m
                + face.right * (margin[0] + column * BOARD_SQUARE_M)
                - face.up * (margin[1] + row * BOARD_SQUARE_M)
                for row in range(rows)
                for column in range(columns)
            ]
        )


class RoomScene(BoxScene):
    """The room, its furniture, the board, and the lamp that flashes at each clap."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0x726F])
        length, width, height = ROOM_M
        paint = {
            "+x": ((width, height), (110, 128, 136)),
            "-x": ((width, height), (95, 120, 150)),
            "+y": ((length, height), (165, 140, 105)),
            "-y": ((length, height), (110, 150, 115)),
            "-z": ((length, width), (75, 90, 105)),
            "+z": ((length, width), (170, 172, 168)),
        }
        room = Box(
            (0, 0, height / 2),
            ROOM_M,
            {
                face: rich_texture(rng, size, colour, _WALL_PIXELS_PER_M)
                for face, (size, colour) in paint.items()
            },
            is_room=True,
            order=0,
        )
        self.board = Box(_BOARD_CENTRE_M, _BOARD_SIZE_M, {"-x": _board_texture()}, order=1)
        self.lamp = Box(_LAMP_CENTRE_M, (0.06, 0.3, 0.3), {"-x": _lamp_texture(lit=False)}, order=1)
        self._lit = Box(_LAMP_CENTRE_M, (0.06, 0.3, 0.3), {"-x": _lamp_texture(lit=True)}, order=1)
        self._claps_s = np.array(_CLAPS_S)
        super().__init__([room, self.board, self.lamp, *_furniture(rng)])

    def surfaces(self, world_s: float) -> list[Surface]:
        """Return every face, the lamp's lit one just after a clap."""
        since = (world_s - self._claps_s) % PERIOD_S
        lamp = self._lit if np.any(since < LAMP_SECONDS) else self.lamp
        return [face for box in self.boxes for face in (lamp.faces if box is self.lamp else box.faces)]


def _trajectory(seed: int, motion: MotionName) -> "Trajectory | Tour":
    if motion == "board":
        return Tour(_board_stops())
    if motion == "still":
        return Tour(np.array([[*HOME_M, 0.0, 0.0, 0.0]]))
    if motion == "tilts":
        poses = [[*HOME_M, np.deg2rad(roll), np.deg2rad(pitch), 0.0] for roll, pitch in _TILTS_DEG]
        return Tour(np.array(poses), hold_s=3.0, move_s=1.5)
    return Trajectory(seed)


def _board_stops() -> Array:
    """Return (n, 6) x, y, z, roll, pitch, yaw of the body."""
    poses = []
    front = np.array(_BOARD_CENTRE_M) - (_BOARD_SIZE_M[0] / 2, 0, 0)
    for azimuth_deg, elevation_deg, distance_m, right, below, roll_deg in _BOARD_STOPS:
        azimuth, elevation, roll = np.deg2rad((azimuth_deg, elevation_deg, roll_deg))
        away = np.array(
            (-np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
        )
        yaw = np.arctan2(-away[1], -away[0]) + right
        poses.append([*(front + distance_m * away), roll, elevation - below, yaw])
    return np.array(poses)


@lru_cache(maxsize=2)
def _scene(seed: int) -> RoomScene:
    return RoomScene(seed)


def _furniture(rng: np.random.Generator) -> list[Box]:
    """Return pillars, poles and boxes that stand free, with range jumps of 0.5 m and more behind them.

    None hides the board or the lamp from any place of the trajectory.
    """
    layout = (
        ((2.45, -1.55, 1.5), (0.35, 0.35, 3.0), 0.3, (60, 75, 160)),
        ((2.75, 1.75, 0.55), (0.6, 0.5, 1.1), 0.5, (150, 90, 60)),
        ((3.0, -0.45, 0.42), (0.5, 0.7, 0.84), -0.2, (70, 140, 150)),
        ((2.5, -1.06, 1.5), (0.12, 0.12, 3.0), 0.4, (45, 50, 55)),
        ((2.6, 0.96, 1.5), (0.12, 0.12, 3.0), 0.1, (170, 110, 60)),
        ((2.2, 1.35, 1.5), (0.14, 0.14, 3.0), 0.7, (60, 60, 150)),
        ((2.9, 0.15, 2.35), (0.4, 0.9, 0.7), 0.15, (90, 130, 70)),
        ((0.6, 2.1, 0.7), (0.7, 0.5, 1.4), 0.1, (120, 120, 60)),
        ((-2.2, -1.6, 0.6), (0.8, 0.8, 1.2), 0.7, (90, 60, 120)),
        ((-2.0, 1.7, 1.5), (0.4, 0.4, 3.0), 0.0, (140, 150, 160)),
        ((0.4, -2.2, 0.5), (0.9, 0.5, 1.0), -0.4, (60, 130, 80)),
    )
    boxes = []
    for centre, size, yaw, colour in layout:
        faces = {
            "-z": (size[0], size[1]),
            "+x": (size[1], size[2]),
            "-x": (size[1], size[2]),
            "+y": (size[0], size[2]),
            "-y": (size[0], size[2]),
            "+z": (size[0], size[1]),
        }
        textures = {
            face: rich_texture(rng, area, _shaded(colour, face), _WALL_PIXELS_PER_M)
            for face, area in faces.items()
        }
        boxes.append(Box(centre, size, textures, yaw_rad=yaw, order=2))
    return boxes


def _shaded(colour: tuple[int, int, int], face: str) -> tuple[int, int, int]:
    """Darken by side, as light from the ceiling and one wall would."""
    factor = {"-z": 0.6, "+z": 1.25, "-x": 1.0, "+y": 0.8, "-y": 1.15, "+x": 0.7}[face]
    blue, green, red = (min(255, int(part * factor)) for part in colour)
    return blue, green, red


def _board_texture() -> Image:
    pixels_per_square = round(BOARD_SQUARE_M * _BOARD_PIXELS_PER_M)
    height, width = (
        round(_BOARD_SIZE_M[2] * _BOARD_PIXELS_PER_M),
        round(_BOARD_SIZE_M[1] * _BOARD_PIXELS_PER_M),
    )
    canvas = np.full((height, width, 3), 225, np.uint8)
    columns, rows = BOARD_CORNERS[0] + 1, BOARD_CORNERS[1] + 1
    left, top = (width - columns * pixels_per_square) // 2, (height - rows * pixels_per_square) // 2
    for row in range(rows):
        for column in range(columns):
            if (row + column) % 2 == 0:
                y, x = top + row * pixels_per_square, left + column * pixels_per_square
                canvas[y : y + pixels_per_square, x : x + pixels_per_square] = 25
    return canvas


def _lamp_texture(*, lit: bool) -> Image:
    canvas = np.full((64, 64, 3), 45, np.uint8)
    cv2.circle(canvas, (32, 32), 27, (255, 255, 255) if lit else (70, 70, 75), -1, cv2.LINE_AA)
    if lit:
        canvas = np.maximum(canvas, 200)
    return canvas
