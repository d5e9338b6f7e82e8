"""The upload service: what it does when, and the real process under fire."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from upload_samples import CAPTURED, begin_spool, grant_for, locked_by_another, seal_episode

from sensorium.errors import SensoriumError, StoreError, TrustError
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.manifest import LEAF_BYTES, hash_file, read_manifest
from sensorium.sync.episode.spool import Spool
from sensorium.timebase import SECOND_NS, HostClock, VirtualClock
from sensorium.uploader.proof import is_evictable
from sensorium.uploader.receipt import State, consent_key, data_key, manifest_key, upload_state
from sensorium.uploader.service import PARK_NS, REJUDGE_NS, StatusFile, UploadService, main, run
from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.stores.memory import MemoryStore
from sensorium.uploader.stores.store import ObjectInfo, ParkedStoreError, RetryableStoreError, Store

FIRST, SECOND = "01J00000000000000000000001", "01J00000000000000000000002"


class Bench:
    """A spool, a consent folder with a grant, a virtual clock and a service around a store."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.spool, self.trusted = begin_spool(folder / "spool")
        self.clock = VirtualClock(0, CAPTURED[1])
        self.consent = ConsentStore(folder / "consent", self.clock)
        self.grant = self.consent.grant(grant_for())
        self.store = store
        self.service = UploadService(self.spool, store, self.consent, self.clock, random.Random(1))


class Failing(MemoryStore):
    """A store that answers every ``head`` with an error while it has one."""

    def __init__(self, error: StoreError) -> None:
        super().__init__()
        self.error: StoreError | None = error

    def head(self, key: str) -> ObjectInfo | None:
        if self.error is not None:
            raise self.error
        return super().head(key)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, MemoryStore())


