"""Which stores have, or may have, a copy of an episode; so that what is erased here is erased in all of them.

A receipt names the store of today. ``<spool>/stores/<ULID>.json``, signed, names every one that anything was sent to,
and the newest revision of the manifest that it was told.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from sensorium.errors import BusyError, EpisodeError, SensoriumError, StoreError, TrustError
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.revisions import revision_files
from sensorium.sync.episode.spool import Spool, read_plain, write_durably
from sensorium.sync.erasure import owned
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key, trusted_keys
from sensorium.timebase import SECOND_NS, Clock
from sensorium.uploader.receipt import manifest_key, revision_key
from sensorium.uploader.stores.opening import open_store
from sensorium.uploader.stores.store import ObjectExistsError, ParkedStoreError, Store

_KIND = "stores"
_RETRY_NS = 60 * SECOND_NS


def copies(folder: Path) -> dict[str, int]:
    """Return the stores that something of an episode was sent to, by URL, and the revision that each was told last.

    Raises:
        EpisodeError: If the record of them was changed, or cannot be read.
    """
    path = _record(folder)
    try:
        found, _ = open_document(read_plain(path), _KIND, trusted_keys(Role.DEVICE))
        if found["episode"] != folder.name:
            raise ValueError(f"it is that of episode {found['episode']}")
        return {str(url): int(revision) for url, revision in found["stores"].items()}
    except FileNotFoundError:
        return {}
    except (TrustError, OSError, KeyError, TypeError, ValueError, AttributeError) as err:
        raise EpisodeError(
            f"{path} counts for nothing ({err}): which stores have a copy is not known"
        ) from err


def note_copy(folder: Path, url: str, revision: int) -> None:
    """Note durably that a store has, or is about to have, something of an episode.

    Args:
        revision: Of its manifest, that the store was told; 0 = none yet.

    Raises:
        EpisodeError: If the disk does not take it.
    """
    try:
        known = copies(folder)
    except EpisodeError:
        known = {}  # changed by somebody: what is known now is noted anew
    if known.get(url) == revision:
        return
    try:
        document = {"episode": folder.name, "stores": {**known, url: revision}}
        _record(folder).parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(_record(folder), sign_document(document, signing_key(Role.DEVICE), _KIND))
    except (OSError, TrustError) as err:
        raise EpisodeError(f"{_record(folder)} cannot be written: {err}") from err


def _record(folder: Path) -> Path:
    return Spool.of(folder).root / "stores" / f"{folder.name}.json"


class Elsewhere:
    """Tells the stores of earlier deliveries what was erased since; the one that is uploaded to is told by its upload.

    Args:
        opened: Opens a store.
    """

    def __init__(
        self,
        spool: Spool,
        store_url: str,
        clock: Clock,
        opened: Callable[[str, Clock, random.Random], Store] = open_store,
    ) -> None:
        self.owed: dict[tuple[str, str], str] = {}
        """Why a store still has what was erased here, by (episode, URL)."""
        self._spool = spool
        self._own = store_url
        self._clock = clock
        self._open = opened
        self._due_ns = 0

    def step(self, is_news: bool) -> None:
        """Tell what has to be told, if anything may have been erased since or a store did not answer before."""
        now_ns = self._clock.now_ns()
        if not is_news and not (self.owed and now_ns >= self._due_ns):
            return
        self._due_ns = now_ns + _RETRY_NS
        self.owed = {}
        for folder in (*self._spool.sealed_folders(), *self._spool.gone_folders()):
            if len(revision_files(folder)) > 1:
                self._tell_of(folder)

    def _tell_of(self, folder: Path) -> None:
        try:
            known = copies(folder)
            manifest = read_manifest(folder, trusted_keys(Role.DEVICE))
        except SensoriumError as err:
            self.owed[folder.name, "a store"] = str(err)
            return
        for url, revision in known.items():
            if url != self._own and revision != manifest.revision:
                try:
                    with owned(folder):
                        _tell(self._open(url, self._clock, random.Random()), folder, manifest)
                        note_copy(folder, url, manifest.revision)
                except (StoreError, SensoriumError, BusyError) as err:
                    self.owed[folder.name, url] = str(err)


def _tell(store: Store, folder: Path, manifest: Manifest) -> None:
    """Have a store drop what was erased, and say why beside its manifest."""
    for grave in manifest.tombstones:
        forget(store, f"episodes/{manifest.episode_id}/{grave.stored}")
    if store.head(manifest_key(manifest.episode_id)) is not None:
        for key, data in revisions(folder).items():
            try:
                store.put(key, data)
            except ObjectExistsError:
                if store.get(key) != data:
                    raise ParkedStoreError(f"{store.url} holds another revision under {key}") from None


def forget(store: Store, key: str) -> None:
    """Have a store drop an object, and what was sent of it; that there is none is fine.

    Raises:
        ParkedStoreError: If it is still there.
    """
    store.upload(key).abort()
    if store.head(key) is None:
        return
    store.delete(key)
    if store.reopen().head(key) is not None:
        raise ParkedStoreError(
            f"store {store.url}: {key} is still there after it was deleted, and must not be; does it "
            "keep versions, or a lock on its objects?"
        )


def revisions(folder: Path) -> Mapping[str, bytes]:
    """Return the later revisions of an episode's manifest by their keys in a store."""
    later = enumerate(revision_files(folder)[1:], 2)
    return {revision_key(folder.name, number): path.read_bytes() for number, path in later}
