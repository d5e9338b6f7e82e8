"""Looks again at what a receipt says: reads every byte of a delivered episode back, now, through a fresh connection."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from blake3 import blake3

from sensorium.errors import EpisodeError
from sensorium.sync.episode.files import MANIFEST_FILE, RECEIPT_FILE
from sensorium.sync.episode.manifest import LEAF_BYTES, FileRecord, read_manifest
from sensorium.sync.episode.revisions import revision_files
from sensorium.sync.episode.spool import Spool
from sensorium.uploader.receipt import (
    METHOD,
    State,
    data_key,
    manifest_key,
    read_receipt,
    revision_key,
    upload_state,
)
from sensorium.uploader.stores.store import ObjectMissingError, Store


def findings(
    folder: Path,
    store: Store,
    trusted: Collection[bytes],
    is_chosen: Callable[[FileRecord], bool] = lambda _: True,
) -> list[str]:
    """Return what keeps the store from standing in for the local copy; [] after every byte was read back.

    The manifest, its revisions and the files that ``is_chosen`` names are read; of the others only the size is asked.

    Raises:
        StoreError: If the store cannot be asked, which proves nothing.
        TrustError: If this machine's trust store cannot be read.
    """
    receipt = read_receipt(folder)
    if receipt is None or upload_state(folder, store.url) is not State.VERIFIED or receipt.method != METHOD:
        return [f"no receipt says that all of it lies in {store.url}; upload it first"]
    try:
        manifest = read_manifest(folder, trusted)
        envelopes = {
            manifest_key(folder.name): (folder / MANIFEST_FILE).read_bytes(),
            **{
                revision_key(folder.name, number): path.read_bytes()
                for number, path in enumerate(revision_files(folder)[1:], 2)
            },
        }
    except (EpisodeError, OSError) as err:
        return [str(err)]
    if manifest.episode_id != folder.name:
        return [f"{folder} holds the manifest of episode {manifest.episode_id}; it was moved or copied"]
    fresh = store.reopen()
    found = [
        f"{key} is missing in {store.url}, or is not what was sent"
        for key, envelope in envelopes.items()
        if _object(fresh, key) != envelope
    ]
    return found + [
        f"{what} in {store.url}"
        for file in manifest.files
        for what in _differences(fresh, data_key(folder.name, file), file, is_chosen(file))
    ]


def is_evictable(folder: Path, store: Store, trusted: Collection[bytes]) -> bool:
    """Return whether the local copy may be deleted, as far as the store shows it now; any doubt is False or an error.

    Raises:
        StoreError: If the store cannot be asked.
    """
    return not findings(folder, store, trusted)


def look_again(
    folder: Path,
    store: Store,
    trusted: Collection[bytes],
    is_chosen: Callable[[FileRecord], bool] = lambda _: True,
) -> list[str]:
    """Return the findings; an episode of which the store lost anything is no longer verified, and is sent again.

    Of an evicted one there is nothing to send: its receipt stays, because what is withdrawn must still reach the store.

    Raises:
        StoreError: If the store cannot be asked; what was known stays.
    """
    found = findings(folder, store, trusted, is_chosen)
    is_evicted = folder.parent == Spool.of(folder).gone_dir
    if found and not is_evicted and upload_state(folder, store.url) is State.VERIFIED:
        (folder / RECEIPT_FILE).unlink(missing_ok=True)
    return found


def _object(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except ObjectMissingError:
        return None


def _differences(store: Store, key: str, file: FileRecord, is_read: bool) -> Iterator[str]:
    there = store.head(key)
    if there is None:
        yield f"{key} is missing"
    elif there.size_bytes != file.bytes:
        yield f"{key} has {there.size_bytes} bytes instead of {file.bytes}"
    elif is_read and not _is_same(store, key, file):
        yield f"{key} reads back differently from what was sealed"


def _is_same(store: Store, key: str, file: FileRecord) -> bool:
    sha = hashlib.sha256()
    for number, expected in enumerate(file.blake3_leaves):
        try:
            leaf = store.get(key, number * LEAF_BYTES, LEAF_BYTES)
        except ObjectMissingError:
            return False
        if blake3(leaf).hexdigest() != expected:
            return False
        sha.update(leaf)
    return sha.hexdigest() == file.sha256
