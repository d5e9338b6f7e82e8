"""Power cuts while recording, splitting and sealing: what had not reached the disk is gone, and no more than said."""

import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import power_cut_disk
import pytest
from power_cut_disk import PowerCut, cut_power, make_disk, mounted
from sessions import (
    SMALL_RIG,
    Session,
    check_verifies,
    grant,
    pass_time,
    read_manifest,
    recorded_rows,
    sealed,
    sensorium,
    write_rig,
)

from sensorium.timebase import SECOND_NS

SYNC_S = 1.0
SPLIT_S = 3.0
CUTS_IN_A_SESSION = 8
_ON_THE_WAY_S = 0.15
"""From a capture until the recorder has it, and what a machine under test adds."""


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory: copies are quick, and no other disk's stalls are measured.

    Keys, anchors and the ends of chains lie on the disk that is cut, as on a robot's only one.
    """
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "disk" / "home"))
    if reason := power_cut_disk.why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="power-", dir="/dev/shm") as folder:
        yield Path(folder)


def record_and_cut(tmp_path: Path, images: Path, rng: random.Random, cuts: int) -> list[PowerCut]:
    """Return what power cuts at random moments of one recording left; the recording itself goes on."""
    mount, image = tmp_path / "disk", images / "disk.img"
    mount.mkdir(exist_ok=True)
    make_disk(image)
    found: list[PowerCut] = []
    with mounted(image, mount):
        rig = write_rig(mount, SMALL_RIG, episode={"max_s": SPLIT_S}, recorder={"sync_s": SYNC_S})
        grant(mount / "spool")
        with Session("record", rig, "--json", spool=mount / "spool") as session:
            session.until_recorded(SYNC_S + 0.3, tuple(SMALL_RIG))
            for number in range(cuts):
                pass_time(rng.uniform(0.7, 1.4))
                pids = (session.pid, *session.note_processes().values())
                found.append(cut_power(image, mount, images / f"cut{number}.img", pids))
            done = session.finish(signal.SIGINT)
        assert done.code in (0, 1), done.err
    return found


def lost_s(cut: PowerCut, mount: Path) -> float:
    """Start again after a power cut; return how much of the stream that lost most of it is gone."""
    spool = mount / "spool"
    with mounted(cut.image, mount):
        done = sensorium("episodes", "recover", "--spool", spool, "--json")
        assert done.code == 0, done.err
        assert not list((spool / "open").iterdir())
        episodes = sealed(spool)
        check_verifies(*episodes)
        for episode in episodes:
            assert read_manifest(episode).bounds.sync_s == SYNC_S
        ends: dict[str, int] = {}
        for episode in episodes:
            for name, rows in recorded_rows(episode).items():
                ends[name] = max(ends.get(name, 0), max(row.capture_ns[-1] for row in rows))
    assert ends.keys() == SMALL_RIG.keys()
    return (cut.host_ns - min(ends.values())) / SECOND_NS


def check_cuts(tmp_path: Path, images: Path, seed: int, cuts: int) -> list[float]:
    found = record_and_cut(tmp_path, images, random.Random(seed), cuts)
    lost = [lost_s(cut, tmp_path / "disk") for cut in found]
    assert max(lost) <= SYNC_S + _ON_THE_WAY_S, lost
    return lost


def test_a_power_cut_costs_at_most_the_sync_interval_and_all_else_is_whole(
    tmp_path: Path, images: Path
) -> None:
    check_cuts(tmp_path, images, seed=1, cuts=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 125))
def test_two_hundred_power_cuts(seed: int, tmp_path: Path, images: Path) -> None:
    lost = check_cuts(tmp_path, images, seed, CUTS_IN_A_SESSION)
    print(f"{len(lost)} cuts, at most {max(lost):.2f} s lost")
