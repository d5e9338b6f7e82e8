"""What a microphone heard, to be listened to in the page itself."""

import base64
import io
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import StreamInfo
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.reader import Episode

MOST_HZ = 16_000
"""Speech and machines are well heard at it; the episode has the rest."""
MOST_S = 20.0
_PCM16 = 32767


def player(folder: Path, info: StreamInfo) -> str:
    """Return an audio element with the beginning of a stream; "" where nothing was recorded.

    Raises:
        EpisodeError: If the episode cannot be read.
        PayloadError: If a payload is damaged.
    """
    step = max(1, -(-round(info.rate_hz) // MOST_HZ))
    heard = _beginning(folder, info, round(MOST_S * info.rate_hz))
    whole = heard[: len(heard) // step * step].reshape(-1, step).mean(axis=1)
    if not len(whole):
        return ""
    data = base64.b64encode(_wave_file(whole, round(info.rate_hz / step))).decode()
    return f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}"></audio>'


def _beginning(folder: Path, info: StreamInfo, count: int) -> NDArray[np.float64]:
    """Return (n,) samples of all channels together, n <= ``count``, in full scales."""
    decoder = StreamDecoder(info)
    parts = []
    with Episode(folder) as episode:
        for recorded in episode.frames([info.name]):
            values = decoder.samples(recorded.frame.payload, recorded.frame.count)
            if values is None or count <= 0:
                break
            parts.append(np.asarray(values, np.float64).mean(axis=1)[:count])
            count -= len(parts[-1])
    return np.concatenate(parts) if parts else np.empty(0)


def _wave_file(values: NDArray[np.float64], rate_hz: int) -> bytes:
    with io.BytesIO() as file:
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(rate_hz)
            finite = np.nan_to_num(np.clip(values, -1, 1))
            sound.writeframes(np.rint(finite * _PCM16).astype("<i2").tobytes())
        return file.getvalue()
