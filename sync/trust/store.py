"""Whose signatures count here: this machine's own keys, those it had before, and those that somebody enrolled."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.spool import write_durably
from sensorium.sync.trust.documents import open_document
from sensorium.sync.trust.dsse import key_id
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import KeyRing, Role, SigningKey
from sensorium.sync.trust.record import SetBackError, TrustedKey, TrustFile, TrustRecord
from sensorium.sync.trust.rotation import Rotation, pack_rotation, read_rotation
from sensorium.sync.trust.signatures import Signatures
from sensorium.sync.trust.trusted import TrustedKeys
from sensorium.timebase import HostClock


class TrustStore:
    """The trust store of a key home; signed by the operator's key, so that a changed bit of it is seen."""

    def __init__(self, home: Path) -> None:
        self.ring = KeyRing(home)
        self._home = home
        self._file = TrustFile(home)
        self._signatures = Signatures(home)
        self._lock = home / ".lock"

    def entries(self) -> tuple[TrustedKey, ...]:
        """Return all that is known, revoked ones too.

        Raises:
            TrustError: If the store was changed or set back by somebody else, or a key of ours is not the one it was.
        """
        found = self._read().keys
        self._check_own(found)
        return found

    def record(self) -> TrustRecord:
        """Return the whole record; see :meth:`entries`.

        Raises:
            TrustError: As :meth:`entries`.
        """
        return self._read()

    def trusted(self, role: Role, at_utc_ns: int | None = None) -> frozenset[bytes]:
        """Return the raw public keys whose word counts in a role; own ones are made on first use.

        Of those that were replaced since, only what they signed until then counts.

        Args:
            at_utc_ns: Only those in use then; None = replaced ones, too.

        Raises:
            TrustError: As :meth:`entries`.
        """
        self.own(role)
        found = {
            key.raw: key
            for key in self.entries()
            if key.role is role and (not key.revoked if at_utc_ns is None else key.counts_at(at_utc_ns))
        }
        return TrustedKeys(found, lambda public, signed: self.objection(found[public], signed))

    def objection(self, key: TrustedKey, signed: bytes) -> str:
        """Return why what a key signed does not count; "" if it does."""
        short = f"signed by key {key.key_id[:16]} ({key.name})"
        if key.revoked:
            return f"{short}, which was revoked: {key.revoked}"
        if key.until_utc_ns is None:
            return ""
        try:
            why = self._signatures.objection(key.key_id, key.signed, signed)
        except TrustError as err:
            why = str(err)
        return f"{short}, which had been replaced by then: {why}" if why else ""

    def check_signatures(self) -> None:
        """Look through the lists of what was signed.

        Raises:
            TrustError: If one is damaged.
        """
        for key in self.entries():
            self._signatures.read(key.key_id)

    def version(self) -> tuple[int, int, int] | None:
        """Return what changes whenever the store does; None where nothing was noted yet."""
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def own(self, role: Role) -> bytes:
        """Return the public key that this machine has in a role, made and noted on first use; it may be revoked.

        Raises:
            TrustError: As :meth:`entries`, or if it cannot be written down.
        """
        known = self._read().keys  # which ends a rotation that did not
        public = self.ring.signing_key(role).public
        if any(key.raw == public for key in known):
            return public
        with self._changing() as keys:
            present = [key for key in keys if key.role is role and key.is_own and key.until_utc_ns is None]
            if all(key.raw != public for key in keys):
                if present:
                    self._refuse(role, present[0])
                keys.append(TrustedKey(public.hex(), role, "this machine", True, 0))
        return public

    def signer(self, role: Role) -> SigningKey:
        """Return the key that this machine signs with in a role; all that it signs is noted before it is handed out.

        Raises:
            TrustError: As :meth:`own`, or if it was revoked: nothing would count that it signs.
        """
        public = self.own(role)
        entry = self._entry(public)
        if entry.revoked:
            raise TrustError(_revoked(entry))
        return SigningKey(self.ring.signing_key(role).private, partial(self._note, role, public))

    def enroll(self, public: bytes, role: Role, name: str) -> TrustedKey:
        """Let a key of another machine or person count from now on.

        Raises:
            TrustError: If it is known already, or is no key.
        """
        if len(public) != 32:
            raise TrustError(f"a public key has 32 bytes, found {len(public)}")
        with self._changing() as keys:
            _refuse_known(keys, public)
            keys.append(TrustedKey(public.hex(), role, name, False, 0))
            return keys[-1]

    def enroll_rotation(self, document: bytes) -> TrustedKey:
        """Let the successor of a key that counts here take its place, by that key's own signed word.

        Raises:
            TrustError: If it is no such word, or that of a key that does not count here.
        """
        found = read_rotation(document)
        with self._changing() as keys:
            index = next((number for number, key in enumerate(keys) if key.raw == found.old), None)
            short = key_id(found.old)[:16]
            if index is None:
                raise TrustError(
                    f"it replaces key {short}, which nobody enrolled here; of several rotations the first comes first"
                )
            old = keys[index]
            if old.revoked or old.until_utc_ns is not None or old.is_own or old.role is not found.role:
                why = f"revoked: {old.revoked}" if old.revoked else "replaced before, or another's"
                raise TrustError(
                    f"it replaces key {short} ({old.name}), which was {why}; of two successors one is a thief's: "
                    "ask whose machine it is, and `sensorium keys revoke` what is not theirs"
                )
            _refuse_known(keys, found.new)
            self._signatures.put(old.key_id, found.signed)
            keys[index] = self._closed(old, found.signed, found.at_utc_ns, keys)
            keys.append(TrustedKey(found.new.hex(), found.role, old.name, False, 0))
            return keys[-1]

    def revoke(self, found_id: str, reason: str) -> TrustedKey:
        """Let nothing count that a key signed, whenever that was.

        Raises:
            TrustError: If no key's id, or more than one, begins so.
        """
        with self._changing() as keys:
            index = _index_of(keys, found_id)
            keys[index] = replace(keys[index], revoked=reason or "revoked")
            return keys[index]

    def rotate(self, role: Role) -> TrustedKey:
        """Replace this machine's key of a role; what the old one signed until now still counts, and nothing else.

        The old key's word for the new one is left in :meth:`rotation_path`, for the machines that trust the old one.

        Raises:
            TrustError: As :meth:`entries`, or if it cannot be written.
        """
        self.own(role)
        with self._changing(rotated=role) as keys:
            old = self.ring.signing_key(role)  # only now: somebody else may have replaced it meanwhile
            now_ns = HostClock().utc_ns()
            fresh = self.ring.stage(role)
            index = next(number for number, key in enumerate(keys) if key.raw == old.public)
            signed = self._signatures.read(old.key_id)
            if not keys[index].revoked:
                rotation = Rotation(old.public, fresh.public, role, now_ns, signed)
                self._leave_rotation(rotation, old, fresh)
            keys[index] = self._closed(keys[index], signed, now_ns, keys)
            keys.append(TrustedKey(fresh.public.hex(), role, "this machine", True, now_ns))
        return self._entry(fresh.public)

    def rotation_path(self, old: TrustedKey) -> Path:
        """Return where the word of a replaced key of this machine about its successor lies."""
        return self._home / "rotations" / f"{old.key_id}.json"

    def accept_version(self, head: str) -> None:
        """Go on although the store that an episode of this machine knew is lost: the operator said so.

        Raises:
            TrustError: As :meth:`entries`, or if it cannot be written.
        """
        with self._changing(accepted=(head,)):
            pass

    def _note(self, role: Role, public: bytes, envelope: bytes) -> None:
        with self._locked():
            self._read(is_locked=True)
            if self.ring.signing_key(role).public != public:
                raise TrustError(f"this machine's {role.value} key was replaced meanwhile; do it again")
            self._signatures.note(key_id(public), envelope)

    def _closed(self, key: TrustedKey, signed: bytes, at_utc_ns: int, keys: list[TrustedKey]) -> TrustedKey:
        """Return the entry of a replaced key: what it signed until now, in files and in the logs of this machine."""
        digest = hashlib.sha256(signed).hexdigest()
        return replace(key, until_utc_ns=at_utc_ns, signed=digest, logs=self._logs(keys))

    def _logs(self, keys: list[TrustedKey]) -> tuple[tuple[str, int], ...]:
        """Return how many rows each consent log of this machine has, by its anchor."""
        operators = [key.raw for key in keys if key.is_own and key.role is Role.OPERATOR]
        found = []
        for path in sorted((self._home / "anchors").glob("*.json")):
            if path != self._file.anchor_path:
                try:
                    anchor, _ = open_document(path.read_bytes(), "consent-anchor", operators)
                    found.append((str(anchor["log"]), int(anchor["seq"])))
                except (TrustError, OSError, KeyError, TypeError, ValueError) as err:
                    raise TrustError(f"anchor {path} was changed or damaged: {err}") from err
        return tuple(found)

    def _leave_rotation(self, rotation: Rotation, old: SigningKey, fresh: SigningKey) -> None:
        path = self._home / "rotations" / f"{old.key_id}.json"
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_durably(path, pack_rotation(rotation, old, fresh))
        except (OSError, EpisodeError) as err:
            raise TrustError(f"{path} cannot be written: {err}") from err

    def _read(self, is_locked: bool = False) -> TrustRecord:
        try:
            found = self._file.read(self._signers())
        except SetBackError:
            if is_locked:
                raise
            with self._locked():  # it may be being written just now
                found = self._file.read(self._signers())
        self._end_rotations(found.keys)
        return found

    def _signers(self) -> list[bytes]:
        """Return who may have signed the store: the operator, and the key of a rotation that did not end."""
        keys = (self.ring.signing_key(Role.OPERATOR), self.ring.staged(Role.OPERATOR))
        return [key.public for key in keys if key is not None]

    def _end_rotations(self, keys: tuple[TrustedKey, ...]) -> None:
        """Put the staged keys that the store speaks of in their places: a crash came before that."""
        for role in Role:
            staged = self.ring.staged(role)
            if staged is not None and any(key.raw == staged.public for key in keys):
                self.ring.adopt(role)

    def _entry(self, public: bytes) -> TrustedKey:
        return next(key for key in self._read().keys if key.raw == public)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _changing(
        self, rotated: Role | None = None, accepted: tuple[str, ...] = ()
    ) -> Iterator[list[TrustedKey]]:
        """Give the keys to whoever changes them, alone, and write down what became of them.

        Args:
            rotated: The role whose key is staged; it takes its place once the store says so.
        """
        with self._locked():
            before = self._read(is_locked=True)
            keys = list(before.keys)
            self._refuse_revoked_operator(keys, rotated)
            yield keys
            staged = self.ring.staged(Role.OPERATOR) if rotated is Role.OPERATOR else None
            key = staged or self.ring.signing_key(Role.OPERATOR)
            self._file.write(replace(before, keys=tuple(keys), accepted=(*before.accepted, *accepted)), key)
            if rotated is not None:
                self.ring.adopt(rotated)

    def _refuse_revoked_operator(self, keys: list[TrustedKey], rotated: Role | None) -> None:
        public = self.ring.signing_key(Role.OPERATOR).public
        entry = next((key for key in keys if key.raw == public), None)
        if entry is not None and entry.revoked and rotated is not Role.OPERATOR:
            raise TrustError(_revoked(entry))

    def _check_own(self, keys: tuple[TrustedKey, ...]) -> None:
        for key in keys:
            if key.is_own and key.until_utc_ns is None and not key.revoked:
                found = self.ring.known(key.role)
                if found is not None and found.public != key.raw:
                    self._refuse(key.role, key)

    def _refuse(self, role: Role, expected: TrustedKey) -> None:
        raise TrustError(
            f"{self.ring.path(role)} is not the key {expected.key_id[:16]} that this machine signed with; restore "
            "it from a backup, or `sensorium keys revoke` that one"
        )


