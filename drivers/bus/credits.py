"""Byte credits: how much each driver may have under way, out of one memory budget of the rig.

What is under way lies in sockets, in shared memory, or with the recorder until it is on disk. The sum of all
drivers' limits never exceeds the budget, so neither does the memory.
"""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads import table

DEFAULT_BUDGET_BYTES = 256_000_000
HEADER_OVERHEAD_BYTES = 256
"""What a frame costs on the bus beside its payload."""

LEAST_LIMIT_BYTES = 256 << 10
_NO_SLOT = -1


class Held(NamedTuple):
    """What a received frame holds of its driver's credit until it is released.

    Attributes:
        instance: The driver instance whose credit it is.
        size: Bytes that it costs.
        slot: Where its payload lies in the driver's shared memory; -1 when it came over the socket.
    """

    instance: int
    size: int
    slot: int = _NO_SLOT


def declared_bytes_per_s(info: StreamInfo) -> float:
    """Return what a stream will put on the bus in a second, by its declaration."""
    return table.declared_bytes_per_s(info) + info.message_rate_hz * HEADER_OVERHEAD_BYTES


def largest_frame_bytes(info: StreamInfo) -> int:
    """Return what the largest frame of a stream costs; no frame of samples is taken to last over a second."""
    declared = info.max_payload_bytes
    if info.rate_hz and info.plain_encoding in (Encoding.COLUMNS, Encoding.PCM_S16LE):
        declared = min(declared, math.ceil(declared_bytes_per_s(info)))
    return declared + HEADER_OVERHEAD_BYTES


def least_limit_bytes(infos: Sequence[StreamInfo]) -> int:
    """Return the least that a driver of these streams can work with: two of its largest frames."""
    return max(2 * max(map(largest_frame_bytes, infos)), LEAST_LIMIT_BYTES)


def needed_bytes(infos: Sequence[StreamInfo]) -> int:
    """Return the bytes that a driver of these streams puts on the bus in a second, or its least limit."""
    return max(math.ceil(sum(map(declared_bytes_per_s, infos))), least_limit_bytes(infos))


def most_budget_bytes() -> int:
    """Return a quarter of the machine's memory, the most that the bus takes by itself."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


class Budget:
    """Divides the memory among the driver instances that are known.

    Args:
        budget_bytes: The memory; None = the larger of 256 MB and one second of the declared rates, at most a
            quarter of the machine's.
    """

    def __init__(self, budget_bytes: int | None) -> None:
        self._fixed_bytes = budget_bytes
        self._needs: dict[int, int] = {}
        self._limits: dict[int, int] = {}

    @property
    def budget_bytes(self) -> int:
        if self._fixed_bytes is not None:
            return self._fixed_bytes
        return min(max(DEFAULT_BUDGET_BYTES, sum(self._needs.values())), most_budget_bytes())

    def join(self, instance: int, infos: Sequence[StreamInfo]) -> int:
        """Return the limit of a driver that comes to be known."""
        if instance not in self._limits:
            self._needs[instance] = needed_bytes(infos)
            free = max(0, self.budget_bytes - sum(self._limits.values()))
            least = min(free, least_limit_bytes(infos))
            self._limits[instance] = min(max(free // 2, least), self._needs[instance])
        return self._limits[instance]

    def leave(self, instance: int) -> None:
        """Take back the limit of a driver that is gone."""
        self._needs.pop(instance, None)
        self._limits.pop(instance, None)

    def shortfall(self) -> str:
        """Return what a second of the declared rates needs beyond the budget, as a sentence; "" if it fits."""
        needed = sum(self._needs.values())
        if needed <= self.budget_bytes:
            return ""
        return (
            f"a second of the declared rates is {needed >> 20} MiB, the memory for the bus is"
            f" {self.budget_bytes >> 20} MiB: a shorter stall than a second will lose samples;"
            " give the recorder more memory"
        )
