"""A camera whose frames can be told apart in any heap of bytes, as a driver of somebody else's package."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import Encoding, Frame, Loss, Modality, StreamInfo
from sensorium.timebase import SECOND_NS

ENTRY_POINT = "marking"
RATE_HZ = 30
SIZE = (64, 64)


def payload(number: int) -> bytes:
    """Return a frame's pixels: noise that no other frame has."""
    return random.Random(number).randbytes(SIZE[0] * SIZE[1])


def needle(number: int) -> bytes:
    """Return what to look for."""
    return payload(number)[1000:1032]


class MarkingConfig(DriverConfig):
    """``log``: file that is told the number and the host time of each frame."""

    log: Path


class MarkingDriver(Driver[MarkingConfig]):
    """Noise, 30 times a second."""

    config_type = MarkingConfig

    def __init__(self, config: MarkingConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._number = 0
        self._due_ns = 0
        self._log = -1

    def open(self) -> Sequence[StreamInfo]:
        self._log = os.open(self.config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._due_ns = self.context.clock.now_ns()
        name = self.context.name
        return [
            StreamInfo(
                name, Modality.CAMERA, Encoding.MONO8, float(RATE_HZ), name, shape=SIZE, is_personal=True
            )
        ]

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        clock = self.context.clock
        clock.sleep_until(min(self._due_ns, clock.now_ns() + int(timeout_s * SECOND_NS)))
        now_ns = clock.now_ns()
        if now_ns < self._due_ns:
            return []
        number, self._number = self._number, self._number + 1
        self._due_ns = max(self._due_ns + SECOND_NS // RATE_HZ, now_ns - SECOND_NS)
        os.write(self._log, f"{number} {now_ns}\n".encode())
        return [Frame(self.context.name, number, 1, None, np.array([now_ns]), payload(number))]

    def close(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1


def install(folder: Path) -> str:
    """Make this driver known as an installed package's; return the ``PYTHONPATH`` for that."""
    info = folder / "marking-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: marking\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[sensorium.drivers]\n{ENTRY_POINT} = marking_driver:MarkingDriver\n"
    )
    here = Path(__file__).resolve().parent
    return os.pathsep.join(filter(None, [str(folder), str(here), os.environ.get("PYTHONPATH", "")]))


def captured(log: Path) -> dict[int, int]:
    """Return the host time of each frame by its number."""
    rows = (line.split() for line in log.read_text().splitlines())
    return {int(number): int(host_ns) for number, host_ns in rows}
