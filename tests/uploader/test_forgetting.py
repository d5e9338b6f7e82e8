"""What consent no longer lets anybody keep goes as soon as it can be known, and nothing is read over and over."""

from dataclasses import replace
from pathlib import Path

import pytest
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import MANIFEST_FILE
from sensorium.sync.erasure import bury
from sensorium.timebase import SECOND_NS, VirtualClock
from sensorium.uploader.eviction import evict_oldest, finish
from sensorium.uploader.forgetting import EVERY_NS, FIRST_RETRY_NS, LAST_RETRY_NS, Forgetting
from sensorium.uploader.stores.directory import DirectoryStore

FIRST, SECOND = "01J00000000000000000000001", "01J00000000000000000000002"
_DAY_NS = 86_400 * SECOND_NS


class Bench:
    """Two episodes under one grant, and whoever erases."""

    def __init__(self, folder: Path, retain_days: int | None = None) -> None:
        self.spool, self.trusted = begin_spool(folder / "spool")
        self.first, self.second = (seal_episode(self.spool, name) for name in (FIRST, SECOND))
        self.clock = VirtualClock(0, CAPTURED[1])
        self.consent = ConsentStore(folder / "consent", self.clock)
        whole = grant_for()
        conditions = replace(whole.conditions, retain_days=retain_days)
        self.grant = self.consent.grant(
            replace(whole, conditions=conditions, valid_until=whole.valid_until + 365 * _DAY_NS)
        )
        self.said: list[str] = []
        self.forgetting = Forgetting(self.spool, self.clock, self.said.append, lambda: True)

    def step(self, after_ns: int = 0) -> bool:
        self.clock.advance(after_ns)
        return self.forgetting.step(self.consent.poll())

    def spoil(self, folder: Path) -> bytes:
        path = folder / MANIFEST_FILE
        good = path.read_bytes()
        path.write_bytes(good[:-20])
        return good


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_withdrawn_goes_at_the_next_look(bench: Bench) -> None:
    bench.step()
    assert (bench.first / "cam.mcap").exists()
    bench.consent.withdraw(bench.grant.id)
    assert bench.step(SECOND_NS // 2)
    assert not (bench.first / "cam.mcap").exists()
    assert not bench.step(SECOND_NS // 2)


def test_an_episode_that_is_sealed_after_the_withdrawal_goes_at_the_next_look(bench: Bench) -> None:
    bench.consent.withdraw(bench.grant.id)
    bench.step()
    third = seal_episode(bench.spool, "01J00000000000000000000003")
    assert bench.step(SECOND_NS // 2)
    assert not (third / "cam.mcap").exists()


def test_a_file_that_comes_back_goes_within_a_minute(bench: Bench) -> None:
    copy = (bench.first / "cam.mcap").read_bytes()
    bench.consent.withdraw(bench.grant.id)
    bench.step()
    (bench.first / "cam.mcap").write_bytes(copy)
    assert bench.step(EVERY_NS)
    assert not (bench.first / "cam.mcap").exists()


def test_an_episode_that_cannot_be_read_is_said_once_and_asked_ever_later(bench: Bench) -> None:
    good = bench.spoil(bench.first)
    bench.consent.withdraw(bench.grant.id)
    bench.step()
    assert not (bench.second / "cam.mcap").exists()
    assert [FIRST in text for text in bench.said] == [True]
    waits_ns = []
    for _ in range(9):
        found = bench.forgetting.failures[FIRST]
        waits_ns.append(found.due_ns - bench.clock.now_ns())
        bench.step(waits_ns[-1])
    assert waits_ns == [min(FIRST_RETRY_NS << number, LAST_RETRY_NS) for number in range(9)]
    assert len(bench.said) == 1
    (bench.first / MANIFEST_FILE).write_bytes(good)
    bench.step(LAST_RETRY_NS)
    assert not (bench.first / "cam.mcap").exists()
    assert bench.forgetting.failures == {}


@pytest.mark.parametrize("retain_days", [None, 1])
def test_manifests_are_read_every_minute_only_where_a_grant_ends_by_time(
    retain_days: int | None, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, retain_days)
    bench.step()
    bench.spoil(bench.first)  # in place: nothing of the folder says so, only who reads it finds it
    bench.step(EVERY_NS)
    assert bool(bench.said) is (retain_days is not None)
    bench.clock.step_utc(2 * _DAY_NS)
    bench.step(EVERY_NS)
    assert (bench.second / "cam.mcap").exists() is (retain_days is None)


def test_one_damaged_folder_keeps_no_other_from_being_finished_or_evicted(
    bench: Bench, tmp_path: Path
) -> None:
    bury(bench.first, "deleted: a test run", bench.clock.utc_ns())
    bury(bench.second, "deleted: a test run", bench.clock.utc_ns())
    bench.spoil(bench.first)
    store = DirectoryStore(tmp_path / "central")
    (fate,) = evict_oldest(bench.spool, store, bench.trusted)
    assert fate.episode_id == FIRST
    assert MANIFEST_FILE in fate.reasons[0]
    assert list(finish(bench.spool)) == [FIRST]
    assert [folder.name for folder in bench.spool.gone_folders()] == [SECOND]
