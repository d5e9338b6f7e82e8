"""The rig document: named frames, the transforms between them, intrinsics, and what was measured when.

Frame names equal ``StreamInfo.frame_id``. A document is a YAML file; its identity is the hash of what it says
about geometry, so a copy keeps it and any change of a number changes it.
"""

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import (
    ValidationError,
)

from sensorium.bounded_yaml import StrictLoader, read_yaml_text
from sensorium.calibration.edges import FORMAT, Edge, Loop, Reference, require_rigid
from sensorium.calibration.geometry import Array, Intrinsics, inverse, rotation_angle
from sensorium.calibration.rig_yaml import (
    Document,
    RigDumper,
    explain,
    one_line,
    plain_camera,
    plain_edge,
    plain_model,
    represent_float,
    represent_list,
)
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.errors import CalibrationError

__all__ = ["Edge", "Intrinsics", "Loop", "Reference", "RigCalibration"]


def _not_ours(origin: str, what: str) -> str:
    return (
        f"calibration file {origin} is none of ours ({what}): expected the key format: {FORMAT}; "
        f"convert it with `sensorium calibration convert {origin} calibration.yaml`"
    )


@dataclass(frozen=True, slots=True, eq=False)
class RigCalibration:
    """Everything known about where the sensors of a rig are, how its cameras project, what its sensors read.

    ``imus``, ``force_torque`` and ``microphones`` go by frame, as ``cameras`` do.
    """

    rig: str = ""
    date: str = ""
    source: str = ""
    cameras: Mapping[str, Intrinsics] = field(default_factory=dict)
    edges: tuple[Edge, ...] = ()
    references: tuple[Reference, ...] = ()
    imus: Mapping[str, ImuModel] = field(default_factory=dict)
    force_torque: Mapping[str, Payload] = field(default_factory=dict)
    microphones: Mapping[str, MicrophoneArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for edge in self.edges:
            require_rigid(edge)
        seen: set[frozenset[str]] = set()
        for edge in self.edges:
            ends = frozenset((edge.parent, edge.child))
            if len(ends) == 1 or ends in seen:
                raise CalibrationError(
                    f"transform {edge.parent} -> {edge.child} is given twice or joins a frame with itself"
                )
            seen.add(ends)

    @classmethod
    def load(cls, path: Path | str) -> "RigCalibration":
        """Read a rig document.

        Raises:
            CalibrationError: With file, key and what was found.
        """
        path = Path(path)
        try:
            text = read_yaml_text(path)
        except (OSError, UnicodeDecodeError) as err:
            raise CalibrationError(f"calibration file {path} cannot be read: {err}") from err
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, origin: str = "calibration") -> "RigCalibration":
        """Return the document of YAML text; ``origin`` names it in errors.

        Raises:
            CalibrationError: With ``origin``, the key and what was found there.
        """
        try:
            loaded = yaml.load(text, Loader=StrictLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as err:
            if text.startswith("%YAML:"):
                raise CalibrationError(_not_ours(origin, "an OpenCV FileStorage")) from err
            raise CalibrationError(f"calibration file {origin} is not YAML: {one_line(err)}") from err
        if not isinstance(loaded, dict) or "format" not in loaded:
            what = (
                f"with the keys {', '.join(map(str, list(loaded)[:4]))}"
                if isinstance(loaded, dict)
                else "no mapping"
            )
            raise CalibrationError(_not_ours(origin, what))
        try:
            document = Document.model_validate(loaded)
        except ValidationError as err:
            raise CalibrationError(f"calibration file {origin}: {explain(err)}") from err
        if document.format != FORMAT:
            raise CalibrationError(
                f"calibration file {origin}: format: found {document.format!r}, this reader knows {FORMAT!r}"
            )
        try:
            return cls(
                document.rig,
                document.date,
                document.source,
                document.intrinsics(),
                document.edges(),
                document.known_references(),
                {name: imu.to_model() for name, imu in document.imus.items()},
                {name: sensor.to_model() for name, sensor in document.force_torque.items()},
                {name: array.to_model() for name, array in document.microphones.items()},
            )
        except CalibrationError as err:
            raise CalibrationError(f"calibration file {origin}: {err}") from err

    def dump(self) -> str:
        """Return the YAML text; parsing it gives an equal document with the same id."""
        return yaml.dump(self._as_plain(), Dumper=RigDumper, sort_keys=False, width=140)

    def save(self, path: Path | str) -> None:
        """Write the document as YAML."""
        Path(path).write_text(self.dump(), encoding="utf-8")

    @property
    def calibration_id(self) -> str:
        """12 hex digits of the SHA-256 of names, intrinsics and transforms.

        References do not change it, nor do biases and noise, which drift: it tells whether the geometry is the same.
        """
        plain = self._as_plain()
        content = {
            "cameras": plain["cameras"],
            "transforms": sorted(plain["transforms"], key=lambda edge: (edge["parent"], edge["child"])),
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def frames(self) -> tuple[str, ...]:
        """Names of all frames, sorted."""
        names = {name for edge in self.edges for name in (edge.parent, edge.child)}
        return tuple(sorted(names | set(self.cameras)))

    def camera(self, name: str) -> Intrinsics:
        """Return the intrinsics of a camera frame.

        Raises:
            CalibrationError: If the document has none for it.
        """
        try:
            return self.cameras[name]
        except KeyError:
            known = ", ".join(sorted(self.cameras)) or "none"
            raise CalibrationError(
                f"no intrinsics for camera {name!r}; the calibration has: {known}"
            ) from None

    def transform(self, parent: str, child: str) -> Array:
        """Return ``T_parent_child`` along the shortest path of known transforms.

        Raises:
            CalibrationError: If a frame is unknown or no path joins the two.
        """
        path = self.path(parent, child)
        T = np.eye(4)
        for start, end in pairwise(path):
            T = T @ self._step(start, end)
        return T

    def has_transform(self, parent: str, child: str) -> bool:
        """Return whether both frames are known and joined."""
        try:
            self.path(parent, child)
        except CalibrationError:
            return False
        return True

    def with_transform(
        self, parent: str, child: str, T_parent_child: Array, source: str, date: str = ""
    ) -> "RigCalibration":
        """Return a copy in which this pair's transform is replaced or added."""
        ends = {parent, child}
        kept = tuple(edge for edge in self.edges if {edge.parent, edge.child} != ends)
        return replace(self, edges=(*kept, Edge(parent, child, T_parent_child, None, source, date)))

    def with_reference(self, reference: Reference) -> "RigCalibration":
        """Return a copy with this fingerprint in place of an earlier one of the same check and pair."""
        kept = tuple(
            known
            for known in self.references
            if (known.check, known.pair) != (reference.check, reference.pair)
        )
        return replace(self, references=(*kept, reference))

    def reference(self, check: str, pair: str) -> Reference | None:
        """Return the fingerprint of a check and pair, if it was taken under this very calibration."""
        for known in self.references:
            if (known.check, known.pair, known.calibration_id) == (check, pair, self.calibration_id):
                return known
        return None

    def loops(self) -> tuple[Loop, ...]:
        """Return one loop per transform beyond a spanning tree, and how well each closes."""
        tree, extra = self._spanning_tree()
        found = []
        for edge in extra:
            path = tree.path(edge.parent, edge.child)
            gap = tree.transform(edge.parent, edge.child) @ inverse(edge.T_parent_child)
            found.append(Loop(path, rotation_angle(gap[:3, :3]), float(np.linalg.norm(gap[:3, 3]))))
        return tuple(found)

    def _spanning_tree(self) -> tuple["RigCalibration", list[Edge]]:
        groups = {name: {name} for name in self.frames}
        kept, extra = [], []
        for edge in self.edges:
            if groups[edge.parent] is groups[edge.child]:
                extra.append(edge)
                continue
            kept.append(edge)
            joined = groups[edge.parent] | groups[edge.child]
            for name in joined:
                groups[name] = joined
        return replace(self, edges=tuple(kept)), extra

    def _step(self, start: str, end: str) -> Array:
        for edge in self.edges:
            if (edge.parent, edge.child) == (start, end):
                return edge.T_parent_child
            if (edge.child, edge.parent) == (start, end):
                return inverse(edge.T_parent_child)
        raise CalibrationError(f"no transform joins {start!r} and {end!r}")

    def path(self, start: str, end: str) -> tuple[str, ...]:
        """Return the frames from one to the other over the fewest transforms, both ends included.

        Raises:
            CalibrationError: If a frame is unknown or nothing joins the two.
        """
        known = self.frames
        for name in (start, end):
            if name not in known:
                raise CalibrationError(
                    f"frame {name!r} is not in the calibration; it has: {', '.join(known)}"
                )
        neighbours: dict[str, list[str]] = {name: [] for name in known}
        for edge in self.edges:
            neighbours[edge.parent].append(edge.child)
            neighbours[edge.child].append(edge.parent)
        came_from: dict[str, str] = {start: start}
        queue = deque([start])
        while queue and end not in came_from:
            name = queue.popleft()
            for other in neighbours[name]:
                if other not in came_from:
                    came_from[other] = name
                    queue.append(other)
        if end not in came_from:
            raise CalibrationError(f"no chain of transforms joins {start!r} and {end!r}")
        path = [end]
        while path[-1] != start:
            path.append(came_from[path[-1]])
        return tuple(reversed(path))

    def _as_plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "rig": self.rig,
            "date": self.date,
            "source": self.source,
            "cameras": {name: plain_camera(camera) for name, camera in sorted(self.cameras.items())},
            "transforms": [plain_edge(edge) for edge in self.edges],
            "references": [
                {
                    "check": reference.check,
                    "pair": reference.pair,
                    "calibration_id": reference.calibration_id,
                    "mean": [float(value) for value in reference.mean],
                    "sigma": [float(value) for value in reference.sigma],
                    "count": reference.count,
                    **(
                        {"correlation": [[float(value) for value in row] for row in reference.correlation]}
                        if reference.correlation
                        else {}
                    ),
                }
                for reference in self.references
            ],
            **{
                section: {name: plain_model(model) for name, model in sorted(getattr(self, section).items())}
                for section in ("imus", "force_torque", "microphones")
                if getattr(self, section)
            },
        }


RigDumper.add_representer(list, represent_list)
RigDumper.add_representer(float, represent_float)
