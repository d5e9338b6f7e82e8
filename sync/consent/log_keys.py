"""Who may write into a consent log: the operator of this machine, whose key is made at its first use."""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sensorium.errors import ConfigError
from sensorium.sync.episode.signing import DeviceKey, key_id

_KEY_FILE = "operator.ed25519"
_KEY_BYTES = 32


def key_home() -> Path:
    """Return the folder of keys and anchors, outside of every spool: ``$SENSORIUM_HOME``, or of the user."""
    stated = os.environ.get("SENSORIUM_HOME")
    if stated:
        return Path(stated)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "sensorium"


class LogKeys:
    """Signs rows as this machine's operator, and knows whose rows count here."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = key_home() if home is None else home
        self._own: DeviceKey | None = None

    def signer(self) -> DeviceKey:
        """Return the operator's key, made on first use.

        Raises:
            ConfigError: If the key is damaged, readable by others, or cannot be made.
        """
        if self._own is None:
            self._own = self._load() or self._make()
        return self._own

    def is_trusted(self, key: str, signature: bytes, data: bytes, at_utc_ns: int) -> bool:  # noqa: ARG002
        """Return whether ``data`` was signed by a key that may speak here at that time."""
        own = self._own or self._load()
        self._own = own
        if own is None or key != key_id(own.public):
            return False
        try:
            Ed25519PublicKey.from_public_bytes(own.public).verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def _load(self) -> DeviceKey | None:
        path = self.home / _KEY_FILE
        try:
            mode, data = path.stat().st_mode, path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise ConfigError(f"operator key {path} cannot be read: {err.strerror}") from err
        if mode & 0o077:
            raise ConfigError(
                f"operator key {path} is readable by others (mode {mode & 0o777:o}); chmod 600 it"
            )
        if len(data) != _KEY_BYTES:
            raise ConfigError(f"operator key {path} has {len(data)} bytes, expected {_KEY_BYTES}; restore it")
        return DeviceKey(Ed25519PrivateKey.from_private_bytes(data))

    def _make(self) -> DeviceKey:
        path = self.home / _KEY_FILE
        scratch = self.home / f".{_KEY_FILE}.{os.getpid()}"
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(Ed25519PrivateKey.generate().private_bytes_raw())
                file.flush()
                os.fsync(fd)
            try:
                os.link(scratch, path)  # of two that make it at once, one makes it
            except FileExistsError:
                pass
            finally:
                scratch.unlink()
        except OSError as err:
            raise ConfigError(f"operator key {path} cannot be made: {err.strerror}") from err
        found = self._load()
        assert found is not None, "it was just made"
        return found
