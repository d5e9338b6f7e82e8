"""What a topic of a recording of others is, and whether people are in it: by its type, its definition, its name.

Default deny: a topic is personal unless its full type is one that is known to hold nobody *and* nothing speaks
against it: a definition that holds more than the genuine one, colour in a cloud, a frame or a topic that makes a
position one on the globe. Depth is told from a 16-bit camera by topic, frame or encoding, never by the pixels'
format alone, in which thermal and infrared cameras deliver, too.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.drivers.frame import MessageSchema, Modality
from sensorium.sync.sources import known_types, ros_types
from sensorium.sync.sources.definitions import Field, UnreadableDefinitionError, fields_of


@dataclass(frozen=True, slots=True)
class Topic:
    """What a scan found out about a topic.

    Attributes:
        image_format: Of an image: pixel format or format text; "" = unknown.
        has_colour: A cloud's points carry colour; None = its fields could not be read.
        names_globe: A message names a frame of the globe, such as ``utm``.
    """

    name: str
    schema: MessageSchema
    frame_id: str = ""
    image_format: str = ""
    has_colour: bool | None = None
    names_globe: bool = False


@dataclass(frozen=True, slots=True)
class TopicKind:
    """``personal_because`` finishes the sentence "recorded as personal because"; "" = it is not personal."""

    modality: Modality
    personal_because: str


_DEPTH_PIXELS = frozenset({"16uc1", "32fc1", "mono16", "z16"})
_WORDS_OF_PICTURES = """
    image images img picture pictures photo thumbnail jpeg jpg png video pixels rgb bgr rgba bgra yuv h264 h265 hevc av1
    vp8 vp9 theora mjpeg webp face faces person persons people pedestrian pedestrians human humans skeleton gaze iris
    plate plates
"""
_WORDS_OF_SOUND = "audio microphone microphones mic sound pcm voice speech transcript utterance"
_WORDS_OF_PLACE = """
    lat lats latitude latitudes lon lons lng longitude longitudes ecef utm easting northing geohash wgs84 lla latlon
"""
_WORDS_OF_GLOBE = """
    gps gnss navsat latitude longitude lla latlon geo geodetic ecef utm wgs84 wgs rtk ublox novatel
"""
_WORDS_OF_CAMERAS = """
    ir infra infra1 infra2 infrared nir nearir lwir swir thermal flir boson lepton rgb color colour mono gray grey left
    right amplitude confidence
