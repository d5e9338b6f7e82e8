"""The one table of encodings, and what follows from it: sizes, rates, checks of declarations and payloads.

A new encoding is a module of this folder with ``ROWS``, named in ``_MODULES``; a plain one also needs its place in
an episode (``sync/episode/layouts.py``). A module that packs names its ``CODECS``. Looking up is cheap: modules
import OpenCV and the libraries of codecs where they use them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads import (
    audio,
    clouds,
    columns,
    depth,
    flac,
    images,
    range_image,
    samples,
    video,
)
from sensorium.drivers.payloads.codec import CODEC_SOURCE, Codec
from sensorium.drivers.payloads.payload import Buffer, Payload
from sensorium.errors import ConfigError, PayloadError

_MODULES: tuple[ModuleType, ...] = (images, samples, audio, clouds, range_image, columns, depth, flac, video)
_FOREIGN = Payload(Encoding.MESSAGE)
"""Messages of somebody else's schema; read by :mod:`sensorium.sync.decoding`."""

TABLE: Mapping[str, Payload] = {
    row.encoding: row for row in (_FOREIGN, *(row for module in _MODULES for row in module.ROWS))
}

CODECS: Mapping[str, Codec] = {
    codec.name: codec for module in _MODULES for codec in getattr(module, "CODECS", ())
}
"""By their name in the rig file."""

DEFAULTS: Mapping[str, Codec] = {
    encoding: codec for codec in CODECS.values() for encoding in codec.default_for
}
"""By encoding: what packs it where neither the rig file nor the device's options say anything."""


def payload_of(info: StreamInfo) -> Payload:
    """Return the row of a stream's encoding.

    Raises:
        ConfigError: If the encoding is unknown.
    """
    row = TABLE.get(info.encoding)
    if row is None:
        raise ConfigError(f"stream {info.name}: encoding {info.encoding!r} has no place in an episode")
    return row


def plain_of(info: StreamInfo) -> StreamInfo:
    """Return the declaration of what a reader sees: the stream itself, or what a coded one restores to."""
    return replace(info, encoding=info.restores_to, restores_to="") if info.restores_to else info


def packed_as(info: StreamInfo, encoding: str) -> StreamInfo:
    """Return the declaration of a plain stream whose payloads are now packed as ``encoding``.

    Raises:
        ConfigError: If there is no such encoding, or it does not restore to the stream's.
    """
    row = TABLE.get(encoding)
    is_coded = row is not None and row.restorer is not None
    packed = replace(info, encoding=encoding, restores_to=info.encoding if is_coded else "")
    check_stream(packed)
    return packed


def check_stream(info: StreamInfo) -> None:
    """Check that a declaration has what its payloads' layout needs.

    Raises:
        ConfigError: If the encoding is unknown or does not restore to what is said, a shape is missing, or one
            sample does not fit ``max_payload_bytes``.
    """
    row = payload_of(info)
    if info.restores_to and info.restores_to not in row.restores:
        known = ", ".join(sorted(row.restores)) or "nothing, it is plain"
        raise ConfigError(
            f"stream {info.name}: {info.encoding!r} does not restore to {info.restores_to!r}, but to {known}"
        )
    if row.restores and not info.restores_to:
        raise ConfigError(f"stream {info.name}: {info.encoding!r} must say what encoding it restores to")
    plain = payload_of(plain_of(info))
    plain.check_stream(info)
    if plain.sample_bytes is not None and plain.sample_bytes(info) > info.max_payload_bytes:
        raise ConfigError(
            f"stream {info.name}: one sample has {plain.sample_bytes(info)} bytes, "
            f"more than its max_payload_bytes of {info.max_payload_bytes}"
        )


def payload_check(info: StreamInfo) -> Callable[[Buffer, int], None]:
    """Return what checks the payloads of a stream against their count of samples; made once, called per frame.

    It raises ``PayloadError``. Of coded payloads only their restorer can tell.
    """
    row = payload_of(info)
    if row.sample_bytes is not None:
        sample_bytes = row.sample_bytes(info)

        def check(payload: Buffer, count: int) -> None:
            if len(payload) != count * sample_bytes:
                raise PayloadError(
                    f"a frame of {info.name} has {len(payload)} bytes, "
                    f"its {count} samples need {count * sample_bytes}"
                )

    else:
        granule_bytes = row.granule_bytes

        def check(payload: Buffer, count: int) -> None:  # noqa: ARG001
            if len(payload) % granule_bytes:
                raise PayloadError(
                    f"a frame of {info.name} has {len(payload)} bytes, expected a multiple of {granule_bytes}"
                )

    return check


def driver_bytes(info: StreamInfo) -> Callable[[Buffer, int], int]:
    """Return what tells how large a payload was when the driver gave it, before a codec packed it in the host.

    Made once per stream, called with a payload and its count of samples. What is damaged counts as it is.
    """
    source = info.details.get(CODEC_SOURCE)
    if source is None or source not in TABLE:
        return lambda payload, _count: len(payload)
    told_bytes = payload_of(info).plain_bytes
    each_bytes = sample_bytes(replace(info, encoding=source, restores_to=""))

    def find(payload: Buffer, count: int) -> int:
        try:
            size = told_bytes(payload)
        except PayloadError:
            size = None
        if size is None:
            size = None if each_bytes is None else count * each_bytes
        return len(payload) if size is None else size

    return find


def is_compressed(info: StreamInfo) -> bool:
    """Return whether payloads are compressed already, so that files store them as they are."""
    if info.schema is not None:
        return "Compressed" in info.schema.name
    return payload_of(info).is_compressed


def sample_bytes(info: StreamInfo) -> int | None:
    """Return the bytes of one sample of a plain payload; None where they vary or the declaration does not tell.

    Asked of whatever a driver declares: what is wrong with it, :func:`check_stream` says.
    """
    row = TABLE.get(info.plain_encoding)
    if row is None or row.sample_bytes is None:
        return None
    try:
        row.check_stream(info)
    except ConfigError:
        return None
    return row.sample_bytes(info)


def largest_payload_bytes(info: StreamInfo, count: int = 1) -> int:
    """Return the bound of a plain payload of ``count`` samples that follows from shape and columns.

    Where none follows it is what the stream declares.
    """
    size = sample_bytes(info)
    if size is not None:
        return count * size
    row = TABLE.get(info.plain_encoding)
    return info.max_payload_bytes if row is None or row.largest_bytes is None else row.largest_bytes(info)


def declared_bytes_per_s(info: StreamInfo) -> float:
    """Return what a stream may bring by its declaration; 0 for aperiodic streams.

    Exact for columns, PCM and raw images, which a codec makes smaller only; of others every message is taken to
    be as large as the stream allows.
    """
    size = sample_bytes(info)
    return info.rate_hz * size if size is not None else info.message_rate_hz * info.max_payload_bytes
