"""Who may write into a consent log: the operator of this machine, and operators and authorities that it trusts."""

from pathlib import Path

from sensorium.errors import ConfigError, TrustError
from sensorium.sync.trust.dsse import is_signed, key_id
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import Role, SigningKey
from sensorium.sync.trust.record import TrustedKey
from sensorium.sync.trust.store import TrustStore

_SPEAKERS = (Role.OPERATOR, Role.AUTHORITY)


class LogKeys:
    """Signs rows as this machine's operator, and knows whose rows count here."""

    def __init__(self, home: Path | None = None) -> None:
        try:
            self.home = key_home() if home is None else home
        except TrustError as err:
            raise ConfigError(str(err)) from err
        self._store = TrustStore(self.home)
        self._known: dict[str, TrustedKey] = {}
        self._version: object = None

    def signer(self) -> SigningKey:
        """Return the operator's key, made on first use.

        Raises:
            ConfigError: If the key is damaged, readable by others, or cannot be made.
        """
        try:
            self._store.signer(Role.OPERATOR)
            # Rows and anchors need no list of what was signed: the chain and its anchor are one.
            return self._store.ring.signing_key(Role.OPERATOR)
        except TrustError as err:
            raise ConfigError(str(err)) from err

    def own_publics(self) -> frozenset[bytes]:
        """Return the operator's keys of this machine, former ones too.

        Raises:
            ConfigError: As :meth:`signer`.
        """
        try:
            self._store.own(Role.OPERATOR)
        except TrustError as err:
            raise ConfigError(str(err)) from err
        self._refresh()
        return frozenset(
            key.raw
            for key in self._known.values()
            if key.is_own and key.role is Role.OPERATOR and not key.revoked
        )

    def is_trusted(self, key: str, signature: bytes, data: bytes, log_id: str, seq: int) -> bool:
        """Return whether a row was signed by a key that may speak here; one that was replaced adds no row.

        Args:
            data: The row as it was signed.
            log_id, seq: Of which log it is which row.

        Raises:
            ConfigError: If the trust store was changed by somebody else.
        """
        self._refresh()
        known = self._known.get(key)
        return (
            known is not None and known.counts_in_row(log_id, seq) and is_signed(data, signature, known.raw)
        )

    def _refresh(self) -> None:
        version = self._store.version()
        if version == self._version and version is not None:
            return
        try:
            found = self._store.entries()
        except TrustError as err:
            raise ConfigError(str(err)) from err
        self._known = {key_id(key.raw): key for key in found if key.role in _SPEAKERS}
        self._version = version