"""
_IN_FIELDS = (
    (Modality.CAMERA, "pictures", frozenset(_WORDS_OF_PICTURES.split())),
    (Modality.AUDIO, "sound", frozenset(_WORDS_OF_SOUND.split())),
    (Modality.GNSS, "positions on the globe", frozenset(_WORDS_OF_PLACE.split())),
)
_IN_TYPES = (
    (
        Modality.CAMERA,
        "video",
        frozenset({"theora", "h264", "h265", "hevc", "av1", "mjpeg", "video", "rgbd"}),
    ),
    (Modality.AUDIO, "sound", frozenset({"audio", "speech", "voice", "sound"})),
    (
        Modality.GNSS,
        "positions on the globe",
        frozenset({"gps", "gnss", "nmea", "geographic", "ublox", "novatel", "septentrio", "navsat"}),
    ),
    (Modality.EVENT_CAMERA, "what an event camera saw", frozenset({"dvs", "prophesee"})),
)
_GLOBE = frozenset(_WORDS_OF_GLOBE.split()) | frozenset(_WORDS_OF_PLACE.split())
_GLOBE_INSIDE = re.compile(
    r"^(?:gps|gnss|navsat|rtk|utm|ecef|wgs)|(?:gps|gnss|lla|llh|latlon|utm|ecef|wgs84)$"
)
"""In words that are written together, as ``positionlla``."""
_GLOBE_FRAMES = frozenset({"utm", "ecef", "wgs84", "wgs", "earth", "lla", "latlon", "geodetic"})
_NO_DEPTH = frozenset(_WORDS_OF_CAMERAS.split())
_DEPTH = re.compile(r"(?<![a-z])(depth|disparity)(?![a-z])|range_?(image|map)")
_DEPTH_OF = re.compile(r"depth_?(registered|to|aligned)")


def kind_of(topic: Topic) -> TopicKind:
    """Return what a topic is, and why it is personal if it is."""
    name = known_types.plain_name(topic.schema.name)
    last = known_types.last_name(topic.schema.name)
    if last in known_types.IMAGES and is_depth(topic.name, topic.frame_id, topic.image_format):
        return _checked(topic, TopicKind(Modality.DEPTH, ""), _image_fields(topic.schema))
    known = known_types.PERSONAL.get(
        last.lower().removesuffix("stamped"), known_types.PERSONAL.get(last.lower())
    )
    if known is not None:
        modality, what = known
        return TopicKind(modality, f"{topic.schema.name} holds {what}")
    harmless = known_types.HARMLESS.get(name)
    if harmless is None:
        return _unknown(topic)
    because = _colour(topic, last) or (_place(topic) if harmless.may_be_place else "")
    if because:
        is_place = harmless.may_be_place
        return TopicKind(Modality.GNSS if is_place else harmless.modality, because)
    return _checked(topic, TopicKind(_modality(harmless.modality, name, topic.name), ""), harmless.has_bytes)


def is_depth(topic: str, frame_id: str, image_format: str) -> bool:
    """Return whether an image is depth: its pixels could be, and the encoding, the topic or the frame says so.

    The last part of a topic that speaks decides: ``/depth_camera/ir/image_raw`` is a camera. A topic that speaks of
    another camera is believed before the frame, which infrared and depth images of one sensor share.
    """
    pixels = image_format.lower()
    if "compresseddepth" in pixels.replace(" ", "") or pixels == "z16":
        return True
    if pixels.partition(";")[0].strip() not in _DEPTH_PIXELS:
        return False
    for part in reversed(topic.split("/")):
        words = "_".join(_word_list(part))
        of_another = bool(_NO_DEPTH & _words(part)) and _DEPTH_OF.search(words) is None
        if of_another or _DEPTH.search(words) is not None:
            return not of_another
    words = "_".join(_word_list(frame_id))
    return _DEPTH.search(words) is not None and not _NO_DEPTH & _words(frame_id)


def _modality(modality: Modality, name: str, topic: str) -> Modality:
    """A raw LiDAR packet message also carries the LiDAR's IMU; only the topic tells them apart."""
    return Modality.IMU if name.endswith("/PacketMsg") and "imu" in topic.lower() else modality


def _image_fields(schema: MessageSchema) -> bool:
    return known_types.plain_name(schema.name).startswith(("sensor_msgs/", "foxglove."))


def _colour(topic: Topic, last: str) -> str:
    if last not in known_types.CLOUDS or topic.has_colour is False:
        return ""
    if topic.has_colour:
        return "its points carry colour, as a camera saw them"
    return "the fields of its points cannot be read, and may be colour"


def _place(topic: Topic) -> str:
    if topic.names_globe or _GLOBE_FRAMES & _words(topic.frame_id):
        return "its positions are in a frame of the globe"
    words = _words(topic.name)
    is_global = {"global", "position"} <= words  # MAVROS
    if is_global or _GLOBE & words or any(_GLOBE_INSIDE.search(word) for word in words):
        return "its topic's name says that its positions are on the globe"
    return ""


def _checked(topic: Topic, kind: TopicKind, has_bytes: bool) -> TopicKind:
    """Return ``kind``, or a personal one where the definition holds what a genuine one of that name does not."""
    type_name = topic.schema.name
    try:
        fields = fields_of(topic.schema)
    except UnreadableDefinitionError as err:
        return TopicKind(kind.modality, f"the definition of {type_name} cannot be read: {err}")
    found = _evidence(fields)
    if found is not None:
        return TopicKind(found[0], f"its {type_name} holds {found[1]}")
    blob = next((field for field in fields if field.is_blob), None)
    if blob is not None and not has_bytes:
        return TopicKind(kind.modality, f"its {type_name} holds bytes ({blob.name}) that may be anything")
    return kind


