"""Whose signatures count here: this machine's own keys, those it had before, and those that somebody enrolled."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.spool import write_durably
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.dsse import key_id
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import KeyRing, Role, SigningKey
from sensorium.timebase import HostClock

_KIND = "trust"
_FILE = "trust.json"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what it may say.

    Attributes:
        public: Raw, in hex.
        is_own: Made on this machine.
        from_utc_ns, until_utc_ns: What was signed in between counts; None = no end.
        revoked: Why nothing that it signed counts any more; "" if it does.
    """

    public: str
    role: Role
    name: str
    is_own: bool
    from_utc_ns: int
    until_utc_ns: int | None = None
    revoked: str = ""

    @property
    def raw(self) -> bytes:
        return bytes.fromhex(self.public)

    @property
    def key_id(self) -> str:
        return key_id(self.raw)

    def counts_at(self, at_utc_ns: int) -> bool:
        """Return whether what it signed at a time counts."""
        is_over = self.until_utc_ns is not None and at_utc_ns >= self.until_utc_ns
        return not self.revoked and self.from_utc_ns <= at_utc_ns and not is_over


class TrustStore:
    """What ``<home>/trust.json`` says; signed by the operator's key, so that a changed bit of it is seen."""

    def __init__(self, home: Path) -> None:
        self.ring = KeyRing(home)
        self._path = home / _FILE
        self._lock = home / ".lock"

    def entries(self) -> tuple[TrustedKey, ...]:
        """Return all that is known, revoked ones too.

        Raises:
            TrustError: If the store was changed by somebody else, or a key of ours is not the one it was.
        """
        found = self._read()
        self._check_own(found)
        return found

    def trusted(self, role: Role, at_utc_ns: int | None = None) -> frozenset[bytes]:
        """Return the raw public keys whose word counts in a role; own ones are made on first use.

        Args:
            at_utc_ns: When it was said; None = whenever, as for keys that were replaced since.

        Raises:
            TrustError: As :meth:`entries`.
        """
        self.own(role)
        return frozenset(
            key.raw
            for key in self.entries()
            if key.role is role and (not key.revoked if at_utc_ns is None else key.counts_at(at_utc_ns))
        )

    def version(self) -> tuple[int, int, int] | None:
        """Return what changes whenever the store does; None where nothing was noted yet."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def own(self, role: Role) -> bytes:
        """Return the public key that this machine signs with in a role, made and noted on first use.

        Raises:
            TrustError: As :meth:`entries`, or if it cannot be written down.
        """
        known = self._read()  # which ends a rotation that did not
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

    def enroll(self, public: bytes, role: Role, name: str) -> TrustedKey:
        """Let a key of another machine or person count from now on.

        Raises:
            TrustError: If it is known already, or is no key.
        """
        if len(public) != 32:
            raise TrustError(f"a public key has 32 bytes, found {len(public)}")
        with self._changing() as keys:
            known = next((key for key in keys if key.raw == public), None)
            if known is not None:
                how = f"revoked: {known.revoked}" if known.revoked else f"enrolled as {known.name}"
                raise TrustError(f"key {known.key_id[:16]} is known already, {how}")
            keys.append(TrustedKey(public.hex(), role, name, False, 0))
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
        """Replace this machine's key of a role; what the old one signed until now still counts.

        Raises:
            TrustError: As :meth:`entries`, or if it cannot be written.
        """
        old = self.own(role)
        now_ns = HostClock().utc_ns()
        with self._changing(rotated=role) as keys:
            fresh = self.ring.stage(role)
            for index, key in enumerate(keys):
                if key.raw == old:
                    keys[index] = replace(key, until_utc_ns=now_ns)
            keys.append(TrustedKey(fresh.public.hex(), role, "this machine", True, now_ns))
        return self._entry(fresh.public)

    def _read(self) -> tuple[TrustedKey, ...]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as err:
            raise TrustError(f"trust store {self._path} cannot be read: {err.strerror}") from err
        try:
            document, _ = open_document(data, _KIND, self._signers())
            found = tuple(_load(each) for each in document["keys"])
        except (TrustError, KeyError, TypeError, ValueError) as err:
            raise TrustError(
                f"trust store {self._path} is not what this machine's operator signed ({err}); restore it and "
                f"{self.ring.folder} from a backup"
            ) from err
        self._end_rotations(found)
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
        return next(key for key in self._read() if key.raw == public)

    @contextmanager
    def _changing(self, rotated: Role | None = None) -> Iterator[list[TrustedKey]]:
        """Give the keys to whoever changes them, alone, and write down what became of them.

        Args:
            rotated: The role whose key is staged; it takes its place once the store says so.
        """
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            keys = list(self._read())
            yield keys
            document = {"v": 1, "keys": [{**asdict(key), "role": key.role.value} for key in keys]}
            staged = self.ring.staged(Role.OPERATOR) if rotated is Role.OPERATOR else None
            key = staged or self.ring.signing_key(Role.OPERATOR)
            write_durably(self._path, sign_document(document, key, _KIND))
            if rotated is not None:
                self.ring.adopt(rotated)
        except EpisodeError as err:
            raise TrustError(str(err)) from err
        finally:
            os.close(descriptor)

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
        TrustError: If the keys of this machine cannot be read or made.
    """
    store = TrustStore(key_home())
    store.own(role)
    return store.ring.signing_key(role)


def trusted_keys(role: Role, at_utc_ns: int | None = None) -> frozenset[bytes]:
    """Return the raw public keys whose word counts on this machine; see :meth:`TrustStore.trusted`.

    Raises:
        TrustError: If the keys of this machine cannot be read or made.
    """
    return TrustStore(key_home()).trusted(role, at_utc_ns)


def _index_of(keys: list[TrustedKey], found_id: str) -> int:
    indexes = [index for index, key in enumerate(keys) if found_id and key.key_id.startswith(found_id)]
    if len(indexes) != 1:
        what = f"{len(indexes)} keys begin with" if indexes else "no key is"
        raise TrustError(f"{what} {found_id!r}; `sensorium keys show` lists them")
    return indexes[0]


def _load(fields: dict[str, Any]) -> TrustedKey:
    return TrustedKey(**{**fields, "role": Role(fields["role"])})
