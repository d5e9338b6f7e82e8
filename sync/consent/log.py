"""The consent log: signed rows in a chain, appended and never rewritten, anchored outside of its folder.

A row is one line of canonical JSON: ``log`` (which log), ``seq`` (from 1), ``prev`` (SHA-256 of the line before),
what happened, ``key`` and ``sig`` (ed25519 over the row without ``sig``). After each row the log's head and
length are written to the key home. So a row that was edited, a tail that was cut, a log that was deleted,
forked or replaced by an older copy of itself is found; only who puts back the key home as well is not.
"""

import base64
import binascii
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium.errors import ConfigError
from sensorium.sync.consent.anchors import Anchor, Anchors
from sensorium.sync.consent.grants import BEFORE_ALL_NS, canonical_json
from sensorium.sync.consent.log_keys import LogKeys
from sensorium.sync.episode.spool import sync_folder, write_all
from sensorium.sync.episode.ulid import new_ulid

LOG_FILE = "events.jsonl"
MOST_LOG_BYTES = 64 << 20
"""Half a million rows; whoever reads a longer one would not answer a press in time."""
_VERSION = 2
_TOO_MANY_TRIES = 10
HOW_TO_GO_ON = (
    "put back the right log, or begin a new one with `sensorium consent restart`: it starts paused, and what "
    "was granted before has to be granted anew"
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LogContent:
    """The rows of a log that hold together.

    Attributes:
        heads: SHA-256 of each row.
    """

    log_id: str = ""
    rows: tuple[Row, ...] = ()
    heads: tuple[str, ...] = ()
    seen_ns: int = BEFORE_ALL_NS

    @property
    def head(self) -> str:
        return self.heads[-1] if self.heads else ""

    @property
    def anchor(self) -> Anchor:
        return Anchor(self.log_id, len(self.rows), self.head, self.seen_ns)


class ConsentLog:
    """The log in a consent folder; several processes may use it at a time.

    Rows that were checked once are not checked again while the file still begins with them.
    """

    def __init__(self, folder: Path, keys: LogKeys) -> None:
        self.path = folder / LOG_FILE
        self._folder = folder
        self._keys = keys
        self._anchors = Anchors(keys)
        self._checked = b""
        self._content = LogContent()

    def read(self) -> LogContent:
        """Return the rows after checking each, the chain, and that none is missing at the end.

        Raises:
            ConfigError: Says what is wrong with the log and how to go on.
        """
        # The anchors first: a row that another process adds meanwhile may be in the log before it is anchored.
        of_folder = self._anchors.of_folder(self._folder)
        first_id = _log_id_of(self._first_line())
        of_log = self._anchors.of_log(first_id) if first_id else None
        content = self._parse(self._whole_lines())
        self._check_anchor(content, of_log, of_folder)
        return content

    def append(self, row: Row, at_utc_ns: int) -> None:
        """Add a row: locked, chained, signed, and with its anchor on disk before this returns.

        Raises:
            ConfigError: If the log does not hold together, or the disk does not take the row.
        """
        try:
            is_new = not self.path.exists()
            self._append(row, at_utc_ns)
            if is_new:
                sync_folder(self._folder)
        except OSError as err:
            raise ConfigError(
                f"consent log {self.path} cannot be written: {err.strerror}; free space or check the disk"
            ) from err

    def restart(self, row: Row, at_utc_ns: int) -> None:
        """Set the log aside, whatever is wrong with it, and begin a new one with ``row``.

        Raises:
            ConfigError: If the disk does not take it.
        """
        try:
            former = self._anchors.of_folder(self._folder)
        except ConfigError:
            former = None  # of a key that is lost: that is what the restart is for
        with self._locked():
            aside = self.path.with_name(f"{LOG_FILE}.{new_ulid(at_utc_ns)}.aside")
            self.path.replace(aside)
            sync_folder(self._folder)
        after = {} if former is None else {"log": former.log_id, "seq": former.seq, "head": former.head}
        row = {**row, "kind": "restart", "at": at_utc_ns, "after": after, "aside": aside.name}
        with self._locked() as descriptor:
            self._write_row(descriptor, LogContent(new_ulid(at_utc_ns)), row, at_utc_ns)
        sync_folder(self._folder)

    def _append(self, row: Row, at_utc_ns: int) -> None:
        with self._locked() as descriptor:
            content = self.read()
            whole_bytes = len(self._checked)
            if whole_bytes != os.fstat(descriptor).st_size:
                os.ftruncate(descriptor, whole_bytes)  # a row that a crash cut off was never acknowledged
            self._write_row(descriptor, content, row, at_utc_ns)

    def _write_row(self, descriptor: int, content: LogContent, row: Row, at_utc_ns: int) -> None:
        signer = self._keys.signer()
        log_id = content.log_id or new_ulid(at_utc_ns)
        body = {
            "v": _VERSION,
            **row,
            "log": log_id,
            "seq": len(content.rows) + 1,
            "prev": content.head,
            "key": signer.key_id,
        }
        signature = signer.private.sign(canonical_json(body))
        line = canonical_json({**body, "sig": base64.b64encode(signature).decode()})
        os.lseek(descriptor, 0, os.SEEK_END)
        write_all(descriptor, line + b"\n")
        os.fsync(descriptor)
        seen_ns = max(content.seen_ns, at_utc_ns)
        self._anchors.write(self._folder, Anchor(log_id, len(content.rows) + 1, _hash(line), seen_ns))

    def _first_line(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.readline(MOST_LOG_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as err:
            raise ConfigError(f"consent log {self.path} cannot be read: {err.strerror}") from err

    def _whole_lines(self) -> bytes:
        """Return the log without a torn last row."""
        try:
            size = self.path.stat().st_size
            if size > MOST_LOG_BYTES:
                raise ConfigError(
                    f"consent log {self.path} has {size} bytes, more than any log: {HOW_TO_GO_ON}"
                )
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as err:
            raise ConfigError(f"consent log {self.path} cannot be read: {err.strerror}") from err
        return content[: content.rfind(b"\n") + 1]

    def _parse(self, data: bytes) -> LogContent:
        if not self._checked or not data.startswith(self._checked):
            self._checked, self._content = b"", LogContent()
        lines = data[len(self._checked) :].splitlines()
        rows, heads = list(self._content.rows), list(self._content.heads)
        log_id, seen_ns = self._content.log_id, self._content.seen_ns
        for line in lines:
            row = self._checked_row(line, len(rows) + 1, heads[-1] if heads else "", log_id)
            log_id, seen_ns = row["log"], max(seen_ns, row["at"])
            rows.append(row)
            heads.append(_hash(line))
        self._checked, self._content = data, LogContent(log_id, tuple(rows), tuple(heads), seen_ns)
        return self._content

    def _checked_row(self, line: bytes, seq: int, prev: str, log_id: str) -> Row:
        where = f"consent log {self.path} row {seq}"
        try:
            row = json.loads(line)
            signature = base64.b64decode(row["sig"], validate=True)
            body = canonical_json({key: row[key] for key in row if key != "sig"})
            is_canonical = canonical_json(row) == line
            at_ns, key, found_id = row["at"], row["key"], row["log"]
            is_typed = type(at_ns) is int and isinstance(key, str) and isinstance(found_id, str)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as err:
            raise ConfigError(f"{where}: not a row of a log, it was damaged: {HOW_TO_GO_ON}") from err
        follows = (row.get("v"), row.get("seq"), row.get("prev")) == (_VERSION, seq, prev)
        if not is_canonical or not is_typed or not follows or (log_id and found_id != log_id):
            raise ConfigError(
                f"{where}: does not follow from the row before; the log was changed: {HOW_TO_GO_ON}"
            )
        if not self._keys.is_trusted(key, signature, body, found_id, seq):
            raise ConfigError(
                f"{where}: signed by key {key[:16]}, which is not trusted here, or not signed by it: "
                f"{HOW_TO_GO_ON}"
            )
        return dict(row)

    def _check_anchor(self, content: LogContent, of_log: Anchor | None, of_folder: Anchor | None) -> None:
        anchor = of_log
        if of_folder is not None and of_folder.log_id != content.log_id:
            said = f"was replaced by log {content.log_id}" if content.rows else "is gone"
            if not _is_restart_after(content, of_folder.log_id):
                raise ConfigError(
                    f"consent log {self.path}: log {of_folder.log_id} with {of_folder.seq} rows {said}: "
                    f"{HOW_TO_GO_ON}"
                )
        if anchor is None:
            if len(content.rows) > 1:
                raise ConfigError(
                    f"consent log {self.path}: {len(content.rows)} rows, and {self._keys.home} knows nothing "
                    f"of them: {HOW_TO_GO_ON}"
                )
            return
        if len(content.rows) < anchor.seq:
            raise ConfigError(
                f"consent log {self.path} has {len(content.rows)} rows and had {anchor.seq}: its end was cut, "
                f"or an old log was put back: {HOW_TO_GO_ON}"
            )
        if content.heads[anchor.seq - 1] != anchor.head:
            raise ConfigError(
                f"consent log {self.path} is not the one that was written here from row {anchor.seq} or "
                f"before, a fork: {HOW_TO_GO_ON}"
            )

    @contextmanager
    def _locked(self) -> Iterator[int]:
        for _ in range(_TOO_MANY_TRIES):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_at(self.path, descriptor):  # else it was set aside while we waited
                    yield descriptor
                    return
            finally:
                os.close(descriptor)
        raise ConfigError(f"consent log {self.path} is replaced again and again")


def _is_restart_after(content: LogContent, log_id: str) -> bool:
    """Return whether a log begins where another ended: it was killed before the folder was noted as its own."""
    first = content.rows[0] if content.rows else {}
    after = first.get("after")
    return first.get("kind") == "restart" and isinstance(after, dict) and after.get("log") == log_id


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        found, held = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def _log_id_of(line: bytes) -> str:
    try:
        return str(json.loads(line)["log"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
