"""Whether a simulated device kept up with real time.

A simulated sensor's stamps do not depend on when its frame is handed over, so one that is late loses nothing. But
it says that this machine cannot make the sensor's data as fast as the sensor would: what else goes wrong meanwhile
may be the machine's doing.
"""

from pathlib import Path

from sensorium.timebase import SECOND_NS

LATE_NS = SECOND_NS
"""Later than this is too late: for so long a recorder must bear a stall, so a real sensor's burst."""

_FOLDER = "late"


class PaceWriter:
    """Notes in the run's folder how late a device was, once a second; without lateness there is no file."""

    def __init__(self, run_dir: Path, device: str) -> None:
        self._path = run_dir / _FOLDER / device
        self._next_ns = 0
        self._worst_ns = 0

    def note(self, due_ns: int, now_ns: int) -> None:
        """Note that a frame due at one time is handed over at another."""
        late_ns = now_ns - due_ns
        if late_ns <= LATE_NS:
            return
        self._worst_ns = max(self._worst_ns, late_ns)
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + SECOND_NS
            self.flush()

    def flush(self) -> None:
        """Write the worst since the last time."""
        if self._worst_ns:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("a", encoding="ascii") as file:
                file.write(f"{self._worst_ns}\n")
            self._worst_ns = 0


def load_pace(run_dir: Path) -> dict[str, float]:
    """Return by how many seconds devices of a run were late at worst; empty where all of them kept up."""
    found = {}
    for path in sorted(run_dir.glob(f"{_FOLDER}/*")):
        late_ns = [int(line) for line in path.read_text(encoding="ascii").split()]
        found[path.name] = max(late_ns) / SECOND_NS
    return found
