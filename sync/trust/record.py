"""The trust store as a file: what it says, how often it was changed, and that no older one was put back."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.spool import write_durably
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.dsse import key_id
from sensorium.sync.trust.keys import Role, SigningKey

_KIND, _ANCHOR_KIND = "trust", "trust-anchor"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what it may say.

    Attributes:
        public: Raw, in hex.
        is_own: Made on this machine.
        from_utc_ns, until_utc_ns: When it was made and replaced; None = it is in use.
        revoked: Why nothing that it signed counts any more; "" if it does.
        signed: SHA-256 of the list of what it signed until it was replaced; "" while it is in use.
        logs: Of a replaced one, the consent logs that were known then, and how many rows they had.
    """

    public: str
    role: Role
    name: str
    is_own: bool
    from_utc_ns: int
    until_utc_ns: int | None = None
    revoked: str = ""
    signed: str = ""
    logs: tuple[tuple[str, int], ...] = ()

    @property
    def raw(self) -> bytes:
        return bytes.fromhex(self.public)

    @property
    def key_id(self) -> str:
        return key_id(self.raw)

    def counts_at(self, at_utc_ns: int) -> bool:
        """Return whether it was in use at a time, and was not revoked since."""
        is_over = self.until_utc_ns is not None and at_utc_ns >= self.until_utc_ns
        return not self.revoked and self.from_utc_ns <= at_utc_ns and not is_over

    def counts_in_row(self, log_id: str, seq: int) -> bool:
        """Return whether it may have signed a row of a consent log: a replaced key adds none to what was there then."""
        if self.revoked:
            return False
        return self.until_utc_ns is None or seq <= dict(self.logs).get(log_id, 0)


@dataclass(frozen=True, slots=True)
class TrustRecord:
    """What ``trust.json`` says.

    Attributes:
        heads: SHA-256 of each version of the file before this one; so this is version ``len(heads) + 1``.
        accepted: Of versions that were lost, and that the operator said may be.
        head: SHA-256 of this version.
    """

    keys: tuple[TrustedKey, ...] = ()
    heads: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    head: str = ""

    @property
    def seq(self) -> int:
        return len(self.heads) + 1 if self.head else 0

    def knows(self, seq: int, head: str) -> bool:
        """Return whether a version is one that this record comes after, or is."""
        return head in self.accepted or (*self.heads, self.head)[seq - 1 : seq] == (head,)


class SetBackError(TrustError):
    """The trust store is not the newest one that this machine wrote, or is being written just now."""


class TrustFile:
    """``<home>/trust.json`` and its anchor, which is written after it, in another folder."""

    def __init__(self, home: Path) -> None:
        self.path = home / "trust.json"
        self.anchor_path = home / "anchors" / "trust.json"

    def read(self, signers: Iterable[bytes]) -> TrustRecord:
        """Return what was written last.

        Raises:
            SetBackError: If it is older than what the anchor says, or gone.
            TrustError: If none of ``signers`` signed it, or it cannot be read.
        """
        anchor = _bytes_of(self.anchor_path)  # first: what is written meanwhile is newer than it, never older
        data = _bytes_of(self.path)
        if data is None:
            if anchor is not None:
                raise SetBackError(f"trust store {self.path} is gone: {self._how()}")
            return TrustRecord()
        trusted = list(signers)
        try:
            document, _ = open_document(data, _KIND, trusted)
            found = TrustRecord(
                tuple(_load(each) for each in document["keys"]),
                tuple(map(str, document.get("heads", ()))),
                tuple(map(str, document.get("accepted", ()))),
                hashlib.sha256(data).hexdigest(),
            )
        except (TrustError, KeyError, TypeError, ValueError, AttributeError) as err:
            raise TrustError(
                f"trust store {self.path} is not what this machine's operator signed ({err}); restore it and "
                f"{self.path.parent / 'keys'} from a backup"
            ) from err
        self._check(found, anchor, trusted)
        return found

    def write(self, record: TrustRecord, key: SigningKey) -> None:
        """Write the version that follows ``record.head``; on disk on return.

        Raises:
            TrustError: If the disk does not take it.
        """
        heads = (*record.heads, record.head) if record.head else ()
        document = {
            "v": 2,
            "heads": heads,
            "accepted": record.accepted,
            "keys": [{**asdict(each), "role": each.role.value} for each in record.keys],
        }
        data = sign_document(document, key, _KIND)
        anchor = {"seq": len(heads) + 1, "head": hashlib.sha256(data).hexdigest()}
        try:
            self.anchor_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self.path, data)
            write_durably(self.anchor_path, sign_document(anchor, key, _ANCHOR_KIND))
        except (OSError, EpisodeError) as err:
            raise TrustError(f"trust store {self.path} cannot be written: {err}") from err

    def _check(self, found: TrustRecord, anchor: bytes | None, signers: list[bytes]) -> None:
        """Compare with the anchor, which a crash may have left one version behind."""
        if anchor is None:
            if found.seq > 1:
                raise SetBackError(
                    f"{self.anchor_path} is gone, which says how new a trust store is: {self._how()}"
                )
            return
        former = [key.raw for key in found.keys if key.is_own and key.role is Role.OPERATOR]
        try:
            document, _ = open_document(anchor, _ANCHOR_KIND, [*signers, *former])
            seq, head = int(document["seq"]), str(document["head"])
        except (TrustError, KeyError, TypeError, ValueError) as err:
            raise TrustError(f"{self.anchor_path} was changed or damaged ({err}): {self._how()}") from err
        if found.seq < seq or found.seq > seq + 1 or not found.knows(seq, head):
            raise SetBackError(
                f"trust store {self.path} is version {found.seq}, and version {seq} was written here: an older one "
                f"was put back, with which revoked keys would count again: {self._how()}"
            )

    def _how(self) -> str:
        return (
            f"restore the newest; if it is lost, remove {self.path} and {self.anchor_path} and say again what was "
            "enrolled and revoked"
        )


def _load(fields: dict[str, Any]) -> TrustedKey:
    logs = tuple((str(log_id), int(seq)) for log_id, seq in fields.get("logs", ()))
    return TrustedKey(**{**fields, "role": Role(fields["role"]), "logs": logs})


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise TrustError(f"{path} cannot be read: {err.strerror}") from err
