"""The supervisor waits for the recorder's death; one that is dead and reaped must not end the session."""

import os
import select
import subprocess
import sys

import pytest

from sensorium.agent.session.supervisor import death_of


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no descriptors of processes")
def test_a_death_is_seen_at_once_and_one_long_past_is_no_error() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    descriptor = death_of(child.pid)
    assert descriptor is not None
    assert select.select([descriptor], [], [], 0)[0] == [], "it lives"
    child.communicate(b"\n")
    assert select.select([descriptor], [], [], 5)[0] == [descriptor], "it is dead"
    os.close(descriptor)
    assert death_of(child.pid) is None, "it was reaped"
