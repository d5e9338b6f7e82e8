"""Reads the payloads of one stream; the door behind :mod:`sensorium.sync.decoding` for our own encodings."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.payload import AS_STORED, Buffer, Cloud, Floats, Pixels, Restore, View
from sensorium.drivers.payloads.samples import ColumnReader
from sensorium.drivers.payloads.table import payload_check, payload_of, plain_of
from sensorium.errors import PayloadError, SensoriumError

DAMAGE = (SensoriumError, ValueError, LookupError, ArithmeticError, TypeError, OSError, struct.error)
"""What damaged or hostile bytes make a decoder raise."""


@contextmanager
def reading(info: StreamInfo) -> Iterator[None]:
    """Turn what a decoder raises at bytes that it cannot read into a ``PayloadError`` that names the stream."""
    try:
        yield
    except DAMAGE as err:
        raise _complaint(info, err) from err


def _complaint(info: StreamInfo, err: Exception) -> PayloadError:
    return (
        err
        if isinstance(err, PayloadError)
        else PayloadError(f"a frame of {info.name} does not decode: {err}")
    )


class Decoder:
    """Restores and decodes the frames of one stream, given in order.

    Attributes:
        info: The stream as a reader sees it: of a coded stream the plain declaration.
    """

    def __init__(self, info: StreamInfo) -> None:
        """Look the encoding up.

        Raises:
            ConfigError: If the encoding is unknown.
            PayloadError: If the declaration lacks what decoding needs.
        """
        self._coded = info
        self._restorer = payload_of(info).restorer
        self._restore: Restore | None = None
        self.info = plain_of(info)
        self._row = payload_of(self.info)
        self._columns = ColumnReader(self.info) if self.info.encoding == Encoding.COLUMNS else None
        with reading(info):
            self._check = payload_check(self.info)
            self._samples = None if self._row.samples is None else self._row.samples(self.info)

    def plain(self, payload: Buffer, count: int) -> Buffer:
        """Return the payload in the plain encoding.

        Raises:
            PayloadError: If it does not restore, or has not the size of so many samples.
        """
        if self._restorer is None:
            self._check(payload, count)
            return payload
        with reading(self.info):
            if (
                self._restore is None
            ):  # its library is asked for by the first frame, and missed by that stream only
                self._restore = self._restorer(self._coded)
            plain = self._restore(payload, count)
            self._check(plain, count)
            return plain

    def skip(self, payload: Buffer, count: int) -> None:
        """Pass over a frame that nobody wants to see: of video it must be decoded all the same."""
        if payload_of(self._coded).is_chained:
            with suppress(PayloadError):
                self.plain(payload, count)

    def pixels(self, payload: Buffer, view: View = AS_STORED) -> Pixels:
        """Return (H, W) grey or (H, W, 3) BGR pixels of the payload's own depth, as stored.

        Raises:
            PayloadError: If the stream holds no images, or the payload is damaged.
        """
        decode = self._row.pixels
        if decode is None:
            raise PayloadError(f"{self.info.name}: encoding {self.info.encoding} is not an image")
        with reading(self.info):
            return decode(self.info, self.plain(payload, 1), view)

    def cloud(self, payload: Buffer) -> Cloud:
        """Return the returns of a LiDAR's frame.

        Raises:
            PayloadError: If the stream holds no clouds, or the payload is damaged.
        """
        decode = self._row.cloud
        if decode is None:
            raise PayloadError(f"{self.info.name}: encoding {self.info.encoding} is not a point cloud")
        with reading(self.info):
            return decode(self.info, self.plain(payload, 1))

    def samples(self, payload: Buffer, count: int) -> Floats | None:
        """Return (count, columns) physical values, audio in full scales; None for other streams.

        Raises:
            PayloadError: If the payload does not hold so many samples.
        """
        if self._samples is None:
            return None
        try:
            return self._samples(self.plain(payload, count), count)
        except DAMAGE as err:
            raise _complaint(self.info, err) from err

    def columns(self, payload: Buffer, count: int) -> tuple[NDArray[Any], ...]:
        """Return each column's (count,) raw numbers in their order, exact; physical = raw * scale.

        Raises:
            PayloadError: If the stream has no columns, or the payload does not hold so many samples.
        """
        if self._columns is None:
            raise PayloadError(f"{self.info.name}: encoding {self.info.encoding} has no columns")
        return self._columns.raw(self.plain(payload, count), count)
