"""Replays a recording as a device: the same frames and stamps, at any speed.

The recording's arrival stamps are a virtual host clock, so clocks, alignment and balance come out as they
were. One exception: an Ouster capture at its own speed goes as UDP packets over loopback into the real
driver, and is then as live as a sensor (``timeline`` is None).
"""

import difflib
import os
import socket
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat

from sensorium.drivers.devices.ouster.driver import OusterConfig, OusterDriver
from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import Frame, Loss, StreamInfo
from sensorium.errors import ConfigError, DeviceError, EndOfStreamError, SourceError
from sensorium.sync.episode.personal import PERSONAL_BECAUSE, SAID_NOT_PERSONAL
from sensorium.sync.sources import Source, identify, open_source
from sensorium.sync.sources.arrival_gaps import LONGEST_WAIT_NS
from sensorium.sync.sources.message_stream import MAX_STAMP_NS
from sensorium.sync.sources.opening import Format
from sensorium.sync.sources.ouster_capture import STREAM, OusterCaptureSource
from sensorium.sync.sources.source import frame_end_ns
from sensorium.timebase import SECOND_NS, Clock

_BATCH_ITEMS = 64
_BATCH_BYTES = 4 << 20
_STOP_CHECK_NS = SECOND_NS // 10
_JUMP_NS = SECOND_NS  # what is left of a silence that is jumped over
_MAX_STREAMS = 256  # of one declaration on the bus (drivers/wire.py)
_LOOPBACK = "127.0.0.1"
_LAST_PACKETS_NS = SECOND_NS // 2
"""After the sender's last packet: longer than a revolution of the slowest sensor (5 Hz) takes to expire."""


class ReplayConfig(DriverConfig):
    """Options of :class:`ReplayDriver`.

    Attributes:
        source: An episode, EuRoC or ROS 2 bag folder, a ROS 1 bag, an MCAP file, or an Ouster capture.
        rate: How many times faster than recorded, or ``max`` for as fast as it is taken.
        loop: Begin again at the end; stamps and sequence numbers go on.
        streams: Names of the streams to play; None = all.
        not_personal: Streams, by name or topic, that hold nobody although their kind says that they could. Who said
            so, and against which reason, stands in the manifest. What is personal in an episode stays so.
        allow_unverified: Play an episode that was never sealed or is not what was signed.
    """

    source: Path
    rate: PositiveFloat | Literal["max"] = 1.0
    loop: bool = False
    streams: tuple[str, ...] | None = None
    not_personal: tuple[str, ...] = ()
    allow_unverified: bool = False


