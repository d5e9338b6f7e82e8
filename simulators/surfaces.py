"""What the simulated world is made of: textured boxes that cameras render and LiDAR rays hit."""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Image = NDArray[np.uint8]
Rays = NDArray[np.float32]
"""(3, n): one row per axis, which numpy goes through several times faster than (n, 3)."""


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A textured rectangle.

    Attributes:
        corner_m: (3,) world position of the texture's top-left corner.
        right, up: (3,) unit vectors along the texture's columns and against its rows.
        size_m: Width and height.
        levels: (height, width, 3) BGR images, each half the resolution of the one before.
        order: Painter's order: lower is drawn first; equal ones are drawn far to near.
        normal: (3,) unit vector towards the side from which the texture is seen unmirrored.
        corners_m: (4, 3) corners, clockwise as seen, from the top left.
        mean: Mean colour of the texture.
    """

    corner_m: Array
    right: Array
    up: Array
    size_m: tuple[float, float]
    levels: tuple[Image, ...]
    order: int
    normal: Array
    corners_m: Array
    mean: tuple[float, ...]

    @classmethod
    def at(
        cls, corner_m: Array, right: Array, up: Array, size_m: tuple[float, float], image: Image, order: int
    ) -> "Surface":
        """Return the surface with its derived fields filled in (they are read for every image)."""
        across, down = right * size_m[0], up * -size_m[1]
        corners = np.array([corner_m + a * across + d * down for a, d in ((0, 0), (1, 0), (1, 1), (0, 1))])
        mean = tuple(float(part) for part in image.mean(axis=(0, 1)))
        return cls(corner_m, right, up, size_m, pyramid(image), order, np.cross(right, up), corners, mean)


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Where rays end: (n,) distance in metres and (n,) reflectivity 0...255 (brightness of the texture)."""

    range_m: NDArray[np.float32]
    reflectivity: NDArray[np.uint8]


class Scene(Protocol):
    """What the sensors need of a world's geometry. A mesh scene (ray casting in Open3D) would stand here."""

    def surfaces(self, world_s: float) -> list[Surface]:
        """Return what a camera may see at this time."""

    def cast(self, origins_m: NDArray[np.float32], directions: NDArray[np.float32]) -> Hits:
        """Follow (n, 3) unit rays from (n, 3) origins, all near each other, to their first hit."""


