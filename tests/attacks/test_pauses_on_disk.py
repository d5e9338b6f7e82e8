"""What a camera saw while a pause was on is on no block of the disk: not in files, not in what was deleted."""

import os
import random
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import power_cut_disk
import pytest
from marking_driver import ENTRY_POINT, RATE_HZ, captured, install, needle
from power_cut_disk import make_disk, mounted
from sessions import CLOCK, IMU, Session, grant, pass_time, sealed, write_rig

from sensorium.agent.session.control import ask_agent
from sensorium.sync.consent.store import ConsentStore
from sensorium.timebase import SECOND_NS

PAUSES = int(os.environ.get("DISK_PAUSES", "50"))
GOAL_NS = SECOND_NS // 20 + SECOND_NS // RATE_HZ
"""From a press to the last personal capture: 50 ms and one frame."""
_BLOCK_BYTES = 4096
_EMPTY = bytes(_BLOCK_BYTES)
KINDS = ("command", "row", "switch")


@dataclass(frozen=True, slots=True)
class Press:
    kind: str
    pressed_ns: int
    released_ns: int


class Switches:
    """Presses and releases in each of the ways there are."""

    def __init__(self, folder: Path, spool: Path) -> None:
        self.file = folder / "switch"
        self.file.write_text("0")
        self._spool = spool
        self._store = ConsentStore(spool / "consent", CLOCK)

    def pause(self, kind: str, seconds: float) -> Press:
        pressed_ns = CLOCK.now_ns()
        if kind == "command":
            ask_agent(self._spool, "pause", source="test")
        elif kind == "row":
            self._store.pause(source="test")
        else:
            self.file.write_text("1")
        pass_time(seconds)
        released_ns = CLOCK.now_ns()
        if kind == "command":
            ask_agent(self._spool, "resume", source="test")
        elif kind == "row":
            self._store.resume(source="test")
        else:
            self.file.write_text("0")
        return Press(kind, pressed_ns, released_ns)


def film(mount: Path, log: Path, pauses: int) -> list[Press]:
    """Record onto a disk, paused again and again."""
    rng = random.Random(3)
    spool = mount / "spool"
    grant(spool)
    switches = Switches(log.parent, spool)
    devices = {"cam": {"driver": ENTRY_POINT, "log": str(log)}, "imu": IMU}
    rig = write_rig(mount, devices, pause={"file": str(switches.file)}, upload=False)
    with Session("record", rig, "--json", spool=spool) as session:
        session.until_recorded(1.0, ("cam", "imu"))
        presses = []
        for number in range(pauses):
            presses.append(switches.pause(KINDS[number % len(KINDS)], rng.uniform(0.25, 0.5)))
            pass_time(rng.uniform(0.3, 0.8))
        done = session.finish(signal.SIGINT, timeout_s=400.0)
    assert done.code in (0, 1), done.err
    assert len(sealed(spool)) > pauses
    return presses


def written(image: Path) -> bytes:
    """Return the blocks of a disk that anything was written to, in order: a tenth of it."""
    data = memoryview(image.read_bytes())
    blocks = (data[at : at + _BLOCK_BYTES] for at in range(0, len(data), _BLOCK_BYTES))
    return b"".join(block for block in blocks if block != _EMPTY)


@pytest.mark.slow
def test_what_was_captured_while_a_pause_was_on_is_nowhere_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := power_cut_disk.why_not():
        pytest.skip(reason)
    monkeypatch.setenv("PYTHONPATH", install(tmp_path / "site"))
    mount, log = tmp_path / "disk", tmp_path / "captured"
    mount.mkdir()
    with tempfile.TemporaryDirectory(prefix="pauses-", dir="/dev/shm") as images:
        image = Path(images) / "disk.img"
        make_disk(image)
        with mounted(image, mount):
            presses = film(mount, log, PAUSES)
        blocks = written(image)
    times = captured(log)
    delays_ns, seen = [], 0
    for press in presses:
        during = {
            n: at_ns - press.pressed_ns
            for n, at_ns in times.items()
            if press.pressed_ns < at_ns < press.released_ns
        }
        seen += len(during)
        delays_ns.append(max((delay for n, delay in during.items() if needle(n) in blocks), default=0))
    paused = {
        n
        for n, at_ns in times.items()
        for p in presses
        if p.pressed_ns < at_ns < p.released_ns + SECOND_NS // 4
    }
    outside = sorted(times.keys() - paused)
    found = sum(needle(n) in blocks for n in outside)
    late = {p.kind: d / 1e6 for p, d in zip(presses, delays_ns, strict=True) if d > GOAL_NS}
    print(
        f"{len(presses)} pauses, {seen} frames captured in them; latest one on the disk {max(delays_ns) / 1e6:.1f} ms "
        f"after the press, {sum(d > 0 for d in delays_ns)} pauses with any, over the goal: {late}; "
        f"of {len(outside)} frames outside {found} found"
    )
    assert found > 0.8 * len(outside)
    assert not late