class TestSteps:
    def test_an_empty_spool_leaves_nothing_to_do(self, bench: Bench) -> None:
        assert bench.service.step() is None

    def test_episodes_go_one_a_step_oldest_first_and_once(self, bench: Bench) -> None:
        seal_episode(bench.spool, SECOND)
        seal_episode(bench.spool, FIRST)
        outcomes = [bench.service.step() for _ in range(3)]
        assert [found and (found.episode_id, found.state) for found in outcomes] == [
            (FIRST, State.VERIFIED),
            (SECOND, State.VERIFIED),
            None,
        ]

    def test_a_denied_episode_does_not_block_the_next_and_is_judged_again_after_a_new_grant(
        self, bench: Bench
    ) -> None:
        seal_episode(bench.spool, FIRST)
        bench.consent.withdraw(bench.grant.id)
        bench.consent.grant(
            grant_for(number=2, purposes=(Purpose.RECORD,))
        )  # or what was recorded would be erased
        outcome = bench.service.step()
        assert outcome is not None
        assert outcome.state is State.DENIED
        assert bench.service.step() is None
        assert bench.service.has_refused
        bench.consent.grant(grant_for(number=3))
        outcome = bench.service.step()
        assert outcome is not None
        assert outcome.state is State.VERIFIED
        assert not bench.service.has_refused

    def test_a_held_episode_is_judged_again_after_a_while(self, bench: Bench) -> None:
        seal_episode(bench.spool, FIRST)
        bench.store.put(manifest_key(FIRST), b"another")
        assert bench.service.step() is not None
        assert bench.service.step() is None
        bench.clock.advance(REJUDGE_NS)
        assert bench.service.step() is not None

    def test_a_quarantined_episode_is_left_alone(self, bench: Bench) -> None:
        os.truncate(seal_episode(bench.spool, FIRST) / "data.mcap", 1)
        assert bench.service.step() is not None
        bench.clock.advance(10 * REJUDGE_NS)
        assert bench.service.step() is None

    def test_trouble_that_somebody_must_repair_parks_the_store(self, tmp_path: Path) -> None:
        store = Failing(ParkedStoreError("403 Forbidden"))
        bench = Bench(tmp_path, store)
        seal_episode(bench.spool, FIRST)
        seal_episode(bench.spool, SECOND)
        with pytest.raises(ParkedStoreError):
            bench.service.step()
        assert bench.service.parked == "403 Forbidden"
        assert bench.service.step() is None
        store.error = None
        bench.clock.advance(PARK_NS)
        assert [bench.service.step() is not None for _ in range(3)] == [True, True, False]
        assert bench.service.parked == ""

    def test_passing_trouble_delays_one_episode_longer_each_time(self, tmp_path: Path) -> None:
        store = Failing(RetryableStoreError("503"))
        bench = Bench(tmp_path, store)
        seal_episode(bench.spool, FIRST)
        for failures in range(1, 4):
            with pytest.raises(RetryableStoreError):
                bench.service.step()
            status = bench.service.episodes[FIRST]
            assert (status.failures, status.error) == (failures, "503")
            wait_ns = status.due_ns - bench.clock.now_ns()
            assert 0 < wait_ns <= 5 * 2 ** (failures - 1) * SECOND_NS
            assert bench.service.step() is None
            bench.clock.advance(wait_ns)
        store.error = None
        outcome = bench.service.step()
        assert outcome is not None
        assert outcome.state is State.VERIFIED

    def test_what_a_stranger_signed_does_not_leave(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        seal_episode(bench.spool, FIRST)
        monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "another machine"))
        outcome = bench.service.step()
        assert outcome is not None
        assert outcome.state is State.QUARANTINED

    def test_a_new_service_knows_from_the_folders_what_is_done(self, bench: Bench) -> None:
        seal_episode(bench.spool, FIRST)
        bench.service.step()
        again = UploadService(bench.spool, bench.store, bench.consent, bench.clock, random.Random(2))
        assert again.step() is None
        assert again.episodes[FIRST].state is State.VERIFIED

    def test_what_is_proven_in_one_store_still_has_to_go_to_another(
        self, bench: Bench, tmp_path: Path
    ) -> None:
        seal_episode(bench.spool, FIRST)
        bench.service.step()
        other = DirectoryStore(tmp_path / "other")
        again = UploadService(bench.spool, other, bench.consent, bench.clock, random.Random(2))
        assert again.step() is not None
        assert other.head(manifest_key(FIRST)) is not None

    def test_an_episode_that_was_removed_is_forgotten(self, bench: Bench) -> None:
        folder = seal_episode(bench.spool, FIRST)
        bench.service.step()
        folder.rename(bench.spool.root / "elsewhere")
        bench.service.step()
        assert bench.service.episodes == {}

    def test_the_status_file_tells_state_reasons_and_progress(self, bench: Bench, tmp_path: Path) -> None:
        seal_episode(bench.spool, FIRST)
        path = tmp_path / "status.json"
        status = StatusFile(path, bench.service, "memory:", bench.clock)
        assert run(bench.service, status, bench.clock, lambda: False, is_once=True) == 0
        found = json.loads(path.read_text())
        episode = found["episodes"][FIRST]
        assert episode["state"] == "verified"
        assert episode["done_bytes"] == episode["total_bytes"] > 0
        assert found["parked"] == ""

    def test_once_goes_on_after_an_episode_that_failed(self, tmp_path: Path) -> None:
        store = Failing(RetryableStoreError("503"))
        bench = Bench(tmp_path, store)
        for name in (FIRST, SECOND):
            seal_episode(bench.spool, name)
        status = StatusFile(None, bench.service, "memory:", bench.clock)
        assert run(bench.service, status, bench.clock, lambda: False, is_once=True) == 3
        assert [found.failures for found in bench.service.episodes.values()] == [1, 1]

    def test_an_episode_that_another_process_has_keeps_nobody_else_from_arriving(self, bench: Bench) -> None:
        seal_episode(bench.spool, SECOND)
        locked = seal_episode(bench.spool, FIRST)
        with locked_by_another(locked):
            status = StatusFile(None, bench.service, "memory:", bench.clock)
            assert run(bench.service, status, bench.clock, lambda: False, is_once=True) == 3
        assert bench.service.waiting() == {
            FIRST: f"episode {locked} is being sent or changed by another process"
        }
        assert bench.service.episodes[SECOND].state is State.VERIFIED

    def test_trouble_that_passes_in_the_same_run_is_no_failure(self, tmp_path: Path) -> None:
        class Repairing(StatusFile):
            def failed(self, error: SensoriumError) -> None:
                store.error = None
                bench.clock.advance(60 * SECOND_NS)

        store = Failing(RetryableStoreError("503"))
        bench = Bench(tmp_path, store)
        seal_episode(bench.spool, FIRST)
        status = Repairing(None, bench.service, "memory:", bench.clock)
        assert run(bench.service, status, bench.clock, lambda: False, is_once=True) == 0
        assert bench.service.waiting() == {}

    def test_what_was_stopped_before_all_arrived_is_not_called_good(self, bench: Bench) -> None:
        seal_episode(bench.spool, FIRST)
        seal_episode(bench.spool, SECOND)
        status = StatusFile(None, bench.service, "memory:", bench.clock)
        first = lambda: upload_state(bench.spool.sealed_folder(FIRST)) is State.VERIFIED  # noqa: E731
        assert run(bench.service, status, bench.clock, first, is_once=True) == 3
        assert bench.service.waiting() == {SECOND: "its turn has not come"}

    def test_a_parked_store_is_why_the_others_wait(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, Failing(ParkedStoreError("403 Forbidden")))
        seal_episode(bench.spool, FIRST)
        seal_episode(bench.spool, SECOND)
        status = StatusFile(None, bench.service, "memory:", bench.clock)
        assert run(bench.service, status, bench.clock, lambda: False, is_once=True) == 3
        assert bench.service.waiting() == dict.fromkeys((FIRST, SECOND), "403 Forbidden")

    def test_a_damaged_key_stops_the_uploads_and_quarantines_nothing(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        home = tmp_path / "keys of this test"
        monkeypatch.setenv("SENSORIUM_HOME", str(home))
        folder = seal_episode(bench.spool, FIRST)
        path = home / "keys" / "device.ed25519"
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        with pytest.raises(TrustError, match="is not the key"):
            bench.service.step()
        assert upload_state(folder) is State.SEALED
        path.write_bytes(good)
        bench.clock.advance(REJUDGE_NS)
        outcome = bench.service.step()
        assert outcome is not None
        assert outcome.state is State.VERIFIED


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


class Process:
    """The real service process on a spool below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool, self.trusted = begin_spool(folder / "spool")
        self.store = DirectoryStore(folder / "central")
        # The real process lives now: a grant that covers the captures of the samples and is valid today.
        now_ns = HostClock().utc_ns()
        grant = grant_for(captured=(CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS), valid_around_ns=now_ns)
        ConsentStore(folder / "spool" / "consent").grant(grant)
        self.arguments = ["--spool", str(folder / "spool"), "--store", self.store.url]

    def start(self, *extra: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([*self.command(), *extra], stderr=subprocess.PIPE, text=True)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "sensorium.uploader.service", *self.arguments]

    def finish(self, *extra: str) -> tuple[int, str]:
        with self.start(*extra) as process:
            _, errors = process.communicate(timeout=60)
            return process.returncode, errors

    def stored_bytes(self) -> int:
        found = [p for p in self.store.root.rglob("*") if p.is_file()] if self.store.root.exists() else []
        total = 0
        for path in found:
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
        return total


class TestProcess:
    def test_killed_again_and_again_it_delivers_everything_once(self, tmp_path: Path) -> None:
        process = Process(tmp_path)
        episodes = [
            seal_episode(process.spool, name, large=True, data_bytes=3 * LEAF_BYTES)
            for name in (FIRST, SECOND)
        ]
        total_bytes = 2 * 5 * LEAF_BYTES
        kills = 0
        for fraction in (0.05, 0.3, 0.5, 0.8):
            running = process.start()
            wait_until(lambda: process.stored_bytes() >= fraction * total_bytes or running.poll() is not None)  # noqa: B023
            assert running.poll() is None, running.stderr and running.stderr.read()
            running.kill()
            running.communicate()
            kills += 1
            assert not all(upload_state(episode) is State.VERIFIED for episode in episodes)
        assert kills == 4
        assert process.finish("--once") == (0, "")
        expected = []
        for episode in episodes:
            manifest = read_manifest(episode, process.trusted)
            expected += [manifest_key(episode.name), consent_key(episode.name)]
            for file in manifest.files:
                key = data_key(episode.name, file)
                expected.append(key)
                assert hash_file(process.store.root / key).sha256 == file.sha256
            assert is_evictable(episode, process.store, process.trusted)
        assert [found.key for found in process.store.list()] == sorted(expected)
        assert list((process.store.root / ".partial").iterdir()) == []

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
    @pytest.mark.parametrize("call", ["fsync", "link,linkat", "unlink,unlinkat", "rename,renameat", "mkdir"])
    def test_killed_at_every_system_call_that_changes_the_disk_it_recovers(
        self, tmp_path: Path, call: str
    ) -> None:
        for point in range(1, 100):
            process = Process(tmp_path / str(point))
            episode = seal_episode(process.spool, FIRST)
            injection = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={point}"]
            command = ["strace", "-f", "-qq", "-o", "/dev/null", *injection, *process.command(), "--once"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                assert point > 2
                return
            proven = is_evictable(episode, process.store, process.trusted)
            assert upload_state(episode) is not State.VERIFIED or proven
            assert process.finish("--once") == (0, "")
            assert is_evictable(episode, process.store, process.trusted)
            assert list((process.store.root / ".partial").iterdir()) == []
        raise AssertionError("it never came to an end")

    def test_sigterm_ends_it_cleanly(self, tmp_path: Path) -> None:
        process = Process(tmp_path)
        seal_episode(process.spool, FIRST)
        status = tmp_path / "status.json"
        running = process.start("--json-status", str(status))
        wait_until(lambda: status.exists() and '"verified"' in status.read_text())
        running.send_signal(signal.SIGTERM)
        assert running.communicate(timeout=10)[1] == ""
        assert running.returncode == 0

    def test_without_consent_it_says_so_and_exits_with_1(self, tmp_path: Path) -> None:
        process = Process(tmp_path)
        seal_episode(process.spool, FIRST)
        empty = tmp_path / "nobody"
        status = tmp_path / "status.json"
        code, _ = process.finish("--once", "--consent", str(empty), "--json-status", str(status))
        assert code == 1
        assert "no grant covers stream cam" in status.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--spool", "{tmp}/nothing", "--store", "file:///tmp/x"], "does not exist"),
        (["--spool", "{tmp}", "--store", "ftp://x"], "unknown kind 'ftp'"),
    ],
)
def test_wrong_use_is_one_clear_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        code = main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    errors = capsys.readouterr().err
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1


def test_a_spool_without_episodes_is_fine(tmp_path: Path) -> None:
    Spool(tmp_path).create()
    assert (
        UploadService(
            Spool(tmp_path), MemoryStore(), ConsentStore(tmp_path / "c"), VirtualClock(), random.Random(0)
        ).step()
        is None
    )
