"""Erases in a spool what consent no longer lets anybody keep: as soon as it can be known, and reads no oftener."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sensorium.sync.consent.grants import ConsentLedger
from sensorium.sync.episode.spool import Spool
from sensorium.sync.erasure import erase_all_forgotten
from sensorium.timebase import SECOND_NS, Clock, is_utc_kept
from sensorium.uploader.eviction import finish

EVERY_NS = 60 * SECOND_NS
FIRST_RETRY_NS = 5 * SECOND_NS
LAST_RETRY_NS = 300 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an episode could not be erased, and when to try again."""

    why: str
    count: int
    due_ns: int


class Forgetting:
    """Call :meth:`step` in a loop.

    All episodes are looked at when the consent log has a new row, and every minute if a grant ends by time;
    those that came are looked at once, those whose folder changed within a minute. One that cannot be erased is
    tried again, each time later, and its reason said once.

    Args:
        say: Told why an episode could not be erased.
        is_time_kept: Whether the wall clock can be believed; else nothing goes because its time is over.
    """

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        say: Callable[[str], None],
        is_time_kept: Callable[[], bool] = is_utc_kept,
    ) -> None:
        self.failures: dict[str, Failure] = {}
        """By the episode's id."""
        self._spool = spool
        self._clock = clock
        self._say = say
        self._is_time_kept = is_time_kept
        self._ledger: ConsentLedger | None = None
        self._seen: dict[Path, int] = {}
        self._came: tuple[int, int] = (0, 0)
        self._due_ns = 0

    def step(self, ledger: ConsentLedger) -> bool:
        """Erase what must go; return whether anything was looked at."""
        now_ns = self._clock.now_ns()
        is_new, is_due = ledger is not self._ledger, now_ns >= self._due_ns
        came = (_changed_ns(self._spool.sealed_dir), _changed_ns(self._spool.gone_dir))
        is_retry = any(now_ns >= failure.due_ns for failure in self.failures.values())
        if not (is_new or is_due or is_retry or came != self._came):
            return False
        if is_new or (is_due and _ends_by_time(ledger)):
            self._seen.clear()
        if is_new:
            self.failures.clear()
        if is_due:
            self._due_ns = now_ns + EVERY_NS
        self._ledger, self._came = ledger, came
        self._look(ledger, now_ns)
        return True

    def _look(self, ledger: ConsentLedger, now_ns: int) -> None:
        asked: dict[Path, int] = {}

        def is_asked(folder: Path) -> bool:
            known, changed_ns = self.failures.get(folder.name), _changed_ns(folder)
            if now_ns < known.due_ns if known else self._seen.get(folder) == changed_ns:
                return False
            asked[folder] = changed_ns
            return True

        utc_ns, is_time_kept = self._clock.utc_ns(), self._is_time_kept()
        _, failed = erase_all_forgotten(
            self._spool, ledger, utc_ns, is_time_kept=is_time_kept, is_asked=is_asked
        )
        failed |= finish(self._spool, is_asked=lambda folder: folder in asked)
        for folder, changed_ns in asked.items():
            if folder.name in failed:
                self._note(folder.name, failed[folder.name], now_ns)
            else:
                self._seen[folder] = changed_ns
                self.failures.pop(folder.name, None)

    def _note(self, name: str, why: str, now_ns: int) -> None:
        known = self.failures.get(name)
        count = known.count + 1 if known else 1
        wait_ns = min(LAST_RETRY_NS, FIRST_RETRY_NS << min(count - 1, 10))
        self.failures[name] = Failure(why, count, now_ns + wait_ns)
        if known is None or known.why != why:
            self._say(f"{name}: whether anything has to be erased cannot be said yet: {why}")


def _changed_ns(folder: Path) -> int:
    """Return when anything came into a folder or left it, or was replaced; 0 if there is none."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _ends_by_time(ledger: ConsentLedger) -> bool:
    return any(grant.conditions.retain_days is not None for grant in ledger.grants)
