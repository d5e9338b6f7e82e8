"""What must be known of ROS messages without decoding them: header stamp and image format.

Layouts: ROS 1 serialisation (wiki.ros.org/msg: little endian, packed, strings with a u32 length) and CDR as
in OMG DDSI-RTPS 10 (4 byte encapsulation, members aligned to their size, strings with their terminating
zero).
"""

import re
import struct
from dataclasses import dataclass

from sensorium.timebase import SECOND_NS

ROS1 = "ros1"
CDR = "cdr"

_HEADER_FIELD = re.compile(r"(std_msgs/(msg/)?)?Header\s+\w+$")
_MAX_IDL_CHARACTERS = 1 << 20
_IDL_STRUCT = re.compile(r"\bstruct\s+(\w+)\s*\{")
_IDL_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|@\w+(\s*\((?:"(?:[^"\\]|\\.)*"|[^"()])*\))?', re.DOTALL)
_IDL_HEADER = re.compile(r"\s*std_msgs::msg::Header\s+\w+\s*;")
_HEADED_TYPES = frozenset(
    {"Image", "CompressedImage", "PointCloud2", "LaserScan", "Imu", "WrenchStamped", "NavSatFix"}
)


@dataclass(frozen=True, slots=True)
class Header:
    """A std_msgs/Header: its stamp and frame id, and where the next field begins in the message.

    ``stamp_ns`` is None where the two numbers are no time (a billion nanoseconds or more), 0 where it was not set.
    """

    stamp_ns: int | None
    frame_id: str
    end: int


def short_name(type_name: str) -> str:
    """Return ``Image`` for ``sensor_msgs/msg/Image`` and ``foxglove.Image``."""
    return re.split(r"[/.]", type_name)[-1]


def begins_with_header(type_name: str, definition: str) -> bool:
    """Return whether the message's first field is a std_msgs/Header; of a type without definition, as a guess."""
    if not definition:
        return short_name(type_name) in _HEADED_TYPES
    if _IDL_STRUCT.search(definition):
        return _idl_begins_with_header(short_name(type_name), definition)
    for line in definition.splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("==="):
            return False
        if text and "=" not in text:
            return _HEADER_FIELD.match(text) is not None
    return False


def _idl_begins_with_header(name: str, definition: str) -> bool:
    """Look at the first member of a struct of OMG IDL 4.2, past comments and annotations such as ``@verbatim``."""
    text = _IDL_NOISE.sub(" ", definition[:_MAX_IDL_CHARACTERS])
    for found in _IDL_STRUCT.finditer(text):
        if found[1] == name:
            return _IDL_HEADER.match(text, found.end()) is not None
    return False


def read_header(payload: bytes | memoryview, dialect: str) -> Header | None:
    """Return the header at the start of a serialised message, or None where the bytes cannot hold one."""
    order = _byte_order(payload, dialect)
    if order is None:
        return None
    at = 4  # after the sequence number (ROS 1) or the encapsulation (CDR)
    try:
        seconds, nanoseconds, length = struct.unpack_from(order + "III", payload, at)
    except struct.error:
        return None
    text_at = at + 12
    if text_at + length > len(payload):
        return None
    frame_id = bytes(payload[text_at : text_at + length]).rstrip(b"\0").decode("utf-8", "replace")
    stamp_ns = seconds * SECOND_NS + nanoseconds if nanoseconds < SECOND_NS else None
    return Header(stamp_ns, frame_id, text_at + length)


def read_image_format(
    payload: bytes | memoryview, dialect: str, header: Header
) -> tuple[int, int, str] | None:
    """Return (height, width, pixel format) of a sensor_msgs/Image, None where the bytes hold none."""
    order = _byte_order(payload, dialect)
    at = _after(header, dialect)
    try:
        height, width, length = struct.unpack_from(f"{order}III", payload, at)
    except struct.error:
        return None
    text = bytes(payload[at + 12 : at + 12 + length]).rstrip(b"\0")
    if length > 64 or not text.isascii():
        return None
    return height, width, text.decode("ascii")


def read_text(payload: bytes | memoryview, dialect: str, header: Header) -> str:
    """Return the string that follows the header, such as a CompressedImage's format; "" where there is none."""
    at = _after(header, dialect)
    try:
        (length,) = struct.unpack_from(f"{_byte_order(payload, dialect)}I", payload, at)
    except struct.error:
        return ""
    text = bytes(payload[at + 4 : at + 4 + min(length, 64)]).rstrip(b"\0")
    return text.decode("ascii") if text.isascii() else ""


def _after(header: Header, dialect: str) -> int:
    """Return where the field behind the header begins, aligned as numbers of 4 bytes are."""
    return header.end if dialect == ROS1 else 4 + (header.end - 4 + 3) // 4 * 4


def _byte_order(payload: bytes | memoryview, dialect: str) -> str | None:
    if dialect == ROS1:
        return "<"
    if dialect == CDR and len(payload) >= 4 and payload[0] == 0 and payload[1] in (0, 1):
        return "<" if payload[1] else ">"
    return None
