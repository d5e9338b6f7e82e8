"""The live plane: a lossy copy of what is being recorded, for viewers. It can never slow recording.

PUB drops silently when a subscriber is slow, which is what a viewer wants and a recorder must not have. Nothing
is copied for streams that nobody watches, and personal streams appear only as the caller permits.
"""

import zmq
from pydantic import TypeAdapter

from sensorium.drivers.bus.context import has_mail
from sensorium.drivers.bus.header import pack_header, unpack_header
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.errors import WireError

QUEUED_MESSAGES = 8
_DECLARE = b"declare\0"
_FRAME = b"frame\0"
_INFO: TypeAdapter[StreamInfo] = TypeAdapter(StreamInfo)


class LivePublisher:
    """The recording side; call :meth:`step` now and then, :meth:`offer` for each recorded frame."""

    def __init__(self, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each new subscriber needs the declarations
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1024)
        self._socket.bind(endpoint)
        self._infos: dict[str, StreamInfo] = {}
        self._watched: set[str] = set()

    def declare(self, info: StreamInfo) -> None:
        """Make a stream known to present and future subscribers."""
        self._infos[info.name] = info
        self._socket.send_multipart([_DECLARE, _INFO.dump_json(info)], zmq.NOBLOCK)

    def step(self) -> None:
        """Take in who watches what."""
        while has_mail(self._socket):
            message = self._socket.recv(zmq.NOBLOCK)
            is_subscribing, topic = message[:1] == b"\1", message[1:]
            if topic == _DECLARE and is_subscribing:
                for info in self._infos.values():
                    self._socket.send_multipart([_DECLARE, _INFO.dump_json(info)], zmq.NOBLOCK)
            elif topic.startswith(_FRAME):
                name = topic[len(_FRAME) : -1].decode(errors="replace")
                (self._watched.add if is_subscribing else self._watched.discard)(name)

    def is_watched(self, stream: str) -> bool:
        """Return whether somebody subscribes to the stream; ask before deciding about consent."""
        return stream in self._watched

    def offer(self, instance: int, frame: Frame) -> None:
        """Send a frame to whoever can take it now."""
        topic = _FRAME + frame.stream.encode() + b"\0"
        self._socket.send_multipart([topic, pack_header(instance, frame), frame.payload], zmq.NOBLOCK)

    def close(self) -> None:
        self._socket.close(linger=0)


class LiveSubscriber:
    """A viewer's side: the latest frames of some streams, with gaps where it was slow."""

    def __init__(
        self, endpoint: str, streams: tuple[str, ...], context: zmq.Context[zmq.Socket[bytes]]
    ) -> None:
        self.infos: dict[str, StreamInfo] = {}
        self._socket = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._socket.subscribe(_DECLARE)
        for stream in streams:
            self._socket.subscribe(_FRAME + stream.encode() + b"\0")

    def receive(self, timeout_s: float) -> Frame | None:
        """Return the next frame, or None when none came in time; fills ``infos`` on the way.

        Raises:
            WireError: If a message is malformed.
        """
        while self._socket.poll(int(timeout_s * 1000)):
            parts = self._socket.recv_multipart()
            if parts[0] == _DECLARE and len(parts) == 2:
                info = _INFO.validate_json(parts[1])
                self.infos[info.name] = info
            elif len(parts) == 3:
                return unpack_header(parts[1], parts[2])[1]
            else:
                raise WireError(f"live message of {len(parts)} parts")
        return None

    def close(self) -> None:
        self._socket.close(linger=0)
