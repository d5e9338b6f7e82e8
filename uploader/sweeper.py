"""Keeps a reserve free on the spool's disk by evicting the oldest episodes that the store is seen to hold."""

from collections.abc import Callable
from dataclasses import dataclass

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.disk_room import DiskRoom
from sensorium.sync.episode.spool import Spool
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys
from sensorium.timebase import SECOND_NS, Clock
from sensorium.uploader.eviction import Eviction, evict_oldest
from sensorium.uploader.stores.store import Store

EVERY_NS = 10 * SECOND_NS


@dataclass(slots=True)
class Sweeper:
    """Call :meth:`step` in a loop; it looks every ten seconds.

    Attributes:
        reserve_bytes: Evict while less than this may still be recorded.
        say: Told of each eviction, and once of each new reason why there can be none.
        blocked: Why the reserve could not be kept; "" while it is.
    """

    spool: Spool
    store: Store
    room: DiskRoom
    reserve_bytes: int
    clock: Clock
    say: Callable[[str], None]
    blocked: str = ""
    due_ns: int = 0

    def step(self) -> list[Eviction]:
        """Evict what is needed and may go; return what went."""
        now_ns = self.clock.now_ns()
        if now_ns < self.due_ns:
            return []
        self.due_ns = now_ns + EVERY_NS
        try:
            gone = self._sweep()
        except (OSError, EpisodeError, TrustError) as err:
            self._block(f"the disk's reserve cannot be kept: {err}")
            return []
        for each in gone:
            self.say(f"{each.episode_id}: evicted, {each.freed_bytes} bytes; {self.store.url} holds it")
        return gone

    def _sweep(self) -> list[Eviction]:
        lacking_bytes = self.reserve_bytes - self.room.free_bytes()
        if lacking_bytes <= 0:
            self.blocked = ""
            return []
        fates = evict_oldest(self.spool, self.store, trusted_keys(Role.DEVICE), lacking_bytes)
        kept = [f"{fate.episode_id}: {'; '.join(fate.reasons)}" for fate in fates if fate.reasons]
        still_bytes = self.reserve_bytes - self.room.free_bytes()
        if still_bytes > 0:
            why = f"{len(kept)} episodes must stay ({kept[0]})" if kept else "no other episode may go"
            self._block(f"{still_bytes} bytes less than the disk's reserve are free, and {why}")
        else:
            self.blocked = ""
        return [fate for fate in fates if not fate.reasons]

    def _block(self, why: str) -> None:
        if not self.blocked:
            self.say(why)
        self.blocked = why
