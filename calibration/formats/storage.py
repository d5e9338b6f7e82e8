"""YAML as OpenCV's FileStorage reads it: ``%YAML:1.0``, ``!!opencv-matrix``, ``key:value`` without a space.

Half of the visual-inertial programs keep their settings so. PyYAML takes what is YAML; what only OpenCV forgives
(no space behind a colon) goes through OpenCV.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from sensorium.bounded_yaml import BoundedLoader
from sensorium.calibration.formats.draft import read_text
from sensorium.errors import CalibrationError


class _Loader(BoundedLoader):
    """Takes matrices as arrays, and stamps as text."""


def _matrix(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Any:
    fields = loader.construct_mapping(node, deep=True)
    try:
        flat = np.asarray(fields["data"], np.float64)
        return flat.reshape(int(fields["rows"]), int(fields["cols"]))
    except (KeyError, TypeError, ValueError) as err:
        raise yaml.constructor.ConstructorError(
            None, None, f"a matrix needs rows, cols and as many numbers in data ({err})", node.start_mark
        ) from err


_Loader.add_constructor("tag:yaml.org,2002:opencv-matrix", _matrix)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_storage(path: Path) -> dict[str, Any]:
    """Return the mapping in a settings file; matrices are arrays.

    Raises:
        CalibrationError: If neither YAML nor OpenCV can make sense of it, or it is no mapping.
    """
    return parse_storage(read_text(path), path)


def parse_storage(text: str, path: Path) -> dict[str, Any]:
    """Return the mapping in a settings file's text; ``path`` names it in errors, see :func:`read_storage`.

    Raises:
        CalibrationError: If it is no FileStorage.
    """
    body = text.partition("\n")[2] if text.lstrip().startswith("%YAML") else text
    try:
        fields = next((each for each in yaml.load_all(body, Loader=_Loader) if each is not None), None)
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        fields = _by_opencv(body)
        if fields is None:
            raise CalibrationError(
                f"calibration file {path} is not YAML: {' '.join(str(err).split())[:200]}"
            ) from err
    if not isinstance(fields, dict):
        raise CalibrationError(
            f"calibration file {path}: a mapping was expected, found {type(fields).__name__}"
        )
    return {str(key): value for key, value in fields.items()}


def _by_opencv(body: str) -> Any:
    """Return what OpenCV makes of it; None if it cannot read it either."""
    try:
        flags = cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY
        storage = cv2.FileStorage("%YAML:1.0\n---\n" + body.replace("---\n", "", 1), flags)
        found = plain(storage.root())
        storage.release()
    except (cv2.error, SystemError, UnicodeDecodeError):  # the binding lets such slip on damage
        return None
    return found


def plain(node: Any) -> Any:
    """Return a node of a FileStorage as Python's own types, matrices as arrays; None for what is none of these."""
    if node.isInt() or node.isReal():
        return node.real()
    if node.isString():
        return node.string()
    if node.isSeq():
        return [plain(node.at(index)) for index in range(node.size())]
    if not node.isMap():
        return None
    keys = list(node.keys())
    if {"rows", "cols", "dt", "data"} <= set(keys):
        return node.mat()
    return {key: plain(node.getNode(key)) for key in keys}
