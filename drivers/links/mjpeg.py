"""JPEG over HTTP: the multipart stream of network cameras."""

import base64
import contextlib
import http.client
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from sensorium.drivers.payloads.images import jpeg_extent
from sensorium.errors import DeviceError
from sensorium.masking import masked, masked_address, secrets_of, split_login

_MAX_HEADER_BYTES = 1 << 16
MAX_PART_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart stream; ``stamp_s`` is the sender's X-Timestamp header where it sends one."""

    body: bytes
    stamp_s: float | None


class MjpegStream:
    """A multipart stream of JPEG images over HTTP, as network cameras and ffmpeg's ``mpjpeg`` send it.

    The delimiter is taken from the body, not from the Content-Type header, because senders disagree with
    their own headers: ffmpeg says ``application/octet-stream``, others count the leading dashes twice.
    Redirects are not followed.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._label = masked_address(url)
        self._secrets = secrets_of(url)
        self._timeout_s = timeout_s
        self._buffer = bytearray()
        bare, login = split_login(url)
        parts = self._split(bare)
        is_safe = parts.scheme.lower() == "https"
        connection_type = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection
        self._connection = connection_type(parts.hostname or "", parts.port, timeout=timeout_s)
        headers = {"Accept": "multipart/x-mixed-replace, image/jpeg", "Connection": "close"}
        if login is not None:
            words = f"{login.user}:{login.password or ''}"
            headers["Authorization"] = "Basic " + base64.b64encode(words.encode()).decode()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._response: http.client.HTTPResponse | None = None
        try:
            self._connection.connect()
            self._socket: socket.socket = self._connection.sock
            self._connection.request("GET", path, headers=headers)
            self._response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as err:
            self._connection.close()
            raise DeviceError(
                f"camera {self._label}: no answer ({masked(str(err), self._secrets)}); check the address and that "
                "it is on"
            ) from err
        if self._response.status != 200:
            status, reason = self._response.status, masked(self._response.reason, self._secrets)
            self.close()
            hint = "put user:password@ into the URL" if status in (401, 403) else "check the path of the URL"
            raise DeviceError(f"camera {self._label}: answered {status} {reason}; {hint}")

    def parts(self) -> Iterator[Part]:
        """Yield each part as soon as its last byte is there.

        Raises:
            DeviceError: If the sender stops, goes silent for ``timeout_s``, or sends no multipart stream.
        """
        delimiter = self._delimiter()
        while True:
            headers = self._headers()
            length = headers.get("content-length", "")
            body = self._counted(int(length)) if length.isdecimal() else self._uncounted(delimiter)
            yield Part(body, _seconds(headers.get("x-timestamp", "")))
            self._skip_past(delimiter)

    def _split(self, address: str) -> SplitResult:
        try:
            parts = urlsplit(address)
            if parts.port != 0 and parts.hostname:
                return parts
        except ValueError:  # its text quotes the address
            pass
        raise DeviceError(
            f"camera {self._label}: no host and port can be read in this address; write http://user:password@host:"
            "port/path, with % codes for other signs in the password (%40 for @, %2F for /)"
        )

    def interrupt(self) -> None:
        """Wake a reader that waits in :meth:`parts`; may be called from another thread."""
        with contextlib.suppress(OSError):  # the peer may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def _delimiter(self) -> bytes:
        seen = 0
        while seen < _MAX_HEADER_BYTES:
            line = self._line()
            seen += len(line) + 2
            if line.startswith(b"--") and len(line) > 2:
                return line
            if line.startswith(b"\xff\xd8"):
                break
        raise DeviceError(
            f"camera {self._label}: sends no multipart stream of images; use the camera's MJPEG address"
        )

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        while line := self._line():
            key, _, value = line.decode("latin-1").partition(":")
            headers[key.strip().lower()] = value.strip()
            if len(headers) > 100:
                raise DeviceError(f"camera {self._label}: a part has more than 100 header lines; not MJPEG")
        return headers

    def _counted(self, length: int) -> bytes:
        if length > MAX_PART_BYTES:
            raise DeviceError(f"camera {self._label}: announces an image of {length} bytes; not believed")
        while len(self._buffer) < length:
            self._receive()
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _uncounted(self, delimiter: bytes) -> bytes:
        """Read up to the next delimiter, or to the end of a whole JPEG, which saves one frame of delay."""
        searched = 0
        while True:
            at = self._buffer.find(b"\n" + delimiter, searched)
            if at >= 0:
                body = bytes(self._buffer[:at]).removesuffix(b"\r")
                del self._buffer[: at + 1]
                return body
            if self._buffer.rstrip(b"\r\n").endswith(b"\xff\xd9"):
                extent = jpeg_extent(self._buffer)
                if extent is not None:
                    return self._counted(extent.length_bytes)
            searched = max(0, len(self._buffer) - len(delimiter) - 1)
            if len(self._buffer) > MAX_PART_BYTES:
                raise DeviceError(
                    f"camera {self._label}: an image has no end after {len(self._buffer)} bytes"
                )
            self._receive()

    def _skip_past(self, delimiter: bytes) -> None:
        """Drop bytes up to and with the next delimiter line; a wrong Content-Length is survived here."""
        skipped = 0
        while True:
            line = self._line()
            if line == delimiter:
                return
            if line == delimiter + b"--":
                raise DeviceError(f"camera {self._label}: ended its stream; it will be opened again")
            skipped += len(line)
            if skipped > MAX_PART_BYTES:
                raise DeviceError(f"camera {self._label}: lost the boundary between images")

    def _line(self) -> bytes:
        searched = 0
        while (at := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_PART_BYTES:
                raise DeviceError(f"camera {self._label}: lost the boundary between images")
            self._receive()
        line = bytes(self._buffer[:at]).removesuffix(b"\r")
        del self._buffer[: at + 1]
        return line

    def _receive(self) -> None:
        assert self._response is not None
        try:
            chunk = self._response.read1(1 << 16)
        except TimeoutError as err:
            raise DeviceError(
                f"camera {self._label}: silent for {self._timeout_s:g} s; check the camera and its network"
            ) from err
        except (OSError, ValueError, http.client.HTTPException) as err:
            raise DeviceError(
                f"camera {self._label}: connection lost ({masked(str(err), self._secrets)})"
            ) from err
        if not chunk:
            raise DeviceError(f"camera {self._label}: closed the connection; it will be opened again")
        self._buffer += chunk


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
