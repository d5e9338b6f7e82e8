"""The consent state in a store follows the log: no byte of an episode is sent again for it."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.errors import StoreError
from sensorium.sync.consent.grants import Conditions, ConsentGrant, Purpose
from sensorium.sync.consent.state import ConsentState, read_state
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys
from sensorium.timebase import SECOND_NS, VirtualClock
from sensorium.uploader.eviction import evict
from sensorium.uploader.receipt import consent_key
from sensorium.uploader.service import UploadService
from sensorium.uploader.stores.memory import MemoryStore
from sensorium.uploader.stores.store import RetryableStoreError, Store, Upload

EPISODE = "01J00000000000000000000001"
DAY_NS = 24 * 3600 * SECOND_NS


class Watched(MemoryStore):
    """Notes what is sent to it and what is read from it, and fails while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.read: list[str] = []
        self.is_failing = False

    def upload(self, key: str) -> Upload:
        if self.is_failing:
            raise RetryableStoreError("the network is gone")
        found = super().upload(key)
        self.sent.append(key)
        return found

    def put(self, key: str, data: bytes) -> None:
        self.sent.append(key)
        super().put(key, data)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.read.append(key)
        return super().get(key, start, length)

    def reopen(self) -> Store:
        return self


class Bench:
    """One delivered episode."""

    def __init__(self, folder: Path) -> None:
        self.spool, self.trusted = begin_spool(folder / "spool")
        self.clock = VirtualClock(0, CAPTURED[1])
        self.consent = ConsentStore(folder / "consent", self.clock)
        self.grant = self.consent.grant(grant_for())
        self.store = Watched()
        self.service = self.new_service()
        self.folder = seal_episode(self.spool, EPISODE)
        self.settle()
        self.store.sent.clear()

    def new_service(self) -> UploadService:
        return UploadService(self.spool, self.store, self.consent, self.clock, random.Random(1))

    def settle(self) -> None:
        while self.service.step() is not None:
            pass

    def state(self) -> ConsentState:
        return read_state(self.store.get(consent_key(EPISODE)), EPISODE, trusted_keys(Role.OPERATOR))

    def permits(self, purpose: Purpose) -> bool:
        return self.state().permits("cam", purpose, self.clock.utc_ns()).is_allowed

    def add(self, *purposes: Purpose) -> ConsentGrant:
        return self.consent.grant(grant_for(2, purposes))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_new_grant_reaches_the_store_and_no_byte_of_the_episode_goes_again(bench: Bench) -> None:
    assert not bench.permits(Purpose.AI_TRAIN)
    before = bench.state().seq
    bench.add(Purpose.RECORD, Purpose.AI_TRAIN)
    bench.settle()
    assert bench.permits(Purpose.AI_TRAIN)
    assert bench.state().seq == before + 1
    assert set(bench.store.sent) == {consent_key(EPISODE)}


@pytest.mark.parametrize("is_evicted", [False, True])
def test_the_end_of_a_purpose_reaches_the_store_also_of_an_evicted_episode(
    bench: Bench, is_evicted: bool
) -> None:
    more = bench.add(Purpose.RECORD, Purpose.AI_TRAIN)
    bench.settle()
    if is_evicted:
        assert not evict(bench.spool, bench.folder, bench.store, bench.trusted).reasons
    bench.consent.withdraw(more.id)  # the first grant of the same subject still lets it be kept
    bench.settle()
    assert not bench.permits(Purpose.AI_TRAIN)
    assert bench.permits(Purpose.UPLOAD)


def test_a_grant_that_has_run_out_is_seen_in_the_store(bench: Bench) -> None:
    bench.clock.advance(25 * DAY_NS)
    bench.settle()
    state = bench.state()
    assert state.streams["cam"].purposes == ()
    assert "has expired" in state.streams["cam"].reason


def test_a_row_that_changes_nothing_for_an_episode_is_not_sent(bench: Bench) -> None:
    bench.consent.pause()
    bench.consent.resume()
    bench.settle()
    assert bench.store.sent == []


def test_a_service_that_is_started_again_asks_the_store_only_what_differs(bench: Bench) -> None:
    bench.store.read.clear()
    bench.service = bench.new_service()
    bench.settle()
    assert bench.store.read == []
    bench.add(Purpose.RECORD, Purpose.AI_TRAIN)  # while no service runs
    bench.service = bench.new_service()
    bench.settle()
    assert bench.permits(Purpose.AI_TRAIN)


def test_a_store_that_fails_is_told_later(bench: Bench) -> None:
    bench.store.is_failing = True
    bench.add(Purpose.RECORD, Purpose.AI_TRAIN)
    with pytest.raises(StoreError):
        bench.service.step()
    assert bench.service.step() is None  # it waits
    bench.store.is_failing = False
    bench.clock.advance(600 * SECOND_NS)
    bench.settle()
    assert bench.permits(Purpose.AI_TRAIN)


def test_an_older_state_never_takes_the_place_of_a_newer_one(bench: Bench, tmp_path: Path) -> None:
    """Another machine has a copy of the log as it was before the withdrawal."""
    old = bench.consent.ledger()
    bench.consent.withdraw(bench.add(Purpose.RECORD, Purpose.AI_TRAIN).id)
    bench.settle()
    newest = bench.state()
    bench.service._restating.step(replace(old, seen_ns=old.seen_ns + 1))
    assert bench.state() == newest


def test_a_log_that_cannot_be_trusted_changes_nothing_in_the_store(bench: Bench) -> None:
    (bench.consent.folder / "events.jsonl").unlink()
    bench.settle()
    assert bench.store.sent == []
    assert bench.permits(Purpose.UPLOAD)


def test_a_state_ends_where_the_retention_of_its_grant_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    kept = replace(bench.grant, id=f"01J{7:023d}", conditions=Conditions(retain_days=3))
    bench.consent.withdraw(bench.grant.id)
    bench.consent.grant(kept)
    bench.settle()
    state = bench.state()
    last_ns = CAPTURED[0] + 3 * DAY_NS
    assert state.permits("cam", Purpose.UPLOAD, last_ns - 1).is_allowed
    assert not state.permits("cam", Purpose.UPLOAD, last_ns).is_allowed
