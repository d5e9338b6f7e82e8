"""Runs ``sensorium`` as its users do: real processes, sockets and signals, watched with deadlines.

The balance is checked from outside: what drivers say they produced lies in their counter files, what was
recorded is counted with the ``mcap`` library; the manifest's own numbers must agree with both.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from sensorium.agent.session.control import AgentNote, ask_agent
from sensorium.agent.session.memory_folder import bring_home, memory_folders
from sensorium.drivers.bus.counters import StreamCounts, read_counters
from sensorium.errors import SensoriumError
from sensorium.sync.consent.grants import ConsentGrant, Evidence, LawfulBasis, Purpose, Scope
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.manifest import Manifest
from sensorium.sync.episode.manifest import read_manifest as read_manifest
from sensorium.sync.episode.ulid import new_ulid
from sensorium.timebase import SECOND_NS, HostClock

CLOCK = HostClock()
CAMERA = {"driver": "sim_camera", "size": [160, 120], "render": "cached"}
IMU = {"driver": "sim_imu"}
FORCE = {"driver": "sim_force"}
FLUSH_S = 1.0
CORE = ("synchronizer", "thinker")
"""Processes of a session that are no device's."""
SMALL_RIG: dict[str, dict[str, Any]] = {"camera_left": CAMERA, "imu": IMU, "force": FORCE}
_FOUND = TypeVar("_FOUND")


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished command said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def episodes(self) -> list[Path]:
        return [Path(path) for path in self.document["episodes"]]


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sensorium.agent.cli", *map(str, arguments)]


