"""Many protobuf integers at once: packed repeated ``sint64`` fields as numpy arrays."""

import numpy as np
from numpy.typing import NDArray

_GROUP_BITS = 7


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
