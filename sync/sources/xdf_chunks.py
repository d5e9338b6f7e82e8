"""The chunks of an XDF file (XDF 1.0, github.com/sccn/xdf/wiki/Specifications), as far as time is concerned.

Values are stepped over, never held. Every length is believed only as far as the bytes are there: pyxdf allocates
what a file claims.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from sensorium.errors import SourceError

MAGIC = b"XDF:"
_BOUNDARY = bytes.fromhex("43a546dccbf5410fb30ed5467383cbe4")
_HEADER, _SAMPLES, _OFFSET = 2, 3, 4
_VALUE_BYTES = {"float32": 4, "double64": 8, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "string": 0}
_MAX_HEADER_BYTES = 16 << 20
_MAX_STREAMS = 4096
_MAX_STAMP_S = 1e12
_NAMED = 5


@dataclass(slots=True)
class RawStream:
    """One stream's header and its times in file order, in seconds of the sender's clock."""

    number: int
    name: str
    kind: str
    host: str
    channels: int
    value_bytes: int
    rate_hz: float
    stamp_s: list[float] = field(default_factory=list)
    offset_at_s: list[float] = field(default_factory=list)
    offset_s: list[float] = field(default_factory=list)


class _MalformedError(Exception):
    """A chunk that contradicts itself."""


def read_chunks(path: Path) -> tuple[list[RawStream], tuple[str, ...]]:
    """Return the streams in the order of their headers, and what could not be read, in sentences.

    A damaged chunk is left out, and reading goes on behind the next boundary mark, as pyxdf does.

    Raises:
        SourceError: If the file cannot be read, or is no XDF file.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise SourceError(f"{path}: not an XDF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except (OSError, ValueError) as err:
        raise SourceError(f"{path}: cannot be read as XDF: {err}") from err


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._streams: dict[int, RawStream] = {}
        self._problems: list[str] = []

    def read(self) -> tuple[list[RawStream], tuple[str, ...]]:
        at = len(MAGIC)
        while at < len(self._data):
            try:
                start, end = self._extent(at)
                self._take(start, end)
                at = end
            except _MalformedError as err:
                self._problems.append(f"the chunk at byte {at} is left out: {err}")
                mark = self._data.find(_BOUNDARY, at + 1)
                if mark < 0:
                    break
                at = mark + len(_BOUNDARY)
        return list(self._streams.values()), tuple(self._told())

    def _told(self) -> Iterator[str]:
        yield from self._problems[:_NAMED]
        if len(self._problems) > _NAMED:
            yield f"{len(self._problems) - _NAMED} more chunks are damaged and left out"

    def _extent(self, at: int) -> tuple[int, int]:
        """Return where a chunk's tag begins and where the chunk ends."""
        length, start = self._length(at, len(self._data))
        if length < 2 or start + length > len(self._data):
            left = len(self._data) - start
            raise _MalformedError(f"it claims {length} bytes, and {left} follow")
        return start, start + length

    def _length(self, at: int, end: int) -> tuple[int, int]:
        """Return a number of variable length, and where it ends."""
        size = self._data[at] if at < end else 0
        if size not in (1, 4, 8) or at + 1 + size > end:
            raise _MalformedError(f"byte {at} begins no length")
        return int.from_bytes(self._data[at + 1 : at + 1 + size], "little"), at + 1 + size

    def _take(self, start: int, end: int) -> None:
        tag = int.from_bytes(self._data[start : start + 2], "little")
        if tag not in (_HEADER, _SAMPLES, _OFFSET):
            return
        at = start + 6
        if at > end:
            raise _MalformedError("it ends before the number of its stream")
        number = int.from_bytes(self._data[start + 2 : at], "little")
        if tag == _HEADER:
            self._take_header(number, self._data[at : min(end, at + _MAX_HEADER_BYTES)])
            return
        stream = self._streams.get(number)
        if stream is None:
            raise _MalformedError(f"stream {number} has no header before it")
        if tag == _SAMPLES:
            stream.stamp_s += self._samples(stream, at, end)
        elif end - at != 16:
            raise _MalformedError(f"a clock offset of {end - at} bytes")
        else:
            moment_s, offset_s = struct.unpack_from("<dd", self._data, at)
            if not (abs(moment_s) < _MAX_STAMP_S and abs(offset_s) < _MAX_STAMP_S):
                raise _MalformedError("a clock offset that is no time")
            stream.offset_at_s.append(moment_s)
            stream.offset_s.append(offset_s)

    def _take_header(self, number: int, xml: bytes) -> None:
        if b"<!" in xml.replace(b"<!--", b""):
            raise _MalformedError("its description declares entities")
        try:
            info = ElementTree.fromstring(xml.decode("utf-8", "replace"))
            channels = int(float(info.findtext("channel_count") or 0))
            rate_hz = float(info.findtext("nominal_srate") or 0.0)
        except (ElementTree.ParseError, ValueError, OverflowError) as err:
            raise _MalformedError(f"its description cannot be read: {err}") from err
        form = info.findtext("channel_format") or ""
        if form not in _VALUE_BYTES or not 0 <= channels <= 1 << 20 or not 0 <= rate_hz < 1e9:
            raise _MalformedError(f"{channels} channels of {form[:20]!r} at {rate_hz} Hz are no stream")
        if len(self._streams) >= _MAX_STREAMS:
            raise _MalformedError(f"more than {_MAX_STREAMS} streams")
        name, kind, host = (info.findtext(key) or "" for key in ("name", "type", "hostname"))
        self._streams[number] = RawStream(number, name, kind, host, channels, _VALUE_BYTES[form], rate_hz)

    def _samples(self, stream: RawStream, at: int, end: int) -> list[float]:
        """Return the stamps of a chunk; a sample without one follows the last by the nominal period."""
        count, at = self._length(at, end)
        if count > end - at:
            raise _MalformedError(f"it claims {count} samples in {end - at} bytes")
        period_s = 1.0 / stream.rate_hz if stream.rate_hz else 0.0
        last_s = stream.stamp_s[-1] if stream.stamp_s else 0.0
        stamps: list[float] = []
        for _ in range(count):
            if at >= end or self._data[at] not in (0, 8):
                raise _MalformedError(f"byte {at} begins no sample")
            if self._data[at]:
                if at + 9 > end:
                    raise _MalformedError("it ends inside a stamp")
                (last_s,) = struct.unpack_from("<d", self._data, at + 1)
                at += 9
            else:
                last_s += period_s
                at += 1
            if not abs(last_s) < _MAX_STAMP_S:
                raise _MalformedError("a stamp is no time")
            stamps.append(last_s)
            at = self._after_values(stream, at, end)
        return stamps

    def _after_values(self, stream: RawStream, at: int, end: int) -> int:
        if stream.value_bytes:
            at += stream.value_bytes * stream.channels
        else:
            for _ in range(stream.channels):
                length, at = self._length(at, end)
                at += length
        if at > end:
            raise _MalformedError("a sample goes beyond its end")
        return at


def without_values(streams: list[RawStream]) -> bytes:
    """Return an XDF file of the same headers, stamps and offsets, its samples of one byte."""
    parts = [MAGIC, _chunk(1, b"<?xml version='1.0'?><info><version>1.0</version></info>")]
    for stream in streams:
        number = struct.pack("<I", stream.number)
        header = (
            f"<info><name>{escape(stream.name)}</name><type>{escape(stream.kind)}</type><channel_count>1</channel_count>"
            f"<nominal_srate>{stream.rate_hz!r}</nominal_srate><channel_format>int8</channel_format>"
            f"<created_at>0</created_at><hostname>{escape(stream.host)}</hostname></info>"
        )
        parts.append(_chunk(_HEADER, number + header.encode("utf-8", "replace")))
        rows = b"".join(b"\x08" + struct.pack("<db", stamp_s, 0) for stamp_s in stream.stamp_s)
        if rows:
            parts.append(_chunk(_SAMPLES, number + b"\x08" + struct.pack("<Q", len(stream.stamp_s)) + rows))
        for at_s, offset_s in zip(stream.offset_at_s, stream.offset_s, strict=True):
            parts.append(_chunk(_OFFSET, number + struct.pack("<dd", at_s, offset_s)))
    return b"".join(parts)


def _chunk(tag: int, content: bytes) -> bytes:
    return b"\x08" + struct.pack("<QH", 2 + len(content), tag) + content
