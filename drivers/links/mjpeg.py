"""JPEG over HTTP: the multipart stream of network cameras."""

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

from sensorium.drivers.links.http_login import authorization, challenges
from sensorium.drivers.payloads.images import jpeg_extent
from sensorium.errors import DeviceError
from sensorium.masking import Login, masked, masked_address, secrets_of, split_login

_MAX_HEADER_BYTES = 1 << 16
MAX_PART_BYTES = 64 << 20
_LOGIN_TRIES = 2
_PART_HEADER = re.compile(rb"(content|x)-[a-z0-9-]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart stream; ``stamp_s`` is the sender's X-Timestamp header where it sends one."""

    body: bytes
    stamp_s: float | None


class MjpegStream:
    """A multipart stream of JPEG images over HTTP, as network cameras and ffmpeg's ``mpjpeg`` send it.

    The delimiter is taken from the body, because senders disagree with their own headers: ffmpeg says
    ``application/octet-stream``, others count the leading dashes twice, or send none. What the Content-Type header
    announces only helps where the body begins with the headers of a part. Redirects are not followed.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        """Connect; logs in where the server asks for it, with the login in ``url``.

        Raises:
            DeviceError: If there is no answer, or another than a stream.
        """
        self._label = masked_address(url)
        self._secrets = secrets_of(url)
        self._timeout_s = timeout_s
        self._buffer = bytearray()
        self._delimiter = b""
        bare, self._login = split_login(url)
        self._address = self._split(bare)
        self._request({})
        if self._login is not None and self._is_locked():
            self._log_in(self._login)
        if self._response.status != 200:
            status, reason = self._response.status, masked(self._response.reason, self._secrets)
            self.close()
            raise DeviceError(f"camera {self._label}: answered {status} {reason}; {self._hint(status)}")
        announced = self._response.headers.get_param("boundary")
        self._announced = announced.strip(' "').lstrip("-").encode() if isinstance(announced, str) else b""

    def _request(self, headers: dict[str, str]) -> None:
        address = self._address
        is_safe = address.scheme.lower() == "https"
        connection_type = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection
        self._connection = connection_type(address.hostname or "", address.port, timeout=self._timeout_s)
        asked = {"Accept": "multipart/x-mixed-replace, image/jpeg", "Connection": "close", **headers}
        try:
            self._connection.connect()
            self._socket: socket.socket = self._connection.sock
            self._connection.request("GET", self._uri, headers=asked)
            self._response: http.client.HTTPResponse = self._connection.getresponse()
        except (OSError, ValueError, http.client.HTTPException) as err:
            self._connection.close()
            raise DeviceError(
                f"camera {self._label}: no answer ({masked(str(err), self._secrets)}); check the address and that "
                "it is on"
            ) from err

    @property
    def _uri(self) -> str:
        path = quote(self._address.path or "/", safe="/%:@!$&'()*+,;=~")
        query = quote(self._address.query, safe="/%:@!$&'()*+,;=~?")
        return f"{path}?{query}" if query else path

    def _is_locked(self) -> bool:
        """Return whether the answer asks who we are; some cameras do with a page for people."""
        is_page = self._response.headers.get_content_type() == "text/html"
        return self._response.status in (401, 403) or (self._response.status == 200 and is_page)

    def _log_in(self, login: Login) -> None:
        for _ in range(_LOGIN_TRIES):
            offered = challenges(self._response.headers.get_all("WWW-Authenticate", []))
            words = authorization(offered, login, "GET", self._uri)
            if words is None:
                names = ", ".join(
                    sorted(f"{each.scheme} {each.fields.get('algorithm', '')}".strip() for each in offered)
                )
                self.close()
                raise DeviceError(
                    f"camera {self._label}: asks for a login by {names}; Digest (MD5, SHA-256) and Basic are known"
                )
            self.close()
            self._request({"Authorization": words})
            again = challenges(self._response.headers.get_all("WWW-Authenticate", []))
            if not any(each.fields.get("stale", "").lower() == "true" for each in again):
                return  # only an old nonce makes a second try worth it

    def _hint(self, status: int) -> str:
        if status not in (401, 403):
            return "check the path of the URL"
        if self._login is None:
            return "put user:password@ into the URL"
        return "it does not take the login in the URL; check user and password"

    def parts(self) -> Iterator[Part]:
        """Yield each part as soon as its last byte is there.

        Raises:
            DeviceError: If the sender stops, goes silent for ``timeout_s``, or sends no multipart stream.
        """
        headers = self._begin()
        while True:
            length = headers.get("content-length", "")
            body = self._counted(int(length)) if length.isdecimal() else self._uncounted()
            yield Part(body, _seconds(headers.get("x-timestamp", "")))
            self._skip_past_delimiter()
            headers = self._headers(self._line())

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
        self._response.close()
        self._connection.close()

    def _begin(self) -> dict[str, str]:
        """Return the headers of the first part; a delimiter goes before them, or none does."""
        seen = 0
        while seen < _MAX_HEADER_BYTES:
            line = self._line()
            seen += len(line) + 2
            if self._is_delimiter(line):
                self._delimiter = line.rstrip()
                return self._headers(self._line())
            if _PART_HEADER.match(line):
                return self._headers(line)
            if line.startswith(b"\xff\xd8"):
                break
        raise DeviceError(
            f"camera {self._label}: sends no multipart stream of images; use the camera's MJPEG address"
        )

    def _is_delimiter(self, line: bytes) -> bool:
        """Return whether a line between two parts is the delimiter, as far as it is known."""
        line = line.rstrip()
        if self._delimiter:
            return line == self._delimiter
        return (line.startswith(b"--") and len(line) > 2) or (bool(line) and line == self._announced)

    def _headers(self, line: bytes) -> dict[str, str]:
        """Return the headers of a part, of which ``line`` is the first."""
        headers: dict[str, str] = {}
        while line:
            key, _, value = line.decode("latin-1").partition(":")
            headers[key.strip().lower()] = value.strip()
            if len(headers) > 100:
                raise DeviceError(f"camera {self._label}: a part has more than 100 header lines; not MJPEG")
            line = self._line()
        return headers

    def _counted(self, length: int) -> bytes:
        if length > MAX_PART_BYTES:
            raise DeviceError(f"camera {self._label}: announces an image of {length} bytes; not believed")
        while len(self._buffer) < length:
            self._receive()
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _uncounted(self) -> bytes:
        """Read up to the next delimiter, or to the end of a whole JPEG, which saves one frame of delay."""
        ends = [self._delimiter] if self._delimiter else [b"--" + self._announced] if self._announced else []
        searched = 0
        while True:
            for before, kept in ((b"\n", 0), (b"\xff\xd9", 2)):  # some leave the line's end out
                found = [at for end in ends if (at := self._buffer.find(before + end, searched)) >= 0]
                if found:
                    body = bytes(self._buffer[: found[0] + kept]).removesuffix(b"\r")
                    del self._buffer[: found[0] + len(before)]
                    return body
            # Without a delimiter to look for, the image's own end is all there is, wherever it lies.
            is_near = not self._delimiter or self._buffer.rstrip(b"\r\n").endswith(b"\xff\xd9")
            if is_near and self._buffer.find(b"\xff\xd9", searched) >= 0:
                extent = jpeg_extent(self._buffer)
                if extent is not None:
                    return self._counted(extent.length_bytes)
            searched = max(0, len(self._buffer) - max(map(len, ends), default=1) - 2)
            if len(self._buffer) > MAX_PART_BYTES:
                raise DeviceError(
                    f"camera {self._label}: an image has no end after {len(self._buffer)} bytes"
                )
            self._receive()

    def _skip_past_delimiter(self) -> None:
        """Drop bytes up to and with the next delimiter line; a wrong Content-Length is survived here."""
        skipped = 0
        while True:
            line = self._line()
            if self._is_delimiter(line):
                self._delimiter = line.rstrip()
                return
            if self._delimiter and line.rstrip() == self._delimiter + b"--":
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
