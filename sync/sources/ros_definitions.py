"""Definitions of ROS types that a recording lacks: those of the common packages are known to the rosbags library."""

from functools import lru_cache
from typing import Any

from sensorium.drivers.frame import MessageSchema
from sensorium.sync.sources import ros_types

_STORES = {
    ros_types.ROS1: (("ROS1_NOETIC", "ROS 1 Noetic"),),
    ros_types.CDR: (("ROS2_HUMBLE", "ROS 2 Humble"), ("LATEST", "the latest ROS 2")),
}
_SYNTAX = {ros_types.ROS1: ("ros1msg", 1), ros_types.CDR: ("ros2msg", 2)}


def is_library_here() -> bool:
    """Return whether definitions can be looked up at all."""
    try:
        import rosbags.typesys  # noqa: F401
    except ImportError:
        return False
    return True


def filled_in(schema: MessageSchema) -> tuple[MessageSchema, str] | None:
    """Return a schema with the definition that its recording lacks, and whose definition that is; None if unknown."""
    if schema.encoding or schema.data or schema.message_encoding not in _STORES or not is_library_here():
        return None
    for store, words in _STORES[schema.message_encoding]:
        text = _definition(store, schema.name, _SYNTAX[schema.message_encoding][1])
        if text is not None:
            syntax = _SYNTAX[schema.message_encoding][0]
            return MessageSchema(schema.message_encoding, schema.name, syntax, text.encode()), words
    return None


@lru_cache(maxsize=256)
def _definition(store: str, type_name: str, version: int) -> str | None:
    package, _, name = type_name.partition("/")
    if not name:
        return None
    normal = f"{package}/msg/{name.removeprefix('msg/')}"
    known = _store(store)
    if normal not in known.fielddefs:
        return None
    text: str = known.generate_msgdef(normal, ros_version=version)[0]
    return text


@lru_cache(maxsize=4)
def _store(name: str) -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores[name])
