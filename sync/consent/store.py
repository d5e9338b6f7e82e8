"""The consent folder: one file per grant, and a log of events that is never rewritten."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sensorium.bounded_yaml import StrictLoader, read_yaml_text
from sensorium.errors import ConfigError, ConsentError
from sensorium.sync.consent.grants import (
    BEFORE_ALL_NS,
    GRANT_SCHEMA,
    Conditions,
    ConsentEvent,
    ConsentGrant,
    ConsentLedger,
    EventKind,
    PauseEvent,
    Scope,
)
from sensorium.sync.consent.log import LOG_FILE, ConsentLog, LogContent
from sensorium.sync.consent.log_keys import LogKeys
from sensorium.sync.consent.particulars import PARTICULAR_KEYS
from sensorium.sync.episode.spool import write_durably
from sensorium.sync.episode.ulid import new_ulid
from sensorium.timebase import Clock, HostClock, HostInstant, boot_id
from sensorium.wording import in_words

DEFAULT_FOLDER = "consent"
"""Name of the consent folder inside the spool when the rig file names none."""

_SUFFIXES = (".yaml", ".yml", ".json", ".jsonl")
_Signature = tuple[int, int, int]
_ENDING = frozenset(EventKind) - {EventKind.GIVEN}


class ConsentStore:
    """A folder of grant files (``*.yaml``, ``*.json``, one grant each) and the log (:class:`ConsentLog`).

    Several processes may use one folder at a time. A grant file counts only once the log says it was given,
    and the log holds its digest: while a file is missing or not as it was given, no grant counts.
    """

    def __init__(self, folder: Path, clock: Clock | None = None, keys: LogKeys | None = None) -> None:
        self.folder = folder
        self._clock: Clock = clock or HostClock()
        self._log = ConsentLog(folder, keys or LogKeys())
        self._signature: dict[str, _Signature] | None = None
        self._parsed: dict[str, tuple[_Signature, ConsentGrant]] = {}
        self._ledger = ConsentLedger()
        self._latest_ns = BEFORE_ALL_NS

    def grant(self, grant: ConsentGrant, by: str = "") -> ConsentGrant:
        """Write the grant file and enter it in the log.

        Raises:
            ConsentError: If a grant with that id is there already.
        """
        self._make_folder()
        path = self.folder / f"{grant.id}.yaml"
        if any(known.id == grant.id for known in self.ledger().grants):
            raise ConsentError(
                f"grant {grant.id} exists already in {self.folder}: a grant is never rewritten"
            )
        write_durably(path, _grant_text(grant).encode())
        self._append(
            _given_row(ConsentEvent(grant.id, EventKind.GIVEN, self._now_ns(None), by, grant.digest), path)
        )
        return grant

    def adopt(self, by: str = "") -> tuple[str, ...]:
        """Enter grant files that somebody put into the folder in the log; return their ids.

        Raises:
            ConfigError: If the records cannot be read or written.
        """
        ledger = self.ledger()
        known = {event.grant_id for event in ledger.events}
        fresh = tuple(grant for grant in ledger.grants if grant.id not in known)
        for grant in fresh:
            self._append(
                _given_row(
                    ConsentEvent(grant.id, EventKind.GIVEN, self._now_ns(None), by, grant.digest),
                    self._file_of(grant.id),
                )
            )
        return tuple(grant.id for grant in fresh)

    def withdraw(
        self,
        grant_id: str,
        at_utc_ns: int | None = None,
        by: str = "",
        kind: EventKind = EventKind.WITHDRAWN,
    ) -> None:
        """End a grant for good, for every purpose and for what was captured before as well.

        Raises:
            ConsentError: If there is no such grant.
        """
        if kind is EventKind.GIVEN:
            raise ValueError("a grant is given with grant()")
        ledger = self.ledger()
        known = {grant.id for grant in ledger.grants} | {event.grant_id for event in ledger.events}
        if grant_id not in known:
            raise ConsentError(f"there is no grant {grant_id} in {self.folder}: nothing was withdrawn")
        self._append(_event_row(ConsentEvent(grant_id, kind, self._now_ns(at_utc_ns), by)))

    def withdraw_subject(self, subject: str, by: str = "") -> tuple[str, ...]:
        """End every grant of a subject that is not ended yet; return their ids.

        Raises:
            ConfigError: If the records cannot be read or written.
        """
        ledger = self.ledger()
        ended = {event.grant_id for event in ledger.events if event.kind in _ENDING}
        ids = tuple(grant.id for grant in ledger.grants if grant.subject == subject and grant.id not in ended)
        for grant_id in ids:
            self.withdraw(grant_id, by=by)
        return ids

    def pause(
        self,
        at_utc_ns: int | None = None,
        source: str = "api",
        streams: Sequence[str] = ("*",),
        pressed_ns: int | None = None,
    ) -> PauseEvent:
        """Deny personal captures from ``at_utc_ns`` (default: now) until ``resume``; on disk on return.

        Args:
            pressed_ns: Host time of the press, which is what captures are compared with; default: now.

        Raises:
            ConsentError: If the folder cannot be made.
            ConfigError: If the log cannot be written.
        """
        self._make_folder()
        at_ns = self._clock.utc_ns() if at_utc_ns is None else at_utc_ns
        pressed = self._instant(pressed_ns)
        pause = PauseEvent(new_ulid(at_ns), at_ns, None, tuple(streams), source, pressed)
        row = {"kind": "pause", "id": pause.id, "at": at_ns, "streams": list(streams), "source": source}
        self._append({**row, **_instant_row(pressed)})
        return pause

    def resume(
        self, at_utc_ns: int | None = None, source: str = "api", of_source: str = ""
    ) -> tuple[str, ...]:
        """End every pause that is on; return their ids. Captures before ``at_utc_ns`` stay denied.

        Args:
            of_source: End only what this source pressed.

        Raises:
            ConfigError: If the records cannot be read or written.
        """
        on = [
            pause
            for pause in self.ledger().pauses
            if pause.is_on and (not of_source or pause.source == of_source)
        ]
        if on:
            # Not before the presses: a clock set back in between would leave a pause that never was.
            at_ns = max(
                [self._clock.utc_ns() if at_utc_ns is None else at_utc_ns, *(p.from_ns + 1 for p in on)]
            )
            row = {"kind": "resume", "ids": [p.id for p in on], "at": at_ns, "source": source}
            self._append({**row, **_instant_row(self._instant(None))})
        return tuple(pause.id for pause in on)

    def restart(self, by: str = "", is_paused: bool = True) -> None:
        """Begin a new log; what was granted before counts no more, and until ``resume`` a pause is on.

        Args:
            is_paused: False only where nothing real is recorded.

        Raises:
            ConfigError: If the disk does not take it.
        """
        self._make_folder()
        at_ns = self._clock.utc_ns()
        pause = {"id": new_ulid(at_ns), "streams": ["*"], "source": "restart of the log"} if is_paused else {}
        self._log.restart({**pause, **_instant_row(self._instant(None)), "by": by}, at_ns)
        self._signature = None

    def ledger(self) -> ConsentLedger:
        """Return a snapshot of the folder; read again only when files changed.

        Raises:
            ConfigError: If a grant file is invalid, two have the same id, or the log does not hold together.
        """
        signature = self._stat()
        if signature != self._signature:
            self._ledger = self._read(signature)
            self._signature = signature
        return self._ledger

    def inspect(self) -> ConsentLedger:
        """Return the ledger for whoever only looks, with a ``fault`` where it cannot be read; writes nothing."""
        try:
            return self.ledger()
        except (ConfigError, OSError) as error:
            return replace(self._salvaged(), fault=str(error))

    def _salvaged(self) -> ConsentLedger:
        """Return the grants whose files can be read, whatever the log says of them."""
        grants: list[ConsentGrant] = []
        for path in sorted(self.folder.glob("*.yaml")) if self.folder.is_dir() else ():
            with suppress(ConfigError, OSError):
                grants.append(read_grant(path))
        return ConsentLedger(tuple(grants))

    def rows(self) -> tuple[dict[str, Any], ...]:
        """Return the rows of the log.

        Raises:
            ConfigError: If it does not hold together.
        """
        return self._log.read().rows

    def poll(self, now_utc_ns: int | None = None) -> ConsentLedger:
        """Return the ledger for a running service: the same object until something changes, never an error.

        What cannot be read becomes a ledger with a ``fault``, which denies everything personal. Grants that
        have run out are entered in the log as expired, so that no later clock revives them.
        """
        now_ns = self._clock.utc_ns() if now_utc_ns is None else now_utc_ns
        self._latest_ns = max(self._latest_ns, now_ns)
        try:
            ledger = self.ledger()
            if self._enter_expired(ledger, self._latest_ns):
                ledger = self.ledger()
        except (ConfigError, OSError) as error:
            if self._ledger.fault != str(error):
                self._ledger = ConsentLedger(fault=str(error))
            self._signature = None
            return self._ledger
        return ledger

    def _enter_expired(self, ledger: ConsentLedger, now_ns: int) -> bool:
        over = [grant for grant in ledger.grants if grant.valid_until <= now_ns]
        if not over:
            return False
        known = {event.grant_id for event in ledger.events if event.kind is EventKind.GIVEN}
        ended = {event.grant_id for event in ledger.events if event.kind in _ENDING}
        fresh = [grant for grant in over if grant.id in known and grant.id not in ended]
        for grant in fresh:
            self._append(_event_row(ConsentEvent(grant.id, EventKind.EXPIRED, now_ns)))
        return bool(fresh)

    def _file_of(self, grant_id: str) -> Path:
        return self.folder / next(name for name, (_, grant) in self._parsed.items() if grant.id == grant_id)

    def _instant(self, host_ns: int | None) -> HostInstant:
        return HostInstant(boot_id(), self._clock.now_ns() if host_ns is None else host_ns)

    def _now_ns(self, at_utc_ns: int | None) -> int:
        return self._clock.utc_ns() if at_utc_ns is None else at_utc_ns

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConsentError(f"{self.folder} cannot hold consent records: {error.strerror}") from error

    def _stat(self) -> dict[str, _Signature]:
        """Return what tells whether a file changed: the grant files by name, and the log."""
        try:
            with os.scandir(self.folder) as entries:
                return {
                    entry.name: (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                    for entry in entries
                    if entry.name.endswith(_SUFFIXES) and not entry.name.startswith(".")
                    for stat in (entry.stat(),)
                }
        except FileNotFoundError:
            return {}
        except OSError as err:
            raise ConfigError(f"consent folder {self.folder} cannot be read: {err.strerror}") from err

    def _read(self, signature: dict[str, _Signature]) -> ConsentLedger:
        grants: dict[str, str] = {}
        parsed: dict[str, tuple[_Signature, ConsentGrant]] = {}
        for name in sorted(name for name in signature if not name.endswith(".jsonl")):
            known = self._parsed.get(name)
            if known is None or known[0] != signature[name]:
                known = (signature[name], read_grant(self.folder / name))
            parsed[name] = known
            other = grants.setdefault(known[1].id, name)
            if other != name:
                raise ConfigError(f"{self.folder / name}: id {known[1].id} is also that of {other}")
        self._parsed = parsed
        files = {grant.id: _hash_of(self.folder / name) for name, (_, grant) in parsed.items()}
        return _ledger_of(tuple(grant for _, grant in parsed.values()), self._log.read(), files)

    def _append(self, row: dict[str, Any]) -> None:
        """Add a row to the log, on disk before this returns."""
        self._make_folder()
        self._log.append(row, row["at"])


def read_grant(path: Path) -> ConsentGrant:
    """Return the grant in a YAML or JSON file.

    Raises:
        ConfigError: Names the file and the key.
    """
    try:
        document = yaml.load(read_yaml_text(path), Loader=_GrantLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a YAML or JSON document: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: a grant is a mapping, found {type(document).__name__}")
    try:
        return GRANT_SCHEMA.validate_python(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """Return one line per fault: key, and what is wrong with it."""
    known = [
        *ConsentGrant.__annotations__,
        *Scope.__annotations__,
        *Conditions.__annotations__,
        *PARTICULAR_KEYS,
    ]
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"]) or "grant"
        message = in_words(fault, key)
        if fault["type"] == "unexpected_keyword_argument":
            near = get_close_matches(str(fault["loc"][-1]), known, n=1)
            message = "unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
        lines.append(f"{key}: {message}")
    return "; ".join(lines)


class _GrantLoader(StrictLoader):
    repeated = "stands twice"


def _grant_text(grant: ConsentGrant) -> str:
    return str(
        yaml.safe_dump(GRANT_SCHEMA.dump_python(grant, mode="json"), sort_keys=False, allow_unicode=True)
    )


def _event_row(event: ConsentEvent) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": event.kind.value,
        "grant": event.grant_id,
        "at": event.at_ns,
        "by": event.by,
    }
    return {**row, "digest": event.digest} if event.digest else row


def _instant_row(instant: HostInstant) -> dict[str, Any]:
    return {"host": instant.host_ns, "boot": instant.boot_id}


def _instant_in(row: dict[str, Any]) -> HostInstant:
    return HostInstant(str(row["boot"]), int(row["host"]))


def _given_row(event: ConsentEvent, path: Path) -> dict[str, Any]:
    """Return the row of a grant that is given: it pins what it says, and each byte that says it."""
    return {**_event_row(event), "file": _hash_of(path)}


def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _ledger_of(grants: tuple[ConsentGrant, ...], log: LogContent, files: Mapping[str, str]) -> ConsentLedger:
    events: list[ConsentEvent] = []
    pauses: dict[str, PauseEvent] = {}
    for number, row in enumerate(log.rows, 1):
        try:
            _take_row(row, events, pauses)
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"{LOG_FILE} row {number}: not a consent event: {error!r}") from error
    fault = _file_fault(events, {grant.id: grant.digest for grant in grants})
    fault = fault or _bytes_fault(log.rows, events, files)
    return ConsentLedger(
        grants, tuple(events), tuple(pauses.values()), log.seen_ns, fault, log.log_id, log.heads
    )


def _take_row(row: dict[str, Any], events: list[ConsentEvent], pauses: dict[str, PauseEvent]) -> None:
    kind, at_ns = row["kind"], int(row["at"])
    if kind == "pause" or (kind == "restart" and "id" in row):
        streams = tuple(row["streams"])
        pauses[row["id"]] = PauseEvent(row["id"], at_ns, None, streams, row["source"], _instant_in(row))
    elif kind == "resume":
        for pause_id in row["ids"]:
            pauses[pause_id] = replace(pauses[pause_id], until_ns=at_ns, released=_instant_in(row))
    elif kind != "restart":
        events.append(ConsentEvent(row["grant"], EventKind(kind), at_ns, row["by"], row.get("digest", "")))


def _file_fault(events: Sequence[ConsentEvent], found: Mapping[str, str]) -> str:
    """Return which grant file is missing or does not say what was given; "" if all say what the log says."""
    ended = _ended(events)
    for event in events:
        if event.kind is EventKind.GIVEN and event.grant_id not in ended:
            digest = found.get(event.grant_id)
            if digest != event.digest:
                return _changed(event.grant_id, is_missing=digest is None)
    return ""


def _bytes_fault(
    rows: Iterable[Mapping[str, Any]], events: Sequence[ConsentEvent], files: Mapping[str, str]
) -> str:
    """Return which grant file is not byte for byte what was given, though it may say the same."""
    ended = _ended(events)
    for row in rows:
        if "file" in row and row["grant"] not in ended and files.get(row["grant"]) != row["file"]:
            return _changed(row["grant"], is_missing=False)
    return ""


def _ended(events: Iterable[ConsentEvent]) -> set[str]:
    return {event.grant_id for event in events if event.kind in _ENDING}


def _changed(grant_id: str, *, is_missing: bool) -> str:
    said = "is missing" if is_missing else "was changed after it was given"
    return (
        f"the file of grant {grant_id} {said}: restore it, or end the grant with "
        f"`sensorium consent withdraw {grant_id}`"
    )
