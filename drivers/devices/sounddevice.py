"""Microphones through PortAudio (the ``sounddevice`` package): blocks of 16-bit samples on a sample clock.

Tried on PulseAudio null sinks through ALSA. Hardware seen: no.
"""

import importlib.util
from collections.abc import Sequence
from ctypes.util import find_library
from types import ModuleType
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
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
from sensorium.errors import ConfigError, DeviceError
from sensorium.timebase import SECOND_NS

_BYTES_PER_SAMPLE = 2
_QUEUE_S = 2.0
_UNFLAGGED_GAP_S = 0.2  # PulseAudio's ALSA plug-in stamps with up to 50 ms of jitter (measured)
_NEEDS_PACKAGE = "recording audio needs the sounddevice package: pip install 'sensorium[audio]'"
_NEEDS_LIBRARY = "recording audio needs the PortAudio library: apt-get install libportaudio2"


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
        self._stream: Any = None
        self._last_ns = 0

    @classmethod
    def check(cls, config: Any) -> None:  # noqa: ARG003 - what devices there are shows only when opened
        if importlib.util.find_spec("sounddevice") is None:
            raise ConfigError(_NEEDS_PACKAGE)
        if find_library("portaudio") is None:
            raise DeviceError(_NEEDS_LIBRARY)

    def open(self) -> Sequence[StreamInfo]:
        portaudio = _portaudio()
        config = self.config
        try:
            self._stream = portaudio.RawInputStream(
                samplerate=config.rate_hz,
                blocksize=config.block,
                device=config.device,
                channels=config.channels,
                dtype="int16",
                callback=self._receive,
            )
        except (portaudio.PortAudioError, ValueError) as err:
            raise DeviceError(
                f"microphone {config.device!r}: cannot be opened with rate_hz {config.rate_hz} and channels "
                f"{config.channels} ({_one_line(err)}); inputs here: {_inputs(portaudio)}"
            ) from err
        found_hz, found_channels = float(self._stream.samplerate), int(self._stream.channels)
        if abs(found_hz - config.rate_hz) > 0.5 or found_channels != config.channels:
            self.close()
            raise DeviceError(
                f"microphone {config.device!r}: asked for rate_hz {config.rate_hz} and channels "
                f"{config.channels}, it set {found_hz:g} and {found_channels}"
            )
        info = self._describe(float(self._stream.latency))
        self._last_ns = self.context.clock.now_ns()
        try:
            self._stream.start()
        except portaudio.PortAudioError as err:
            self.close()
            raise DeviceError(f"microphone {config.device!r}: cannot be started ({_one_line(err)})") from err
        return [info]

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        items = self._inbox.take(timeout_s)
        now_ns = self.context.clock.now_ns()
        if items:
            self._last_ns = now_ns
        elif self._stream is not None and now_ns - self._last_ns > self.config.stall_s * SECOND_NS:
            raise DeviceError(
                f"microphone {self.config.device!r}: no sound blocks for {self.config.stall_s:g} s; "
                "is it unplugged, muted by the system or suspended?"
            )
        return items

    def close(self) -> None:
        self._inbox.close()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()  # sounddevice ignores errors here, so a device that is gone does no harm

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


def _portaudio() -> ModuleType:
    try:
        import sounddevice
    except ImportError as err:
        raise ConfigError(_NEEDS_PACKAGE) from err
    except OSError as err:
        raise DeviceError(f"{_NEEDS_LIBRARY} ({_one_line(err)})") from err
    module: ModuleType = sounddevice
    return module


def _inputs(portaudio: ModuleType) -> str:
    names = [entry["name"] for entry in portaudio.query_devices() if entry["max_input_channels"] > 0]
    return ", ".join(repr(name) for name in names) or "none"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
