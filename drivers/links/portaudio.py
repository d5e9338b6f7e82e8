"""An audio input through PortAudio (the ``sounddevice`` package)."""

import importlib.util
import re
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path
from types import ModuleType
from typing import Any

from sensorium.errors import ConfigError, DeviceError

_NEEDS_PACKAGE = "recording audio needs the sounddevice package: pip install 'sensorium[audio]'"
_NEEDS_LIBRARY = "recording audio needs the PortAudio library: apt-get install libportaudio2"

_ALSA_PLACE = re.compile(r"\d+-\d+")

Receive = Callable[[Any, int, Any, Any], None]
"""PortAudio's callback: samples, their count, its times, its status; called in a thread of its own."""


class AudioInput:
    """16-bit samples of an input, in blocks of one size.

    Attributes:
        latency_s: What PortAudio says that its buffers hold.
    """

    def __init__(self, device: str | int, rate_hz: int, channels: int, block: int, receive: Receive) -> None:
        """Open the device and read its settings back; no sample comes before :meth:`start`.

        Raises:
            ConfigError: If the package is missing.
            DeviceError: If PortAudio is missing, or the device cannot be opened as asked; names both values.
        """
        self._portaudio = _portaudio()
        self._label = f"microphone {device!r}"
        asked = f"rate_hz {rate_hz} and channels {channels}"
        try:
            self._stream: Any = self._portaudio.RawInputStream(
                samplerate=rate_hz,
                blocksize=block,
                device=device,
                channels=channels,
                dtype="int16",
                callback=receive,
            )
        except (self._portaudio.PortAudioError, ValueError) as err:
            raise DeviceError(
                f"{self._label}: cannot be opened with {asked} ({_one_line(err)}); "
                f"inputs here: {', '.join(map(repr, input_names(self._portaudio))) or 'none'}"
            ) from err
        found_hz, found_channels = float(self._stream.samplerate), int(self._stream.channels)
        if abs(found_hz - rate_hz) > 0.5 or found_channels != channels:
            self.close()
            raise DeviceError(f"{self._label}: asked for {asked}, it set {found_hz:g} and {found_channels}")
        self.latency_s = float(self._stream.latency)

    def start(self) -> None:
        """Let the samples come.

        Raises:
            DeviceError: If the device refuses.
        """
        try:
            self._stream.start()
        except self._portaudio.PortAudioError as err:
            self.close()
            raise DeviceError(f"{self._label}: cannot be started ({_one_line(err)})") from err

    def close(self) -> None:
        """Release the device; safe to call twice.

        sounddevice ignores errors here, so a device that is gone does no harm.
        """
        stream, self._stream = self._stream, None
        if stream is not None:  # PortAudio would follow the pointer of a closed one
            stream.close()


def require_portaudio() -> None:
    """Raise ``ConfigError`` without the package, ``DeviceError`` without the library; opens nothing."""
    if importlib.util.find_spec("sounddevice") is None:
        raise ConfigError(_NEEDS_PACKAGE)
    if find_library("portaudio") is None:
        raise DeviceError(_NEEDS_LIBRARY)


def _portaudio() -> ModuleType:
    try:
        import sounddevice
    except ImportError as err:
        raise ConfigError(_NEEDS_PACKAGE) from err
    except OSError as err:
        raise DeviceError(f"{_NEEDS_LIBRARY} ({_one_line(err)})") from err
    module: ModuleType = sounddevice
    return module


def input_names(portaudio: ModuleType) -> list[str]:
    """Return PortAudio's names of the inputs of this machine."""
    return [entry["name"] for entry in portaudio.query_devices() if entry["max_input_channels"] > 0]


def alsa_inputs(listing: Path = Path("/proc/asound/pcm")) -> list[tuple[str, str]]:
    """Return the inputs of the sound cards: the part of PortAudio's name that is unique, and the card's own."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        place, _, rest = line.partition(": ")
        if _ALSA_PLACE.fullmatch(place) and "capture" in rest:
            card, device = place.split("-")
            found.append((f"hw:{int(card)},{int(device)}", rest.partition(" : ")[0].strip()))
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