def _unknown(topic: Topic) -> TopicKind:
    type_name = topic.schema.name
    if not type_name:
        return TopicKind(Modality.OTHER, "it says nothing of what its messages are")
    try:
        fields: Sequence[Field] = fields_of(topic.schema)
    except UnreadableDefinitionError:
        fields = ()
    by_type = _of_words(_words(type_name), _IN_TYPES, "by its name")
    found = _evidence(fields) or by_type
    if found is not None:
        # Pictures somewhere inside make no camera: nobody could draw its messages.
        modality = by_type[0] if by_type is not None else found[0]
        is_camera = modality is Modality.CAMERA and by_type is None
        return TopicKind(Modality.OTHER if is_camera else modality, f"{type_name} holds {found[1]}")
    if type_name.endswith("MultiArray"):
        return TopicKind(Modality.OTHER, f"{type_name} holds rows of numbers that may be anything")
    blob = next((field for field in fields if field.is_blob), None)
    if blob is not None:
        return TopicKind(Modality.OTHER, f"{type_name} holds bytes ({blob.name}) that may be anything")
    return TopicKind(Modality.OTHER, f"{type_name} is unknown here, and what is unknown may show people")


def _evidence(fields: Sequence[Field]) -> tuple[Modality, str] | None:
    """Return what fields of a definition show: first by their types, then by their names."""
    for field in fields:
        last = known_types.last_name(field.type).lower()
        known = known_types.PERSONAL.get(last) if last != "string" or "/" in field.type else None
        if known is not None:
            return known[0], f"{known[1]} ({field.name}: {field.type})"
    for evidence in _IN_FIELDS:
        for field in fields:
            found = _of_words(_words(field.name), (evidence,), field.name)
            if found is not None:
                return found
    return None


def _of_words(
    words: frozenset[str], table: Sequence[tuple[Modality, str, frozenset[str]]], said: str
) -> tuple[Modality, str] | None:
    return next(((modality, f"{what} ({said})") for modality, what, known in table if known & words), None)


def _words(text: str) -> frozenset[str]:
    return frozenset(_word_list(text))


def _word_list(text: str) -> list[str]:
    """Return the words of a name in snake_case, camelCase or with other signs between them, in lower case."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    split = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", split)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", split) if word]


_COLOURS = (b"rgb", b"rgba", b"bgr", b"bgra", b"red", b"green", b"blue", b"color", b"colour")
_LETTERS = (b"r", b"g", b"b")


def _strings(names: Sequence[bytes], dialect: str) -> tuple[bytes, ...]:
    """Return how names of a cloud's fields stand in its bytes; () for an encoding that is not understood."""
    if dialect == ros_types.ROS1:
        return tuple(struct.pack("<I", len(name)) + name for name in names)
    if dialect == ros_types.CDR:
        sizes = [(order, len(name) + 1, name) for name in names for order in "<>"]
        return tuple(struct.pack(f"{order}I", size) + name + b"\0" for order, size, name in sizes)
    if dialect == "flatbuffer":
        return tuple(struct.pack("<I", len(name)) + name + b"\0" for name in names)
    if dialect == "protobuf":
        return tuple(b"\x0a" + bytes([len(name)]) + name for name in names)
    if dialect == "json":
        return tuple(b'"' + name + b'"' for name in names)
    return ()


_GLOBE_FRAME = re.compile(
    rb"(?:[\x03-\x20]\0\0\0|[\x0a\x12\x1a\x22\x2a][\x03-\x20]|\")/?(?:utm|ecef|wgs84|earth)(?![a-z])",
    re.IGNORECASE,
)
_HEAD_BYTES = 4096


def carries_colour(schema: MessageSchema, payload: bytes | memoryview) -> bool | None:
    """Return whether a cloud's fields are named like colour; None where its encoding is not understood.

    Names precede the points in all encodings but JSON and old ROS clouds, so of the others only the head is searched.
    """
    dialect = schema.message_encoding
    colours = _strings(_COLOURS, dialect)
    if not colours:
        return None
    is_old = known_types.plain_name(schema.name) == "sensor_msgs/PointCloud"
    is_anywhere = is_old or dialect in ("json", "flatbuffer")
    head = bytes(
        payload if is_anywhere else payload[:_HEAD_BYTES]
    ).lower()  # lengths of names stay as they are
    if any(name in head for name in colours):
        return True
    letters = [any(name in head for name in _strings((letter,), dialect)) for letter in _LETTERS]
    return all(letters)


def names_globe(payload: bytes | memoryview) -> bool:
    """Return whether a message of positions names a frame of the globe."""
    return _GLOBE_FRAME.search(payload) is not None
