"""Room is made only of what the store was just seen to hold, byte by byte."""

import os
import random
from pathlib import Path

import pytest
from upload_samples import CAPTURED, EPISODE_ID, begin_spool, grant_for, locked_by_another, seal_episode

from sensorium.agent.commands.verifying import spool_gaps
from sensorium.errors import StoreError
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.disk_room import DiskRoom
from sensorium.sync.episode.files import CONSENT_STATE_FILE, MANIFEST_FILE, RECEIPT_FILE
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.episode.verify import examine
from sensorium.sync.erasure import bury
from sensorium.timebase import SECOND_NS, VirtualClock
from sensorium.uploader.eviction import delete, evict_oldest, finish
from sensorium.uploader.proof import look_again
from sensorium.uploader.receipt import State, data_key, upload_state
from sensorium.uploader.service import REJUDGE_NS, UploadService
from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.sweeper import EVERY_NS, Sweeper
from sensorium.uploader.transfer import Progress, Stopped

NEWER_ID = "01J00000000000000000000002"


class Rig:
    """A spool with two sealed episodes, a service and a store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.spool, self.trusted = begin_spool(folder / "spool")
        self.episodes = [seal_episode(self.spool, name) for name in (EPISODE_ID, NEWER_ID)]
        self.clock = VirtualClock(CAPTURED[1] + SECOND_NS)
        self.consent = ConsentStore(folder / "consent", self.clock)
        self.grant = self.consent.grant(grant_for())
        self.store = DirectoryStore(folder / "central")
        self.service = self.new_service()

    def new_service(self) -> UploadService:
        return UploadService(self.spool, self.store, self.consent, self.clock, random.Random(1))

    def upload(self) -> None:
        while self.service.step() is not None:
            pass

    def evict(self, wanted_bytes: int | None = None, is_dry_run: bool = False) -> list[str]:
        fates = evict_oldest(self.spool, self.store, self.trusted, wanted_bytes, is_dry_run)
        return [fate.episode_id for fate in fates if not fate.reasons]

    def stored(self, folder: Path) -> Path:
        """Return where the store has the camera's file of an episode."""
        files = {file.name: file for file in read_manifest(folder, self.trusted).files}
        return self.store.root / data_key(folder.name, files["cam.mcap"])


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o600)
    path.write_bytes(data)


def test_nothing_that_was_not_uploaded_goes(rig: Rig) -> None:
    assert rig.evict() == []
    assert rig.spool.sealed_folders() == rig.episodes


def test_what_is_proven_goes_the_oldest_first_and_stays_named_in_the_chain(rig: Rig) -> None:
    rig.upload()
    assert rig.evict(wanted_bytes=1) == [EPISODE_ID]
    assert rig.spool.sealed_folders() == rig.episodes[1:]
    left = sorted(path.name for path in (rig.spool.gone_dir / EPISODE_ID).iterdir())
    assert left == [CONSENT_STATE_FILE, MANIFEST_FILE, RECEIPT_FILE]
    assert spool_gaps(rig.spool) == []


def test_a_dry_run_names_the_same_and_removes_nothing(rig: Rig) -> None:
    rig.upload()
    assert rig.evict(is_dry_run=True) == [EPISODE_ID, NEWER_ID]
    assert rig.spool.sealed_folders() == rig.episodes
    assert rig.spool.gone_folders() == []


def test_a_bit_flipped_in_the_store_after_the_commit_keeps_the_local_copy_and_is_mended(rig: Rig) -> None:
    rig.upload()
    stored = rig.stored(rig.episodes[0])
    flip(stored)
    assert rig.evict() == [NEWER_ID]
    assert upload_state(rig.episodes[0]) is State.SEALED
    rig.upload()
    assert stored.read_bytes() == (rig.episodes[0] / "cam.mcap").read_bytes()
    assert rig.evict() == [EPISODE_ID]


def test_a_flipped_manifest_in_the_store_is_found_when_it_is_looked_at_again(rig: Rig) -> None:
    rig.upload()
    flip(rig.store.root / f"episodes/{EPISODE_ID}/{MANIFEST_FILE}")
    assert "is not what was sent" in look_again(rig.episodes[0], rig.store, rig.trusted)[0]
    assert upload_state(rig.episodes[0]) is State.SEALED


def test_a_sample_reads_the_chosen_files_only_and_asks_the_size_of_all(rig: Rig) -> None:
    rig.upload()
    stored = rig.stored(rig.episodes[0])
    flip(stored)
    assert look_again(rig.episodes[0], rig.store, rig.trusted, lambda _: False) == []
    os.truncate(stored, 5)
    assert look_again(rig.episodes[0], rig.store, rig.trusted, lambda _: False)


def test_an_episode_in_use_stays(rig: Rig) -> None:
    rig.upload()
    with locked_by_another(rig.episodes[0]):
        assert rig.evict() == [NEWER_ID]


def test_a_crash_between_the_move_and_the_last_file_is_ended_the_next_time(rig: Rig) -> None:
    rig.upload()
    rig.spool.gone_dir.mkdir()
    rig.episodes[0].rename(rig.spool.gone_dir / EPISODE_ID)
    finish(rig.spool)
    assert not (rig.spool.gone_dir / EPISODE_ID / "cam.mcap").exists()
    assert spool_gaps(rig.spool) == []


