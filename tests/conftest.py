"""Fixtures that every room's tests share."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

os.environ["SENSORIUM_HOME"] = tempfile.mkdtemp(prefix="sensorium-home-")
"""Keys and anchors of the tests: never those of whoever runs them. Processes that tests start have it too."""

REPOSITORY = Path(__file__).resolve().parent.parent
_ALONE = ("bench", "contract", "faults")
"""Rooms whose tests kill, freeze, fill and time: they get the machine to themselves, as those marked so one by one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        room = item.path.relative_to(REPOSITORY / "tests").parts[0]
        if room in _ALONE or room.endswith(".py"):
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real captures; tests that need it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real captures (../shared/data) are not on this machine")
    return folder


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    """A context of sockets; those that a test left open are closed."""
    with zmq.Context() as made:
        yield made
        made.destroy(linger=0)
