"""One episode on its way to a store: the gates, every crash point, every lie of a store."""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from upload_samples import CAPTURED, EPISODE_ID, begin_spool, grant_for, seal_episode

from sensorium.errors import BusyError
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import MANIFEST_FILE, RECEIPT_FILE, UPLOAD_NOTE_FILE
from sensorium.sync.episode.manifest import LEAF_BYTES, Manifest, hash_file, manifest_digest, read_manifest
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.verify import examine
from sensorium.sync.trust.documents import sign_document
from sensorium.sync.trust.keys import KeyRing, Role
from sensorium.timebase import SECOND_NS, VirtualClock
from sensorium.uploader.proof import is_evictable
from sensorium.uploader.receipt import (
    State,
    consent_key,
    data_key,
    manifest_key,
    read_receipt,
    upload_reasons,
    upload_state,
    write_note,
    write_receipt,
)
from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.stores.memory import MemoryStore
from sensorium.uploader.stores.retrying import Retrier, RetryingStore, RetryPolicy
from sensorium.uploader.stores.store import ObjectInfo, ParkedStoreError, RetryableStoreError, Store, Upload
from sensorium.uploader.transfer import Gates, Outcome, Progress, Stopped, upload_episode
from sensorium.verdict import Status, Verdict

MANIFEST_KEY = manifest_key(EPISODE_ID)