def test_a_store_that_cannot_be_asked_lets_nothing_go(rig: Rig) -> None:
    class Silent(DirectoryStore):
        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            raise StoreError("out of reach")

        def reopen(self) -> "Silent":
            return self

    rig.upload()
    fates = evict_oldest(rig.spool, Silent(rig.store.root), rig.trusted)
    assert [fate.reasons for fate in fates] == [("out of reach",)]
    assert [upload_state(folder) for folder in rig.episodes] == [State.VERIFIED] * 2


def sweeper(rig: Rig, said: list[str], reserve_bytes: int) -> Sweeper:
    """Return a sweeper over a quota that the spool just fills, so that all of the reserve is lacking."""
    room = DiskRoom(rig.spool.root)
    room.quota_bytes = room.used_bytes()
    return Sweeper(rig.spool, rig.store, room, reserve_bytes, rig.clock, said.append)


def test_the_sweeper_evicts_no_more_than_the_reserve_needs(rig: Rig) -> None:
    rig.upload()
    said: list[str] = []
    sweeping = sweeper(rig, said, reserve_bytes=1000)
    assert [each.episode_id for each in sweeping.step()] == [EPISODE_ID]
    assert "evicted" in said[0]
    rig.clock.sleep_until(rig.clock.now_ns() + EVERY_NS)
    assert sweeping.step() == []
    assert sweeping.blocked == ""
    assert rig.spool.sealed_folders() == rig.episodes[1:]


def test_the_sweeper_says_once_why_nothing_may_go(rig: Rig) -> None:
    said: list[str] = []
    sweeping = sweeper(rig, said, reserve_bytes=1000)
    for _ in range(3):
        assert sweeping.step() == []
        rig.clock.sleep_until(rig.clock.now_ns() + EVERY_NS)
    assert len(said) == 1
    assert "2 episodes must stay" in said[0]
    assert rig.spool.sealed_folders() == rig.episodes


def test_what_the_store_lost_of_an_evicted_episode_does_not_keep_a_withdrawal_from_it(rig: Rig) -> None:
    rig.upload()
    rig.evict()
    folder = rig.spool.gone_folders()[0]
    camera = rig.stored(folder)
    (rig.store.root / f"episodes/{folder.name}").joinpath(_data_name(rig, folder)).unlink()
    assert look_again(folder, rig.store, rig.trusted)
    rig.consent.withdraw(rig.grant.id)
    rig.service = rig.new_service()
    rig.upload()
    assert not camera.exists()


def _data_name(rig: Rig, folder: Path) -> str:
    files = {file.name: file for file in read_manifest(folder, rig.trusted).files}
    return Path(data_key(folder.name, files["data.mcap"])).name


def test_a_withdrawal_after_the_eviction_still_erases_in_the_store(rig: Rig) -> None:
    rig.upload()
    camera = rig.stored(rig.episodes[0])
    rig.evict()
    assert camera.exists()
    rig.consent.withdraw(rig.grant.id)
    rig.upload()
    assert not list(rig.store.root.rglob("cam*"))
    assert not list(rig.store.root.rglob("mic*"))
    assert list(rig.store.root.rglob("data-*"))
    assert rig.service.step() is None


class TestDeletion:
    def test_a_deleted_episode_goes_here_and_in_the_store_and_says_why(self, rig: Rig) -> None:
        rig.upload()
        delete(rig.spool, rig.episodes[0], "deleted: a test run", rig.clock.utc_ns())
        rig.clock.advance(REJUDGE_NS)
        rig.upload()
        gone = rig.spool.gone_dir / EPISODE_ID
        assert {grave.reason for grave in read_manifest(gone, rig.trusted).tombstones} == {
            "deleted: a test run"
        }
        kept = {info.key.rpartition("/")[2] for info in rig.store.list(f"episodes/{EPISODE_ID}/")}
        assert kept == {"manifest.json", "manifest-2.json", "consent.json"}
        assert examine(rig.store.root / "episodes" / EPISODE_ID).is_proven
        assert spool_gaps(rig.spool) == []
        assert upload_state(rig.episodes[1]) is State.VERIFIED

    def test_deleted_while_it_was_being_sent_nothing_of_it_stays_in_the_store(self, rig: Rig) -> None:
        seen: list[Progress] = []
        with pytest.raises(Stopped):
            rig.service.step(seen.append, lambda: len(seen) > 2)
        assert list(rig.store.list()) or any((rig.store.root / ".partial").iterdir())
        delete(rig.spool, rig.episodes[0], "deleted: a test run", rig.clock.utc_ns())
        rig.service = rig.new_service()
        rig.upload()
        assert not list(rig.store.list(f"episodes/{EPISODE_ID}/"))
        assert not [path for path in (rig.store.root / ".partial").iterdir() if path.name != "lock"]

    def test_a_deletion_that_was_cut_off_is_ended_by_the_uploader(self, rig: Rig) -> None:
        bury(rig.episodes[0], "deleted: a test run", rig.clock.utc_ns())
        rig.upload()
        assert [path.name for path in rig.spool.sealed_folders()] == [NEWER_ID]
        assert not (rig.spool.gone_dir / EPISODE_ID / "data.mcap").exists()
        assert not list(rig.store.list(f"episodes/{EPISODE_ID}/"))
