"""Where every sensor of a rig is, as its calibration says: 4x4 transforms from one base frame."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError

Transform = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Transforms(Mapping[str, Transform]):
    """T_base_frame of every frame that the calibration joins with ``base``, by the name of the frame.

    A 4x4 float64 matrix maps points of the frame, in metres, into the base.
    """

    base: str
    _matrices: Mapping[str, Transform]

    def between(self, parent: str, child: str) -> Transform:
        """Return T_parent_child, which maps points of ``child`` into ``parent``.

        Raises:
            CalibrationError: If one of them is not among these.
        """
        for name in (parent, child):
            if name not in self._matrices:
                raise CalibrationError(f"no transform leads to {name!r}; there are: {', '.join(self)}")
        return np.asarray(np.linalg.inv(self[parent]) @ self[child], np.float64)

    def __getitem__(self, frame: str) -> Transform:
        return self._matrices[frame]

    def __iter__(self) -> Iterator[str]:
        return iter(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)

    def __repr__(self) -> str:
        return f"<Transforms from {self.base} to {', '.join(self)}>"


def transforms_of(calibration: RigCalibration, base: str | None = None) -> Transforms:
    """Return the transforms of a calibration.

    Args:
        base: None = the frame that is no other's child; of several the one that most frames are joined with.

    Raises:
        CalibrationError: If there is no such frame.
    """
    if base is not None and base not in calibration.frames:
        raise CalibrationError(
            f"the calibration has no frame {base!r}; it has: {', '.join(calibration.frames) or 'none'}"
        )
    root = _root(calibration) if base is None else base
    joined = {
        frame: calibration.transform(root, frame)
        for frame in calibration.frames
        if calibration.has_transform(root, frame)
    }
    return Transforms(root, joined)


def _root(calibration: RigCalibration) -> str:
    children = {edge.child for edge in calibration.edges}
    roots = [frame for frame in calibration.frames if frame not in children] or list(calibration.frames)
    if not roots:
        raise CalibrationError("the calibration has no frames")
    return max(
        roots, key=lambda root: sum(calibration.has_transform(root, frame) for frame in calibration.frames)
    )