def signing_key(role: Role) -> SigningKey:
    """Return the key that this machine signs with in a role, made and noted on first use.

    Raises:
        TrustError: If the keys of this machine cannot be read or made, or this one was revoked.
    """
    return TrustStore(key_home()).signer(role)


def trusted_keys(role: Role, at_utc_ns: int | None = None) -> frozenset[bytes]:
    """Return the raw public keys whose word counts on this machine; see :meth:`TrustStore.trusted`.

    Raises:
        TrustError: If the keys of this machine cannot be read or made.
    """
    return TrustStore(key_home()).trusted(role, at_utc_ns)


def _revoked(key: TrustedKey) -> str:
    return (
        f"this machine's {key.role.value} key {key.key_id[:16]} was revoked ({key.revoked}): nothing counts that it "
        f"signs; make another with: sensorium keys rotate --role {key.role.value}"
    )


def _refuse_known(keys: list[TrustedKey], public: bytes) -> None:
    known = next((key for key in keys if key.raw == public), None)
    if known is not None:
        how = f"revoked: {known.revoked}" if known.revoked else f"enrolled as {known.name}"
        raise TrustError(f"key {known.key_id[:16]} is known already, {how}")


def _index_of(keys: list[TrustedKey], found_id: str) -> int:
    indexes = [index for index, key in enumerate(keys) if found_id and key.key_id.startswith(found_id)]
    if len(indexes) != 1:
        what = f"{len(indexes)} keys begin with" if indexes else "no key is"
        raise TrustError(f"{what} {found_id!r}; `sensorium keys show` lists them")
    return indexes[0]
