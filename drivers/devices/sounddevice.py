"""Microphones through PortAudio (the ``sounddevice`` package): blocks of 16-bit samples on a sample clock.

Tried on PulseAudio null sinks through ALSA. Hardware seen: no.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from sensorium.drivers.driver import Driver, DriverConfig, DriverContext, Seen
from sensorium.drivers.frame import (
    ClockKind,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Loss,
    Modality,
    Place,
    StreamInfo,
    is_personal_by_default,
    stamps,
)
from sensorium.drivers.links.inbox import Inbox
from sensorium.drivers.links.portaudio import AudioInput, alsa_inputs, require_portaudio
from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS

_BYTES_PER_SAMPLE = 2
_QUEUE_S = 4.0
_UNFLAGGED_GAP_S = 0.2  # PulseAudio's ALSA plug-in stamps with up to 50 ms of jitter (measured)
_CATCH_UP_S, _STEADY_S, _LONGEST_HOLD_S = 0.2, 0.005, 1.5
"""After a stall a server hands over what it holds at once: when so much sound has come without the next block being
earlier than the one before by so much, it holds no more. No block is held for longer than the last."""
_DRIFT = 2e-4


class SoundDeviceConfig(DriverConfig):
    """Options of a microphone.

    Attributes:
        device: PortAudio's name of an input (or a unique part of it) or its index; ``sensorium devices`` or
            ``python -m sounddevice`` lists them.
        rate_hz: Refused if the device sets another one.
        block: Samples per frame.
        stall_s: A device that delivers nothing for so long has failed; sound servers need seconds to start.
    """

    device: str | int = "default"
    rate_hz: int = Field(default=48_000, ge=1000, le=768_000)
    channels: PositiveInt = 1
    block: int = Field(default=480, ge=16, le=1 << 16)
    stall_s: PositiveFloat = 8.0


@dataclass(frozen=True, slots=True)
class Block:
    """Samples as PortAudio handed them over.

    Attributes:
        adc_s: When the first of them was captured, as PortAudio says: CLOCK_REALTIME on Linux, which can be stepped.
        is_flagged: PortAudio says that some went missing before it, never how many.
    """

    samples: bytes
    count: int
    adc_s: float
    arrival_ns: int
    is_flagged: bool = False


@dataclass(frozen=True, slots=True)
class Numbered:
    """A block, the number of its first sample, and how many samples are missing before it."""

    first: int
    lost: int
    block: Block


class SampleCounter:
    """Numbers the samples of an audio device, those lost in an overrun included.

    How long a flagged overrun was is taken from the jump of the capture time, as far as the arrivals jumped, too.
    Sound servers never flag one (PulseAudio), and their capture time and arrivals jump together whenever they stall
    and lose nothing: then what they held follows faster than it was spoken. So an unflagged jump is a loss only if
    the samples after it stay behind; until that shows, they are held.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._last: Block | None = None
        self._held: list[Block] = []
        self._gap = self._behind_at = 0
        self._behind = 0.0
        self._ahead_ns = 0.0
        """Least arrival minus sample time so far, let drift by what a crystal may be off."""
        self.next = 0

    def take(self, block: Block) -> list[Numbered]:
        """Return the blocks whose numbers are known now, in order; none while it is open what is missing."""
        if self._held:
            return self._hold(block)
        last = self._last
        if last is None:
            self._ahead_ns = self._offset_ns(block, self.next)
            return [self._numbered(block, 0)]
        gap_s = block.adc_s - last.adc_s - last.count / self._rate_hz
        waited_s = (block.arrival_ns - last.arrival_ns) / SECOND_NS - block.count / self._rate_hz
        if block.is_flagged:
            return [self._numbered(block, max(1, round(min(gap_s, max(waited_s, 0.0)) * self._rate_hz)))]
        if min(gap_s, waited_s) > _UNFLAGGED_GAP_S:
            self._gap = round(min(gap_s, waited_s) * self._rate_hz)
            return self._hold(block)
        return [self._numbered(block, 0)]

    def _hold(self, block: Block) -> list[Numbered]:
        """Hold a block after a jump, or tell at last what was lost in it."""
        ahead = sum(each.count for each in self._held) + block.count
        behind = (
            (self._offset_ns(block, self.next + ahead - block.count) - self._ahead_ns)
            * self._rate_hz
            / SECOND_NS
        )
        if not self._held or behind < self._behind - _STEADY_S * self._rate_hz:
            self._behind, self._behind_at = behind, ahead
        self._held.append(block)
        has_caught_up = behind < self._gap / 8
        is_steady = ahead - self._behind_at >= _CATCH_UP_S * self._rate_hz
        if not (has_caught_up or is_steady or block.is_flagged or ahead >= _LONGEST_HOLD_S * self._rate_hz):
            return []
        held, self._held = self._held, []
        lost = self._lost(is_steady or block.is_flagged)
        return [self._numbered(each, 0 if index else lost) for index, each in enumerate(held)]

    def _lost(self, is_steady: bool) -> int:
        """Return how many samples the jump has cost; of a stall whose end is not seen, none is known to be lost."""
        slack = _UNFLAGGED_GAP_S * self._rate_hz
        if not is_steady or self._behind < min(slack, self._gap / 2):
            return 0
        # Where nothing was handed over faster, the jump of the capture time says it to the sample.
        return self._gap if self._behind > self._gap - slack else round(self._behind)

    def _numbered(self, block: Block, lost: int) -> Numbered:
        first = self.next + lost
        self.next = first + block.count
        drift_ns = 0.0 if self._last is None else (block.arrival_ns - self._last.arrival_ns) * _DRIFT
        self._ahead_ns = min(self._offset_ns(block, first), self._ahead_ns + drift_ns)
        self._last = block
        return Numbered(first, lost, block)

    def _offset_ns(self, block: Block, first: int) -> float:
        return block.arrival_ns - (first + block.count) * SECOND_NS / self._rate_hz


