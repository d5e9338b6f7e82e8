"""Where a consent log stands, kept outside of its folder, so that a log that was cut or put back is noticed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sensorium.errors import ConfigError, EpisodeError, TrustError
from sensorium.sync.consent.log_keys import LogKeys
from sensorium.sync.episode.spool import write_durably
from sensorium.sync.episode.ulid import ULID
from sensorium.sync.trust.documents import open_document, sign_document

_FOLDER = "anchors"
_FoundT = TypeVar("_FoundT")
_KIND, _POINTER = "consent-anchor", "consent-folder"


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last row of a log that is known of.

    Attributes:
        seq: Number of that row, counted from 1.
        head: SHA-256 of it.
        seen_ns: Latest UTC in the log.
    """

    log_id: str
    seq: int
    head: str
    seen_ns: int


class Anchors:
    """The anchors of the consent logs of this machine, in ``anchors/`` of the key home, each signed."""

    def __init__(self, keys: LogKeys) -> None:
        self._keys = keys
        self._folder = keys.home / _FOLDER

    def of_log(self, log_id: str) -> Anchor | None:
        """Return the anchor of a log; None if it has none here.

        Raises:
            ConfigError: If it cannot be read or was changed.
        """
        if not ULID.fullmatch(log_id):
            return None
        path = self._folder / f"{log_id}.json"
        anchor = self._read(path, _KIND, _anchor_in)
        if anchor is not None and anchor.log_id != log_id:
            raise ConfigError(f"anchor {path} is that of log {anchor.log_id}")
        return anchor

    def of_folder(self, folder: Path) -> Anchor | None:
        """Return the anchor of the log that was last written in a consent folder; None if none ever was."""
        log_id = self._read(self._pointer(folder), _POINTER, _log_id_in)
        return None if log_id is None else self.of_log(log_id)

    def _read(self, path: Path, kind: str, parse: Callable[[dict[str, Any]], _FoundT]) -> _FoundT | None:
        """Return what a document that this machine's operator signed says; None if there is none."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise ConfigError(f"anchor {path} cannot be read: {err.strerror}") from err
        try:
            return parse(open_document(data, kind, self._keys.own_publics())[0])
        except (TrustError, ValueError, KeyError, TypeError) as err:
            raise ConfigError(f"anchor {path} was changed or damaged: {err}") from err

    def write(self, folder: Path, anchor: Anchor) -> None:
        """Note where the log in ``folder`` stands; on disk on return.

        Raises:
            ConfigError: If the disk does not take it.
        """
        document = {"log": anchor.log_id, "seq": anchor.seq, "head": anchor.head, "seen": anchor.seen_ns}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            data = sign_document(document, self._keys.signer(), _KIND)
            write_durably(self._folder / f"{anchor.log_id}.json", data)
            pointer = self._pointer(folder)
            if anchor.seq == 1 or not pointer.exists():
                write_durably(pointer, sign_document({"log": anchor.log_id}, self._keys.signer(), _POINTER))
        except (OSError, EpisodeError) as err:
            raise ConfigError(f"the anchor of consent log {folder} cannot be written: {err}") from err

    def _pointer(self, folder: Path) -> Path:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
        return self._folder / f"{name[:32]}.folder"


def _anchor_in(found: dict[str, Any]) -> Anchor:
    return Anchor(str(found["log"]), int(found["seq"]), str(found["head"]), int(found["seen"]))


def _log_id_in(found: dict[str, Any]) -> str:
    return str(found["log"])
