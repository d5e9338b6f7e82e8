"""The YAML form of a rig calibration: its keys, how they are checked, how numbers are written."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from sensorium.calibration.edges import Edge, Reference
from sensorium.calibration.geometry import Array, Intrinsics
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.errors import CalibrationError
from sensorium.wording import in_words


def plain_camera(camera: Intrinsics) -> dict[str, Any]:
    plain: dict[str, Any] = {"model": camera.model, "width": int(camera.width), "height": int(camera.height)}
    plain.update({name: float(getattr(camera, name)) for name in ("fx", "fy", "cx", "cy")})
    plain["distortion"] = [float(value) for value in camera.distortion]
    if camera.board_rms_px is not None:
        plain["board_rms_px"] = float(camera.board_rms_px)
    return plain


def plain_edge(edge: Edge) -> dict[str, Any]:
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


def plain_model(model: ImuModel | Payload | MicrophoneArray) -> dict[str, Any]:
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
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Camera(_Strict):
    model: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: list[float] = []
    board_rms_px: NonNegativeFloat | None = None


class _Transform(_Strict):
    parent: str
    child: str
    T_parent_child: list[list[float]]
    covariance: list[list[float]] | None = None
    source: str = ""
    date: str = ""
    board_rms_px: NonNegativeFloat | None = None
    time_offset_s: float | None = None


class _Reference(_Strict):
    check: str
    pair: str
    calibration_id: str
    mean: list[float]
    sigma: list[NonNegativeFloat]
    count: NonNegativeInt
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
    sigma: Annotated[list[NonNegativeFloat], Field(min_length=10, max_length=10)] = [0.0] * 10
    force_rms_n: NonNegativeFloat = 0.0
    torque_rms_nm: NonNegativeFloat = 0.0
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


class Document(_Strict):
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

    def intrinsics(self) -> dict[str, Intrinsics]:
        """Return the cameras by frame.

        Raises:
            CalibrationError: If one is no camera; names it.
        """
        cameras = {}
        for name, camera in self.cameras.items():
            try:
                cameras[name] = Intrinsics(
                    **camera.model_dump(exclude={"distortion"}), distortion=tuple(camera.distortion)
                )
            except CalibrationError as err:
                raise CalibrationError(f"cameras.{name}: {err}") from err
        return cameras

    def edges(self) -> tuple[Edge, ...]:
        """Return the transforms."""
        return tuple(_edge(index, edge) for index, edge in enumerate(self.transforms))

    def known_references(self) -> tuple[Reference, ...]:
        """Return the fingerprints of pairs."""
        return tuple(
            Reference(
                **known.model_dump(exclude={"mean", "sigma", "correlation"}),
                mean=tuple(known.mean),
                sigma=tuple(known.sigma),
                correlation=tuple(tuple(row) for row in known.correlation),
            )
            for known in self.references
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


class RigDumper(yaml.SafeDumper):
    """A safe dumper that writes lists of numbers on one line and floats with all their digits."""


def represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flow = all(isinstance(value, float) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)


def represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    # YAML 1.1 reads "1e-05" as text; it wants a point in the mantissa.
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def one_line(err: yaml.YAMLError | ValueError | RecursionError) -> str:
    return " ".join(str(err).split())


_SECTIONS = (Document, _Camera, _Transform, _Reference, _Imu, _ForceTorque, _Microphones)
_KEYS = {name for model in _SECTIONS for name in model.model_fields}


def explain(err: ValidationError) -> str:
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
    return f"{key or 'document'}: {in_words(fault, key)}"
