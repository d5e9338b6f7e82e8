"""PCM audio: what its samples are, and a lossless packing of it.

Packed, a block's channels lie one behind the other, each differenced as often (0 to 3 times, the fixed predictors of
Shorten and FLAC) as leaves the least, with the sign folded into the lowest bit and bytes of equal weight side by side.
The block keeps its size, a byte for its form and one per channel apart: 10 ms of sound do not pay a compressor's head,
and the file's chunks are compressed over many blocks (``columns`` does the same, and measured why).

What it cannot hold: payloads that are not a whole number of samples (kept as they came; the first byte says so). It
packs floats by their bits, exactly, and gains little on them. Viewers that play ``foxglove.RawAudio`` do not play it,
so it is packed only where the rig file asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import PCM_BYTES, Encoding, StreamInfo
from sensorium.drivers.payloads.codec import Codec, Pack
from sensorium.drivers.payloads.envelope import AS_IT_CAME, FIRST_VERSION, demand_version, kept_bytes
from sensorium.drivers.payloads.payload import Buffer, Floats, Payload, ReadSamples, Restore
from sensorium.drivers.payloads.planes import (
    Unsigned,
    differences,
    from_planes,
    planes,
    sums,
    unzigzag,
    zigzag,
)
from sensorium.errors import ConfigError, PayloadError

VERSION = FIRST_VERSION
_MAX_ORDER = 3
_FULL_SCALES: Mapping[str, float] = {
    Encoding.PCM_S16LE: 2.0**15,
    Encoding.PCM_S24LE: 2.0**23,
    Encoding.PCM_S32LE: 2.0**31,
    Encoding.PCM_F32LE: 1.0,
}


@dataclass(frozen=True, slots=True)
class Pcm:
    """Interleaved samples: ``channels`` times ``item_bytes`` little-endian bytes each."""

    channels: int
    item_bytes: int

    @classmethod
    def of(cls, info: StreamInfo) -> "Pcm":
        return cls(info.shape[0], PCM_BYTES[info.plain_encoding])

    @property
    def sample_bytes(self) -> int:
        return self.channels * self.item_bytes

    @property
    def width(self) -> int:
        """Bytes of the numbers that the samples are worked on as."""
        return 4 if self.item_bytes == 3 else self.item_bytes

    def bits(self, payload: Buffer) -> Unsigned:
        """Return the (samples, channels) bits of the values, unsigned; 3 bytes in 4."""
        if self.item_bytes != 3:
            return np.frombuffer(payload, f"<u{self.item_bytes}").reshape(-1, self.channels)
        spread = np.zeros((len(payload) // 3, 4), np.uint8)
        spread[:, :3] = np.frombuffer(payload, np.uint8).reshape(-1, 3)
        return spread.view("<u4").reshape(-1, self.channels)

    def payload(self, bits: Unsigned) -> bytes:
        """Return the payload of (samples, channels) bits; of 3-byte samples the upper byte is left out."""
        if self.item_bytes != 3:
            return bits.tobytes()
        spread = np.ascontiguousarray(bits).view(np.uint8).reshape(-1, 4)
        return spread[:, :3].tobytes()

    def signed(self, bits: Unsigned) -> NDArray[Any]:
        """Return bits as the signed numbers that they are, wrapped into the sample's width."""
        if self.item_bytes != 3:
            return bits.view(f"<i{self.item_bytes}")
        widened: NDArray[Any] = (bits << np.uint32(8)).view("<i4") >> 8
        return widened


# -- plain audio


def _check(info: StreamInfo) -> None:
    if len(info.shape) != 1 or info.shape[0] < 1:
        raise ConfigError(
            f"stream {info.name}: {info.plain_encoding} needs shape (channels,), found {info.shape}"
        )


def _reader(info: StreamInfo) -> ReadSamples:
    """Return what reads (count, channels) in full scales: -1 up to just below 1, floats as they are."""
    pcm, full_scale = Pcm.of(info), _FULL_SCALES[info.encoding]
    is_float = info.encoding == Encoding.PCM_F32LE

    def read(payload: Buffer, count: int) -> Floats:
        if len(payload) != count * pcm.sample_bytes:
            raise PayloadError(
                f"a frame of {info.name} has {len(payload)} bytes, its {count} samples of {pcm.channels} channels "
                f"need {count * pcm.sample_bytes}"
            )
        bits = pcm.bits(payload)
        return np.asarray((bits.view("<f4") if is_float else pcm.signed(bits)) / full_scale, np.float64)

    return read


