"""When a device of the reference rig has its frames, whoever is listening or not."""

from dataclasses import dataclass
from pathlib import Path

from sensorium.timebase import SECOND_NS

GO_FILE = "go"
DEVICE_BUFFER_NS = SECOND_NS // 2
"""A device holds this much of what nobody fetches; older frames are gone, as in a camera's or kernel's buffer."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Frame ``i`` is there at ``start_ns + (i + phase) * period``: absolute, so nothing that lags slows it.

    Attributes:
        frames: How many there will ever be.
        phase: 0 to 1; devices without a common trigger do not fire together.
    """

    start_ns: int
    period_ns: float
    frames: int
    phase: float

    def due_ns(self, index: int) -> int:
        return self.start_ns + round((index + self.phase) * self.period_ns)

    def count_until(self, now_ns: int) -> int:
        """Return how many frames there have been by ``now_ns``."""
        passed = (now_ns - self.start_ns) / self.period_ns - self.phase
        return max(0, min(self.frames, int(passed) + 1 if passed >= 0 else 0))


def ready(folder: Path, name: str) -> None:
    """Say that a producer or recorder is ready to go."""
    (folder / f"{name}.ready").touch()


def start_of(folder: Path) -> int | None:
    """Return when everybody starts, host ns; None before somebody decided it."""
    try:
        text = (folder / GO_FILE).read_text()
    except FileNotFoundError:
        return None
    return int(text) if text else None


def give_start(folder: Path, start_ns: int) -> None:
    """Tell everybody who waits when to start."""
    partial = folder / f".{GO_FILE}"
    partial.write_text(str(start_ns))
    partial.rename(folder / GO_FILE)
