"""What an episode folder says about its upload: the state, the note beside it, the receipt.

All of it can be found again from the folder and the store; losing a file of these costs time, never truth.
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from sensorium.errors import TrustError
from sensorium.sync.episode.files import (
    CONSENT_STATE_FILE,
    MANIFEST_FILE,
    RECEIPT_FILE,
    SIGNED_RECORDS,
    UPLOAD_NOTE_FILE,
)
from sensorium.sync.episode.manifest import (
    FileRecord,
    Manifest,
    manifest_digest,
    revision_file,
    stored_name,
)
from sensorium.sync.episode.revisions import revision_files
from sensorium.sync.episode.spool import read_plain, write_durably
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key, trusted_keys

METHOD = "read back through a fresh connection: BLAKE3 of every 8 MiB part, SHA-256 of every file"


class State(str, Enum):
    """Where an episode stands. ``DENIED`` and ``HELD`` are judged anew each time; ``QUARANTINED`` is not."""

    SEALED = "sealed"
    DENIED = "denied"
    HELD = "held"
    QUARANTINED = "quarantined"
    UPLOADING = "uploading"
    COMMITTED = "committed"
    VERIFIED = "verified"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the store that was read back and found equal."""

    name: str
    key: str
    bytes: int
    sha256: str
    blake3_root: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that an episode lies in a store: what was verified, how and when (UTC ns).

    Attributes:
        revision: Newest revision of its manifest that the store was given; files erased by then are gone there.
    """

    episode_id: str
    store: str
    manifest_key: str
    manifest_blake3: str
    files: tuple[StoredFile, ...]
    method: str
    verified_ns: int
    revision: int = 1
    version: int = 1


def upload_state(folder: Path, store_url: str | None = None) -> State:
    """Return where an episode stands, by the files in its folder alone.

    Args:
        store_url: Count only what was proven in this store; None = in any.
    """
    try:
        digest = manifest_digest(folder)
    except OSError:
        return State.QUARANTINED
    receipt = read_receipt(folder)
    is_proven = (
        receipt is not None and receipt.manifest_blake3 == digest and store_url in (None, receipt.store)
    )
    if is_proven and receipt is not None and receipt.revision == len(revision_files(folder)):
        return State.VERIFIED
    note = _read_note(folder)
    if note.get("manifest") != digest:
        return State.SEALED
    try:
        said = State(note.get("state"))
    except ValueError:
        return State.SEALED
    return State.SEALED if said is State.VERIFIED else said  # nobody signs a note: only a receipt says that


def upload_reasons(folder: Path) -> tuple[str, ...]:
    """Return why an episode was denied, held or quarantined."""
    reasons = _read_note(folder).get("reasons", ())
    found = tuple(str(reason) for reason in reasons) if isinstance(reasons, list) else ()
    if (folder / RECEIPT_FILE).exists() and read_receipt(folder) is None:
        found += (
            f"{RECEIPT_FILE} is damaged, or signed by nobody whose word counts here: it is not believed",
        )
    return found


def read_receipt(folder: Path) -> Receipt | None:
    """Return the receipt in an episode folder; None if there is none that counts: whole, and signed by a device.

    Raises:
        TrustError: If this machine's trust store cannot be read.
    """
    try:
        data = read_plain(folder / RECEIPT_FILE)
    except OSError:
        return None
    trusted = trusted_keys(Role.DEVICE)
    try:
        fields = open_document(data, SIGNED_RECORDS[RECEIPT_FILE], trusted)[0]
        files = tuple(StoredFile(**file) for file in fields.pop("files"))
        receipt = Receipt(files=files, **fields)
    except (TrustError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return receipt if receipt.version == 1 else None


def consent_key(episode_id: str) -> str:
    """Return where the signed consent state of an episode lies in a store."""
    return f"episodes/{episode_id}/{CONSENT_STATE_FILE}"


def manifest_key(episode_id: str) -> str:
    """Return the key whose presence says that an episode is complete."""
    return f"episodes/{episode_id}/{MANIFEST_FILE}"


def revision_key(episode_id: str, number: int) -> str:
    """Return the key of a later revision of the manifest."""
    return f"episodes/{episode_id}/{revision_file(number)}"


def data_key(episode_id: str, file: FileRecord) -> str:
    """Return the key of a data file: its name and its content's hash."""
    return f"episodes/{episode_id}/{stored_name(file)}"


def stored_file(manifest: Manifest, file: FileRecord) -> StoredFile:
    """Return what the receipt says of a file."""
    key = data_key(manifest.episode_id, file)
    return StoredFile(file.name, key, file.bytes, file.sha256, file.blake3_root)


def awaited_key(folder: Path) -> str:
    """Return the id of the key that an episode was quarantined for, because nobody had enrolled it; "" if none."""
    return str(_read_note(folder).get("awaits_key", ""))


def write_note(
    folder: Path, manifest_blake3: str, state: State, reasons: Collection[str], awaits_key: str = ""
) -> None:
    """Note durably where an upload stands; it counts for this very manifest only.

    Args:
        awaits_key: Id of the key that nobody enrolled, if that is all that speaks against it.
    """
    note = {"manifest": manifest_blake3, "state": state.value, "reasons": list(reasons)}
    if awaits_key:
        note["awaits_key"] = awaits_key
    write_durably(folder / UPLOAD_NOTE_FILE, _json(note))


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Leave the receipt durably, signed by this machine, and remove the note that it supersedes.

    Raises:
        EpisodeError: If the disk does not take it.
        TrustError: If this machine's key cannot be read.
    """
    data = sign_document(asdict(receipt), signing_key(Role.DEVICE), SIGNED_RECORDS[RECEIPT_FILE])
    write_durably(folder / RECEIPT_FILE, data)
    (folder / UPLOAD_NOTE_FILE).unlink(missing_ok=True)


def _read_note(folder: Path) -> dict[str, Any]:
    try:
        note = json.loads(read_plain(folder / UPLOAD_NOTE_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"