def encode_pcm(info: StreamInfo, values: NDArray[Any]) -> bytes:
    """Return the payload of (count, channels) full scales; integers are clipped to full scale, floats are not.

    Raises:
        PayloadError: If the channels are not the stream's.
    """
    if values.ndim != 2 or values.shape[1:] != info.shape:
        raise PayloadError(f"{info.name} has {info.shape} channels, the values are {values.shape}")
    if info.encoding == Encoding.PCM_F32LE:
        return values.astype("<f4").tobytes()
    pcm, full_scale = Pcm.of(info), _FULL_SCALES[info.encoding]
    steps = np.clip(np.rint(values * full_scale), -full_scale, full_scale - 1).astype(np.int64)
    return pcm.payload(steps.astype(f"<i{pcm.width}").view(f"<u{pcm.width}"))


# -- packed audio


def encode(payload: Buffer, pcm: Pcm) -> bytes:
    """Return interleaved samples, differenced; as they came where they are no whole samples."""
    if not len(payload) or len(payload) % pcm.sample_bytes:
        return bytes([AS_IT_CAME]) + bytes(payload)
    channels = np.ascontiguousarray(pcm.bits(payload).T)
    orders, codes = bytearray(), np.empty_like(channels)
    for index, channel in enumerate(channels):
        steps, order = _least(channel, pcm)
        orders.append(order)
        codes[index] = _folded(steps, pcm)
    return bytes([VERSION]) + orders + planes(codes.reshape(-1))[: pcm.item_bytes].tobytes()


def decode(coded: Buffer, pcm: Pcm) -> bytes:
    """Return the samples that :func:`encode` was given.

    Raises:
        PayloadError: If the payload is damaged or was written by another version.
    """
    view = memoryview(coded)
    if len(view) and view[0] == AS_IT_CAME:
        return bytes(view[1:])
    demand_version(view, VERSION, "pcm")
    orders, body = view[1 : 1 + pcm.channels], view[1 + pcm.channels :]
    if len(orders) < pcm.channels or len(body) % pcm.sample_bytes or max(orders) > _MAX_ORDER:
        raise PayloadError(f"packed sound is damaged: {len(view)} bytes, orders {list(orders)}")
    split = np.zeros((pcm.width, len(body) // pcm.item_bytes), np.uint8)
    split[: pcm.item_bytes] = np.frombuffer(body, np.uint8).reshape(pcm.item_bytes, -1)
    channels = unzigzag(from_planes(split)).reshape(pcm.channels, -1)
    for index, order in enumerate(orders):
        for _ in range(order):
            channels[index] = sums(channels[index])
    return pcm.payload(np.ascontiguousarray(channels.T))


def _least(values: Unsigned, pcm: Pcm) -> tuple[Unsigned, int]:
    """Return the differences of that order which are smallest in sum, and the order."""
    best, best_order, best_cost = values, 0, _cost(values, pcm)
    for order in range(1, _MAX_ORDER + 1):
        values = differences(values)
        cost = _cost(values, pcm)
        if cost < best_cost:
            best, best_order, best_cost = values, order, cost
    return best, best_order


def _cost(values: Unsigned, pcm: Pcm) -> float:
    return float(np.abs(pcm.signed(values), dtype=np.float32).sum())


def _folded(steps: Unsigned, pcm: Pcm) -> Unsigned:
    if pcm.item_bytes != 3:
        return zigzag(steps)
    wrapped: Unsigned = pcm.signed(steps).view("<u4")
    return zigzag(wrapped)


def _declare(info: StreamInfo) -> StreamInfo:
    return replace(info, max_payload_bytes=info.max_payload_bytes + 1 + info.shape[0])


def _packer(info: StreamInfo, _level: int) -> Pack:
    pcm = Pcm.of(info)
    return lambda payload, _count: encode(payload, pcm)


def _restorer(info: StreamInfo) -> Restore:
    pcm = Pcm.of(info)
    return lambda coded, _count: decode(coded, pcm)


CODECS = (Codec("pcm", frozenset(PCM_BYTES), Encoding.PACKED_PCM, True, _declare, _packer),)
ROWS = (
    *(
        Payload(
            encoding,
            check_stream=_check,
            sample_bytes=lambda info: Pcm.of(info).sample_bytes,
            samples=_reader,
            encode=encode_pcm,
        )
        for encoding in PCM_BYTES
    ),
    Payload(
        Encoding.PACKED_PCM,
        restores=frozenset(PCM_BYTES),
        restorer=_restorer,
        plain_bytes=kept_bytes,
    ),
)