class SoundDeviceDriver(Driver[SoundDeviceConfig]):
    """One microphone or array, one stream named like the device."""

    config_type: ClassVar[type[DriverConfig]] = SoundDeviceConfig
    modalities: ClassVar[tuple[Modality, ...]] = (Modality.AUDIO,)

    def __init__(self, config: SoundDeviceConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._inbox = Inbox(max(4, round(_QUEUE_S * config.rate_hz / config.block)))
        self._counter = SampleCounter(config.rate_hz)
        self._input: AudioInput | None = None
        self._last_ns = 0

    @classmethod
    def check(cls, config: Any) -> None:  # noqa: ARG003 - what devices there are shows only when opened
        require_portaudio()

    @classmethod
    def discover(cls) -> Sequence[Seen]:
        """Return the sound cards' inputs; PortAudio's own list may take seconds where a sound server starts."""
        return [Seen(name, {"device": device}) for device, name in alsa_inputs()]

    def open(self) -> Sequence[StreamInfo]:
        config = self.config
        self._input = AudioInput(config.device, config.rate_hz, config.channels, config.block, self._receive)
        info = self._describe(self._input.latency_s)
        self._last_ns = self.context.clock.now_ns()
        self._input.start()
        return [info]

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        items = self._inbox.take(timeout_s)
        now_ns = self.context.clock.now_ns()
        if items:
            self._last_ns = now_ns
        elif self._input is not None and now_ns - self._last_ns > self.config.stall_s * SECOND_NS:
            raise DeviceError(
                f"microphone {self.config.device!r}: no sound blocks for {self.config.stall_s:g} s; "
                "is it unplugged, muted by the system or suspended?"
            )
        return items

    def close(self) -> None:
        self._inbox.close()
        opened, self._input = self._input, None
        if opened is not None:
            opened.close()

    def _receive(self, samples: Any, count: int, time: Any, status: Any) -> None:
        """Take one block; called by PortAudio in its own thread."""
        arrival_ns = self.context.clock.now_ns()
        name = self.context.name
        block = Block(bytes(samples), count, time.inputBufferAdcTime, arrival_ns, bool(status.input_overflow))
        for each in self._counter.take(block):
            if each.lost:
                self._inbox.lose(Loss(name, each.lost, Place.KERNEL, "audio buffer overrun"))
            ticks, arrivals = stamps(each.first), stamps(each.block.arrival_ns)
            self._inbox.put(Frame(name, each.first, each.block.count, ticks, arrivals, each.block.samples))

    def _describe(self, latency_s: float) -> StreamInfo:
        config = self.config
        block_ns = round(config.block * SECOND_NS / config.rate_hz)
        latency_ns = round(latency_s * SECOND_NS)
        return StreamInfo(
            name=self.context.name,
            modality=Modality.AUDIO,
            encoding=Encoding.PCM_S16LE,
            rate_hz=config.rate_hz,
            frame_rate_hz=config.rate_hz / config.block,
            frame_id=self.context.name,
            clock=DeviceClock(ClockKind.SAMPLES, tick_ns_num=SECOND_NS, tick_ns_den=config.rate_hz),
            # A block cannot arrive before its last sample; PortAudio's buffers come on top, unseen.
            latency=Latency(block_ns, latency_ns, max(SECOND_NS, block_ns + 2 * latency_ns)),
            stamp_of="first_sample",
            shape=(config.channels,),
            host_id=self.context.host_id,
            is_personal=is_personal_by_default(Modality.AUDIO)
            if config.personal is None
            else config.personal,
            max_payload_bytes=config.block * config.channels * _BYTES_PER_SAMPLE,
            details={"device": str(config.device), "reported_latency_us": str(round(latency_s * 1e6))},
        )
