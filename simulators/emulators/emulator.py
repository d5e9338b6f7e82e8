"""What every emulated device shares: samples paced by their number, in a thread, and faults on its wire."""

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from sensorium.timebase import SECOND_NS, Clock, HostClock

Signal = Callable[[int], tuple[float, float, float, float, float, float]]
"""Six values of sample number i: acceleration and rate of turn, or force and torque."""

_POLL_NS = 5_000_000


@dataclass(frozen=True, slots=True)
class WireFaults:
    """What goes wrong on the wire; sample numbers count from 0, an interval of 0 means never.

    Attributes:
        drop_every: Each such sample is counted by the device but not sent.
        garbage_every: Random bytes (serial) or a random datagram (UDP) in front of each such sample.
        corrupt_every: One flipped bit in each such sample.
        disconnect_after: The device vanishes at this sample.
        seed: Of the random bytes.
    """

    drop_every: int = 0
    garbage_every: int = 0
    corrupt_every: int = 0
    disconnect_after: int = 0
    seed: int = 0

    def drops(self, sample: int) -> bool:
        return _hits(self.drop_every, sample)

    def spoils(self, sample: int) -> bool:
        return _hits(self.corrupt_every, sample)

    def precedes_with_garbage(self, sample: int) -> bool:
        return _hits(self.garbage_every, sample)

    def disconnects(self, sample: int) -> bool:
        return bool(self.disconnect_after) and sample >= self.disconnect_after


def _hits(interval: int, sample: int) -> bool:
    return bool(interval) and sample > 0 and sample % interval == 0


NO_FAULTS = WireFaults()


class Emulator(ABC):
    """A device that runs in a thread while the context is open; paced by sample number, so without drift."""

    def __init__(self, rate_hz: float, faults: WireFaults, clock: Clock | None) -> None:
        self.rate_hz = rate_hz
        self._faults = faults
        self._clock = clock or HostClock()
        self._random = random.Random(faults.seed)
        self._sample = 0
        self._start_ns: int | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self.run, name=type(self).__name__, daemon=True)

    @property
    def samples(self) -> int:
        """How many samples the device has made."""
        return self._sample

    def __enter__(self) -> "Emulator":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()
        self.close()

    def run(self) -> None:
        """Work until :meth:`stop`."""
        while not self._stopped.is_set():
            self._clock.sleep_until(min(self.step(), self._clock.now_ns() + _POLL_NS))

    def stop(self) -> None:
        self._stopped.set()

    def step(self) -> int:
        """Answer requests and send the samples that are due; return when the next one is."""
        self.answer_requests()
        now_ns = self._clock.now_ns()
        if not self.is_streaming or self._stopped.is_set():
            self._start_ns = None
            return now_ns + _POLL_NS
        if self._start_ns is None:
            self._start_ns = now_ns - round(self._sample * SECOND_NS / self.rate_hz)
        while (due_ns := self._start_ns + round(self._sample * SECOND_NS / self.rate_hz)) <= now_ns:
            if self._faults.disconnects(self._sample):
                self.disconnect()
                return now_ns + _POLL_NS
            self._emit(self._sample)
            self._sample += 1
        return due_ns

    def _emit(self, sample: int) -> None:
        if self._faults.precedes_with_garbage(sample):
            self.send(self._random.randbytes(self._random.randrange(1, 120)))
        data = self.encode(sample)
        if self._faults.spoils(sample):
            data = self.spoil(data)
        if not self._faults.drops(sample):
            self.send(data)

    def spoil(self, data: bytes) -> bytes:
        """Return ``data`` with one bit flipped."""
        bit = self._random.randrange(len(data) * 8)
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)

    @property
    @abstractmethod
    def is_streaming(self) -> bool:
        """Whether samples are being made."""

    @abstractmethod
    def answer_requests(self) -> None:
        """Take what the host has sent."""

    @abstractmethod
    def encode(self, sample: int) -> bytes:
        """Return sample number ``sample`` as it goes over the wire."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Put bytes on the wire."""

    @abstractmethod
    def disconnect(self) -> None:
        """Vanish, as if unplugged."""

    @abstractmethod
    def close(self) -> None:
        """Release what is open."""
