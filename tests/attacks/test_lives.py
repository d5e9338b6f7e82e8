"""Random lives of a spool and its store: nothing unproven is ever deleted, nothing withdrawn ever survives.

Recordings, grants, withdrawals, uploads, evictions, deletions, old copies put back, damage on both sides, clocks
that are set, a store that fails and lies; and whoever acts may die at any call that changes the disk. What is left
is searched byte by byte: each stream of each episode has bytes of its own.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from dying_disk import dying_after
from fragile_store import PowerCut
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lying_store import Lie, LyingStore
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.agent.commands.verifying import spool_gaps
from sensorium.errors import BusyError, EpisodeError, StoreError
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import MANIFEST_FILE, RECEIPT_FILE, REPORT_FILE, UPLOAD_NOTE_FILE
from sensorium.sync.episode.verify import examine
from sensorium.sync.erasure import erase_all_forgotten
from sensorium.timebase import SECOND_NS, VirtualClock
from sensorium.uploader.eviction import delete, evict_oldest
from sensorium.uploader.receipt import State, manifest_key, upload_state
from sensorium.uploader.service import PARK_NS, REJUDGE_NS, UploadService
from sensorium.uploader.stores.directory import DirectoryStore

EXAMPLES = int(os.environ.get("LIFE_EXAMPLES", "400"))
"""Of the slow run."""
IDS = [f"01J0000000000000000000000{letter}" for letter in "ABC"]
STREAMS = ("cam", "mic", "data")
PERSONAL = ("cam", "mic")
_DAY_NS = 86_400 * SECOND_NS
_MEMORY = Path("/dev/shm")
"""Where an fsync costs nothing; what it is for, the power cuts of tests/faults test."""
_AT = st.one_of(st.none(), st.integers(0, 160))
"""At which of its calls that change the disk an act is cut off; None = never."""


class Life(RuleBasedStateMachine):
    """``cam`` shows one subject, ``mic`` another; ``data`` shows nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.environ["SENSORIUM_HOME"]
        self.folder = Path(tempfile.mkdtemp(prefix="life-", dir=_MEMORY if _MEMORY.is_dir() else None))
        os.environ["SENSORIUM_HOME"] = str(self.folder / "home")
        self.spool, self.trusted = begin_spool(self.folder / "spool")
        self.clock = VirtualClock(SECOND_NS, CAPTURED[1])
        self.consent = self.open_consent()
        self.stores = [LyingStore(DirectoryStore(self.folder / name)) for name in ("central", "other")]
        self.service = self.open_service()
        self.needles: dict[tuple[str, str], bytes] = {}
        self.grants = dict.fromkeys(PERSONAL, 0)
        self.live = dict.fromkeys(PERSONAL, False)
        self.withdrawn: set[tuple[str, str]] = set()
        """Streams of which a withdrawal was ever said: they may be gone."""
        self.latest_ns = self.clock.utc_ns()
        self.deleted: set[str] = set()
        """Episodes of which a deletion was ever begun."""
        self.gone: set[str] = set()
        """Of those the ones that were said to be deleted."""
        self.damaged: set[tuple[str, str]] = set()
        """Streams of which a disk or a store lost what nobody could know."""
        self.unreadable: set[str] = set()
        """Episodes whose manifest is damaged, until somebody restores it."""
        self.stuck: set[str] = set()
        """Episodes that somebody has to look at before they can be delivered."""
        for stream in PERSONAL:
            self.give(stream)

    def teardown(self) -> None:
        try:
            self.settle()
            self.nothing_withdrawn_is_left()
            self.what_may_be_sent_is_delivered()
        finally:
            os.environ["SENSORIUM_HOME"] = self.home
            shutil.rmtree(self.folder)

    @property
    def store(self) -> LyingStore:
        """The store of now."""
        return self.stores[0]

    def open_consent(self) -> ConsentStore:
        return ConsentStore(self.spool.root / "consent", self.clock)

    def open_service(self) -> UploadService:
        return UploadService(
            self.spool,
            self.store,
            self.open_consent(),
            self.clock,
            random.Random(1),
            is_time_kept=lambda: True,
        )

    @contextmanager
    def dying(self, at: int | None) -> Iterator[None]:
        """Cut off what is done, and begin with new processes then."""
        try:
            with dying_after(at):
                yield
        except PowerCut:
            self.service = self.open_service()
            self.consent = self.open_consent()

    @rule(name=st.sampled_from(IDS))
    def record(self, name: str) -> None:
        if (name, "data") in self.needles:
            return
        folder = seal_episode(self.spool, name, seed=IDS.index(name))
        rng = random.Random(IDS.index(name))  # as the episode was made
        for stream, size_bytes in {"cam": 2000, "mic": 992, "data": 2992}.items():
            self.needles[name, stream] = rng.randbytes(size_bytes)[100:148]
            assert self.needles[name, stream] in (folder / f"{stream}.mcap").read_bytes()
            if stream in PERSONAL and not self.live[stream]:
                self.withdrawn.add((name, stream))
        (folder / REPORT_FILE).write_bytes(b"a picture: " + self.needles[name, "cam"])
        shutil.copytree(folder, self.folder / "backup" / name)

    @rule(stream=st.sampled_from(PERSONAL))
    def give(self, stream: str) -> None:
        if self.live[stream]:
            return
        self.grants[stream] += 1
        whole = grant_for(
            self.grants[stream] * 10 + PERSONAL.index(stream), valid_around_ns=self.clock.utc_ns()
        )
        grant = replace(
            whole,
            subject=f"sub:{stream}",
            scope=replace(whole.scope, streams=(stream,)),
            valid_until=whole.valid_until + 3000 * _DAY_NS,
        )
        self.consent.grant(grant)
        self.live[stream] = True

    @rule(stream=st.sampled_from(PERSONAL), is_erased_at_once=st.booleans(), at=_AT)
    def withdraw(self, stream: str, is_erased_at_once: bool, at: int | None) -> None:
        self.consent.withdraw_subject(f"sub:{stream}")
        self.live[stream] = False
        self.withdrawn |= {(name, stream) for name in IDS}
        if is_erased_at_once:
            with self.dying(at):
                erase_all_forgotten(self.spool, self.consent.poll(), self.clock.utc_ns())

    @rule(at=_AT, steps=st.integers(1, 8))
    def upload(self, at: int | None, steps: int) -> None:
        with self.dying(at):
            for _ in range(steps):
                with suppress(StoreError, EpisodeError, BusyError):
                    if self.service.step() is None:
                        break

    @rule(at=_AT, wanted_bytes=st.sampled_from([1, None]))
    def evict(self, at: int | None, wanted_bytes: int | None) -> None:
        with self.dying(at), suppress(StoreError, EpisodeError, BusyError):
            evict_oldest(self.spool, self.store, self.trusted, wanted_bytes)

    @rule(name=st.sampled_from(IDS), at=_AT)
    def delete(self, name: str, at: int | None) -> None:
        folder = self.here(name)
        if folder is not None:
            self.deleted.add(name)
            with self.dying(at), suppress(EpisodeError):
                delete(self.spool, folder, "deleted: a test run", self.clock.utc_ns())
                self.gone.add(name)

    def here(self, name: str) -> Path | None:
        both = (self.spool.sealed_folder(name), self.spool.gone_dir / name)
        return next((folder for folder in both if folder.exists()), None)

    @rule(seconds=st.sampled_from([1, 61, 400]))
    def let_time_pass(self, seconds: int) -> None:
        self.clock.advance(seconds * SECOND_NS)

    @rule(days=st.sampled_from([-400, -5, 1, 300]))
    def set_the_wall_clock(self, days: int) -> None:
        self.clock.step_utc(days * _DAY_NS)
        self.latest_ns = max(self.latest_ns, self.clock.utc_ns())

    @rule(lie=st.sampled_from(Lie), times=st.integers(1, 4))
    def make_the_store_lie(self, lie: Lie, times: int) -> None:
        self.store.lies[lie] += times
        if lie in (Lie.CHANGE, Lie.LOSE):
            self.stuck |= set(IDS)  # a manifest that came to be another one there is never overwritten

    @rule()
    def move_to_the_other_store(self) -> None:
        self.stores.reverse()
        self.service = self.open_service()

    @rule(name=st.sampled_from(IDS), file=st.sampled_from([UPLOAD_NOTE_FILE, RECEIPT_FILE]))
    def lose_a_note(self, name: str, file: str) -> None:
        folder = self.here(name)
        if folder is not None:
            (folder / file).unlink(missing_ok=True)

    @rule(name=st.sampled_from(IDS), stream=st.sampled_from(STREAMS), bit=st.integers(0, 8000))
    def damage_the_local_disk(self, name: str, stream: str, bit: int) -> None:
        path = self.spool.sealed_folder(name) / f"{stream}.mcap"
        if path.exists():
            flip(path, bit)
            self.damaged.add((name, stream))
            self.stuck.add(name)

    @rule(name=st.sampled_from(IDS), bit=st.integers(0, 8000))
    def damage_the_manifest(self, name: str, bit: int) -> None:
        folder = self.here(name)
        if folder is not None:
            flip(folder / MANIFEST_FILE, bit)
            self.unreadable.add(name)
            self.stuck.add(name)

    def restore_the_manifests(self) -> None:
        for name in self.unreadable:
            folder = self.here(name)
            if folder is not None:
                shutil.copy(self.folder / "backup" / name / MANIFEST_FILE, folder / MANIFEST_FILE)
        self.unreadable.clear()

    @rule(name=st.sampled_from(IDS), stream=st.sampled_from(STREAMS), bit=st.integers(0, 8000))
    def damage_the_store(self, name: str, stream: str, bit: int) -> None:
        for path in self.stored(f"episodes/{name}/{stream}-*"):
            flip(path, bit)
            self.stuck.add(name)
            if not self.spool.sealed_folder(name).exists():
                self.damaged.add((name, stream))

    @precondition(lambda self: self.needles)
    @rule(data=st.data())
    def put_the_first_copy_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted({name for name, _ in self.needles})))
        goal = self.spool.sealed_folder(name)
        if not (self.spool.gone_dir / name).exists():
            shutil.copytree(self.folder / "backup" / name, goal, dirs_exist_ok=True)
            self.damaged -= {(name, stream) for stream in STREAMS}
            self.unreadable.discard(name)
            self.stuck.add(name)

    @invariant()
    def nothing_that_only_this_disk_had_is_lost(self) -> None:
        for (name, stream), needle in self.needles.items():
            if name in self.deleted or {(name, stream)} & (self.withdrawn | self.damaged):
                continue
            path = self.spool.sealed_folder(name) / f"{stream}.mcap"
            if path.exists() and needle in path.read_bytes():
                continue
            assert self.stored(f"episodes/{name}/{MANIFEST_FILE}"), f"{name} was not committed"
            held = [path.read_bytes() for path in self.stored(f"episodes/{name}/{stream}-*")]
            assert any(needle in data for data in held), f"{stream} of {name} is lost"

    @invariant()
    def none_of_the_chain_is_missing(self) -> None:
        assert self.unreadable or spool_gaps(self.spool) == []

    def settle(self) -> None:
        """Let everybody end what is to be done, with a store that is honest now, and the latest time there was."""
        self.clock.step_utc(max(0, self.latest_ns - self.clock.utc_ns()))
        for store in self.stores:
            store.lies.clear()
        self.restore_the_manifests()
        self.service = self.open_service()
        for _ in range(4):
            self.clock.advance(max(PARK_NS, REJUDGE_NS, 600 * SECOND_NS) + 1)
            outcome: object = True
            while outcome is not None:
                with suppress(EpisodeError):
                    outcome = self.service.step()

    def nothing_withdrawn_is_left(self) -> None:
        gone = {stream for stream in PERSONAL if not self.live[stream]}
        for (name, stream), needle in self.needles.items():
            if stream in gone or name in self.gone:
                found = [path for path in self.files() if needle in path.read_bytes()]
                assert not found, f"{stream} of {name} stands in {found}"

    def stored(self, pattern: str) -> list[Path]:
        return [path for store in self.stores for path in store.inner.root.glob(pattern)]

    def files(self) -> Iterator[Path]:
        for root in (self.spool.root, *(store.inner.root for store in self.stores)):
            yield from (path for path in root.rglob("*") if path.is_file())

    def what_may_be_sent_is_delivered(self) -> None:
        for folder in self.spool.sealed_folders():
            if folder.name in self.stuck or not all(self.live.values()):
                continue
            assert upload_state(folder, self.store.url) is State.VERIFIED
            assert examine(folder).is_proven
            assert examine(self.store.inner.root / "episodes" / folder.name).is_proven
            assert self.store.inner.head(manifest_key(folder.name)) is not None


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.chmod(0o600)
    path.write_bytes(data)


def live(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=(
                Phase.reuse,
                Phase.generate,
            ),  # a life is hard to make shorter: minutes, and little comes of it
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_unproven_is_deleted_and_nothing_withdrawn_survives() -> None:
    live(examples=20, steps=20)


@pytest.mark.slow
def test_many_more_lives() -> None:
    live(EXAMPLES, steps=40)
