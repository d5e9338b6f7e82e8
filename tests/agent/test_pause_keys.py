"""A key on the terminal of a recording pauses it; without a terminal of its own nothing is touched."""

import os
import pty
import select
import signal
import subprocess
import termios
from pathlib import Path
from typing import Any

from sessions import SMALL_RIG, command_line, grant, pass_time, until, write_rig

from sensorium.agent.session.control import AgentNote, ask_agent
from sensorium.agent.session.pause_keys import PauseKeys
from sensorium.errors import SensoriumError
from sensorium.timebase import HostClock


def status(spool: Path) -> dict[str, Any]:
    try:
        return ask_agent(spool, "status") if AgentNote.load(spool) is not None else {}
    except SensoriumError:
        return {}


def test_p_pauses_a_recording_and_r_resumes_it(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    grant(spool)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        command_line("record", write_rig(tmp_path)),
        stdin=slave,
        stdout=subprocess.DEVNULL,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: _take_terminal(slave),
    )
    said = bytearray()

    def is_paused(wanted: bool) -> bool:
        while select.select([master], [], [], 0)[0]:
            said.extend(os.read(master, 65536))
        return status(spool).get("paused") is wanted

    try:
        until(lambda: set(status(spool).get("streams", ())) == set(SMALL_RIG), "the recording")
        os.write(master, b"xp")
        until(lambda: is_paused(True), "the pause")
        os.write(master, b"r")
        until(lambda: is_paused(False), "the end of the pause")
        assert b"p = privacy pause" in said
        os.write(master, b"\x03")  # Ctrl-C is still one
        while process.poll() is None:
            is_paused(False)  # reads on, so that nothing that is said waits for us
            pass_time(0.05)
        assert process.returncode in (0, 1)  # 1: what was withheld is a verdict; neither killed nor an error
        assert termios.tcgetattr(slave) == before
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(master)
        os.close(slave)


def _take_terminal(descriptor: int) -> None:
    import fcntl

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


def test_without_a_terminal_in_its_foreground_nothing_is_set_or_read() -> None:
    master, slave = pty.openpty()  # a terminal, but not the one that controls this process
    reading, writing = os.pipe()
    try:
        for descriptor in (slave, reading, -1):
            with PauseKeys(lambda cmd, at: None, HostClock(), print, descriptor) as keys:
                assert not keys.is_usable
                assert not keys.is_listening
    finally:
        for descriptor in (master, slave, reading, writing):
            os.close(descriptor)
