"""ROS: ``camera_info`` YAML (also the flat ``D: K:`` form) and fixed joints of a URDF (read and write).

Frames: a camera is called by its ``camera_name``, else by the file's name. If a file says where the camera
stands (``rectification_matrix`` turned, or a shift in ``projection_matrix``), its parent is the frame
``rectified``: x along the baseline, the origin at the first camera (``P[3] = -fx * b``). Links of a URDF keep
their names; ``rpy`` is about fixed axes (R = Rz Ry Rx) and the origin is the pose of the child in the parent.

A message holds the whole sensor's K; its binning and region of interest say which part the images are. They are
applied as ROS does it, so that intrinsics are those of the images: cx less the region's offset, then all by the binning
(a shift of half a full pixel between the two grids is left aside there, and here).

Source: sensor_msgs/CameraInfo, camera_calibration_parsers, image_geometry (PinholeCameraModel), and the URDF
specification (joint).
"""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import yaml

from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats.draft import (
    Draft,
    field_of,
    in_frames,
    list_of,
    read_documents,
    read_text,
    size_of,
)
from sensorium.calibration.formats.lens_words import note_no_distortion, stated_model
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    difference,
    inverse,
    rotation_angle,
    rotation_from_rpy,
    rpy_from_rotation,
    transform,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict

RECTIFIED = "rectified"
_XACRO = re.compile(r"\{https?://(www\.)?ros\.org/wiki/xacro\}|xacro:")
URDF_FILE = "rig.urdf"
_WRITTEN = {
    "pinhole": "plumb_bob",
    "radtan": "plumb_bob",
    "rational": "rational_polynomial",
    "equidistant": "equidistant",
}


def read(path: Path | str, findings: list[Verdict] | None = None) -> RigCalibration:
    """Read one camera_info file, one URDF, or a folder of both.

    In a folder the URDF says where cameras stand; what the projection matrices say must agree with it.

    Raises:
        CalibrationError: With the file and what it lacks.
    """
    path = Path(path)
    draft = Draft(path, findings)
    files = files_in(path, "*.urdf") + yaml_files(path) if path.is_dir() else [path]
    if not files:
        raise draft.error("no .urdf and no .yaml in this folder")
    mounts: list[tuple[str, Array]] = []
    for file in files:
        draft.path = file
        if file.suffix in (".urdf", ".xml", ".xacro"):
            _read_urdf(draft)
            continue
        if path.is_dir() and "!!opencv-matrix" in read_text(file):
            continue  # a FileStorage, which has tags of its own
        others = frozenset(draft.cameras)
        for fields in read_documents(file):
            if not path.is_dir() or is_camera_info(fields):
                mounts += _read_camera_info(draft, fields, others)
    draft.path = path
    add_mounts(draft, mounts)
    return draft.finish(rig="ros")


def add_mounts(draft: Draft, mounts: list[tuple[str, Array]]) -> None:
    """Add what projection matrices say of mounts (:func:`mount_of`), unless a URDF joins the cameras; then compare."""
    # Of a pair the left camera may say nothing: it is the origin. Of others, silence is no place.
    is_pair = len(mounts) == 2 and any(_stands(T) for _, T in mounts)
    mounts = [(name, T) for name, T in mounts if is_pair or _stands(T)]
    if not draft.edges or len(mounts) < 2:
        for name, T_rectified_camera in mounts:
            draft.add_edge(RECTIFIED, name, T_rectified_camera)
        return
    known = RigCalibration(edges=tuple(draft.edges))
    (first, T_first), *others = mounts
    for name, T in others:
        if not known.has_transform(first, name):
            draft.add_edge(first, name, inverse(T_first) @ T)
            continue
        gap = difference(inverse(T_first) @ T, known.transform(first, name))
        rotation_deg, distance_m = np.rad2deg(np.linalg.norm(gap[:3])), float(np.linalg.norm(gap[3:]))
        if rotation_deg > 0.2 or distance_m > 0.01:
            sentence = (
                f"the projection matrices and the URDF disagree by {rotation_deg:.2f} deg, "
                f"{distance_m * 100:.1f} cm; the URDF was taken: export both from one calibration"
            )
            draft.note("loop_closure", f"{first}~{name}", Status.FAILED, sentence)


