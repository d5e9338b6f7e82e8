"""Microphones through PortAudio (the ``sounddevice`` package): blocks of 16-bit samples on a sample clock.

Tried on PulseAudio null sinks through ALSA. Hardware seen: no.
"""

from collections.abc import Sequence
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
_QUEUE_S = 2.0
_UNFLAGGED_GAP_S = 0.2  # PulseAudio's ALSA plug-in stamps with up to 50 ms of jitter (measured)


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


class SampleCounter:
    """Numbers the samples of an audio device, those lost in an overrun included.

    PortAudio flags an overrun but does not say how long it was; that is taken from the jump of its own
    capture time. That time is CLOCK_REALTIME on Linux and can be stepped, so a jump without a flag is
    believed only when the arrivals jumped as far.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._end_adc_s: float | None = None
        self._arrival_ns = 0
        self.next = 0

    def lost_before(self, count: int, adc_s: float, arrival_ns: int, is_flagged: bool) -> int:
        """Count a block whose first sample was captured at ``adc_s``; return how many are missing."""
        lost = 0
        if self._end_adc_s is not None:
            gap_s = adc_s - self._end_adc_s
            waited_s = (arrival_ns - self._arrival_ns) / SECOND_NS - count / self._rate_hz
            if is_flagged:
                lost = max(1, round(min(gap_s, max(waited_s, 0.0)) * self._rate_hz))
            elif min(gap_s, waited_s) > _UNFLAGGED_GAP_S:
                lost = round(min(gap_s, waited_s) * self._rate_hz)
        self._end_adc_s = adc_s + count / self._rate_hz
        self._arrival_ns = arrival_ns
        self.next += lost + count
        return lost


class SoundDeviceDriver(Driver[SoundDeviceConfig]):
    """One microphone or array, one stream named like the device."""

    config_type: ClassVar[type[DriverConfig]] = SoundDeviceConfig

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
        lost = self._counter.lost_before(
            count, time.inputBufferAdcTime, arrival_ns, bool(status.input_overflow)
        )
        if lost:
            self._inbox.lose(Loss(name, lost, Place.KERNEL, "audio buffer overrun"))
        first = self._counter.next - count
        self._inbox.put(Frame(name, first, count, stamps(first), stamps(arrival_ns), bytes(samples)))

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