class ReplayDriver(Driver[ReplayConfig]):
    """Streams as the recording declares them, under their own names."""

    config_type: ClassVar[type[DriverConfig]] = ReplayConfig
    blocks: ClassVar[bool] = True

    def __init__(self, config: ReplayConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self.source: Source | None = None
        self._player: _Player | _UdpPlayer | None = None

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise if the recording is missing or of no known format; reads its first bytes only."""
        try:
            identify(config.source)
        except SourceError as err:
            raise DeviceError(str(err)) from err

    def open(self) -> Sequence[StreamInfo]:
        config = self.config
        try:
            source = open_source(config.source, allow_unverified=config.allow_unverified)
        except SourceError as err:
            raise DeviceError(str(err)) from err
        self.source = source
        said = config.personal is False or config.not_personal
        if said and identify(config.source) is Format.EPISODE:
            raise ConfigError(f"{config.source}: what is personal in an episode stays so in its replay")
        names = self._choose(source)
        if isinstance(source, OusterCaptureSource) and source.is_playable_live and config.rate == 1.0:
            player = _UdpPlayer(source, names, self.context, config.loop)
            self._player = player
            return cleared(player.open(), config.not_personal)
        self.timeline = source.timeline
        self.first_seq = {name: seq for name, seq in source.first_seq.items() if name in names}
        self._player = _Player(source, names, self.context.clock, config)
        return cleared([info for info in source.streams if info.name in names], config.not_personal)

    def _choose(self, source: Source) -> frozenset[str]:
        known = [info.name for info in source.streams]
        if not known:
            reasons = "; ".join(problem.sentence for problem in source.problems) or "it declares no stream"
            raise DeviceError(f"{source.path}: nothing to replay in this {source.kind}: {reasons}")
        if self.config.streams is None:
            if len(known) > _MAX_STREAMS:
                raise DeviceError(
                    f"{source.path}: {len(known)} streams, more than the {_MAX_STREAMS} that one device may have; "
                    f"name those to play in 'streams'"
                )
            return frozenset(known)
        for name in self.config.streams:
            if name not in known:
                raise DeviceError(f"{source.path} has no stream {name!r}; it has: {', '.join(known)}")
        return frozenset(self.config.streams)

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        if self._player is None:
            raise DeviceError(f"replay {self.context.name} is not open")
        try:
            return self._player.read(timeout_s)
        except SourceError as err:
            raise DeviceError(str(err)) from err

    def close(self) -> None:
        if self._player is not None:
            self._player.close()
        if self.source is not None:
            self.source.close()
        self._player = self.source = None


def cleared(streams: Sequence[StreamInfo], not_personal: Collection[str]) -> list[StreamInfo]:
    """Return the streams, those that ``not_personal`` names by name or topic declared as such, with who said so.

    Raises:
        ConfigError: If a name is of no stream.
    """
    known = {name: info.name for info in streams for name in (info.details.get("topic", ""), info.name)}
    for name in not_personal:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(i.name for i in streams)}"
            )
            raise ConfigError(f"not personal: the recording has no stream {name!r}; {hint}")
    said = {known[name] for name in not_personal}
    return [_cleared(info) if info.name in said and info.is_personal else info for info in streams]


def _cleared(info: StreamInfo) -> StreamInfo:
    against = info.details.get(PERSONAL_BECAUSE) or f"its {info.modality.value} may show people"
    by = os.environ.get("USER") or "the operator"
    details = {key: value for key, value in info.details.items() if key != PERSONAL_BECAUSE}
    details[SAID_NOT_PERSONAL] = f"{by} said so, although {against}"
    return replace(info, is_personal=False, details=details)


class _Player:
    """Paces the frames of a source by their arrival stamps."""

    def __init__(self, source: Source, names: frozenset[str], clock: Clock, config: ReplayConfig) -> None:
        self._clock = clock
        self._rate = config.rate
        self._items = _passes(source, names) if config.loop else _one_pass(source, names)
        self._held: Frame | Loss | None = None
        self._anchor: tuple[int, int] | None = None
        self._last_ns = 0

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        deadline_ns = self._clock.now_ns() + round(timeout_s * SECOND_NS)
        batch: list[Frame | Loss] = []
        size = 0
        while len(batch) < _BATCH_ITEMS and size < _BATCH_BYTES:
            item = self._held if self._held is not None else next(self._items, None)
            self._held = item
            if item is None:
                if batch:
                    break
                raise EndOfStreamError("the recording is over")
            due_ns = self._due_ns(item)
            if due_ns > self._clock.now_ns():
                if batch:
                    break
                self._clock.sleep_until(min(due_ns, deadline_ns))
                if due_ns > deadline_ns:
                    break
            batch.append(item)
            size += len(item.payload) if isinstance(item, Frame) else 0
            self._held = None
        return batch

    def _due_ns(self, item: Frame | Loss) -> int:
        """Return when to publish an item, on the host's clock: the first frame now, losses at once.

        A long silence is jumped over: what follows it is due a moment after what came before.
        """
        if self._rate == "max" or isinstance(item, Loss):
            return 0
        arrival_ns = frame_end_ns(item)
        if self._anchor is None:
            self._anchor = (self._clock.now_ns(), arrival_ns)
        elif arrival_ns - self._last_ns > LONGEST_WAIT_NS:
            started_ns, first_ns = self._anchor
            self._anchor = (started_ns, first_ns + arrival_ns - self._last_ns - _JUMP_NS)
        self._last_ns = arrival_ns
        started_ns, first_ns = self._anchor
        return started_ns + round((arrival_ns - first_ns) / self._rate)

    def close(self) -> None:
        """Nothing is held but the source, which its owner closes."""


def _one_pass(source: Source, names: frozenset[str]) -> Iterator[Frame | Loss]:
    return (item for item in source.frames() if item.stream in names)


def _passes(source: Source, names: frozenset[str]) -> Iterator[Frame | Loss]:
    """Yield the recording again and again; a pass begins one mean interval after the last one ended.

    Device stamps move on by the same time as arrival stamps, in whole ticks and within their modulus.
    """
    infos = {info.name: info for info in source.streams}
    first_seq = dict.fromkeys(names, 0)
    shift_ns = 0
    while True:
        next_seq = dict(first_seq)
        start_ns, end_ns, count = None, 0, 0
        for item in _one_pass(source, names):
            if isinstance(item, Loss):
                next_seq[item.stream] += item.count
                yield item
                continue
            start_ns = frame_end_ns(item) if start_ns is None else min(start_ns, frame_end_ns(item))
            end_ns, count = max(end_ns, frame_end_ns(item)), count + 1
            moved = replace(item, seq=item.seq + first_seq[item.stream])
            next_seq[item.stream] = max(next_seq[item.stream], moved.next_seq)
            yield _shifted(moved, infos[item.stream], shift_ns) if shift_ns else moved
        if start_ns is None:
            return
        first_seq = next_seq
        shift_ns += end_ns - start_ns + max(1, (end_ns - start_ns) // max(1, count - 1))
        if end_ns + shift_ns > MAX_STAMP_NS:
            raise SourceError(
                f"{source.path}: lasts {(end_ns - start_ns) // SECOND_NS} s by its stamps; one more pass would go "
                f"beyond the year 2262, play it without 'loop'"
            )


def _shifted(frame: Frame, info: StreamInfo, shift_ns: int) -> Frame:
    ticks = frame.device_ticks
    if ticks is not None:
        ticks = ticks + shift_ns * info.clock.tick_ns_den // info.clock.tick_ns_num
        if info.clock.modulus is not None:
            ticks = ticks % info.clock.modulus
    known = frame.recorded
    if known is not None:
        known = replace(known, capture_ns=known.capture_ns + shift_ns)
    return replace(frame, device_ticks=ticks, arrival_ns=frame.arrival_ns + shift_ns, recorded=known)


class _UdpPlayer:
    """Sends an Ouster capture over loopback, as it was timed, to the real driver."""

    def __init__(
        self, source: OusterCaptureSource, names: frozenset[str], context: DriverContext, loop: bool
    ) -> None:
        self._source = source
        self._names = names
        self._clock = context.clock
        self._loop = loop
        config = OusterConfig(
            host=_LOOPBACK,
            bind=_LOOPBACK,
            metadata=source.metadata_path,
            lidar_port=0,
            imu_port=0,
        )
        self._driver = OusterDriver(config, replace(context, name=STREAM))
        self._stop = threading.Event()
        self._sender: threading.Thread | None = None
        self._sent_ns: int | None = None
        self._error: SourceError | None = None

    def open(self) -> Sequence[StreamInfo]:
        return [info for info in self._driver.open() if info.name in self._names]

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        if self._sender is None:  # the first packet waits until somebody listens
            self._sender = threading.Thread(target=self._send, name="ouster-replay", daemon=True)
            self._sender.start()
        # Looked at before reading: what was sent until now is in the sockets by the time of the read.
        sent_ns = self._sent_ns
        items = [item for item in self._driver.read(timeout_s) if item.stream in self._names]
        if not items and sent_ns is not None and self._clock.now_ns() - sent_ns > _LAST_PACKETS_NS:
            if self._error is not None:
                raise self._error
            raise EndOfStreamError("the capture is over")
        return items

    def _send(self) -> None:
        metadata = self._source.metadata
        sizes = (metadata.packet_bytes, metadata.imu_packet_bytes)
        ports = dict(zip(sizes, self._driver.ports, strict=False))
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                self._send_pass(sender, ports)
                while self._loop and not self._stop.is_set():
                    self._send_pass(sender, ports)
        except SourceError as err:
            self._error = err
        except OSError as err:
            self._error = SourceError(f"{self._source.path}: cannot be sent over loopback: {err}")
        self._sent_ns = self._clock.now_ns()

    def _send_pass(self, sender: socket.socket, ports: dict[int, int]) -> None:
        started_ns = self._clock.now_ns()
        for datagram in self._source.datagrams():
            port = ports.get(len(datagram.payload))
            if self._stop.is_set():
                return
            if port is not None:
                self._wait_until(started_ns + datagram.arrival_ns - self._source.start_ns)
                sender.sendto(datagram.payload, (_LOOPBACK, port))

    def _wait_until(self, host_ns: int) -> None:
        while (now_ns := self._clock.now_ns()) < host_ns and not self._stop.is_set():
            self._clock.sleep_until(min(host_ns, now_ns + _STOP_CHECK_NS))

    def close(self) -> None:
        self._stop.set()
        if self._sender is not None:
            self._sender.join(timeout=2.0)
        self._driver.close()
