"""Random lives of a spool: never committed without live consent, never evictable before it is proven."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from fragile_store import Fragile, PowerCut
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.errors import EpisodeError
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import RECEIPT_FILE, UPLOAD_NOTE_FILE
from sensorium.sync.episode.manifest import hash_file, read_manifest
from sensorium.timebase import SECOND_NS, VirtualClock
from sensorium.uploader.proof import is_evictable
from sensorium.uploader.receipt import (
    State,
    data_key,
    manifest_key,
    upload_state,
)
from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.transfer import Gates, upload_episode

IDS = ["01J0000000000000000000000A", "01J0000000000000000000000B"]


class Lifecycle(RuleBasedStateMachine):
    """Recording, consent, uploads that die anywhere, damage on both sides, clocks that run and step back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.spool, self.trusted = begin_spool(self.folder / "spool")
        self.clock = VirtualClock(0, CAPTURED[1])
        self.consent = ConsentStore(self.folder / "consent", self.clock)
        self.store = DirectoryStore(self.folder / "central")
        self.live: set[str] = set()
        self.latest_ns = self.clock.utc_ns()
        self.grants = 0
        self.committed: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(IDS))
    def record(self, name: str) -> None:
        if not self.spool.sealed_folder(name).exists():
            seal_episode(self.spool, name)

    @rule()
    def give(self) -> None:
        self.grants += 1
        grant = self.consent.grant(grant_for(self.grants))
        if self.latest_ns < grant.valid_until:
            self.live.add(grant.id)

    @rule()
    def withdraw_all(self) -> None:
        self.consent.withdraw_subject("sub:a")
        self.live.clear()

    @rule(days=st.sampled_from([-5, 3, 25]))
    def let_time_pass(self, days: int) -> None:
        self.clock.advance(days * 24 * 3600 * SECOND_NS)
        self.latest_ns = max(self.latest_ns, self.clock.utc_ns())
        for grant in self.consent.poll().grants:
            if self.latest_ns >= grant.valid_until:
                self.live.discard(grant.id)  # and no clock that is set back revives it

    @rule(name=st.sampled_from(IDS), calls=st.integers(0, 60))
    def upload(self, name: str, calls: int) -> None:
        folder = self.spool.sealed_folder(name)
        if not folder.exists():
            return
        gates = Gates(self.consent.poll, self.clock, self.trusted)
        try:
            outcome = upload_episode(folder, Fragile(self.store, calls, self._check_commit), gates)
        except PowerCut:
            return
        assert upload_state(folder) is outcome.state
        assert outcome.state in (State.VERIFIED, State.DENIED, State.QUARANTINED)

    def _check_commit(self, key: str) -> None:
        assert self.live, f"{key} was committed without a live grant"
        self.committed.add(key)

    @rule(name=st.sampled_from(IDS), file=st.sampled_from([UPLOAD_NOTE_FILE, RECEIPT_FILE]))
    def lose_a_note(self, name: str, file: str) -> None:
        (self.spool.sealed_folder(name) / file).unlink(missing_ok=True)

    @rule(name=st.sampled_from(IDS), seed=st.integers(0, 3))
    def damage_the_local_disk(self, name: str, seed: int) -> None:
        path = self.spool.sealed_folder(name) / "mic.mcap"
        if path.exists() and seed == 0:
            os.truncate(path, random.Random(seed).randrange(1000))

    @rule(seed=st.integers(0, 5))
    def damage_the_store(self, seed: int) -> None:
        found = [info.key for info in self.store.list() if info.key.endswith(".mcap")]
        if found and seed < 2:
            path = self.store.root / found[seed % len(found)]
            os.truncate(path, 7)

    @invariant()
    def what_may_be_deleted_lies_whole_in_the_store(self) -> None:
        for folder in self.spool.sealed_folders():
            if not is_evictable(folder, self.store, self.trusted):
                continue
            assert upload_state(folder) is State.VERIFIED
            for file in read_manifest(folder, self.trusted).files:
                stored = self.store.root / data_key(folder.name, file)
                assert hash_file(stored).sha256 == file.sha256

    @invariant()
    def nothing_is_visible_without_a_commit(self) -> None:
        for name in IDS:
            if self.store.head(manifest_key(name)) is not None:
                assert manifest_key(name) in self.committed


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    spool, trusted = begin_spool(tmp_path / "spool")
    consent = ConsentStore(tmp_path / "consent")
    gates = Gates(consent.poll, VirtualClock(), trusted)
    with pytest.raises(EpisodeError, match="cannot be opened"):
        upload_episode(spool.sealed_folder(IDS[0]), DirectoryStore(tmp_path / "c"), gates)
