"""One conformance suite for every store, and what is special to folders and to retrying."""

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sensorium.errors import ConfigError
from sensorium.timebase import SECOND_NS, VirtualClock
from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.stores.memory import MemoryStore
from sensorium.uploader.stores.opening import open_store
from sensorium.uploader.stores.retrying import Retrier, RetryingStore, RetryPolicy
from sensorium.uploader.stores.store import (
    FatalStoreError,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ParkedStoreError,
    RetryableStoreError,
    Store,
)


def refuse_links(source: Path, target: Path) -> None:
    """Behave like a file system without hard links."""
    raise OSError(errno.EPERM, "Operation not permitted")


BACKENDS: dict[str, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "folder": lambda folder: DirectoryStore(folder / "central"),
    "folder without links": lambda folder: DirectoryStore(folder / "central", refuse_links),
    "retrying": lambda folder: RetryingStore(
        DirectoryStore(folder / "central"), Retrier(RetryPolicy(), VirtualClock(), random.Random(1))
    ),
}


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return BACKENDS[request.param](tmp_path)


class TestEveryStore:
    def test_what_was_put_is_read_back_through_a_fresh_connection(self, store: Store) -> None:
        store.put("a/b", b"0123456789")
        again = store.reopen()
        assert again.get("a/b") == b"0123456789"
        assert again.get("a/b", 2, 3) == b"234"
        assert again.get("a/b", 8, 100) == b"89"
        assert again.get("a/b", 10) == b""
        assert again.head("a/b") == ObjectInfo("a/b", 10)

    def test_an_object_is_put_only_once(self, store: Store) -> None:
        store.put("a", b"first")
        with pytest.raises(ObjectExistsError):
            store.put("a", b"second")
        assert store.get("a") == b"first"

    def test_what_was_never_put_is_missing(self, store: Store) -> None:
        assert store.head("a") is None
        assert list(store.list()) == []
        with pytest.raises(ObjectMissingError):
            store.get("a")

    def test_objects_are_listed_by_prefix_and_sorted(self, store: Store) -> None:
        for key in ("b/2", "a/1", "b/10", "bb"):
            store.put(key, key.encode())
        assert [found.key for found in store.list("b/")] == ["b/10", "b/2"]
        assert [found.key for found in store.list()] == ["a/1", "b/10", "b/2", "bb"]

    def test_an_upload_appears_when_it_is_complete_and_not_before(self, store: Store) -> None:
        upload = store.upload("big")
        upload.put_part(0, b"abc")
        upload.put_part(3, memoryview(b"de"))
        assert store.head("big") is None
        assert list(store.list()) == []
        upload.complete(5)
        assert store.reopen().get("big") == b"abcde"
        assert store.upload("big").stored_bytes() == 0

    def test_an_upload_goes_on_where_a_dead_process_left_it(self, store: Store) -> None:
        store.upload("big").put_part(0, b"abc")
        resumed = store.reopen().upload("big")
        assert resumed.stored_bytes() == 3
        resumed.put_part(3, b"de")
        resumed.complete(5)
        assert store.get("big") == b"abcde"

    def test_a_part_in_the_wrong_place_is_refused(self, store: Store) -> None:
        upload = store.upload("big")
        upload.put_part(0, b"abc")
        with pytest.raises(FatalStoreError, match="holds 3"):
            upload.put_part(4, b"e")

    def test_an_upload_that_is_too_short_never_appears(self, store: Store) -> None:
        upload = store.upload("big")
        upload.put_part(0, b"abc")
        with pytest.raises(RetryableStoreError, match="3 bytes of 5"):
            upload.complete(5)
        assert store.head("big") is None
        assert store.upload("big").stored_bytes() == 0

    def test_completing_over_an_object_is_refused_unless_it_is_to_be_replaced(self, store: Store) -> None:
        store.put("big", b"damaged")
        upload = store.upload("big")
        upload.put_part(0, b"abc")
        with pytest.raises(ObjectExistsError):
            upload.complete(3)
        assert store.get("big") == b"damaged"
        upload = store.upload("big")
        upload.put_part(0, b"abc")
        upload.complete(3, is_replacing=True)
        assert store.get("big") == b"abc"

    def test_an_aborted_upload_leaves_nothing(self, store: Store) -> None:
        upload = store.upload("big")
        upload.put_part(0, b"abc")
        upload.abort()
        upload.abort()
        assert store.upload("big").stored_bytes() == 0

    def test_an_empty_object_can_be_uploaded(self, store: Store) -> None:
        store.upload("empty").complete(0)
        assert store.head("empty") == ObjectInfo("empty", 0)

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "/etc/passwd",
            "../up",
            "a/../b",
            "a//b",
            "a/",
            ".hidden",
            "a/.partial",
            "a\0",
            "a b",
            "x" * 513,
        ],
    )
    def test_a_key_that_could_leave_its_place_is_refused(self, store: Store, key: str) -> None:
        for action in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.upload(key)):
            with pytest.raises(FatalStoreError):
                action()


