"""Many protobuf integers at once: packed repeated ``sint64`` fields as numpy arrays."""

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import EpisodeError

_GROUP_BITS = 7
MAX_GROUPS = 10


def pack_sint64(values: NDArray[np.int64]) -> tuple[bytes, NDArray[np.intp]]:
    """Return (n,) values as zigzag varints, and the (n,) bytes that each takes."""
    codes = ((values << 1) ^ (values >> 63)).view(np.uint64)
    largest = int(codes.max()) if len(codes) else 0
    width = max(1, -(-largest.bit_length() // _GROUP_BITS))
    sizes = np.ones(len(codes), np.intp)
    for group in range(1, width):
        sizes += codes >= np.uint64(1 << group * _GROUP_BITS)
    place = np.arange(width)
    groups = (codes[:, None] >> (place * _GROUP_BITS).astype(np.uint64)).astype(np.uint8) & np.uint8(0x7F)
    groups[place < sizes[:, None] - 1] |= 0x80
    return groups[place < sizes[:, None]].tobytes(), sizes


def unpack_sint64(data: memoryview) -> NDArray[np.int64]:
    """Return the values of zigzag varints.

    Raises:
        EpisodeError: If the last one does not end, or one is longer than ten bytes.
    """
    groups = np.frombuffer(data, np.uint8)
    if not len(groups):
        return np.empty(0, np.int64)
    is_last = groups < 0x80
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    sizes = np.diff(starts, append=len(groups))
    if not is_last[-1] or sizes.max() > MAX_GROUPS:
        raise EpisodeError("packed integers are damaged: one does not end")
    place = np.arange(len(groups)) - np.repeat(starts, sizes)
    parts = (groups & np.uint8(0x7F)).astype(np.uint64) << (place * _GROUP_BITS).astype(np.uint64)
    codes = np.bitwise_or.reduceat(parts, starts)
    signs = -((codes & np.uint64(1)).view(np.int64))
    values: NDArray[np.int64] = (codes >> np.uint64(1)).view(np.int64) ^ signs
    return values
