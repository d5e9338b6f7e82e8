"""Differences and byte planes of integers: what makes sensor values small for an entropy coder.

A difference of neighbours is a small number of either sign; zigzag (Protocol Buffers) folds the sign into the
lowest bit, so that small differences have small codes, and planes put bytes of equal weight side by side.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Unsigned = NDArray[Any]
"""Unsigned integers of 1, 2, 4 or 8 bytes; all arithmetic is modulo their range, so that nothing overflows."""


def differences(values: Unsigned) -> Unsigned:
    """Return each value minus the one before it along the last axis; the first minus zero."""
    out = np.empty_like(values)
    out[..., :1] = values[..., :1]
    np.subtract(values[..., 1:], values[..., :-1], out=out[..., 1:])
    return out


def sums(steps: Unsigned) -> Unsigned:
    """Return the values whose :func:`differences` are ``steps``."""
    out: Unsigned = np.cumsum(steps, axis=-1, dtype=steps.dtype)
    return out


def zigzag(steps: Unsigned) -> Unsigned:
    """Return differences with their sign in the lowest bit: 0, -1, 1, -2 become 0, 1, 2, 3."""
    signed = steps.view(f"<i{steps.itemsize}")
    folded: Unsigned = ((signed << 1) ^ (signed >> (8 * steps.itemsize - 1))).view(steps.dtype)
    return folded


def unzigzag(codes: Unsigned) -> Unsigned:
    """Return the differences that :func:`zigzag` folded."""
    one = codes.dtype.type(1)
    steps: Unsigned = (codes >> one) ^ (~(codes & one) + one)
    return steps


def planes(values: Unsigned) -> Bytes:
    """Return (itemsize, n) bytes of (n,) values, lowest bytes first."""
    out = np.empty((values.itemsize, len(values)), np.uint8)
    out[0] = values
    for index in range(1, values.itemsize):
        out[index] = values >> values.dtype.type(8 * index)
    return out


def from_planes(split: Bytes) -> Unsigned:
    """Return the (n,) values whose :func:`planes` these (itemsize, n) bytes are."""
    joined: Unsigned = split[0].astype(f"<u{len(split)}")
    for index in range(1, len(split)):
        joined |= split[index].astype(joined.dtype) << joined.dtype.type(8 * index)
    return joined
