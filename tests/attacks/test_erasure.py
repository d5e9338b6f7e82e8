"""A withdrawal reaches what was sealed and uploaded, at whatever moment it comes; nothing of others is lost."""

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bit_flips import check_flips
from dying_disk import dying_after
from fragile_store import PowerCut
from lying_store import Lie, LyingStore
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.agent.commands.consent import withdraw_consent
from sensorium.errors import EpisodeError, StoreError
from sensorium.sync.consent.grants import ConsentLedger, EventKind
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import MANIFEST_FILE, RECEIPT_FILE, REPORT_FILE
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.revisions import revise
from sensorium.sync.episode.verify import examine
from sensorium.sync.erasure import erase_forgotten
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys
from sensorium.timebase import SECOND_NS, HostClock, VirtualClock
from sensorium.uploader.eviction import evict_oldest
from sensorium.uploader.receipt import State, read_receipt, upload_state
from sensorium.uploader.service import REJUDGE_NS, UploadService
from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.stores.store import ParkedStoreError, RetryableStoreError
from sensorium.uploader.transfer import Progress

FIRST, SECOND = "01J00000000000000000000001", "01J00000000000000000000002"
NOW_NS = HostClock().utc_ns()


class Bench:
    """Two episodes of two subjects: ``cam`` is of one, ``mic`` of the other; a store, and an uploader."""

    def __init__(self, folder: Path) -> None:
        self.spool, _ = begin_spool(folder / "spool")
        self.clock = VirtualClock(0, NOW_NS)
        self.consent = ConsentStore(self.spool.root / "consent", self.clock)
        span = (CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS)
        whole = grant_for(1, captured=span, valid_around_ns=NOW_NS)
        self.of_cam = replace(whole, subject="sub:cam", scope=replace(whole.scope, streams=("cam",)))
        self.of_mic = replace(
            whole,
            id=grant_for(2).id,
            subject="sub:mic",
            scope=replace(whole.scope, streams=("mic",)),
        )
        self.consent.grant(self.of_cam)
        self.consent.grant(self.of_mic)
        self.store = DirectoryStore(folder / "central")
        self.service = self.new_service()

    def new_service(self) -> UploadService:
        return UploadService(self.spool, self.store, self.consent, self.clock, random.Random(1))

    def seal(self, name: str) -> Path:
        folder = seal_episode(self.spool, name)
        (folder / REPORT_FILE).write_text("pictures")
        return folder

    def upload_all(self) -> None:
        while self.service.step() is not None:
            pass

    def lies_about(self, needle: bytes) -> list[Path]:
        """Return every file of spool and store that holds these bytes."""
        roots = (self.spool.root, self.store.root)
        paths = [path for root in roots if root.exists() for path in root.rglob("*") if path.is_file()]
        return [path for path in paths if needle in path.read_bytes()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sample_of(folder: Path, stream: str) -> bytes:
    """Return bytes that only this stream's file holds."""
    data = (folder / f"{stream}.mcap").read_bytes()
    return data[len(data) // 2 : len(data) // 2 + 40]


def test_what_was_withdrawn_is_gone_here_and_in_the_store_and_the_rest_still_verifies(bench: Bench) -> None:
    folder = bench.seal(FIRST)
    cam, mic = sample_of(folder, "cam"), sample_of(folder, "mic")
    bench.upload_all()
    assert len(bench.lies_about(cam)) == 2
    bench.consent.withdraw(bench.of_cam.id)
    bench.upload_all()
    assert bench.lies_about(cam) == []
    assert len(bench.lies_about(mic)) == 2
    assert not (folder / REPORT_FILE).exists()
    found = examine(folder)
    assert found.is_proven
    assert any("cam.mcap was erased" in remark and "withdrawn" in remark for remark in found.remarks)
    assert examine(bench.store.root / "episodes" / FIRST).is_proven
    assert upload_state(folder, bench.store.url) is State.VERIFIED
    receipt = read_receipt(folder)
    assert receipt is not None
    assert receipt.revision == 2


def test_the_command_erases_at_once_and_says_where_copies_lie(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bench.seal(FIRST)
    bench.upload_all()
    assert withdraw_consent(bench.consent.folder, bench.spool.root, "sub:cam", as_json=False) == 0
    said = capsys.readouterr().out
    assert f"erased in {FIRST}: cam" in said
    assert bench.store.url in said.replace("\n", "")
    assert not (folder / "cam.mcap").exists()


def test_an_erased_file_that_is_put_back_is_found_and_erased_again(bench: Bench, tmp_path: Path) -> None:
    folder = bench.seal(FIRST)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    bench.consent.withdraw(bench.of_cam.id)
    bench.upload_all()
    shutil.copy(copy / "cam.mcap", folder / "cam.mcap")
    assert "was erased, and is here again" in examine(folder).reasons[0]
    bench.service = bench.new_service()
    bench.upload_all()
    assert not (folder / "cam.mcap").exists()
    shutil.rmtree(folder)
    copy.rename(folder)  # as if nothing had ever been said of it
    bench.service = bench.new_service()
    bench.upload_all()
    assert not (folder / "cam.mcap").exists()


def test_a_store_out_of_reach_is_asked_again_by_the_next_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench.seal(FIRST)
    cam = sample_of(folder, "cam")
    bench.upload_all()
    bench.consent.withdraw(bench.of_cam.id)

    def fail(_store: DirectoryStore, _key: str) -> None:
        raise RetryableStoreError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "delete", fail)
        with pytest.raises(StoreError):
            bench.service.step()
    assert len(bench.lies_about(cam)) == 1
    bench.service = bench.new_service()
    bench.upload_all()
    assert bench.lies_about(cam) == []


def test_a_crash_before_the_files_went_leaves_a_tombstone_that_is_obeyed_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench.seal(FIRST)
    bench.consent.withdraw(bench.of_cam.id)
    with monkeypatch.context() as patch:
        patch.setattr("sensorium.sync.erasure._remove", _die)
        with pytest.raises(KeyboardInterrupt):
            erase_forgotten(folder, bench.consent.poll(), NOW_NS)
    assert (folder / "cam.mcap").exists()
    assert not examine(folder).is_proven
    erase_forgotten(folder, bench.consent.poll(), NOW_NS)
    assert not (folder / "cam.mcap").exists()
    assert read_manifest(folder).revision == 2


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_new_grant_of_the_same_subject_keeps_what_the_old_one_covered(bench: Bench) -> None:
    folder = bench.seal(FIRST)
    bench.consent.withdraw(bench.of_cam.id)
    bench.consent.grant(replace(bench.of_cam, id=grant_for(3).id))
    bench.upload_all()
    assert (folder / "cam.mcap").exists()


def kept_for(bench: Bench, folder: Path, days: int) -> ConsentLedger:
    """Return records by which the camera's stream may be kept for so many days."""
    store = ConsentStore(folder / "records", bench.clock)
    store.grant(replace(bench.of_cam, conditions=replace(bench.of_cam.conditions, retain_days=days)))
    return store.poll()


@pytest.mark.parametrize("is_time_kept", [True, False])
def test_what_may_be_kept_no_longer_goes_only_by_a_clock_that_somebody_keeps(
    is_time_kept: bool, bench: Bench, tmp_path: Path
) -> None:
    folder = bench.seal(FIRST)
    ledger = kept_for(bench, tmp_path, days=1)
    found = erase_forgotten(folder, ledger, NOW_NS, is_time_kept=is_time_kept)
    assert (found is not None) == is_time_kept
    assert (folder / "cam.mcap").exists() != is_time_kept


def test_a_clock_that_was_once_years_ahead_erases_nothing_though_the_log_remembers(
    bench: Bench, tmp_path: Path
) -> None:
    folder = bench.seal(FIRST)
    ledger = replace(kept_for(bench, tmp_path, days=1000), seen_ns=NOW_NS + 3000 * 86_400 * SECOND_NS)
    assert erase_forgotten(folder, ledger, NOW_NS) is None
    assert (folder / "cam.mcap").exists()


def test_records_that_cannot_be_trusted_erase_nothing(bench: Bench) -> None:
    folder = bench.seal(FIRST)
    bench.consent.withdraw(bench.of_cam.id)
    log = bench.consent.folder / "events.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    bench.upload_all()
    assert (folder / "cam.mcap").exists()
    assert upload_state(folder) is State.DENIED


def test_what_was_refused_on_the_way_leaves_nothing_in_the_store(bench: Bench) -> None:
    folder = bench.seal(FIRST)
    mic = sample_of(folder, "mic")

    def withdraw(_: object) -> None:
        is_live = all(event.kind is EventKind.GIVEN for event in bench.consent.poll().events)
        if is_live and bench.lies_about(mic)[1:]:
            bench.consent.withdraw(bench.of_mic.id)

    outcome = bench.service.step(progress=withdraw)
    assert outcome is not None
    assert outcome.state is State.DENIED
    assert list(bench.store.list()) == []
    bench.upload_all()
    assert bench.lies_about(mic) == []
    assert (folder / "cam.mcap").exists()


def spoil(folder: Path, file: str) -> None:
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)


def test_an_episode_that_is_quarantined_since_is_erased_in_the_store_all_the_same(bench: Bench) -> None:
    folder = bench.seal(FIRST)
    cam = sample_of(folder, "cam")
    bench.upload_all()
    (folder / RECEIPT_FILE).unlink()
    spoil(folder, "mic.mcap")
    bench.service = bench.new_service()
    bench.service.step()
    assert upload_state(folder) is State.QUARANTINED
    bench.consent.withdraw(bench.of_cam.id)
    bench.upload_all()
    assert bench.lies_about(cam) == []
    assert upload_state(folder) is State.QUARANTINED


def test_an_evicted_episode_without_its_receipt_is_erased_in_the_store_all_the_same(bench: Bench) -> None:
    folder = bench.seal(FIRST)
    cam, mic = sample_of(folder, "cam"), sample_of(folder, "mic")
    bench.upload_all()
    evict_oldest(bench.spool, bench.store, trusted_keys(Role.DEVICE))
    (bench.spool.gone_dir / FIRST / RECEIPT_FILE).unlink()
    bench.consent.withdraw(bench.of_cam.id)
    bench.upload_all()
    assert bench.lies_about(cam) == []
    assert len(bench.lies_about(mic)) == 1
    assert bench.service.step() is None


def test_a_store_that_only_says_that_it_deleted_is_not_believed(bench: Bench) -> None:
    folder = bench.seal(FIRST)
    cam = sample_of(folder, "cam")
    bench.upload_all()
    lying = LyingStore(bench.store)
    lying.lies[Lie.KEEP] = 1
    bench.consent.withdraw(bench.of_cam.id)
    service = UploadService(bench.spool, lying, bench.consent, bench.clock, random.Random(1))
    with pytest.raises(ParkedStoreError, match="still there after it was deleted"):
        service.step()
    assert len(bench.lies_about(cam)) == 1
    bench.clock.advance(REJUDGE_NS)
    while service.step() is not None:
        pass
    assert bench.lies_about(cam) == []


@pytest.mark.parametrize("file", ["mic.mcap", MANIFEST_FILE])
def test_whoever_dies_while_it_quarantines_leaves_nothing_in_the_store(bench: Bench, file: str) -> None:
    folder = bench.seal(FIRST)
    cam = sample_of(folder, "cam")

    def stop(found: Progress) -> None:
        if found.done_bytes and len(bench.lies_about(cam)) > 1:
            raise PowerCut

    with pytest.raises(PowerCut):
        bench.service.step(stop)
    spoil(folder, file)
    for calls in range(60):
        bench.service = bench.new_service()
        with suppress(PowerCut), dying_after(calls):
            bench.service.step()
            break
    assert upload_state(folder) is (State.QUARANTINED if file == "mic.mcap" else State.SEALED)
    assert bench.service.episodes[FIRST].state is State.QUARANTINED
    assert len(bench.lies_about(cam)) == 1
    assert bench.lies_about(cam)[0].is_relative_to(folder)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_what_was_erased_revised_and_delivered_is_found(count: int, bench: Bench) -> None:
    folder = bench.seal(FIRST)
    bench.upload_all()
    bench.consent.withdraw(bench.of_cam.id)
    bench.upload_all()
    assert {path.name for path in folder.iterdir()} > {"manifest-2.json", RECEIPT_FILE}
    assert check_flips(folder, count, lambda: not examine(folder).is_proven) >= count
    stored = bench.store.root / "episodes" / FIRST
    assert check_flips(stored, count, lambda: not examine(stored).is_proven) >= count


def test_a_revision_that_does_not_follow_is_refused(bench: Bench) -> None:
    folder = bench.seal(FIRST)

    def mark(found: Manifest) -> Manifest:
        return replace(found, limitations=("x",))

    revise(folder, mark)
    revise(folder, mark)
    (folder / "manifest-3.json").rename(folder / "manifest-2.json")
    with pytest.raises(EpisodeError, match="does not follow"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(n, marks=pytest.mark.slow) for n in range(8, 100))]
)
def test_whenever_it_comes_nothing_of_the_subject_is_left_and_nothing_of_others_lost(
    seed: int, bench: Bench
) -> None:
    """Seals, uploads that die in the middle, new processes and one withdrawal, in random order."""
    rng = random.Random(seed)
    needles: dict[str, tuple[bytes, bytes]] = {}

    def seal(name: str) -> None:
        if name not in needles:
            folder = bench.seal(name)
            needles[name] = (sample_of(folder, "cam"), sample_of(folder, "mic"))

    def upload(calls: int) -> None:
        def stop(_: object, left: list[int] = [calls]) -> None:  # noqa: B006
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        try:
            bench.service.step(progress=stop)
        except KeyboardInterrupt:
            bench.service = bench.new_service()

    steps: list[Callable[[], None]] = [
        lambda: seal(FIRST),
        lambda: seal(SECOND),
        *(partial(upload, rng.randrange(30)) for _ in range(4)),
        lambda: bench.consent.withdraw(bench.of_cam.id),
    ]
    rng.shuffle(steps)
    for step in steps:
        step()
    bench.service = bench.new_service()
    bench.upload_all()
    for cam, mic in needles.values():
        assert bench.lies_about(cam) == []
        assert len(bench.lies_about(mic)) == 2 * len(needles)  # the samples of both are the same
    for name in needles:
        assert examine(bench.spool.sealed_folder(name)).is_proven
        assert examine(bench.store.root / "episodes" / name).is_proven
