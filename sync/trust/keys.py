"""The signing keys of this machine, one file for each role; the public half is derived, never a second file."""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.spool import sync_folder, write_durably
from sensorium.sync.trust.dsse import STATEMENT_TYPE, key_id, seal_envelope

_KEY_BYTES = 32


class Role(str, Enum):
    """What a key may say: this machine sealed it, this operator said it, this authority consents."""

    DEVICE = "device"
    OPERATOR = "operator"
    AUTHORITY = "authority"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs; it proves origin and integrity, not truth of capture.

    Attributes:
        note: Called with each envelope before it is handed out; a key that signs for a trust store has one.
    """

    private: Ed25519PrivateKey
    note: Callable[[bytes], None] | None = None

    @property
    def public(self) -> bytes:
        """The raw 32 bytes of the public key."""
        return self.private.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        """SHA-256 of the public key in hex."""
        return key_id(self.public)

    def sign(self, payload: bytes, payload_type: str = STATEMENT_TYPE) -> bytes:
        """Return the DSSE envelope of ``payload`` as canonical JSON.

        Raises:
            TrustError: If it cannot be noted that it was signed.
        """
        envelope = seal_envelope(payload, self.private, payload_type)
        if self.note is not None:
            self.note(envelope)
        return envelope

    def sign_detached(self, data: bytes) -> bytes:
        """Return the 64 bytes of a signature."""
        return self.private.sign(data)


class KeyRing:
    """The keys in ``<home>/keys/``. Two processes that make one at once get the same."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "keys"

    def path(self, role: Role) -> Path:
        """Return the file of a role's key: 32 raw bytes, mode 0600."""
        return self.folder / f"{role.value}.ed25519"

    def signing_key(self, role: Role) -> SigningKey:
        """Return the key of a role, made on first use.

        Raises:
            TrustError: If it is damaged, readable by others, or cannot be made.
        """
        path = self.path(role)
        try:
            if not path.exists():
                self._make(path)
            if path.stat().st_mode & 0o077:
                mode = path.stat().st_mode & 0o777
                raise TrustError(f"key {path} is readable by others (mode {mode:o}); chmod 600 it")
            data = path.read_bytes()
        except OSError as err:
            raise TrustError(f"key {path} cannot be read or made: {err.strerror}") from err
        if len(data) != _KEY_BYTES:
            raise TrustError(
                f"key {path} has {len(data)} bytes, expected {_KEY_BYTES}; restore it from a backup"
            )
        return SigningKey(Ed25519PrivateKey.from_private_bytes(data))

    def known(self, role: Role) -> SigningKey | None:
        """Return the key of a role; None where nothing was signed in it yet.

        Raises:
            TrustError: If what is there is no key.
        """
        return self.signing_key(role) if self.path(role).exists() else None

    def stage(self, role: Role) -> SigningKey:
        """Make the key that is to take the place of a role's; it signs nothing until :meth:`adopt`.

        Raises:
            TrustError: If it cannot be written.
        """
        fresh = Ed25519PrivateKey.generate()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            write_durably(self._next(role), fresh.private_bytes_raw())
        except EpisodeError as err:
            raise TrustError(str(err)) from err
        return SigningKey(fresh)

    def staged(self, role: Role) -> SigningKey | None:
        """Return the key that a rotation which did not end had made; None if there is none."""
        try:
            data = self._next(role).read_bytes()
        except OSError:
            return None
        return SigningKey(Ed25519PrivateKey.from_private_bytes(data)) if len(data) == _KEY_BYTES else None

    def adopt(self, role: Role) -> None:
        """Let the staged key be the role's; the one before is gone."""
        try:
            self._next(role).replace(self.path(role))
            sync_folder(self.folder)
        except OSError as err:
            raise TrustError(f"key {self.path(role)} cannot be replaced: {err.strerror}") from err

    def _next(self, role: Role) -> Path:
        return self.folder / f".{role.value}.next"

    def _make(self, path: Path) -> None:
        """Give a fresh key its name in one step, so that of two who make it the second finds the first's."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(Ed25519PrivateKey.generate().private_bytes_raw())
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(scratch, path)
            except FileExistsError:
                pass  # somebody else made one meanwhile: it is the key
            except OSError:
                if (
                    not path.exists()
                ):  # no links here (a home on SMB, 9p, FAT): who is first then is not certain
                    scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        sync_folder(self.folder)
