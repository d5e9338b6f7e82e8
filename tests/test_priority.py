"""A process that gives way does so where the kernel decides: by thread, and by session where it groups them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from contract.cases import install_third_party
from sessions import IMU, Session, read_manifest, write_rig

AUTOGROUP = Path("/proc/self/autogroup")
GIVES_WAY = """
import os
from sensorium.priority import AUTOGROUP_FILE, give_way
from sensorium.timebase import HostClock
give_way(7, HostClock())
group = AUTOGROUP_FILE.read_text().split() if AUTOGROUP_FILE.exists() else []
print(os.getpriority(os.PRIO_PROCESS, 0), group[-1] if group else "none")  # empty: a process that is in no group
"""


def given_way(*, leads_session: bool) -> list[str]:
    """Return the nice value and that of the session's group, as a child saw them after giving way."""
    child = subprocess.run(
        [sys.executable, "-c", GIVES_WAY],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        start_new_session=leads_session,
    )
    return child.stdout.split()


def test_a_process_lowers_its_thread_and_the_session_that_it_leads() -> None:
    thread, group = given_way(leads_session=True)
    assert thread == "7"
    assert group in ("7", "none")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not group processes by session")
def test_somebody_elses_session_is_left_alone() -> None:
    before = AUTOGROUP.read_text()
    assert given_way(leads_session=False)[0] == "7"
    assert AUTOGROUP.read_text() == before


def test_a_device_that_is_refused_priority_says_so_in_status_and_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "prlimit"))):
        pytest.skip("taking the right to priorities away needs root, setpriv and prlimit")
    install_third_party(tmp_path / "site")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join((str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")))
    )
    rig = write_rig(tmp_path, {"imu": IMU, "ticker": {"driver": "example_ticker"}})
    without = ("setpriv", "--bounding-set=-sys_nice", "prlimit", "--rtprio=0", "--nice=0")
    with Session("record", rig, "--json", spool=tmp_path / "spool", prefix=without) as session:
        status = session.until_recorded(0.5, ["imu", "ticker_count"])
        done = session.finish(signal.SIGINT)
    (episode,) = done.episodes
    for said in (status["warnings"], done.document["warnings"], read_manifest(episode).limitations):
        assert any(sentence.startswith("device ticker runs without priority") for sentence in said)
        assert not any(sentence.startswith("device imu") for sentence in said)  # a simulator gives way
