"""What processes cost: processor time and memory of a tree, read from /proc while it lives."""

import os
import signal
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from sensorium.timebase import SECOND_NS, HostClock

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CPU_EVERY_NS = SECOND_NS // 20
_MEMORY_EVERY = 10
"""Walking the pages of a process for its memory is dear: every half second."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(slots=True)
class Usage:
    """One process; ``cpu_s`` all its threads so far, children apart.

    Attributes:
        name: Of its spec file (a device, ``synchronizer``), else of its module or program.
        pss_mb: (n,) proportional set size at each look: pages that several share count once in the sum.
        mark_cpu_s: ``cpu_s`` at the marks by name.
    """

    pid: int
    parent: int
    name: str
    cpu_s: float = 0.0
    pss_mb: list[float] = field(default_factory=list)
    mark_cpu_s: dict[str, float] = field(default_factory=dict)

    def since(self, mark: str, until: str = "") -> float:
        """Return the processor time since a mark, to another or the end; a process may begin after a mark."""
        end_s = self.mark_cpu_s.get(until, 0.0) if until else self.cpu_s
        return end_s - self.mark_cpu_s.get(mark, 0.0)

    def prolonged(self, mark: str, times: float) -> "Usage":
        """Return what a process would have used had it gone on so many times as long after the mark."""
        longer_s = self.mark_cpu_s.get(mark, 0.0) + times * self.since(mark)
        return replace(self, cpu_s=longer_s)


class Watch:
    """Follows a process and all that descend from it, in a thread of its own; use as a context manager."""

    def __init__(self, roots: tuple[int, ...]) -> None:
        self.roots = roots
        self.usages: dict[int, Usage] = {}
        self.looks: list[int] = []
        self.shm_mb: list[float] = []
        self.mark_looks: dict[str, int] = {}
        self._clock = HostClock()
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def mark(self, name: str) -> None:
        """Note what every process has used up to now under ``name``."""
        with self._lock:
            self._find()
            self._read_cpu()
            self.mark_looks[name] = len(self.looks)
            for usage in self.usages.values():
                usage.mark_cpu_s[name] = usage.cpu_s

    def has_children(self) -> bool:
        """Return whether anything but the roots is alive."""
        return any(pid not in self.roots for pid in self.alive())

    def alive(self) -> list[int]:
        """Return the processes that have not ended."""
        with self._lock:
            return [pid for pid in self.usages if _stat(pid) is not None]

    def kill(self, name: str) -> None:
        """Kill the processes of this name at once.

        Raises:
            LookupError: If none is alive.
        """
        victims = [pid for pid in self.alive() if self.usages[pid].name == name]
        if not victims:
            raise LookupError(
                f"no process {name} to kill among {[each.name for each in self.usages.values()]}"
            )
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    def _run(self) -> None:
        for look in range(1 << 60):
            with self._lock:
                if look % _MEMORY_EVERY == 0:
                    self._find()
                    self._read_memory()
                self._read_cpu()
            self._clock.sleep_until(self._clock.now_ns() + _CPU_EVERY_NS)
            if self._is_over.is_set():
                return

    def _find(self) -> None:
        parents = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and (found := _stat(int(entry.name))) is not None:
                parents[int(entry.name)] = found[0]
        for pid in parents:
            if pid not in self.usages and self._descends(pid, parents):
                self.usages[pid] = Usage(pid, parents[pid], process_name(pid))

    def _descends(self, pid: int, parents: dict[int, int]) -> bool:
        while pid > 1:
            if pid in self.roots:
                return True
            pid = parents.get(pid, 0)
        return False

    def _read_cpu(self) -> None:
        for pid, usage in self.usages.items():
            found = _stat(pid)
            if found is not None and found[1] >= usage.cpu_s:
                usage.cpu_s = found[1]
                if usage.name in ("python", "python3"):  # seen between fork and exec
                    usage.name = process_name(pid)

    def _read_memory(self) -> None:
        self.looks.append(self._clock.now_ns())
        self.shm_mb.append(_shared_mb())
        for pid, usage in self.usages.items():
            usage.pss_mb += [0.0] * (len(self.looks) - 1 - len(usage.pss_mb))
            usage.pss_mb.append(_pss_mb(pid))


def _stat(pid: int) -> tuple[int, float] | None:
    """Return (parent, processor seconds) of a process, None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _pss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0) / 1024


def _shared_mb() -> float:
    """Return what lies in /dev/shm, rings of the bus among it."""
    total = 0
    for entry in os.scandir(SHARED_MEMORY):
        try:
            total += entry.stat().st_blocks * 512
        except OSError:
            continue
    return total / 1e6


def process_name(pid: int) -> str:
    """Return the name of the spec that a process was given, else of its module, else of its program."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    for word in words:
        if word.endswith(".spec.json"):
            return Path(word).name.removesuffix(".spec.json")
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1].rpartition(".")[2]
    return Path(words[0]).name


def peak_mb(usages: list[Usage], until: int | None = None) -> float:
    """Return the largest sum of the processes' memory at one of the looks before ``until``."""
    looks = max((len(usage.pss_mb) for usage in usages), default=0)
    sums = [
        sum(usage.pss_mb[look] for usage in usages if look < len(usage.pss_mb))
        for look in range(looks if until is None else min(until, looks))
    ]
    return max(sums, default=0.0)
