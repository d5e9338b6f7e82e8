"""The upload process: brings every sealed episode of a spool into a store, one after the other.

    python -m sensorium.uploader.service --spool DIR --store URL [--consent DIR] [--once] [--json-status FILE]

It shares only the spool and the consent folder with the other processes, and may be killed at any time.
Exit codes of ``--once``: 0 every episode is verified in the store, 1 some are denied, held or quarantined,
2 wrong use, 3 some still wait: the store or the disk is in trouble, another process has them, it was stopped.

The commands ``upload`` and ``demo`` step the same service with :func:`run`.
"""

import argparse
import json
import random
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sensorium.errors import BusyError, ConfigError, EpisodeError, SensoriumError, StoreError, TrustError
from sensorium.masking import masked_address
from sensorium.priority import give_way
from sensorium.stopping import end_with_parent
from sensorium.sync.consent.store import DEFAULT_FOLDER, ConsentStore
from sensorium.sync.episode.disk_room import DiskRoom
from sensorium.sync.episode.files import RECEIPT_FILE
from sensorium.sync.episode.manifest import Manifest
from sensorium.sync.episode.revisions import revision_files
from sensorium.sync.episode.spool import Spool
from sensorium.sync.trust.dsse import key_id
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import TrustStore, trusted_keys
from sensorium.timebase import SECOND_NS, Clock, HostClock, is_utc_kept
from sensorium.uploader.copies import Elsewhere
from sensorium.uploader.forgetting import Forgetting
from sensorium.uploader.receipt import State, awaited_key, read_receipt, upload_reasons, upload_state
from sensorium.uploader.restating import Restating
from sensorium.uploader.stores.opening import open_store
from sensorium.uploader.stores.retrying import RetryPolicy
from sensorium.uploader.stores.store import ParkedStoreError, Store
from sensorium.uploader.sweeper import Sweeper
from sensorium.uploader.transfer import Gates, Outcome, Progress, Stopped, allow_all, upload_episode
from sensorium.verdict import Verdict

NICENESS = 15
POLL_NS = SECOND_NS // 2
REJUDGE_NS = 60 * SECOND_NS
PARK_NS = 60 * SECOND_NS
_STATUS_NS = SECOND_NS // 5
_FINAL = frozenset({State.VERIFIED, State.QUARANTINED})
_REFUSED = frozenset({State.DENIED, State.HELD, State.QUARANTINED})


@dataclass(slots=True)
class EpisodeStatus:
    """What the service knows of an episode; ``error`` is the store's last complaint."""

    state: State
    reasons: tuple[str, ...] = ()
    error: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    failures: int = 0
    due_ns: int = 0
    is_owing: bool = False
    """The store has to be told what was erased since, whatever else may be said against the episode."""


