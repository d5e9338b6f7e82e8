"""Brings one sealed episode into a store: gates, resumable sending, commit by the manifest, proof.

Keys: ``episodes/<id>/<name>-<16 digits of the BLAKE3 root>.<suffix>`` for data, so that other bytes never get
the same key, and ``episodes/<id>/manifest.json``, put last and only once: for readers an episode without it
does not exist. What was sent is found in the store, so any file that notes progress here may be lost.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from sensorium.errors import EpisodeError
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.remedy import GrantFolder, how_to_allow
from sensorium.sync.consent.use import consent_reasons
from sensorium.sync.episode.files import MANIFEST_FILE, RECEIPT_FILE, UPLOAD_NOTE_FILE
from sensorium.sync.episode.manifest import (
    LEAF_BYTES,
    FileRecord,
    Manifest,
    hash_file,
    read_manifest,
    read_seal,
)
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.verify import examine, strangers
from sensorium.sync.erasure import owned
from sensorium.sync.trust.dsse import key_id
from sensorium.timebase import Clock
from sensorium.uploader.copies import forget, note_copy, revisions
from sensorium.uploader.receipt import (
    METHOD,
    Receipt,
    State,
    data_key,
    manifest_key,
    read_receipt,
    stored_file,
    write_note,
    write_receipt,
)
from sensorium.uploader.restating import bring_state
from sensorium.uploader.stores.store import ObjectExistsError, ObjectMissingError, ParkedStoreError, Store
from sensorium.verdict import Status, Verdict

_SEND_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is; ``phase`` is ``sending`` or ``verifying``."""

    episode_id: str
    phase: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an episode.

    Attributes:
        sent_bytes: What went to the store this time.
        told_revision: Revision of the manifest of which the store has forgotten what was erased; 0 = it was not told.
    """

    episode_id: str
    state: State
    reasons: tuple[str, ...] = ()
    sent_bytes: int = 0
    told_revision: int = 0


class Stopped(Exception):
    """The transfer was asked to stop; what was sent stays for the next time."""


class _RefusedError(Exception):
    """An episode may not go on."""

    def __init__(self, state: State, *reasons: str, awaits_key: str = "") -> None:
        super().__init__(*reasons)
        self.state = state
        self.reasons = reasons
        self.awaits_key = awaits_key


def allow_all(manifest: Manifest) -> Verdict:
    """Pass every episode; the quality gate where the rig names no collection spec."""
    return Verdict("quality_gate", manifest.episode_id, Status.OK)


@dataclass(frozen=True, slots=True)
class Gates:
    """What an episode must pass, asked before sending and again before the commit.

    Attributes:
        ledger: Returns the consent ledger as it is now.
        trusted: Raw public keys of the devices whose episodes may be sent.
        quality: Anything but OK holds the episode.
        consent: Folder of the grants, for the command that a refusal names; None = the spool's.
    """

    ledger: Callable[[], ConsentLedger]
    clock: Clock
    trusted: Collection[bytes]
    quality: Callable[[Manifest], Verdict] = allow_all
    consent: Path | None = None


def upload_episode(
    folder: Path,
    store: Store,
    gates: Gates,
    progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Bring a sealed episode into the store, or say why not. Safe to repeat, and after a kill at any point.

    Raises:
        StoreError: If the store failed; what was sent stays for the next time.
        BusyError: If another process is sending this episode.
        Stopped: If ``should_stop`` said so.
    """
    with owned(folder):
        return _Transfer(folder, store, gates, progress, should_stop).run()