class Rig:
    """A spool with one sealed episode, a consent folder and a store in a folder."""

    def __init__(self, folder: Path, large: bool = False) -> None:
        self.spool, self.trusted = begin_spool(folder / "spool")
        self.episode = seal_episode(self.spool, large=large)
        self.clock = VirtualClock(CAPTURED[1] + SECOND_NS)
        self.consent = ConsentStore(folder / "consent", self.clock)
        self.grant = self.consent.grant(grant_for())
        self.store = DirectoryStore(folder / "central")

    @property
    def gates(self) -> Gates:
        return Gates(self.consent.poll, self.clock, self.trusted)

    def upload(self, store: Store | None = None, **options: Callable[..., object]) -> Outcome:
        return upload_episode(self.episode, store or self.store, self.gates, **options)  # type: ignore[arg-type]

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.episode, self.trusted)

    def assert_store_holds_the_episode_once(self) -> None:
        """The store holds each file of the manifest under its key, the manifest, and nothing else."""
        expected = {data_key(EPISODE_ID, file): file for file in self.manifest.files}
        keys = [found.key for found in self.store.list()]
        assert keys == sorted([*expected, MANIFEST_KEY, consent_key(EPISODE_ID)])
        assert self.store.get(MANIFEST_KEY) == (self.episode / MANIFEST_FILE).read_bytes()
        for key, file in expected.items():
            stored = hash_file(self.store.root / key)
            assert replace(stored, name=file.name) == file
        assert not [p for p in (self.store.root / ".partial").iterdir() if p.name != "lock"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


class TestDelivery:
    def test_an_episode_arrives_whole_and_leaves_a_receipt(self, rig: Rig) -> None:
        assert upload_state(rig.episode) is State.SEALED
        outcome = rig.upload()
        assert outcome.state is State.VERIFIED
        assert outcome.sent_bytes == sum(file.bytes for file in rig.manifest.files)
        rig.assert_store_holds_the_episode_once()
        receipt = read_receipt(rig.episode)
        assert receipt is not None
        assert [file.sha256 for file in receipt.files] == [file.sha256 for file in rig.manifest.files]
        assert upload_state(rig.episode) is State.VERIFIED

    def test_a_second_upload_sends_nothing(self, rig: Rig) -> None:
        rig.upload()
        receipt = (rig.episode / RECEIPT_FILE).read_bytes()
        again = rig.upload()
        assert (again.state, again.sent_bytes) == (State.VERIFIED, 0)
        assert (rig.episode / RECEIPT_FILE).read_bytes() == receipt

    def test_without_the_receipt_the_store_is_read_back_and_nothing_is_sent(self, rig: Rig) -> None:
        rig.upload()
        (rig.episode / RECEIPT_FILE).unlink()
        again = rig.upload()
        assert (again.state, again.sent_bytes) == (State.VERIFIED, 0)
        rig.assert_store_holds_the_episode_once()

    def test_a_receipt_for_another_store_does_not_count(self, rig: Rig, tmp_path: Path) -> None:
        rig.upload()
        other = DirectoryStore(tmp_path / "other")
        assert rig.upload(other).sent_bytes > 0
        assert other.head(MANIFEST_KEY) is not None

    def test_progress_rises_to_the_total(self, rig: Rig) -> None:
        seen: list[Progress] = []
        rig.upload(progress=seen.append)
        done = [progress.done_bytes for progress in seen if progress.phase == "sending"]
        assert done == sorted(done)
        assert done[-1] == seen[-1].total_bytes == sum(file.bytes for file in rig.manifest.files)

    def test_a_large_file_goes_in_parts_and_resumes_inside_it(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path, large=True)
        seen: list[Progress] = []
        with pytest.raises(Stopped):
            rig.upload(
                progress=seen.append,
                should_stop=lambda: bool(seen) and seen[-1].done_bytes >= 2 * LEAF_BYTES,
            )
        assert upload_state(rig.episode) is State.UPLOADING
        (rig.episode / UPLOAD_NOTE_FILE).unlink()
        outcome = rig.upload()
        assert outcome.sent_bytes == seen[-1].total_bytes - seen[-1].done_bytes
        rig.assert_store_holds_the_episode_once()

    def test_two_processes_do_not_send_the_same_episode(self, rig: Rig) -> None:
        def send_again(_: Progress) -> None:
            with pytest.raises(BusyError):
                rig.upload()

        assert rig.upload(progress=send_again).state is State.VERIFIED

    def test_a_disk_that_takes_no_notes_does_not_keep_the_episode_from_arriving(self, rig: Rig) -> None:
        (rig.episode / UPLOAD_NOTE_FILE / "in the way").mkdir(parents=True)
        with pytest.raises(OSError):
            rig.upload()
        assert upload_state(rig.episode) is State.VERIFIED

    def test_another_manifest_under_the_same_id_is_a_conflict(self, rig: Rig) -> None:
        rig.store.put(MANIFEST_KEY, b"somebody else's")
        outcome = rig.upload()
        assert outcome.state is State.HELD
        assert "another manifest" in outcome.reasons[0]
        assert rig.store.get(MANIFEST_KEY) == b"somebody else's"
        assert [found.key for found in rig.store.list()] == [MANIFEST_KEY]

    def test_a_file_dropped_into_the_episode_folder_holds_it_until_it_is_gone(self, rig: Rig) -> None:
        (rig.episode / "extra.mcap").write_bytes(b"not sealed")
        outcome = rig.upload()
        assert outcome.state is State.HELD
        assert outcome.reasons == ("extra.mcap is in the folder but not in the manifest",)
        assert list(rig.store.list()) == []
        (rig.episode / "extra.mcap").unlink()
        rig.upload()
        rig.assert_store_holds_the_episode_once()


class TestConsent:
    def test_without_a_grant_nothing_leaves_and_each_personal_stream_is_named(self, rig: Rig) -> None:
        rig.consent.withdraw(rig.grant.id)
        outcome = rig.upload()
        assert outcome.state is State.DENIED
        assert [reason.split(":")[0] for reason in outcome.reasons] == ["stream cam", "stream mic"]
        assert list(rig.store.list()) == []
        assert upload_state(rig.episode) is State.DENIED
        assert upload_reasons(rig.episode) == outcome.reasons

    def test_a_grant_to_record_is_not_a_grant_to_upload(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path)
        rig.consent.withdraw(rig.grant.id)
        rig.consent.grant(grant_for(number=2, purposes=(Purpose.RECORD,)))
        assert rig.upload().state is State.DENIED

    def test_a_grant_that_ends_before_the_last_frame_is_not_enough(self, rig: Rig) -> None:
        rig.consent.withdraw(rig.grant.id)
        rig.consent.grant(grant_for(number=2, captured=(CAPTURED[0] - SECOND_NS, CAPTURED[1] - 1)))
        assert rig.upload().state is State.DENIED

    def test_a_withdrawal_while_sending_stops_the_commit(self, rig: Rig) -> None:
        def withdraw(progress: Progress) -> None:
            if progress.phase == "verifying" and not rig.consent.ledger().events[1:]:
                rig.consent.withdraw(rig.grant.id)

        assert rig.upload(progress=withdraw).state is State.DENIED
        assert rig.store.head(MANIFEST_KEY) is None

    def test_a_grant_that_expires_while_sending_stops_the_commit(self, rig: Rig) -> None:
        outcome = rig.upload(progress=lambda _: rig.clock.advance(30 * 24 * 3600 * SECOND_NS))
        assert outcome.state is State.DENIED
        assert rig.store.head(MANIFEST_KEY) is None

    def test_a_denied_episode_goes_once_a_grant_covers_it(self, rig: Rig) -> None:
        rig.consent.withdraw(rig.grant.id)
        assert rig.upload().state is State.DENIED
        rig.consent.grant(grant_for(number=2))
        assert rig.upload().state is State.VERIFIED

    def test_a_sealed_file_of_no_stream_is_refused(self, tmp_path: Path) -> None:
        spool, trusted = begin_spool(tmp_path / "spool")
        rig = Rig(tmp_path / "rig")
        rig.spool, rig.trusted = spool, trusted
        rig.episode = seal_episode(spool, extra={"faces.bin": b"hidden"})
        outcome = rig.upload()
        assert outcome.state is State.DENIED
        assert outcome.reasons == ("file faces.bin: belongs to no stream, so no grant can cover it",)

    def test_damaged_consent_records_deny(self, rig: Rig) -> None:
        (rig.consent.folder / "events.jsonl").write_text("{}\n")
        assert rig.upload().state is State.DENIED


class TestIntegrity:
    def damage(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def test_one_flipped_bit_on_the_local_disk_quarantines_before_anything_is_committed(
        self, rig: Rig
    ) -> None:
        self.damage(rig.episode / "mic.mcap")
        outcome = rig.upload()
        assert outcome.state is State.QUARANTINED
        assert "mic.mcap" in outcome.reasons[0]
        assert rig.store.head(MANIFEST_KEY) is None
        assert not any("mic" in found.key for found in rig.store.list())

    def test_not_one_damaged_part_is_sent(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path, large=True)
        with (rig.episode / "cam.mcap").open("r+b") as file:
            file.seek(LEAF_BYTES)
            file.write(b"\0" * 9)
        outcome = rig.upload()
        assert outcome.state is State.QUARANTINED
        assert outcome.sent_bytes == 0
        assert outcome.reasons == (f"cam.mcap does not match its hash in the 8 MiB from byte {LEAF_BYTES}",)
        assert list(rig.store.list()) == []

    def test_what_was_damaged_while_it_was_sent_is_not_committed(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path, large=True)

        def damage(seen: Progress) -> None:
            if seen.done_bytes:
                with (rig.episode / "cam.mcap").open("r+b") as file:
                    file.seek(2 * LEAF_BYTES)
                    file.write(b"\0" * 9)

        outcome = rig.upload(progress=damage)
        assert outcome.state is State.QUARANTINED
        assert "cam.mcap: part 2" in outcome.reasons[0]
        assert rig.store.head(MANIFEST_KEY) is None

    def test_a_refused_episode_leaves_no_parts_behind(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path, large=True)
        seen: list[Progress] = []
        with pytest.raises(Stopped):
            rig.upload(
                progress=seen.append, should_stop=lambda: bool(seen) and seen[-1].done_bytes > LEAF_BYTES
            )
        partial = rig.store.root / ".partial"
        assert list(partial.iterdir())
        rig.consent.withdraw(rig.grant.id)
        assert rig.upload().state is State.DENIED
        assert list(partial.iterdir()) == []

    def test_a_truncated_file_is_quarantined(self, rig: Rig) -> None:
        os.truncate(rig.episode / "data.mcap", 10)
        assert rig.upload().state is State.QUARANTINED

    def test_a_missing_file_is_quarantined(self, rig: Rig) -> None:
        (rig.episode / "data.mcap").unlink()
        assert rig.upload().state is State.QUARANTINED

    def test_a_link_in_place_of_a_file_is_not_followed(self, rig: Rig, tmp_path: Path) -> None:
        (rig.episode / "data.mcap").rename(tmp_path / "moved")
        (rig.episode / "data.mcap").symlink_to(tmp_path / "moved")
        assert rig.upload().state is State.QUARANTINED

    def test_an_edited_manifest_is_quarantined(self, rig: Rig) -> None:
        self.damage(rig.episode / MANIFEST_FILE)
        assert rig.upload().state is State.QUARANTINED
        assert list(rig.store.list()) == []

    def test_an_episode_signed_by_a_stranger_is_quarantined(
        self, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as there:
            there.setenv("SENSORIUM_HOME", str(tmp_path / "another machine"))
            stranger, _ = begin_spool(tmp_path / "stranger")
            rig.episode = seal_episode(stranger)
        outcome = rig.upload()
        assert outcome.state is State.QUARANTINED
        assert "trusted" in outcome.reasons[0]

    def test_an_episode_under_another_name_is_quarantined(self, rig: Rig) -> None:
        moved = rig.episode.with_name("01J" + "Z" * 23)
        rig.episode.rename(moved)
        rig.episode = moved
        assert rig.upload().state is State.QUARANTINED

    def test_the_quality_gate_holds_an_episode_with_its_reasons(self, rig: Rig) -> None:
        def judge(manifest: Manifest) -> Verdict:
            return Verdict("spec", manifest.episode_id, Status.SUSPECT, (), ("lidar is missing",))

        outcome = upload_episode(rig.episode, rig.store, replace(rig.gates, quality=judge))
        assert (outcome.state, outcome.reasons) == (State.HELD, ("lidar is missing",))


class Wrapped(Store):
    """A store in a folder whose every call first goes through ``before`` (which may raise)."""

    def __init__(self, inner: DirectoryStore, before: Callable[[str], None]) -> None:
        self.url = inner.url
        self.inner = inner
        self.before = before

    def put(self, key: str, data: bytes) -> None:
        self.before("put")
        self.inner.put(key, data)
        self.before("put done")

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.before("get")
        return self.inner.get(key, start, length)

    def head(self, key: str) -> ObjectInfo | None:
        self.before("head")
        return self.inner.head(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self.before("delete")
        self.inner.delete(key)

    def upload(self, key: str) -> Upload:
        self.before("upload")
        return WrappedUpload(self.inner.upload(key), self.before)

    def reopen(self) -> Store:
        self.before("reopen")
        return self


class WrappedUpload(Upload):
    def __init__(self, inner: Upload, before: Callable[[str], None]) -> None:
        self.inner = inner
        self.before = before

    def stored_bytes(self) -> int:
        self.before("stored_bytes")
        return self.inner.stored_bytes()

    def put_part(self, offset: int, data: bytes | memoryview) -> None:
        self.before("put_part")
        half = len(data) // 2
        self.inner.put_part(offset, data[:half])
        self.before("put_part half")
        self.inner.put_part(offset + half, data[half:])
        self.before("put_part done")

    def complete(self, size_bytes: int, is_replacing: bool = False) -> None:
        self.before("complete")
        self.inner.complete(size_bytes, is_replacing)
        self.before("complete done")

    def abort(self) -> None:
        self.inner.abort()


class Crash(BaseException):
    """The process dies here."""


class TestCrashes:
    def test_after_a_crash_at_any_point_the_episode_arrives_once(self, tmp_path: Path) -> None:
        points = 0
        for point in itertools.count():
            rig = Rig(tmp_path / str(point))
            countdown = itertools.count(point, -1)

            def die(_: str, countdown: Iterator[int] = countdown) -> None:
                if next(countdown) == 0:
                    raise Crash

            try:
                rig.upload(Wrapped(rig.store, die))
            except Crash:
                assert upload_state(rig.episode) is not State.VERIFIED
                assert not is_evictable(rig.episode, rig.store, rig.trusted)
                if point % 2:
                    (rig.episode / UPLOAD_NOTE_FILE).unlink(missing_ok=True)
                assert rig.upload().state is State.VERIFIED
                rig.assert_store_holds_the_episode_once()
                points += 1
                continue
            break
        assert points > 30

    def test_a_store_that_fails_half_of_the_time_gets_there(self, rig: Rig) -> None:
        rng = random.Random(3)

        def flake(call: str) -> None:
            if rng.random() < 0.2 and call not in ("complete", "complete done"):
                raise RetryableStoreError("busy")

        retrier = Retrier(RetryPolicy(attempts=20), rig.clock, random.Random(4))
        assert rig.upload(RetryingStore(Wrapped(rig.store, flake), retrier)).state is State.VERIFIED
        rig.assert_store_holds_the_episode_once()

    def test_an_answer_lost_after_the_commit_is_not_a_conflict(self, rig: Rig) -> None:
        lost = iter(["put done"])

        def lose(call: str) -> None:
            if call == "put done" and next(lost, None):
                raise RetryableStoreError("connection cut")

        retrier = Retrier(RetryPolicy(), rig.clock, random.Random(4))
        assert rig.upload(RetryingStore(Wrapped(rig.store, lose), retrier)).state is State.VERIFIED
        rig.assert_store_holds_the_episode_once()


class Corrupting(MemoryStore):
    """A store that flips a bit of the first ``times`` objects it is given, and says nothing."""

    url = "memory:corrupting"

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().get(key, start, length)
        if self.times > 0 and key.endswith(".mcap") and data:
            self.times -= 1
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    def reopen(self) -> Store:
        return self


class TestLyingStores:
    def test_what_reads_back_wrong_is_sent_again(self, rig: Rig) -> None:
        store = Corrupting(times=2)
        assert rig.upload(store).state is State.VERIFIED

    def test_a_store_that_always_corrupts_gets_no_commit(self, rig: Rig) -> None:
        store = Corrupting(times=1000)
        with pytest.raises(ParkedStoreError, match="reads back differently"):
            rig.upload(store)
        assert store.head(MANIFEST_KEY) is None
        assert upload_state(rig.episode) is State.UPLOADING

    def test_garbage_under_the_right_key_is_replaced(self, rig: Rig) -> None:
        file = rig.manifest.files[0]
        rig.store.put(data_key(EPISODE_ID, file), b"garbage")
        assert rig.upload().state is State.VERIFIED
        rig.assert_store_holds_the_episode_once()

    def test_no_permission_is_never_success(self, rig: Rig) -> None:
        def refuse(call: str) -> None:
            if call == "put_part":
                raise ParkedStoreError("403 Forbidden")

        with pytest.raises(ParkedStoreError):
            rig.upload(Wrapped(rig.store, refuse))
        assert upload_state(rig.episode) is State.UPLOADING


class TestEviction:
    def evictable(self, rig: Rig) -> bool:
        return is_evictable(rig.episode, rig.store, rig.trusted)

    def test_only_a_proven_episode_may_be_deleted(self, rig: Rig) -> None:
        assert not self.evictable(rig)
        rig.upload()
        assert self.evictable(rig)

    @pytest.mark.parametrize("state", [State.DENIED, State.HELD, State.QUARANTINED, State.UPLOADING])
    def test_in_every_other_state_it_may_not(self, rig: Rig, state: State) -> None:
        if state is State.DENIED:
            rig.consent.withdraw(rig.grant.id)
            rig.upload()
        elif state is State.HELD:
            rig.store.put(MANIFEST_KEY, b"another")
            rig.upload()
        elif state is State.QUARANTINED:
            os.truncate(rig.episode / "data.mcap", 10)
            rig.upload()
        else:
            with pytest.raises(Stopped):
                rig.upload(should_stop=lambda: True)
        assert upload_state(rig.episode) is state
        assert not self.evictable(rig)

    def test_committed_but_not_read_back_is_not_enough(self, rig: Rig) -> None:
        def die(call: str) -> None:
            if call == "put done":
                raise Crash

        with pytest.raises(Crash):
            rig.upload(Wrapped(rig.store, die))
        assert rig.store.head(MANIFEST_KEY) is not None
        assert not self.evictable(rig)

    def test_a_receipt_alone_is_not_enough(self, rig: Rig) -> None:
        rig.upload()
        (rig.store.root / MANIFEST_KEY).unlink()
        assert not self.evictable(rig)

    def test_an_object_that_was_lost_or_cut_in_the_store_is_noticed(self, rig: Rig) -> None:
        rig.upload()
        stored = rig.store.root / data_key(EPISODE_ID, rig.manifest.files[0])
        os.truncate(stored, 5)
        assert not self.evictable(rig)
        stored.unlink()
        assert not self.evictable(rig)

    def test_a_receipt_for_another_manifest_or_store_is_not_enough(self, rig: Rig, tmp_path: Path) -> None:
        rig.upload()
        assert not is_evictable(rig.episode, DirectoryStore(tmp_path / "other"), rig.trusted)
        receipt = read_receipt(rig.episode)
        assert receipt is not None
        write_receipt(rig.episode, replace(receipt, manifest_blake3="0" * 64))
        assert not self.evictable(rig)

    def test_a_note_that_says_verified_is_not_believed(self, rig: Rig) -> None:
        write_note(rig.episode, manifest_digest(rig.episode), State.VERIFIED, ())
        (rig.episode / RECEIPT_FILE).write_bytes(b"anything")
        assert upload_state(rig.episode) is State.SEALED
        assert rig.upload().sent_bytes

    def test_a_receipt_that_nobody_known_signed_is_named_and_not_believed(
        self, rig: Rig, tmp_path: Path
    ) -> None:
        rig.upload()
        receipt = read_receipt(rig.episode)
        assert receipt is not None
        forged = sign_document(
            asdict(receipt), KeyRing(tmp_path / "stranger").signing_key(Role.DEVICE), "receipt"
        )
        (rig.episode / RECEIPT_FILE).write_bytes(forged)
        assert upload_state(rig.episode) is State.SEALED
        assert "signed by nobody whose word counts here" in upload_reasons(rig.episode)[0]
        assert not self.evictable(rig)
        assert "receipt.json counts for nothing" in examine(rig.episode).reasons[0]
        assert rig.upload().state is State.VERIFIED  # looked at again, and proven anew
        assert examine(rig.episode).is_proven

    @pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"files": 1}', b'{"files": [{}]}', b"\xff"])
    def test_a_garbled_receipt_is_none(self, rig: Rig, content: bytes) -> None:
        rig.upload()
        (rig.episode / RECEIPT_FILE).write_bytes(content)
        assert upload_state(rig.episode) is State.SEALED
        assert not self.evictable(rig)


def test_the_spool_of_the_samples_is_a_spool(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert Spool(tmp_path / "spool").sealed_folders() == [rig.episode]
