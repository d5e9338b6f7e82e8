"""The rig document: named frames, the transforms between them, intrinsics, and what was measured when.

Frame names equal ``StreamInfo.frame_id``. A document is a YAML file; its identity is the hash of what it says
about geometry, so a copy keeps it and any change of a number changes it.
"""

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from sensorium.calibration.geometry import Array, Intrinsics, inverse, nearest_rotation, rotation_angle
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.errors import CalibrationError

__all__ = ["Edge", "Intrinsics", "Loop", "Reference", "RigCalibration"]

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
            _require_rigid(edge)
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
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise CalibrationError(f"calibration file {path} cannot be read: {err}") from err
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, origin: str = "calibration") -> "RigCalibration":
        """Return the document of YAML text; ``origin`` names it in errors."""
        try:
            loaded = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as err:
            raise CalibrationError(f"calibration file {origin} is not YAML: {_one_line(err)}") from err
        try:
            document = _Document.model_validate(loaded)
        except ValidationError as err:
            raise CalibrationError(f"calibration file {origin}: {_explain(err)}") from err
        if document.format != FORMAT:
            raise CalibrationError(
                f"calibration file {origin}: format: found {document.format!r}, this reader knows {FORMAT!r}"
            )
        try:
            return document.to_calibration()
        except CalibrationError as err:
            raise CalibrationError(f"calibration file {origin}: {err}") from err

    def dump(self) -> str:
        """Return the YAML text; parsing it gives an equal document with the same id."""
        return yaml.dump(self._as_plain(), Dumper=_Dumper, sort_keys=False, width=140)

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
            "cameras": {name: _plain_camera(camera) for name, camera in sorted(self.cameras.items())},
            "transforms": [_plain_edge(edge) for edge in self.edges],
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
                section: {name: _plain_model(model) for name, model in sorted(getattr(self, section).items())}
                for section in ("imus", "force_torque", "microphones")
                if getattr(self, section)
            },
        }


def _require_rigid(edge: Edge) -> None:
    T, name = edge.T_parent_child, f"transform {edge.parent} -> {edge.child}"
    if T.shape != (4, 4) or not np.all(np.isfinite(T)):
        raise CalibrationError(f"{name}: needs a finite 4x4 matrix, found shape {T.shape}")
    if not np.array_equal(T[3], (0.0, 0.0, 0.0, 1.0)):
        raise CalibrationError(f"{name}: the last row must be 0 0 0 1, found {T[3].tolist()}")
    gap = float(np.abs(T[:3, :3] - nearest_rotation(T[:3, :3])).max())
    # Published calibrations carry 6-7 digits; a wrong matrix (transposed block, scaled) is off by far more.
    if gap > 1e-4:
        raise CalibrationError(f"{name}: the upper left 3x3 block is not a rotation (off by {gap:.2g})")
    if edge.covariance is not None and edge.covariance.shape != (6, 6):
        raise CalibrationError(f"{name}: covariance must be 6x6, found {edge.covariance.shape}")


def _plain_camera(camera: Intrinsics) -> dict[str, Any]:
    plain: dict[str, Any] = {"model": camera.model, "width": int(camera.width), "height": int(camera.height)}
    plain.update({name: float(getattr(camera, name)) for name in ("fx", "fy", "cx", "cy")})
    plain["distortion"] = [float(value) for value in camera.distortion]
    if camera.board_rms_px is not None:
        plain["board_rms_px"] = float(camera.board_rms_px)
    return plain


def _plain_edge(edge: Edge) -> dict[str, Any]:
    plain: dict[str, Any] = {"parent": edge.parent, "child": edge.child}
    plain["T_parent_child"] = [[float(value) for value in row] for row in edge.T_parent_child]
    if edge.covariance is not None:
        plain["covariance"] = [[float(value) for value in row] for row in edge.covariance]
    for name in ("source", "date"):
        if getattr(edge, name):
            plain[name] = getattr(edge, name)
    for name in ("board_rms_px", "time_offset_s"):
        if getattr(edge, name) is not None:
            plain[name] = float(getattr(edge, name))
    return plain


def _plain_model(model: ImuModel | Payload | MicrophoneArray) -> dict[str, Any]:
    """Return what is known of a sensor; what nobody measured is left out."""
    plain: dict[str, Any] = {}
    for each in fields(model):
        value = getattr(model, each.name)
        if isinstance(value, (tuple, np.ndarray)):
            value = np.asarray(value).tolist()
        if value not in (None, "", []):
            plain[each.name] = value
    return plain


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Camera(_Strict):
    model: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: list[float] = []
    board_rms_px: float | None = None


class _Transform(_Strict):
    parent: str
    child: str
    T_parent_child: list[list[float]]
    covariance: list[list[float]] | None = None
    source: str = ""
    date: str = ""
    board_rms_px: float | None = None
    time_offset_s: float | None = None


class _Reference(_Strict):
    check: str
    pair: str
    calibration_id: str
    mean: list[float]
    sigma: list[float]
    count: int
    correlation: list[list[float]] = []