class UploadService:
    """Call :meth:`step` in a loop; each call handles at most one episode.

    Args:
        say: Told once of each episode that could not be erased, and why.

    Denied and held episodes are judged again every minute, denied ones also when the consent ledger changes.
    After an error that somebody must repair the store is left alone for a minute; after a passing one the
    episode waits, longer each time.
    """

    def __init__(
        self,
        spool: Spool,
        store: Store,
        consent: ConsentStore,
        clock: Clock,
        rng: random.Random,
        quality: Callable[[Manifest], Verdict] = allow_all,
        is_time_kept: Callable[[], bool] = is_utc_kept,
        sweeper: Sweeper | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.episodes: dict[str, EpisodeStatus] = {}
        self.parked = ""
        """Why the store is left alone; "" while it works."""
        self._spool = spool
        self._store = store
        self._consent = consent
        self._clock = clock
        self._rng = rng
        self._quality = quality
        self._sweeper = sweeper
        self._backoff = RetryPolicy(base_s=5.0, cap_s=300.0)
        self._ledger = consent.poll()
        self._forgetting = Forgetting(spool, clock, say, is_time_kept)
        self._elsewhere = Elsewhere(spool, store.url, clock)
        self._owing: dict[str, Path] = {}
        self._told: dict[str, int] = {}
        self._restating = Restating(spool, store, clock)
        self._restate_failures = 0
        self._restate_due_ns = 0
        self._parked_until_ns = 0
        self._trust_version: object = None

    def step(
        self,
        progress: Callable[[Progress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Outcome | None:
        """Handle the episode that is due next; return what became of it, None if nothing is due.

        First what a store has to forget, then what it has to be told of consent, then the oldest upload.

        Raises:
            StoreError: Noted in ``episodes`` and ``parked`` before it is passed on; the next step goes on.
            Stopped: If ``should_stop`` said so.
        """
        if self._sweeper is not None:
            self._sweeper.step()
        self._look()
        now_ns = self._clock.now_ns()
        if now_ns < self._parked_until_ns:
            return None
        due = [name for name, status in self.episodes.items() if self._is_due(status, now_ns)]
        owing = [name for name in due if self.episodes[name].is_owing]
        restated = "" if owing else self._restate(now_ns)
        if restated:
            return Outcome(restated, State.VERIFIED)
        if due:
            return self._upload(min(owing or due), progress, should_stop)
        while not (restated or self._restating.is_done or should_stop()) and now_ns >= self._restate_due_ns:
            restated = self._restate(now_ns)
        return Outcome(restated, State.VERIFIED) if restated else None

    @property
    def no_room(self) -> str:
        """Why the disk's reserve cannot be kept; "" while it is, or nobody asked for one."""
        return "" if self._sweeper is None else self._sweeper.blocked

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the store was found unable to promise, and earlier stores not told yet; nothing is refused for it."""
        owed = (
            f"{episode}: {url} may still have what was erased: {why}"
            for (episode, url), why in self._elsewhere.owed.items()
        )
        return (*self._store.remarks, *owed)

    @property
    def has_refused(self) -> bool:
        """Whether any episode was denied, held or quarantined."""
        return any(status.state in _REFUSED for status in self.episodes.values())

    def waiting(self) -> dict[str, str]:
        """Return the episodes that have neither arrived nor been refused, oldest first, and why."""
        return {
            name: status.error or self.parked or "its turn has not come"
            for name, status in sorted(self.episodes.items())
            if status.error or status.state not in _FINAL | _REFUSED
        }

    def _look(self) -> None:
        """Take in new episodes, and a new ledger."""
        folders = self._present()
        for name in folders.keys() - self.episodes.keys():
            state = upload_state(folders[name], self._store.url)
            self.episodes[name] = EpisodeStatus(state, upload_reasons(folders[name]))
        for name, status in self.episodes.items():
            if status.state is State.VERIFIED and not (folders[name] / RECEIPT_FILE).exists():
                self.episodes[name] = EpisodeStatus(State.SEALED)  # somebody found that it is not there
        self._free_strangers(folders)
        ledger = self._consent.poll()
        has_looked = self._forgetting.step(ledger)
        if has_looked:
            self._find_owing()
        self._elsewhere.step(has_looked)
        if ledger is not self._ledger:
            for status in self.episodes.values():
                if status.state is State.DENIED:
                    status.due_ns = 0
        self._ledger = ledger

    def _free_strangers(self, folders: dict[str, Path]) -> None:
        """Judge again what was quarantined because nobody knew its signer, once somebody has enrolled that one."""
        try:
            version = TrustStore(key_home()).version()
            if version == self._trust_version:
                return
            known = {key_id(public) for public in self._trusted()}
        except TrustError:
            return  # each upload says so
        self._trust_version = version
        for name, status in self.episodes.items():
            if status.state is State.QUARANTINED and awaited_key(folders[name]) in known:
                self.episodes[name] = EpisodeStatus(State.SEALED)

    def _folders(self) -> dict[str, Path]:
        """Return the sealed episodes, and the evicted ones of which the store still has what was erased since."""
        return {**self._owing, **{folder.name: folder for folder in self._spool.sealed_folders()}}

    def _present(self) -> dict[str, Path]:
        """Return the folders, and forget the episodes that have none any more."""
        folders = self._folders()
        for name in self.episodes.keys() - folders.keys():
            del self.episodes[name]
        return folders

    def _find_owing(self) -> None:
        """Have the store told what was erased: it is due for every episode of which it may still have that."""
        self._owing = {folder.name: folder for folder in self._spool.gone_folders() if self._owes(folder)}
        for name, folder in self._present().items():
            is_owing = name in self._owing or self._owes(folder)
            state = State.SEALED if name in self._owing else upload_state(folder, self._store.url)
            known = self.episodes.get(name)
            if known is None or (known.state is State.VERIFIED and state is not State.VERIFIED):
                self.episodes[name] = known = EpisodeStatus(state)
            if is_owing and not known.is_owing:
                known.due_ns = 0
            known.is_owing = is_owing

    def _owes(self, folder: Path) -> bool:
        """Return whether the store may have what was erased: by the receipt, or by what this process told it."""
        revision = len(revision_files(folder))
        if revision == 1:
            return False
        receipt = read_receipt(folder)
        if receipt is None:
            return self._told.get(folder.name) != revision
        return receipt.store == self._store.url and receipt.revision != revision

    def _is_due(self, status: EpisodeStatus, now_ns: int) -> bool:
        return (status.is_owing or status.state not in _FINAL) and now_ns >= status.due_ns

    def _upload(
        self, name: str, progress: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> Outcome:
        status = self.episodes[name]

        def note(found: Progress) -> None:
            status.state = State.UPLOADING
            status.done_bytes, status.total_bytes = found.done_bytes, found.total_bytes
            progress(found)

        try:
            folder = self._consent.folder
            gates = Gates(self._consent.poll, self._clock, self._trusted(), self._quality, folder)
            folder = self._folders().get(name, self._spool.sealed_folder(name))
            outcome = upload_episode(folder, self._store, gates, note, should_stop)
        except (StoreError, EpisodeError, TrustError, BusyError) as error:
            self._wait(status, error)
            raise
        status.state, status.reasons, status.error, status.failures = outcome.state, outcome.reasons, "", 0
        status.due_ns = self._clock.now_ns() + REJUDGE_NS
        if outcome.told_revision:
            self._told[name] = outcome.told_revision
            self._owing.pop(name, None)
            status.is_owing = False
        self.parked = ""
        return outcome

    def _restate(self, now_ns: int) -> str:
        """Bring the consent state of a delivered episode up to date; return its id, "" if none was due."""
        if now_ns < self._restate_due_ns:
            return ""
        try:
            restated = self._restating.step(self._ledger)
        except (StoreError, EpisodeError, TrustError) as error:
            self._restate_failures += 1
            delay_s = self._backoff.delay_s(self._restate_failures, self._rng)
            self._restate_due_ns = self._clock.now_ns() + int(delay_s * SECOND_NS)
            self._park(error)
            raise
        self._restate_failures = 0
        return restated

    def _park(self, error: SensoriumError) -> None:
        if isinstance(error, ParkedStoreError):
            self.parked = str(error)
            self._parked_until_ns = self._clock.now_ns() + PARK_NS

    def _wait(self, status: EpisodeStatus, error: SensoriumError) -> None:
        status.error = str(error)
        status.failures += 1
        now_ns = self._clock.now_ns()
        status.due_ns = now_ns + int(self._backoff.delay_s(status.failures, self._rng) * SECOND_NS)
        self._park(error)

    def _trusted(self) -> Collection[bytes]:
        """Return the keys whose episodes may leave this spool: this machine's, and those enrolled as devices."""
        return trusted_keys(Role.DEVICE)


class Observer(Protocol):
    """Looks on while :func:`run` uploads."""

    def progressed(self, progress: Progress) -> None:
        """Called often while an episode is sent and read back."""

    def stepped(self) -> None:
        """Called after every step; the service's ``episodes`` and ``parked`` say what became of it."""

    def failed(self, error: SensoriumError) -> None:
        """Called when an episode could not go on; ``stepped`` follows."""


class StatusFile:
    """Tells other processes, in a small JSON file that is replaced as a whole, how far the uploads are."""

    def __init__(self, path: Path | None, service: UploadService, store_url: str, clock: Clock) -> None:
        self._path = path
        self._service = service
        self._store_url = masked_address(store_url)
        self._clock = clock
        self._next_ns = 0
        self._said: frozenset[str] = frozenset()

    def progressed(self, _: Progress) -> None:
        self.write(is_forced=False)

    def stepped(self) -> None:
        for remark in self._service.remarks:
            if remark not in self._said:
                _say(remark)
        self._said |= frozenset(self._service.remarks)
        self.write()

    def failed(self, error: SensoriumError) -> None:
        _log(error)

    def write(self, is_forced: bool = True) -> None:
        """Write the file; without force, at most five times a second."""
        now_ns = self._clock.now_ns()
        if self._path is None or (not is_forced and now_ns < self._next_ns):
            return
        self._next_ns = now_ns + _STATUS_NS
        document = {
            "store": self._store_url,
            "parked": self._service.parked,
            "no_room": self._service.no_room,
            "remarks": list(self._service.remarks),
            "episodes": {
                name: {
                    "state": status.state.value,
                    "reasons": list(status.reasons),
                    "error": status.error,
                    "done_bytes": status.done_bytes,
                    "total_bytes": status.total_bytes,
                }
                for name, status in sorted(self._service.episodes.items())
            },
        }
        partial = self._path.with_name(f".{self._path.name}.tmp")
        try:
            partial.write_text(json.dumps(document, indent=1) + "\n")
            partial.replace(self._path)
        except OSError as error:  # a full disk needs its uploads all the more
            _log(error)


def run(
    service: UploadService, observer: Observer, clock: Clock, should_stop: Callable[[], bool], is_once: bool
) -> int:
    """Step until told to stop, or with ``is_once`` until nothing is due; return the exit code."""
    while not should_stop():
        try:
            outcome = service.step(observer.progressed, should_stop)
        except Stopped:
            break
        except (StoreError, EpisodeError, TrustError, BusyError) as error:
            observer.failed(error)
            observer.stepped()
            continue
        observer.stepped()
        if outcome is None:
            if is_once:
                break
            clock.sleep_until(clock.now_ns() + POLL_NS)
    if not is_once:
        return 0
    return StoreError.exit_code if service.waiting() else int(service.has_refused)


def open_service(
    spool: Path,
    store_url: str,
    consent: Path,
    clock: Clock,
    reserve_bytes: int = 0,
    quota_bytes: int | None = None,
    min_free_bytes: int = 0,
) -> UploadService:
    """Return the service that brings the episodes of a spool to a store; nothing is written or sent yet.

    Args:
        reserve_bytes: Evict what the store holds while less than this may be recorded; 0 = evict nothing.
        quota_bytes: As much as the spool may hold; None = as much as its disk.
        min_free_bytes: Of the disk, not to be recorded to.

    Raises:
        ConfigError: If the spool does not exist, or no store has such an address.
    """
    rng = random.Random()
    store = open_store(store_url, clock, rng)
    if not spool.is_dir():
        raise ConfigError(f"spool {spool} does not exist; name the folder that record writes to")
    room = DiskRoom(spool, quota_bytes, min_free_bytes)
    sweeper = Sweeper(Spool(spool), store, room, reserve_bytes, clock, _say) if reserve_bytes else None
    return UploadService(
        Spool(spool), store, ConsentStore(consent, clock), clock, rng, sweeper=sweeper, say=_say
    )


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or Ctrl-C came since; they end nothing by themselves."""
    caught: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda found, _: caught.append(found)) for number in numbers]
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sensorium.uploader.service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--spool", type=Path, required=True, help="folder with sealed/")
    parser.add_argument("--store", required=True, help="where to, such as file:///var/lib/central")
    parser.add_argument("--consent", type=Path, help=f"folder of grants (default: SPOOL/{DEFAULT_FOLDER})")
    parser.add_argument("--once", action="store_true", help="handle what is there, then end")
    parser.add_argument(
        "--reserve-bytes", type=int, default=0, help="evict while less than this may be recorded"
    )
    parser.add_argument("--quota-bytes", type=int, help="as much as the spool may hold")
    parser.add_argument("--min-free-bytes", type=int, default=0, help="of the disk, not to be recorded to")
    parser.add_argument("--json-status", type=Path, metavar="FILE", help="keep a status document here")
    options = parser.parse_args(arguments)
    clock = HostClock()
    give_way(NICENESS, clock)
    try:
        with stop_signals() as should_stop:
            end_with_parent()
            consent = options.consent or options.spool / DEFAULT_FOLDER
            limits = (options.reserve_bytes, options.quota_bytes, options.min_free_bytes)
            service = open_service(options.spool, options.store, consent, clock, *limits)
            status = StatusFile(options.json_status, service, options.store, clock)
            return run(service, status, clock, should_stop, options.once)
    except SensoriumError as error:
        _log(error)
        return error.exit_code


def _log(error: Exception) -> None:
    _say(str(error))


def _say(text: str) -> None:
    print(f"uploader: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a process of its own; this is its log


if __name__ == "__main__":
    sys.exit(main())
