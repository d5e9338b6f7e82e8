"""A network camera for tests: MJPEG over HTTP, with or without a login."""

import base64
import hashlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48
_STALE = ", stale=true"
Chunks = Callable[[], Iterator[bytes]]


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    noise = np.random.default_rng(index).integers(0, 60, (height, width, 3), dtype=np.uint8)
    return np.asarray(noise + np.uint8(index * 10 % 190), np.uint8)


def jpeg(index: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return cv2.imencode(".jpg", picture(index, width, height))[1].tobytes()


def counted_parts(images: Sequence[bytes], delimiter: bytes, extra: bytes = b"") -> Iterator[bytes]:
    for image in images:
        head = b"%s\r\nContent-Type: image/jpeg\r\n%sContent-Length: %d\r\n\r\n"
        yield head % (delimiter, extra, len(image)) + image + b"\r\n"


def uncounted_parts(images: Sequence[bytes], delimiter: bytes) -> Iterator[bytes]:
    for image in images:
        yield delimiter + b"\r\nContent-Type: image/jpeg\r\n\r\n" + image + b"\r\n"


@dataclass(slots=True)
class Gate:
    """Whom a camera lets in: the sums of RFC 7616, kept apart from the driver's.

    Attributes:
        offers: Values of its WWW-Authenticate headers; they name the ways it takes.
        stale: So many right answers are refused because their nonce is too old.
        asked: The Authorization headers that came, "" for none.
    """

    user: str
    password: str
    offers: tuple[str, ...]
    stale: int = 0
    asked: list[str] = field(default_factory=list)

    def admits(self, headers: Message, path: str) -> bool:
        said = headers.get("Authorization", "")
        self.asked.append(said)
        self.offers = tuple(offer.removesuffix(_STALE) for offer in self.offers)
        ways = {way for way in ("Basic", "Digest") if way in " ".join(self.offers)} or {"Basic"}
        if said.startswith("Basic "):
            return "Basic" in ways and base64.b64decode(said[6:]).decode() == f"{self.user}:{self.password}"
        return said.startswith("Digest ") and "Digest" in ways and self._is_right(said, path)

    def _is_right(self, said: str, path: str) -> bool:
        fields = {
            key: quoted or plain for key, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^, ]+))', said)
        }
        algorithm = fields.get("algorithm", "MD5")
        name = algorithm.removesuffix("-sess").replace("SHA-256", "sha256").replace("MD5", "md5")

        def digest(text: str) -> str:
            return hashlib.new(name, text.encode()).hexdigest()

        who = digest(f"{self.user}:{fields['realm']}:{self.password}")
        if algorithm.endswith("-sess"):
            who = digest(f"{who}:{fields['nonce']}:{fields['cnonce']}")
        what = digest(f"GET:{path}" + (":" + digest("") if fields.get("qop") == "auth-int" else ""))
        middle = ":".join(fields[key] for key in ("nonce", "nc", "cnonce", "qop") if key in fields)
        is_right: bool = fields["response"] == digest(f"{who}:{middle}:{what}") and fields["uri"] == path
        if is_right and self.stale:
            self.stale -= 1
            self.offers = tuple(offer + _STALE for offer in self.offers)
            return False
        return is_right


@contextmanager
def mjpeg_server(
    chunks: Chunks, content_type: str, status: int = 200, gate: Gate | None = None
) -> Iterator[str]:
    """Serve ``chunks()`` as the body of any GET; the connection closes after the last."""
    stop = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_in = gate is None or gate.admits(self.headers, self.path)
            self.send_response(status if is_in else 401)
            for offer in () if gate is None or is_in else gate.offers:
                self.send_header("WWW-Authenticate", offer)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            try:
                for chunk in chunks() if is_in else ():
                    if stop.is_set():
                        return
                    self.wfile.write(chunk)
            except OSError:
                pass  # the client left

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/stream"
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