class Box:
    """A cuboid, turned about z; seen from outside, or from inside if ``is_room``."""

    def __init__(
        self,
        centre_m: tuple[float, float, float],
        size_m: tuple[float, float, float],
        textures: dict[str, Image],
        *,
        yaw_rad: float = 0.0,
        is_room: bool = False,
        order: int = 1,
    ) -> None:
        """Args: textures: Image per face, keys ``+x -x +y -y +z -z`` (sides); those left out are bare."""
        self.centre_m = np.array(centre_m)
        self.half_m = np.array(size_m) / 2
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        self.rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
        self.is_room = is_room
        self.faces: list[Surface] = []
        self._brightness: list[Image] = []
        self._axes: list[tuple[Array, Array, Array, float]] = []
        for face in ("-x", "+x", "-y", "+y", "-z", "+z"):
            self._add_face(face, textures.get(face, _PLAIN), order)

    def _add_face(self, face: str, texture: Image, order: int) -> None:
        axis, side = "xyz".index(face[1]), 1.0 if face[0] == "+" else -1.0
        outward = np.eye(3)[axis] * side
        facing = -outward if self.is_room else outward
        up = np.array([0.0, 1.0, 0.0]) if axis == 2 else np.array([0.0, 0.0, 1.0])
        right = np.cross(up, facing)
        half_width, half_height = float(abs(right) @ self.half_m), float(abs(up) @ self.half_m)
        corner = outward * self.half_m - right * half_width + up * half_height
        surface = Surface.at(
            self.centre_m + self.rotation @ corner,
            self.rotation @ right,
            self.rotation @ up,
            (2 * half_width, 2 * half_height),
            texture,
            order,
        )
        self.faces.append(surface)
        # LiDAR footprints are centimetres wide: the brightness under them is that of a coarser level.
        grey = cv2.cvtColor(surface.levels[min(1, len(surface.levels) - 1)], cv2.COLOR_BGR2GRAY)
        self._brightness.append(np.ascontiguousarray(grey))
        self._axes.append((corner, right, up, 2 * half_width))

    def select(self, origin_m: Array, directions: Rays, level: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the indices of the rays that may hit: those that, from above, pass the footprint's circle.

        The origins move by centimetres within one scan; 0.1 m of margin covers them.

        Args:
            level: (n,) how long the rays are, seen from above.
        """
        x, y = self.centre_m[:2] - origin_m[:2]
        distance = float(np.hypot(x, y))
        radius = float(np.hypot(*self.half_m[:2])) + 0.1
        if radius >= distance:
            return np.arange(directions.shape[1])
        along = directions[0] * np.float32(x / distance) + directions[1] * np.float32(y / distance)
        return np.flatnonzero(along > level * np.float32(np.sqrt(1 - (radius / distance) ** 2)))

    def cast(self, origins_m: Rays, directions: Rays) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Return (n,) distances to the visible side (inf = missed) and (n,) face numbers (slab method)."""
        heading = self._turned(directions)
        heading[np.abs(heading) < 1e-9] = 1e-9
        start = self._turned(origins_m - self.centre_m.astype(np.float32)[:, None])
        reach = np.copysign(self.half_m.astype(np.float32)[:, None], heading)
        far = (reach - start) / heading
        leave, leaving = _least(far)
        if self.is_room:
            return leave, _faces(leaving, heading, ahead=True)
        near = (-reach - start) / heading
        enter, entering = _least(-near)
        enter = -enter
        missed = (enter > leave) | (enter <= 0)
        enter[missed] = np.inf
        return enter, _faces(entering, heading, ahead=False)

    def brightness(self, points_m: Rays, faces: NDArray[np.int8]) -> Image:
        """Return (n,) texture brightness at (3, n) world points on the given faces; 0 where that is -1."""
        local = self._turned(points_m - self.centre_m.astype(np.float32)[:, None])
        out = np.zeros(points_m.shape[1], np.uint8)
        for number, (image, (corner, right, up, width)) in enumerate(
            zip(self._brightness, self._axes, strict=True)
        ):
            chosen = np.flatnonzero(faces == number)
            if not len(chosen):
                continue
            pixels_per_m = image.shape[1] / width
            axis_right, axis_up = int(np.argmax(np.abs(right))), int(np.argmax(np.abs(up)))
            column = (local[axis_right, chosen] - corner[axis_right]) * (right[axis_right] * pixels_per_m)
            row = (local[axis_up, chosen] - corner[axis_up]) * (-up[axis_up] * pixels_per_m)
            out[chosen] = image[
                np.clip(row.astype(np.int32), 0, image.shape[0] - 1),
                np.clip(column.astype(np.int32), 0, image.shape[1] - 1),
            ]
        return out

    def _turned(self, vectors: Rays) -> Rays:
        """Turn (3, n) world vectors into the box's axes. Written out: BLAS would wake threads for this."""
        cos, sin = np.float32(self.rotation[0, 0]), np.float32(self.rotation[1, 0])
        x, y, z = vectors
        return np.stack([cos * x + sin * y, cos * y - sin * x, z])


def _least(values: Rays) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return (n,) smallest of three rows and its row number."""
    x, y, z = values
    least, axis = np.minimum(x, y), (y < x).astype(np.int8)
    axis[z < least] = 2
    return np.minimum(least, z), axis


def _faces(axis: NDArray[np.int8], heading: Rays, *, ahead: bool) -> NDArray[np.int8]:
    """Return face numbers (2 * axis + 1 on the positive side), met ahead (room) or coming in (box)."""
    positive = (heading > 0) if ahead else (heading < 0)
    side = np.where(axis == 0, positive[0], np.where(axis == 1, positive[1], positive[2]))
    return np.asarray(2 * axis + side, np.int8)


class BoxScene:
    """A scene of boxes: ``boxes[0]`` is the room, the others stand in it without touching each other."""

    def __init__(self, boxes: list[Box]) -> None:
        self.boxes = boxes

    def surfaces(self, world_s: float) -> list[Surface]:  # noqa: ARG002 - others change with time
        """Return every face; the scene itself does not change with time."""
        return [face for box in self.boxes for face in box.faces]

    def cast(self, origins_m: NDArray[np.float32], directions: NDArray[np.float32]) -> Hits:
        """Follow rays to the nearest box in front of the room's walls."""
        room, *others = self.boxes
        origins, rays = np.ascontiguousarray(origins_m.T), np.ascontiguousarray(directions.T)
        nearest, faces = room.cast(origins, rays)
        owner = np.zeros(len(nearest), np.int8)
        middle = origins_m[len(origins_m) // 2].astype(np.float64)
        level = np.hypot(rays[0], rays[1])
        for number, box in enumerate(others, start=1):
            chosen = box.select(middle, rays, level)
            distance, face = box.cast(origins[:, chosen], rays[:, chosen])
            nearer = distance < nearest[chosen]
            chosen = chosen[nearer]
            nearest[chosen], faces[chosen], owner[chosen] = distance[nearer], face[nearer], number
        points = origins + nearest * rays
        brightness = room.brightness(points, np.where(owner == 0, faces, np.int8(-1)))
        for number, box in enumerate(others, start=1):
            mine = np.flatnonzero(owner == number)
            if len(mine):
                brightness[mine] = box.brightness(points[:, mine], faces[mine])
        return Hits(nearest, brightness)


_PLAIN: Image = np.full((16, 16, 3), 160, np.uint8)


def pyramid(image: Image) -> tuple[Image, ...]:
    """Return the image and its halvings down to 16 pixels, as long as sizes are even."""
    levels = [image]
    while True:
        height, width = levels[-1].shape[:2]
        if min(height, width) < 32 or height % 2 or width % 2:
            return tuple(levels)
        half = cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(half, np.uint8))


def rich_texture(
    rng: np.random.Generator, size_m: tuple[float, float], colour: tuple[int, int, int], pixels_per_m: int
) -> Image:
    """Paint a wall: cloudy base colour, joints of panels, and posters, so that corners and edges abound."""
    width, height = (max(16, round(side * pixels_per_m / 16) * 16) for side in size_m)
    noise = np.zeros((height, width), np.float32)
    for cell_m, strength in ((0.8, 0.13), (0.3, 0.10), (0.1, 0.09), (0.04, 0.08)):
        coarse = rng.standard_normal((max(2, int(size_m[1] / cell_m)), max(2, int(size_m[0] / cell_m))))
        noise += np.float32(strength) * cv2.resize(
            coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    image = np.asarray(colour, np.float32) * np.exp(noise)[..., None]
    canvas = np.ascontiguousarray(np.clip(image, 8, 247).astype(np.uint8))
    panel = max(12, round(0.75 * pixels_per_m))
    dark = tuple(int(0.55 * part) for part in colour)
    for x in range(panel, width, panel):
        cv2.line(canvas, (x, 0), (x, height), dark, max(1, pixels_per_m // 50))
    for y in range(panel, height, panel):
        cv2.line(canvas, (0, y), (width, y), dark, max(1, pixels_per_m // 50))
    for _ in range(int(3.0 * size_m[0] * size_m[1])):
        _poster(canvas, rng, pixels_per_m)
    return canvas


def _poster(canvas: Image, rng: np.random.Generator, pixels_per_m: int) -> None:
    height, width = canvas.shape[:2]
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    colour = tuple(int(part) for part in rng.integers(20, 236, 3))
    extent = int(pixels_per_m * rng.uniform(0.03, 0.22))
    kind = rng.integers(4)
    if kind == 0:
        cv2.circle(canvas, centre, extent // 2, colour, -1, cv2.LINE_AA)
    elif kind == 1:
        points = np.array(centre) + rng.uniform(-extent, extent, (3, 2))
        cv2.fillConvexPoly(canvas, points.astype(np.int32), colour, cv2.LINE_AA)
    else:
        end = (centre[0] + extent, centre[1] + int(extent * rng.uniform(0.3, 1.5)))
        cv2.rectangle(canvas, centre, end, colour, -1)
        if kind == 3:
            cv2.rectangle(canvas, centre, end, tuple(255 - part for part in colour), max(2, extent // 8))