class _Transfer:
    """One attempt to bring one episode into the store."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        gates: Gates,
        progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._store = store
        self._gates = gates
        self._report = progress
        self._should_stop = should_stop
        self._id = folder.name
        self._manifest: Manifest | None = None
        self._is_unreadable = False
        self._digest = ""
        self._told_revision = 0
        self._sent_bytes = 0
        self._done_bytes = 0
        self._total_bytes = 0

    def run(self) -> Outcome:
        try:
            manifest, envelope = self._read_manifest()
            self._manifest = manifest
            key = manifest_key(manifest.episode_id)
            self._total_bytes = sum(file.bytes for file in manifest.files)
            self._erase(manifest)
            if self._is_delivered(manifest, key, envelope):
                self._put_consent_state(manifest)
                return self._outcome(State.VERIFIED)
            if not manifest.files or self._is_evicted:
                return self._end_told(key)
            self._check_gates(manifest)
            self._check_whole(full=True)
            self._check_conflict(key, envelope)
            note_copy(self._folder, self._store.url, 0)
            self._note(State.UPLOADING)
            for file in manifest.files:
                self._deliver(manifest, file)
            self._check_gates(manifest)
            self._check_whole(full=False)
            self._put_revisions()
            self._put_consent_state(manifest)
            self._commit(key, envelope)
            self._note(State.COMMITTED)
            self._prove(manifest, key, envelope)
            return self._outcome(State.VERIFIED)
        except _RefusedError as refused:
            self._drop_sent()  # before it is noted: what is quarantined is not looked at again
            self._note(refused.state, refused.reasons, refused.awaits_key)
            return self._outcome(refused.state, refused.reasons)

    def _outcome(self, state: State, reasons: tuple[str, ...] = ()) -> Outcome:
        return Outcome(self._id, state, reasons, self._sent_bytes, self._told_revision)

    @property
    def _is_evicted(self) -> bool:
        return self._folder.parent == Spool.of(self._folder).gone_dir

    def _read_manifest(self) -> tuple[Manifest, bytes]:
        try:
            manifest = read_manifest(self._folder, self._gates.trusted)
            envelope = (self._folder / MANIFEST_FILE).read_bytes()
            self._digest = blake3(envelope).hexdigest()
        except (EpisodeError, OSError) as error:
            self._is_unreadable = True
            awaited = _stranger(self._folder, self._gates.trusted)
            raise _RefusedError(State.QUARANTINED, str(error), awaits_key=awaited) from error
        if manifest.episode_id != self._id:
            said = (
                f"{self._folder} holds the manifest of episode {manifest.episode_id}; it was moved or copied"
            )
            raise _RefusedError(State.QUARANTINED, said)
        return manifest, envelope

    def _erase(self, manifest: Manifest) -> None:
        """Have the store forget what this machine has erased; before any gate, because no gate may keep it."""
        for grave in manifest.tombstones:
            forget(self._store, f"episodes/{self._id}/{grave.stored}")
        self._told_revision = manifest.revision

    def _end_told(self, key: str) -> Outcome:
        """Tell a store that has the manifest of an episode that is deleted or evicted why there is no more of it."""
        if self._remote_manifest(self._store, key) is not None:
            self._put_revisions()
        (self._folder / UPLOAD_NOTE_FILE).unlink(missing_ok=True)
        return self._outcome(State.VERIFIED)

    def _put_revisions(self) -> None:
        for key, data in revisions(self._folder).items():
            try:
                self._store.put(key, data)
            except ObjectExistsError:
                self._check_conflict(key, data)

    def _is_delivered(self, manifest: Manifest, key: str, envelope: bytes) -> bool:
        """Return whether this very episode was proven in this very store, and its manifest is still there.

        What was said of it since is brought there, too; consent to send it is not asked again.
        """
        receipt = read_receipt(self._folder)
        is_ours = (
            receipt is not None
            and receipt.manifest_blake3 == self._digest
            and receipt.store == self._store.url
            and self._remote_manifest(self._store, key) == envelope
        )
        if not is_ours and not self._is_evicted:
            (self._folder / RECEIPT_FILE).unlink(missing_ok=True)
        elif is_ours and receipt is not None and receipt.revision != manifest.revision:
            self._put_revisions()
            self._prove(manifest, key, envelope)
        return is_ours

    def _check_gates(self, manifest: Manifest) -> None:
        quality = self._gates.quality(manifest)
        if quality.status is not Status.OK:
            raise _RefusedError(State.HELD, *quality.reasons)
        reasons = consent_reasons(manifest, self._gates.ledger(), Purpose.UPLOAD, self._gates.clock.utc_ns())
        if reasons:
            raise _RefusedError(State.DENIED, *reasons, *self._how_to_allow(manifest))

    def _how_to_allow(self, manifest: Manifest) -> tuple[str, ...]:
        place = GrantFolder(Spool.of(self._folder).root, self._gates.consent)
        now_ns = self._gates.clock.utc_ns()
        return how_to_allow(manifest, self._gates.ledger(), Purpose.UPLOAD, now_ns, place)

    def _check_whole(self, *, full: bool) -> None:
        """Refuse what `episodes verify` would not pass, before anybody else has it."""
        found = examine(self._folder, full)
        if not found.is_proven:
            assert self._manifest is not None, "it was read before"
            mendable = {*strangers(self._folder, self._manifest), found.signer.distrust}
            can_be_mended = set(found.reasons) <= mendable
            raise _RefusedError(State.HELD if can_be_mended else State.QUARANTINED, *found.reasons)

    def _check_conflict(self, key: str, envelope: bytes) -> None:
        found = self._remote_manifest(self._store, key)
        if found is not None and found != envelope:
            raise _RefusedError(
                State.HELD,
                f"{self._store.url} holds another manifest under {key}; an episode is never overwritten: "
                "find out which device sent it",
            )

    def _deliver(self, manifest: Manifest, file: FileRecord) -> None:
        """Make the store hold a file, proven by reading it back."""
        key = data_key(manifest.episode_id, file)
        found = self._store.head(key)
        before_bytes = self._done_bytes
        for attempt in range(_SEND_ATTEMPTS):
            self._done_bytes = before_bytes
            if found is None or attempt:
                self._send(key, file, is_replacing=attempt > 0 or found is not None)
            if self._reads_back(self._store.reopen(), key, file):
                self._done_bytes = before_bytes + file.bytes
                self._store.upload(key).abort()  # what a kill between publishing and tidying up left
                return
        raise ParkedStoreError(
            f"store {self._store.url}: {key} reads back differently from what was sent, {_SEND_ATTEMPTS} "
            "times; check its disk and network"
        )

    def _drop_sent(self) -> None:
        """Remove what was sent of an episode that was refused before its commit."""
        if self._remote_manifest(self._store, manifest_key(self._id)) is not None:
            return
        if self._manifest is not None:
            keys = {data_key(self._id, file) for file in self._manifest.files}
        elif self._is_unreadable:
            keys = set(self._keys_without_manifest())
        else:
            return
        for key in sorted(keys):
            forget(self._store, key)

    def _keys_without_manifest(self) -> Iterator[str]:
        """Yield what the store may have of an episode whose manifest cannot be read, and so nobody may use."""
        yield from [info.key for info in self._store.list(f"episodes/{self._id}/")]
        for path in sorted(self._folder.glob("*.mcap")):
            with suppress(EpisodeError):
                yield data_key(self._id, hash_file(path))

    def _send(self, key: str, file: FileRecord, is_replacing: bool) -> None:
        upload = self._store.upload(key)
        stored_bytes = upload.stored_bytes()
        if stored_bytes > file.bytes or is_replacing:
            upload.abort()
            stored_bytes = 0
        for offset, leaf in self._local_leaves(file):
            self._stop_if_asked()
            skipped_bytes = min(max(stored_bytes - offset, 0), len(leaf))
            if skipped_bytes < len(leaf):
                upload.put_part(offset + skipped_bytes, leaf[skipped_bytes:])
                self._sent_bytes += len(leaf) - skipped_bytes
            self._done_bytes += len(leaf)
            self._tell("sending")
        with suppress(ObjectExistsError):  # another device was faster; reading back shows if it is the same
            upload.complete(file.bytes, is_replacing)

    def _local_leaves(self, file: FileRecord) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and bytes of each leaf; quarantines the episode where they are not as sealed."""
        path = self._folder / file.name
        sha = hashlib.sha256()
        offset = 0
        with _opened(path) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes != file.bytes:
                said = f"{path} has {size_bytes} bytes, sealed with {file.bytes}: it was changed or damaged"
                raise _RefusedError(State.QUARANTINED, said)
            for number, expected in enumerate(file.blake3_leaves):
                leaf = _read_at(descriptor, offset, LEAF_BYTES)
                if blake3(leaf).hexdigest() != expected:
                    said = f"{path}: part {number} is not as it was sealed: the file was changed or damaged"
                    raise _RefusedError(State.QUARANTINED, said)
                sha.update(leaf)
                yield offset, memoryview(leaf)
                offset += len(leaf)
        if offset != file.bytes or sha.hexdigest() != file.sha256:
            raise _RefusedError(State.QUARANTINED, f"{path} does not match the SHA-256 in its manifest")

    def _reads_back(self, store: Store, key: str, file: FileRecord) -> bool:
        """Return whether the store gives back exactly the bytes of a file."""
        sha = hashlib.sha256()
        checked_bytes = 0
        found = store.head(key)
        if found is None or found.size_bytes != file.bytes:
            return False
        for expected in file.blake3_leaves:
            self._stop_if_asked()
            leaf = store.get(key, checked_bytes, LEAF_BYTES)
            if blake3(leaf).hexdigest() != expected:
                return False
            sha.update(leaf)
            checked_bytes += len(leaf)
            self._tell("verifying")
        return checked_bytes == file.bytes and sha.hexdigest() == file.sha256

    def _commit(self, key: str, envelope: bytes) -> None:
        try:
            self._store.put(key, envelope)
        except ObjectExistsError:
            self._check_conflict(key, envelope)  # equal: an answer was lost, or another process was faster

    def _put_consent_state(self, manifest: Manifest) -> None:
        now_utc_ns = self._gates.clock.utc_ns()
        bring_state(self._store, self._folder, manifest, self._gates.ledger(), now_utc_ns)

    def _prove(self, manifest: Manifest, key: str, envelope: bytes) -> None:
        """Read the manifest back and leave the receipt; the data was read back before the commit."""
        fresh = self._store.reopen()
        for put, data in {key: envelope, **revisions(self._folder)}.items():
            if self._remote_manifest(fresh, put) != data:
                raise ParkedStoreError(
                    f"store {self._store.url}: {put} reads back differently from what was put"
                )
        receipt = Receipt(
            episode_id=self._id,
            store=self._store.url,
            manifest_key=key,
            manifest_blake3=self._digest,
            files=tuple(stored_file(manifest, file) for file in manifest.files),
            method=METHOD,
            verified_ns=self._gates.clock.utc_ns(),
            revision=manifest.revision,
        )
        write_receipt(self._folder, receipt)
        note_copy(self._folder, self._store.url, manifest.revision)

    def _remote_manifest(self, store: Store, key: str) -> bytes | None:
        try:
            return store.get(key)
        except ObjectMissingError:
            return None

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise Stopped

    def _tell(self, phase: str) -> None:
        self._report(Progress(self._id, phase, self._done_bytes, self._total_bytes))

    def _note(self, state: State, reasons: Collection[str] = (), awaits_key: str = "") -> None:
        with suppress(EpisodeError):  # a full disk must not keep the upload from making room
            write_note(self._folder, self._digest, state, reasons, awaits_key)


def _stranger(folder: Path, trusted: Collection[bytes]) -> str:
    """Return the id of the key that sealed an episode, if it is whole and nobody knows the key; else ""."""
    try:
        public = bytes.fromhex(read_seal(folder).device_public_key)
    except (EpisodeError, OSError):
        return ""
    return "" if public in trusted else key_id(public)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a sealed file; a link or anything but a file in its place quarantines the episode."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _RefusedError(State.QUARANTINED, f"{path} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _RefusedError(State.QUARANTINED, f"{path} is not a plain file")
        yield descriptor
    finally:
        os.close(descriptor)


def _read_at(descriptor: int, offset: int, size_bytes: int) -> bytes:
    chunks = []
    while size_bytes > 0:
        try:
            chunk = os.pread(descriptor, size_bytes, offset)
        except OSError as error:
            raise _RefusedError(
                State.QUARANTINED, f"a sealed file cannot be read: {error.strerror}"
            ) from error
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
        size_bytes -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