def sensorium(*arguments: object, timeout_s: float = 60.0) -> Done:
    """Run one command to its end; a command that hangs or shows a traceback fails the test."""
    process = subprocess.Popen(
        command_line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        return _finished(process, timeout_s)
    finally:
        if process.poll() is None:
            process.terminate()  # an agent ends its processes, too
            process.communicate()


def _finished(process: "subprocess.Popen[str]", timeout_s: float) -> Done:
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as failure:
        raise AssertionError(f"no end within {timeout_s} s: {process.args!r}") from failure
    assert "Traceback" not in out + err, err
    assert "internal error" not in err, err
    return Done(process.returncode, out, err)


def until(condition: Callable[[], _FOUND | None], what: str, seconds: float = 30.0) -> _FOUND:
    """Return the first truthy value of ``condition``; fail when it does not come in time."""
    deadline_ns = CLOCK.now_ns() + int(seconds * SECOND_NS)
    while True:
        found = condition()
        if found:
            return found
        assert CLOCK.now_ns() < deadline_ns, f"not within {seconds} s: {what}"
        CLOCK.sleep_until(CLOCK.now_ns() + SECOND_NS // 50)


def pass_time(seconds: float) -> None:
    """Let the processes under test run for so long."""
    CLOCK.sleep_until(CLOCK.now_ns() + int(seconds * SECOND_NS))


def write_rig(folder: Path, devices: Mapping[str, Mapping[str, Any]] = SMALL_RIG, **keys: Any) -> Path:
    """Write a rig file whose spool is ``folder/spool``; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rig.yaml"
    found = {"rig": "bench", "spool": "spool", **keys, "devices": {n: dict(d) for n, d in devices.items()}}
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return path


def grant(spool: Path, *purposes: Purpose) -> str:
    """Let everything be recorded (and whatever else is named) for a day from now; return the grant's id."""
    now_ns = CLOCK.utc_ns()
    entered = ConsentGrant(
        id=new_ulid(now_ns),
        subject="site:bench",
        controller="tests",
        lawful_basis=LawfulBasis.CONSENT,
        purposes=(Purpose.RECORD, *purposes),
        scope=Scope(("*",)),
        valid_from=now_ns - SECOND_NS,
        valid_until=now_ns + 86_400 * SECOND_NS,
        evidence=Evidence("configuration", by="tests", note=""),
    )
    ConsentStore(spool / "consent", CLOCK).grant(entered, by="tests")
    return entered.id


class Session:
    """A command that runs in the background; leaving the block ends every process that it started."""

    def __init__(self, *arguments: object, spool: Path, prefix: Sequence[str] = ()) -> None:
        self.spool = spool
        self._pids: set[int] = set()
        self._process = subprocess.Popen(
            [*prefix, *command_line(*arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.note_processes()
        for pid in (self._process.pid, *self._pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        for pid in self._pids:
            until(lambda pid=pid: not is_alive(pid), f"the end of process {pid}")  # type: ignore[misc]
        for home in memory_folders().values():
            if home.is_relative_to(self.spool.resolve()):
                bring_home(home)

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return how the command ended, negative for a signal; None while it runs."""
        return self._process.poll()

    def note_processes(self) -> dict[str, int]:
        """Return the ids of the session's processes by name."""
        note = AgentNote.load(self.spool)
        if note is None or note.pid != self._process.pid:
            return {}
        self._pids.update(note.processes.values())
        return note.processes

    @property
    def run_dir(self) -> Path:
        note = AgentNote.load(self.spool)
        assert note is not None
        return Path(note.run_dir)

    def status(self) -> dict[str, Any] | None:
        """Return the agent's status, None while there is none."""
        assert self._process.poll() is None, self._process.communicate()
        if not self.note_processes():
            return None
        try:
            return ask_agent(self.spool, "status")
        except SensoriumError:
            return None

    def until_recorded(self, seconds: float, streams: Sequence[str] = ()) -> dict[str, Any]:
        """Return the status once the open episode is so long and all these streams have samples."""

        def reached() -> dict[str, Any] | None:
            status = self.status()
            if status is None or status["recorded_s"] < seconds:
                return None
            is_there = all(status["streams"].get(name, {"recorded": 0})["recorded"] for name in streams)
            return status if is_there else None

        return until(reached, f"{seconds} s recorded of {streams or 'anything'}", 45.0)

    def until_flushed(self, seconds: float, streams: Sequence[str]) -> dict[str, Any]:
        """Do what :meth:`until_recorded` does, and let a flush interval pass: what was there then is on disk."""
        reached_s = self.until_recorded(seconds, streams)["recorded_s"]
        return self.until_recorded(reached_s + FLUSH_S + 0.2)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to one of the session's processes; return its id."""
        pid = self.note_processes()[name]
        os.kill(pid, number)
        return pid

    def signal(self, number: int) -> None:
        self.note_processes()
        os.kill(self._process.pid, number)

    def close_output(self) -> None:
        """Leave, as whoever read the command's lines may do."""
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def finish(self, number: int | None = None, timeout_s: float = 60.0) -> Done:
        """Send a signal (if any), wait for the end, and return what the command said."""
        if number is not None:
            self.signal(number)
        return _finished(self._process, timeout_s)


def is_alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, 0 when it has ended."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def read_messages(file: Path, *, decoded: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield (topic, message) of an MCAP file as the mcap library reads it.

    Messages of schemas other than protobuf (replayed ones), and payloads where ``decoded`` is False, are bytes.
    """
    with file.open("rb") as stream:
        factory = DecoderFactory()
        for schema, channel, message in make_reader(stream, validate_crcs=True).iter_messages(
            log_time_order=False
        ):
            decode = None
            if decoded or channel.topic.endswith("/stamps"):
                decode = factory.decoder_for(channel.message_encoding, schema)
            yield channel.topic, message.data if decode is None else decode(message.data)


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded frame as the stamps channel states it."""

    instance: int
    seq: int
    count: int
    capture_ns: tuple[int, ...]


def recorded_rows(episode: Path) -> dict[str, list[Row]]:
    """Return the recorded frames by stream; the number of payload messages must be the same."""
    rows: dict[str, list[Row]] = {}
    payloads: Counter[str] = Counter()
    for file in sorted(episode.glob("*.mcap")):
        for topic, message in read_messages(file, decoded=False):
            name = topic.removeprefix("/").removesuffix("/stamps")
            if not topic.endswith("/stamps"):
                payloads[name] += 1
                continue
            captures = iter(np.cumsum(message.capture_host_step_ns).tolist())
            next_seq = 0
            for instance, gap, count, stamps in zip(
                np.cumsum(message.instance_step).tolist(),
                message.seq_gap,
                np.cumsum(message.count_step).tolist(),
                np.cumsum(message.capture_counts_step).tolist(),
                strict=True,
            ):
                seq = next_seq + gap
                next_seq = seq + count
                row = Row(instance, seq, count, tuple(islice(captures, stamps)))
                rows.setdefault(name, []).append(row)
    for name, found in rows.items():
        assert payloads[name] == len(found), f"{name}: {payloads[name]} messages, {len(found)} stamps"
    return rows


def recorded_samples(episode: Path) -> Counter[tuple[str, int]]:
    """Return the samples in the files of an episode per (stream, driver instance); each one only once."""
    counts: Counter[tuple[str, int]] = Counter()
    for name, rows in recorded_rows(episode).items():
        next_seq: dict[int, int] = {}
        for row in sorted(rows, key=lambda row: (row.instance, row.seq)):
            assert row.seq >= next_seq.get(row.instance, 0), f"{name}: sample {row.seq} was recorded twice"
            next_seq[row.instance] = row.seq + row.count
            counts[name, row.instance] += row.count
    return counts


def counter_files(run_dir: Path) -> dict[int, dict[str, StreamCounts]]:
    """Return what every driver instance of a session says it produced and lost."""
    return dict(read_counters(path) for path in sorted(run_dir.glob("counters/*.counters")))


def check_balance(episodes: Sequence[Path], run_dir: Path, *, is_contiguous: bool = True) -> None:
    """Assert that the samples of a session balance, counted from outside.

    Per episode: the manifest's recorded numbers are those in the files, and produced = recorded + dropped.
    Over all of them, if they follow upon each other: produced is what the drivers counted, and every loss
    that a driver booked stands in a manifest.
    """
    produced: Counter[tuple[str, int]] = Counter()
    dropped: Counter[tuple[str, int]] = Counter()
    for episode in episodes:
        in_files = recorded_samples(episode)
        for record in read_manifest(episode).streams:
            for instance, balance in record.balances.items():
                key = (record.info.name, instance)
                held = in_files.pop(key, 0)
                assert balance.recorded == held, f"{key}: manifest {balance.recorded}, files {held}"
                lost = sum(sum(reasons.values()) for reasons in balance.dropped.values())
                assert balance.produced == balance.recorded + lost, f"{key}: {balance}"
                produced[key] += balance.produced
                dropped[key] += lost
        assert not in_files, f"samples that no balance speaks of: {in_files}"
    if not is_contiguous:
        return
    for instance, streams in counter_files(run_dir).items():
        for name, counts in streams.items():
            key = (name, instance)
            assert produced[key] == counts.next_seq, f"{key}: {produced[key]} of {counts.next_seq} produced"
            assert dropped[key] >= sum(counts.lost.values()), f"{key}: {counts.lost}"


def dropped_at(manifests: Sequence[Manifest], stream: str) -> Counter[str]:
    """Return the lost samples of a stream by place."""
    found: Counter[str] = Counter()
    for manifest in manifests:
        for record in manifest.streams:
            if record.info.name == stream:
                for place, reasons in record.total.dropped.items():
                    found[place] += sum(reasons.values())
    return found


def sealed(spool: Path) -> list[Path]:
    """Return the sealed episodes of a spool, oldest first."""
    return sorted((spool / "sealed").iterdir())


def check_verifies(*episodes: Path) -> None:
    """Assert that ``sensorium episodes verify`` finds nothing wrong."""
    for episode in episodes:
        done = sensorium("episodes", "verify", episode, "--json")
        assert done.code == 0, done.out
