"""Faults that a rig file can ask of a simulated device."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, model_validator


class Fault(BaseModel):
    """One fault. Times are seconds since the common start.

    ``drop``: ``count`` samples are lost in the device, whose counter goes on.
    ``freeze``: for ``for_s`` the same payload is sent again and again under new stamps.
    ``stall``: for ``for_s`` nothing is delivered, then everything at once.
    ``disconnect``: ``read`` fails, and so does every ``open`` in the next ``for_s``.
    ``clock_reset``: the device reboots: silent for ``for_s``, then its clock starts from zero.
    ``corrupt``: for ``for_s`` payloads are damaged: the last third is cut off where sizes may vary, else
    overwritten with noise.
    ``ignore``: ``count`` samples are not taken, as by a camera that does not answer its trigger; the device's
    counter does not see them.
    ``expose``: one sample more is taken at ``at_s``, which nothing asked for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["drop", "freeze", "stall", "disconnect", "clock_reset", "corrupt", "ignore", "expose"]
    at_s: NonNegativeFloat
    for_s: NonNegativeFloat = 0.0
    count: PositiveInt = 1

    @model_validator(mode="after")
    def _lasts(self) -> "Fault":
        if self.kind in ("freeze", "stall", "corrupt") and not self.for_s:
            raise ValueError(f"a {self.kind} needs for_s > 0")
        return self

    @property
    def end_s(self) -> float:
        return self.at_s + self.for_s


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of one device, by the question that the simulation asks."""

    faults: tuple[Fault, ...] = ()

    def spans(self, kind: str) -> tuple[tuple[float, float], ...]:
        """Return (from, to) of every fault of this kind."""
        return tuple((fault.at_s, fault.end_s) for fault in self.faults if fault.kind == kind)

    def is_active(self, kind: str, world_s: float) -> bool:
        """Return whether a fault of this kind holds at this time."""
        return any(start <= world_s < end for start, end in self.spans(kind))

    @property
    def resets_s(self) -> tuple[float, ...]:
        """When the device clock has started again, in order."""
        return tuple(sorted(end for _, end in self.spans("clock_reset")))

    def is_silent(self, world_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return (n,) whether the device is rebooting and takes no samples at all."""
        silent = np.zeros(world_s.shape, np.bool_)
        for start, end in self.spans("clock_reset"):
            silent |= (world_s >= start) & (world_s < end)
        return silent

    def disconnect_after(self, world_s: float) -> Fault | None:
        """Return the first disconnect that is still to come."""
        coming = [fault for fault in self.faults if fault.kind == "disconnect" and fault.at_s >= world_s]
        return min(coming, key=lambda fault: fault.at_s, default=None)


class DropPlan:
    """Which samples the device loses: planned runs, and each one with a probability.

    With ``kind`` "ignore": which samples it does not take at all.
    """

    def __init__(
        self, faults: Faults, probability: float, rng: np.random.Generator, kind: str = "drop"
    ) -> None:
        self._planned = [[fault.at_s, fault.count] for fault in faults.faults if fault.kind == kind]
        self._probability = probability
        self._rng = rng

    def dropped(self, world_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return (n,) whether the sample is lost; call once per sample, in order."""
        lost = np.zeros(len(world_s), np.bool_)
        if self._probability:
            lost |= self._rng.random(len(world_s)) < self._probability
        for plan in self._planned:
            at_s, left = plan
            hit = np.flatnonzero(world_s >= at_s)[: int(left)]
            lost[hit] = True
            plan[1] = left - len(hit)
        return lost


def damaged(payload: bytes, rng: np.random.Generator, *, may_shrink: bool) -> bytes:
    """Return the payload with its last third cut off, or overwritten where its size is fixed."""
    kept = 2 * len(payload) // 3
    return payload[:kept] if may_shrink else payload[:kept] + rng.bytes(len(payload) - kept)
