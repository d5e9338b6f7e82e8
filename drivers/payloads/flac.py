"""FLAC: lossless audio that every audio program plays, through PyAV (extra ``video``).

Each frame's payload is a FLAC file of its own behind the version byte, so that one that is lost harms no other; its
head takes 43 bytes of every block.

What it cannot hold: anything but 16-bit samples. FFmpeg's FLAC drops the low byte of 32-bit samples without a word, so
other widths are refused: ``codec: pcm`` packs them exactly. More than 8 channels are no FLAC either. Payloads that are
no whole samples are kept as they came.
"""

import io
from dataclasses import replace
from types import ModuleType

import numpy as np

from sensorium.drivers.frame import PCM_BYTES, Encoding, StreamInfo
from sensorium.drivers.payloads.codec import Codec, Pack
from sensorium.drivers.payloads.envelope import AS_IT_CAME, FIRST_VERSION, demand_version, kept_bytes
from sensorium.drivers.payloads.payload import Buffer, Payload, Restore
from sensorium.drivers.payloads.pyav import import_av
from sensorium.errors import ConfigError, PayloadError

VERSION = FIRST_VERSION
_LAYOUTS = ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1")
_FILE_HEAD = b"fLaC" + bytes([0x80, 0, 0, 34])
"""Marker, and the head of the only metadata block: STREAMINFO, 34 bytes (RFC 9639, section 8)."""
_MAX_RATE_HZ = 655_350


def encode(av: ModuleType, payload: Buffer, channels: int, rate_hz: int, level: int) -> bytes:
    """Return interleaved 16-bit samples as a FLAC file; as they came where that is smaller, or is no whole samples."""
    if not len(payload) or len(payload) % (2 * channels):
        return bytes([AS_IT_CAME]) + bytes(payload)
    layout = _LAYOUTS[channels - 1]
    encoder = av.CodecContext.create("flac", "w")
    encoder.sample_rate, encoder.format, encoder.layout = rate_hz, "s16", layout
    encoder.options = {"compression_level": str(level)}
    samples = np.frombuffer(payload, "<i2").astype(np.int16, copy=False).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
    frame.sample_rate = rate_hz
    packets = [bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None))]
    coded = b"".join([bytes([VERSION]), _FILE_HEAD, bytes(encoder.extradata), *packets])
    return coded if len(coded) <= len(payload) else bytes([AS_IT_CAME]) + bytes(payload)


def decode(av: ModuleType, coded: Buffer) -> bytes:
    """Return the samples that :func:`encode` was given.

    Raises:
        PayloadError: If the payload is damaged or was written by another version.
    """
    view = memoryview(coded)
    if len(view) and view[0] == AS_IT_CAME:
        return bytes(view[1:])
    demand_version(view, VERSION, "flac")
    try:
        with av.open(io.BytesIO(view[1:]), format="flac") as file:
            frames = [frame.to_ndarray() for frame in file.decode(audio=0)]
    except (av.FFmpegError, ValueError, IndexError) as err:
        raise PayloadError(f"sound packed as FLAC is damaged: {err}") from err
    return b"".join(frame.astype("<i2", copy=False).tobytes() for frame in frames)


def _declare(info: StreamInfo) -> StreamInfo:
    return replace(info, max_payload_bytes=info.max_payload_bytes + 1)


def _packer(info: StreamInfo, level: int) -> Pack:
    if info.encoding != Encoding.PCM_S16LE:
        raise ConfigError(
            f"stream {info.name} is {info.encoding}: codec flac holds 16-bit samples only, it would drop the low "
            "byte of wider ones without a word; use codec: pcm"
        )
    (channels,), rate_hz = info.shape, round(info.rate_hz)
    if channels > len(_LAYOUTS) or not 0 < rate_hz <= _MAX_RATE_HZ:
        raise ConfigError(
            f"stream {info.name}: FLAC holds up to {len(_LAYOUTS)} channels at up to {_MAX_RATE_HZ} Hz, not "
            f"{channels} at {rate_hz} Hz; use codec: pcm"
        )
    av = import_av("codec flac")
    return lambda payload, _count: encode(av, payload, channels, rate_hz, level)


def _restorer(_info: StreamInfo) -> Restore:
    av = import_av("sound packed as FLAC")
    return lambda coded, _count: decode(av, coded)


CODECS = (
    Codec("flac", frozenset(PCM_BYTES), Encoding.FLAC, True, _declare, _packer, level=5, levels=(0, 12)),
)
ROWS = (
    Payload(
        Encoding.FLAC,
        is_compressed=True,
        restores=frozenset({Encoding.PCM_S16LE}),
        restorer=_restorer,
        plain_bytes=kept_bytes,
    ),
)