class TestFolder:
    def test_nothing_is_left_in_the_partial_folder(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path / "central")
        store.put("a", b"1")
        with pytest.raises(ObjectExistsError):
            store.put("a", b"2")
        upload = store.upload("b")
        upload.put_part(0, b"2")
        upload.complete(1)
        assert list((tmp_path / "central" / ".partial").iterdir()) == []

    def test_objects_are_readable_only_by_their_owner(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path / "central")
        store.put("a/b", b"1")
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (store.root, store.root / "a" / "b")]
        assert modes == [0o700, 0o600]

    def test_a_drive_that_is_not_mounted_is_noticed(self, tmp_path: Path) -> None:
        with pytest.raises(ParkedStoreError, match="is it mounted"):
            DirectoryStore(tmp_path / "mnt" / "central").put("a", b"1")

    def test_a_link_out_of_the_store_is_not_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        store = DirectoryStore(tmp_path / "central")
        store.put("a", b"1")
        (store.root / "evil").symlink_to(outside)
        with pytest.raises(ParkedStoreError, match="leads out of the store"):
            store.put("evil/x", b"1")
        assert list(outside.iterdir()) == []

    def test_a_full_disk_is_somebody_elses_turn(self, tmp_path: Path) -> None:
        def no_space(source: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(ParkedStoreError, match="No space left"):
            DirectoryStore(tmp_path / "central", no_space).put("a", b"1")

    def test_a_url_leads_to_the_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "with space"
        opened = open_store(folder.as_uri(), VirtualClock(), random.Random(1))
        opened.put("a", b"1")
        assert (folder / "a").read_bytes() == b"1"

    @pytest.mark.parametrize(
        "url", ["s3://bucket", "/var/central", "file://host/central", "file:central", ""]
    )
    def test_an_address_of_no_store_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigError, match="file:///absolute/path"):
            open_store(url, VirtualClock(), random.Random(1))


def test_a_store_that_was_opened_by_url_repeats_its_calls(tmp_path: Path) -> None:
    opened = open_store((tmp_path / "central").as_uri(), VirtualClock(), random.Random(1))
    assert isinstance(opened, RetryingStore)
    assert isinstance(opened.reopen(), RetryingStore)


class Unreliable(MemoryStore):
    """A store that fails its first calls, before or after having done what was asked."""

    def __init__(self, errors: list[Exception], is_done_first: bool = False) -> None:
        super().__init__()
        self._errors = errors
        self._is_done_first = is_done_first

    def put(self, key: str, data: bytes) -> None:
        if self._is_done_first:
            super().put(key, data)
        if self._errors:
            raise self._errors.pop(0)
        if not self._is_done_first:
            super().put(key, data)


class TestRetrying:
    def retrying(self, inner: Store, clock: VirtualClock, policy: RetryPolicy) -> RetryingStore:
        return RetryingStore(inner, Retrier(policy, clock, random.Random(7)))

    def test_what_may_work_the_next_time_is_tried_again_after_bounded_waits(self) -> None:
        clock = VirtualClock()
        policy = RetryPolicy(attempts=4, base_s=1.0, cap_s=2.0)
        inner = Unreliable([RetryableStoreError("busy")] * 3)
        self.retrying(inner, clock, policy).put("a", b"1")
        assert inner.get("a") == b"1"
        assert 0 < clock.now_ns() <= (1 + 2 + 2) * SECOND_NS

    def test_the_store_may_ask_for_a_longer_wait(self) -> None:
        clock = VirtualClock()
        inner = Unreliable([RetryableStoreError("slow down", retry_after_s=60.0)])
        self.retrying(inner, clock, RetryPolicy()).put("a", b"1")
        assert clock.now_ns() >= 60 * SECOND_NS

    def test_it_gives_up_after_the_last_attempt(self) -> None:
        inner = Unreliable([RetryableStoreError(f"busy {n}") for n in range(9)])
        with pytest.raises(RetryableStoreError, match="busy 2"):
            self.retrying(inner, VirtualClock(), RetryPolicy(attempts=3)).put("a", b"1")

    def test_a_refusal_is_not_tried_again(self) -> None:
        clock = VirtualClock()
        inner = Unreliable([ParkedStoreError("401 Unauthorized"), RetryableStoreError("never reached")])
        with pytest.raises(ParkedStoreError):
            self.retrying(inner, clock, RetryPolicy()).put("a", b"1")
        assert clock.now_ns() == 0

    def test_a_lost_answer_shows_as_an_object_that_exists(self) -> None:
        inner = Unreliable([RetryableStoreError("connection cut")], is_done_first=True)
        with pytest.raises(ObjectExistsError):
            self.retrying(inner, VirtualClock(), RetryPolicy()).put("a", b"1")