_Three = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Imu(_Strict):
    gyro_bias_rad_s: _Three | None = None
    acc_bias_m_s2: _Three | None = None
    gyro_noise_rad_s: PositiveFloat | None = None
    acc_noise_m_s2: PositiveFloat | None = None
    gyro_walk_rad_s2: NonNegativeFloat | None = None
    acc_walk_m_s3: NonNegativeFloat | None = None
    source: str = ""
    date: str = ""

    def to_model(self) -> ImuModel:
        known = self.model_dump()
        for name in ("gyro_bias_rad_s", "acc_bias_m_s2"):
            known[name] = None if known[name] is None else tuple(known[name])
        return ImuModel(**known)


class _ForceTorque(_Strict):
    mass_kg: NonNegativeFloat = 0.0
    force_bias_n: _Three = [0.0] * 3
    centre_m: _Three = [0.0] * 3
    torque_bias_nm: _Three = [0.0] * 3
    holds: bool = False
    sigma: Annotated[list[float], Field(min_length=10, max_length=10)] = [0.0] * 10
    force_rms_n: float = 0.0
    torque_rms_nm: float = 0.0
    source: str = ""
    date: str = ""

    def to_model(self) -> Payload:
        known = self.model_dump()
        for name in ("force_bias_n", "centre_m", "torque_bias_nm", "sigma"):
            known[name] = np.array(known[name])
        return Payload(**known)


class _Microphones(_Strict):
    positions_m: list[_Three] = []
    polarity: list[Literal[-1, 1]] = []
    source: str = ""
    date: str = ""

    @model_validator(mode="after")
    def _one_each(self) -> "_Microphones":
        if self.polarity and self.positions_m and len(self.polarity) != len(self.positions_m):
            raise ValueError(f"{len(self.positions_m)} positions but {len(self.polarity)} polarities")
        return self

    def to_model(self) -> MicrophoneArray:
        positions = tuple((x, y, z) for x, y, z in self.positions_m)
        return MicrophoneArray(positions, tuple(self.polarity), self.source, self.date)


class _Document(_Strict):
    format: str
    rig: str = ""
    date: str = ""
    source: str = ""
    cameras: dict[str, _Camera] = {}
    transforms: list[_Transform] = []
    references: list[_Reference] = []
    imus: dict[str, _Imu] = {}
    force_torque: dict[str, _ForceTorque] = {}
    microphones: dict[str, _Microphones] = {}

    def to_calibration(self) -> RigCalibration:
        cameras = {}
        for name, camera in self.cameras.items():
            try:
                cameras[name] = Intrinsics(
                    **camera.model_dump(exclude={"distortion"}), distortion=tuple(camera.distortion)
                )
            except CalibrationError as err:
                raise CalibrationError(f"cameras.{name}: {err}") from err
        return RigCalibration(
            self.rig,
            self.date,
            self.source,
            cameras,
            tuple(_edge(index, edge) for index, edge in enumerate(self.transforms)),
            tuple(
                Reference(
                    **known.model_dump(exclude={"mean", "sigma", "correlation"}),
                    mean=tuple(known.mean),
                    sigma=tuple(known.sigma),
                    correlation=tuple(tuple(row) for row in known.correlation),
                )
                for known in self.references
            ),
            {name: imu.to_model() for name, imu in self.imus.items()},
            {name: sensor.to_model() for name, sensor in self.force_torque.items()},
            {name: array.to_model() for name, array in self.microphones.items()},
        )


def _edge(index: int, edge: _Transform) -> Edge:
    return Edge(
        edge.parent,
        edge.child,
        _matrix(edge.T_parent_child, 4, f"transforms[{index}].T_parent_child"),
        None if edge.covariance is None else _matrix(edge.covariance, 6, f"transforms[{index}].covariance"),
        edge.source,
        edge.date,
        edge.board_rms_px,
        edge.time_offset_s,
    )


def _matrix(rows: list[list[float]], size: int, key: str) -> Array:
    if len(rows) != size or any(len(row) != size for row in rows):
        raise CalibrationError(
            f"{key}: needs {size} rows of {size} numbers, found rows of {[len(row) for row in rows]}"
        )
    return np.array(rows, np.float64)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice and leaves dates as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """A safe dumper that writes lists of numbers on one line and floats with all their digits."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flow = all(isinstance(value, float) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    # YAML 1.1 reads "1e-05" as text; it wants a point in the mantissa.
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(float, _represent_float)


def _one_line(err: yaml.YAMLError) -> str:
    return " ".join(str(err).split())


_SECTIONS = (_Document, _Camera, _Transform, _Reference, _Imu, _ForceTorque, _Microphones)
_KEYS = {name for model in _SECTIONS for name in model.model_fields}


def _explain(err: ValidationError) -> str:
    """Return the first fault as ``key: what was found``, with the nearest known key for an unknown one."""
    # A misspelt key is both unknown and missing; the unknown spelling is what helps.
    fault = min(err.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ""
    for part in fault["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    if fault["type"] == "extra_forbidden":
        near = get_close_matches(str(fault["loc"][-1]), _KEYS, 1)
        return f"{key}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
    if fault["type"] == "missing":
        return f"{key}: missing"
    found = repr(fault["input"])
    found = found if len(found) < 80 else found[:77] + "..."
    return f"{key or 'document'}: {fault['msg'].lower()}, found {found}"