def yaml_files(folder: Path) -> list[Path]:
    """Return the YAML files of a folder, by either suffix in any case."""
    return [file for file in files_in(folder, "*") if file.suffix.lower() in (".yaml", ".yml")]


def is_camera_info(fields: dict[str, Any]) -> bool:
    """Return whether a YAML mapping looks like a camera_info file, or like a message as a topic echo prints it."""
    is_flat = {"D", "K"} <= fields.keys() or {"d", "k"} <= fields.keys()
    is_ours = isinstance(fields.get("camera_matrix"), dict) or "distortion_coefficients" in fields
    return ("camera_matrix" in fields and "image_width" in fields and is_ours) or is_flat


def _with_ros1_names(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with D K R P in capitals; ROS 2 prints them small."""
    if not {"d", "k"} <= fields.keys():
        return fields
    return {key.upper() if key in ("d", "k", "r", "p") else key: value for key, value in fields.items()}


def _read_camera_info(
    draft: Draft, fields: dict[str, Any], others: frozenset[str]
) -> list[tuple[str, Array]]:
    """Add a camera, return its mount; ``others`` are those of other files."""
    if not is_camera_info(fields):
        raise draft.error("neither camera_matrix with image_width nor D and K: not a camera_info file")
    fields = _with_ros1_names(fields)
    is_flat = "K" in fields
    name = _own_name(draft, fields, others)
    is_repeated = name in draft.cameras  # an echo prints message after message
    size_keys = ("width", "height") if "width" in fields else ("image_width", "image_height")
    width, height = (field_of(fields, key, draft) for key in size_keys)
    K = draft.numbers(
        _entries(fields["K" if is_flat else "camera_matrix"], draft, "camera_matrix"), 9, "camera matrix"
    )
    if not np.any(K):
        raise draft.error(
            f"camera {name} was not calibrated when this was written: its camera matrix is all zeros"
        )
    size = size_of(width, height, draft, "image size")
    given = fields.get("D" if is_flat else "distortion_coefficients")
    if given is None:
        note_no_distortion(draft, name)
    D = [] if given is None else list_of(_entries(given, draft, "distortion_coefficients"), draft, "D")
    K, size = _as_delivered(draft, name, fields, K.reshape(3, 3), size)
    draft.add_camera(name, stated_model(fields, draft, name, D), K, size, D)
    R = _optional(fields, ("R",) if is_flat else ("rectification_matrix",), 9, draft)
    P = _optional(fields, ("P",) if is_flat else ("projection_matrix",), 12, draft)
    return [] if is_repeated else mount_of(draft, name, R, P)


def _own_name(draft: Draft, fields: dict[str, Any], others: frozenset[str]) -> str:
    """Return what a camera is called; two that the calibrator called alike go by their files."""
    header = fields.get("header")
    frame = header.get("frame_id") if isinstance(header, dict) else None
    name = str(fields.get("camera_name") or frame or draft.path.stem)
    own = draft.path.stem
    if name not in others or own in others:
        return name
    draft.note(
        "repeated_camera",
        own,
        Status.OK,
        f"{draft.path.name} is called {name} as another file is: {own} was taken",
    )
    return own


def _entries(values: Any, draft: Draft, what: str) -> Any:
    """Return the numbers of a matrix: those in its ``data``, or the list or rows that it is itself."""
    found = field_of(values, "data", draft, what) if isinstance(values, dict) else values
    is_rows = isinstance(found, list) and found and all(isinstance(row, list) for row in found)
    return [each for row in found for each in row] if is_rows else found


def _as_delivered(
    draft: Draft, name: str, fields: dict[str, Any], K: Array, size: tuple[int, int]
) -> tuple[Array, tuple[int, int]]:
    """Return camera matrix and size of the images, not of the whole sensor, with a remark where they differ."""
    roi = fields.get("roi")
    region = [_whole(draft, roi if isinstance(roi, dict) else {}, key) for key in _ROI]
    bins = [max(1, _whole(draft, fields, key)) for key in ("binning_x", "binning_y")]
    x, y, width, height = region
    width, height = width or size[0], height or size[1]
    if (bins, x, y, (width, height)) == ([1, 1], 0, 0, size):
        return K, size
    if x + width > size[0] or y + height > size[1]:
        raise draft.error(
            f"region of interest {width}x{height} at {x},{y} of camera {name} reaches beyond its {size[0]}x{size[1]} px"
        )
    found = np.diag((1 / bins[0], 1 / bins[1], 1.0)) @ (K - np.array([[0, 0, x], [0, 0, y], [0, 0, 0]]))
    delivered = size_of(width // bins[0], height // bins[1], draft, f"binned image size of {name}")
    sentence = (
        f"binning {bins[0]}x{bins[1]} and the region {width}x{height} at {x},{y} of {size[0]}x{size[1]} px are "
        f"applied: these are the intrinsics of images of {delivered[0]}x{delivered[1]} px"
    )
    draft.note("region", name, Status.OK, sentence)
    return found, delivered


_ROI = ("x_offset", "y_offset", "width", "height")


def _whole(draft: Draft, fields: dict[str, Any], key: str) -> int:
    """Return a number that is whole and not negative; 0 where it is not given."""
    value = fields.get(key)
    if value is None:
        return 0
    number = float(draft.numbers([value], 1, key)[0])
    if number < 0 or number != int(number):
        raise draft.error(f"{key} must be a whole number from 0, found {value!r}")
    return int(number)


def mount_of(draft: Draft, name: str, R: Array | None, P: Array | None) -> list[tuple[str, Array]]:
    """Return a camera's place in the frame ``rectified`` by its rectification and projection; none without them.

    Args:
        R: Nine numbers, rectified axes of the camera's. P: twelve, of the rectified image (metres).

    Raises:
        CalibrationError: If the projection has no inverse.
    """
    T = np.eye(4)
    if R is not None:
        T[:3, :3] = draft.rotation(R, f"rectification of {name}")
    if P is not None and P.reshape(-1)[0] > 0:
        projection = P.reshape(3, 4)
        try:
            T[:3, 3] = -np.linalg.solve(projection[:, :3], projection[:, 3])
        except np.linalg.LinAlgError as err:
            raise draft.error(f"projection matrix of {name} has no inverse: {P.tolist()}") from err
    return [(name, T)] if R is not None or P is not None else []


def _stands(T: Array) -> bool:
    return rotation_angle(T[:3, :3]) > 1e-9 or float(np.abs(T[:3, 3]).max()) > 1e-9


def _optional(fields: dict[str, Any], keys: tuple[str, ...], count: int, draft: Draft) -> Array | None:
    for key in keys:
        if fields.get(key) is not None:
            return draft.numbers(_entries(fields[key], draft, key), count, key)
    return None


def _read_urdf(draft: Draft) -> None:
    text = read_text(draft.path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise draft.error("a URDF with a DOCTYPE is not read; remove it")
    try:
        root = Xml.fromstring(text)
    except Xml.ParseError as err:
        raise draft.error(f"not XML: {err}") from err
    if root.tag != "robot":
        raise draft.error(f"a <robot> was expected, found <{root.tag}>")
    _require_expanded(draft, root)
    parents: dict[str, str] = {}
    for joint in root.iter("joint"):
        name, kind = joint.get("name", "?"), joint.get("type", "")
        parent, child = (
            element.get("link") if (element := joint.find(tag)) is not None else None
            for tag in ("parent", "child")
        )
        if parent is None or child is None:
            continue  # a joint named inside a transmission
        if parents.setdefault(child, parent) != parent:
            sentence = (
                f"{child} hangs at {parents[child]} and at {parent} (joint {name}): a URDF is a tree, and ROS keeps "
                "one of them; remove the joint that is wrong"
            )
            draft.note("two_parents", f"{parent}~{child}", Status.FAILED, sentence)
        if kind != "fixed":
            sentence = (
                f"joint {name} is {kind or 'of no type'}, not fixed: left out; its frames may not be joined"
            )
            draft.note("moving_joint", f"{parent}~{child}", Status.OK, sentence)
            continue
        origin = joint.find("origin")
        xyz, rpy = (
            draft.numbers(
                (origin.get(key) or "0 0 0").split() if origin is not None else (0, 0, 0), 3, f"{name} {key}"
            )
            for key in ("xyz", "rpy")
        )
        if float(np.abs(rpy).max()) > 2 * np.pi:
            draft.note(
                "degrees",
                f"{parent}~{child}",
                Status.FAILED,
                f"rpy of joint {name} is {' '.join(f'{value:g}' for value in rpy)}: more than a turn, so in "
                "degrees; a URDF takes radians: multiply by pi / 180",
            )
        draft.add_edge(parent, child, transform(rotation_from_rpy(*rpy), xyz))


def _require_expanded(draft: Draft, root: Xml.Element) -> None:
    """Raise where xacro has still to do something that decides on links and joints."""
    advice = "xacro that was not expanded; run xacro on it first (xacro FILE > rig.urdf)"
    for element in root.iter():
        tag = str(element.tag)
        if _XACRO.match(tag) and tag.rpartition("}")[2] not in ("property", "arg"):
            raise draft.error(f"it holds <xacro:{tag.rpartition('}')[2]}>, {advice}")
    for joint in root.iter("joint"):
        ends = [str(end.get("link")) for tag in ("parent", "child") if (end := joint.find(tag)) is not None]
        for element in (joint, *joint.findall("origin"), *joint.findall("parent"), *joint.findall("child")):
            for key, value in element.items():
                if "${" in value or "$(" in value:
                    which = f"joint {joint.get('name', '?')} ({' and '.join(ends)})"
                    raise draft.error(f"{which} has {key}={value!r}: {advice}")


def write_urdf(calibration: RigCalibration, path: Path | str) -> tuple[str, ...]:
    """Write all transforms as fixed joints of one tree.

    Returns:
        One sentence for each thing that the format cannot carry.

    Raises:
        CalibrationError: If there is no transform, or the frames fall into parts that nothing joins.
    """
    if not calibration.edges:
        raise CalibrationError("a URDF holds transforms; the calibration has none")
    children = {edge.child for edge in calibration.edges}
    root = next((edge.parent for edge in calibration.edges if edge.parent not in children), None)
    root = root if root is not None else calibration.edges[0].parent
    robot = Xml.Element("robot", name=calibration.rig or "rig")
    reached, waiting = {root}, [root]
    joints = []
    while waiting:
        at = waiting.pop(0)
        for edge in calibration.edges:
            for near, far in ((edge.parent, edge.child), (edge.child, edge.parent)):
                if near == at and far not in reached:
                    reached.add(far)
                    waiting.append(far)
                    T = edge.T_parent_child if near == edge.parent else inverse(edge.T_parent_child)
                    joints.append((near, far, T))
    joined = {name for edge in calibration.edges for name in (edge.parent, edge.child)}
    apart = sorted(joined - reached)
    if apart:
        raise CalibrationError(f"a URDF is one tree; nothing joins {root} and {', '.join(apart)}")
    for name in [root, *(far for _, far, _ in joints)]:
        Xml.SubElement(robot, "link", name=name)
    for near, far, T in joints:
        joint = Xml.SubElement(robot, "joint", name=f"{near}_to_{far}", type="fixed")
        Xml.SubElement(joint, "parent", link=near)
        Xml.SubElement(joint, "child", link=far)
        Xml.SubElement(joint, "origin", xyz=_words(T[:3, 3]), rpy=_words(rpy_from_rotation(T[:3, :3])))
    Xml.indent(robot)
    Path(path).write_text(
        Xml.tostring(robot, encoding="unicode", xml_declaration=True) + "\n", encoding="utf-8"
    )
    notes = [
        f"left out, the format has no place for it: intrinsics of {', '.join(sorted(calibration.cameras))}"
    ]
    extra = len(calibration.edges) - len(joints)
    if extra:
        notes.append(f"left out, a URDF is a tree: {extra} transforms that close a loop")
    return tuple(notes if calibration.cameras else notes[1:])


def _words(values: Array) -> str:
    return " ".join(repr(float(value)) for value in values)


def write(calibration: RigCalibration, path: Path | str) -> tuple[str, ...]:
    """Write a folder: one ``<camera>.yaml`` per camera, and ``rig.urdf`` if there are transforms.

    Exactly two cameras that a transform joins are written as a stereo pair, rectified: the camera that sees
    the other on its right (or, stacked, below) is the first.

    Returns:
        One sentence for each thing that the format cannot carry.

    Raises:
        CalibrationError: If there is nothing to write, or the folder cannot be made.
    """
    folder = Path(path)
    cameras = {name: camera for name, camera in calibration.cameras.items() if camera.model in _WRITTEN}
    if not cameras and not calibration.edges:
        raise CalibrationError(
            "nothing to write: the calibration has no transform and no camera whose lens camera_info has a model for"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise CalibrationError(f"{folder} cannot be made a folder: {err}") from err
    rectified = _rectified(calibration) if len(cameras) == len(calibration.cameras) else {}
    for name, camera in cameras.items():
        R, P = rectified.get(name, (np.eye(3), np.hstack([camera.K, np.zeros((3, 1))])))
        document = _camera_info(name, camera, R, P)
        (folder / f"{_file_name(name)}.yaml").write_text(
            yaml.safe_dump(document, sort_keys=False, width=140), encoding="utf-8"
        )
    notes: tuple[str, ...] = ()
    if calibration.edges:
        notes = tuple(
            note for note in write_urdf(calibration, folder / URDF_FILE) if "intrinsics" not in note
        )
    else:
        notes = in_frames(calibration, tuple(calibration.cameras))
    return notes + tuple(
        f"left out, the format has no such lens model: {name} ({camera.model})"
        for name, camera in calibration.cameras.items()
        if name not in cameras
    )


def _file_name(name: str) -> str:
    return name.replace("/", "_").lstrip(".") or "camera"


def _camera_info(name: str, camera: Intrinsics, R: Array, P: Array) -> dict[str, Any]:
    count = {"pinhole": 5, "radtan": 5}.get(camera.model, len(camera.distortion))
    coefficients = np.array([(*camera.distortion, *(0.0,) * count)[:count]])
    return {
        "image_width": camera.width,
        "image_height": camera.height,
        "camera_name": name,
        "camera_matrix": _matrix(camera.K),
        "distortion_model": _WRITTEN[camera.model],
        "distortion_coefficients": _matrix(coefficients),
        "rectification_matrix": _matrix(R),
        "projection_matrix": _matrix(P),
    }


def _matrix(values: Array) -> dict[str, Any]:
    rows, columns = values.shape
    return {"rows": rows, "cols": columns, "data": [float(value) for value in values.reshape(-1)]}


def _rectified(calibration: RigCalibration) -> dict[str, tuple[Array, Array]]:
    """Return R and P of each camera of a stereo pair; nothing for other rigs."""
    names = sorted(calibration.cameras)
    if len(names) != 2 or not calibration.has_transform(*names):
        return {}
    first, second = names
    T = calibration.transform(first, second)
    if float(np.linalg.norm(T[:3, 3])) < 1e-4:
        return {}
    axis = int(np.argmax(np.abs(T[:2, 3])))
    if T[axis, 3] < 0:
        first, second, T = second, first, inverse(T)
    if abs(T[2, 3]) > abs(T[axis, 3]):
        return {}  # one behind the other: no common image plane
    along = T[:3, 3] / np.linalg.norm(T[:3, 3])
    ahead = T[:3, 2] + (0.0, 0.0, 1.0)
    ahead = ahead - (ahead @ along) * along
    ahead = ahead / np.linalg.norm(ahead)
    rows = [along, np.cross(ahead, along), ahead] if axis == 0 else [np.cross(along, ahead), along, ahead]
    R_first = np.array(rows)
    f = min(calibration.cameras[name].f_px for name in names)
    centre = np.mean([[calibration.cameras[name].cx, calibration.cameras[name].cy] for name in names], axis=0)
    P_first = np.array([[f, 0, centre[0], 0], [0, f, centre[1], 0], [0, 0, 1.0, 0]])
    P_second = P_first.copy()
    P_second[axis, 3] = -f * float(np.linalg.norm(T[:3, 3]))
    return {first: (R_first, P_first), second: (R_first @ T[:3, :3], P_second)}
