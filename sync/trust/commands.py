"""Commands to a running agent that let more be recorded, or less be kept: only with the operator's signature.

A signed command is for one session and good once, within :data:`FRESH_NS` of its making. What narrows (pause, stop,
mark) needs none: in that direction anybody may act.
"""

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from sensorium.errors import ConfigError, ConsentError, TrustError
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.keys import SigningKey
from sensorium.timebase import SECOND_NS, Clock

FRESH_NS = 30 * SECOND_NS
"""On one host clock; a request waits no longer than that for a recorder that is being restarted."""

_KIND = "command"
_USED_FILE = "used-commands.json"
_WIDENING = frozenset({"resume", "discard"})
_DESPITE = "despite_calibration"
_MOST_USED = 10_000


def widens(ask: Mapping[str, Any]) -> bool:
    """Return whether a command needs a signature."""
    return ask.get("cmd") in _WIDENING or (ask.get("cmd") == "start" and bool(ask.get(_DESPITE)))


def sign_command(ask: Mapping[str, Any], session: str, key: SigningKey, clock: Clock) -> dict[str, Any]:
    """Return the command with the signature that a recorder asks for."""
    document = {
        "ask": dict(ask),
        "session": session,
        "nonce": secrets.token_hex(16),
        "host_ns": clock.now_ns(),
    }
    return {**ask, "signed": sign_document(document, key, _KIND).decode()}


class CommandGuard:
    """Lets through what needs no signature, and what an operator signed for this session and nobody used yet.

    Args:
        run_dir: Folder of the session, which has its name; remembers what was used beyond the end of this process.
        trusted: Returns the raw public keys of the operators whose word counts.
    """

    def __init__(self, run_dir: Path, trusted: Callable[[], Collection[bytes]], clock: Clock) -> None:
        self._session = run_dir.name
        self._path = run_dir / _USED_FILE
        self._trusted = trusted
        self._clock = clock
        self._used: dict[str, int] | None = None

    def admit(self, ask: Mapping[str, Any]) -> None:
        """Take a command, or say why not.

        Raises:
            ConsentError: If it widens something and no operator signed it, for this session, now, and once.
        """
        if not widens(ask):
            return
        cmd = str(ask["cmd"])
        signed = ask.get("signed")
        if not isinstance(signed, str):
            raise _refused(cmd, "it is not signed by an operator")
        try:
            found, _ = open_document(signed.encode(), _KIND, self._trusted())
        except TrustError as err:
            raise _refused(cmd, str(err)) from err
        if found.get("ask") != {key: value for key, value in ask.items() if key != "signed"}:
            raise _refused(cmd, "what is asked is not what was signed")
        if found.get("session") != self._session:
            raise _refused(cmd, f"it was signed for session {found.get('session')}")
        self._use(cmd, found.get("nonce"), found.get("host_ns"))

    def _use(self, cmd: str, nonce: object, host_ns: object) -> None:
        if not isinstance(nonce, str) or type(host_ns) is not int:
            raise _refused(cmd, "its signature lacks a number or a time")
        age_ns = self._clock.now_ns() - host_ns
        if not 0 <= age_ns <= FRESH_NS:
            raise _refused(cmd, f"it was signed {age_ns / SECOND_NS:.0f} s ago, and is good for 30 s")
        used = {known: at for known, at in self._known().items() if self._clock.now_ns() - at <= FRESH_NS}
        if nonce in used or len(used) >= _MOST_USED:
            raise _refused(cmd, "it was used before")
        used[nonce] = host_ns
        self._write(used)
        self._used = used

    def _known(self) -> dict[str, int]:
        if self._used is None:
            try:
                self._used = {
                    str(nonce): int(at) for nonce, at in json.loads(self._path.read_bytes()).items()
                }
            except FileNotFoundError:
                self._used = {}
            except (OSError, ValueError, AttributeError, TypeError, RecursionError) as err:
                raise ConfigError(
                    f"{self._path} cannot be read, so that a command could be used twice: {err}; remove it, or "
                    "start a new session"
                ) from err
        return self._used

    def _write(self, used: Mapping[str, int]) -> None:
        partial = self._path.with_name(f".{_USED_FILE}")
        try:
            partial.write_text(json.dumps(used))
            partial.replace(self._path)
        except OSError as err:
            raise ConfigError(
                f"{self._path} cannot be written, so that a command could be used twice: {err}"
            ) from err


def _refused(cmd: str, why: str) -> ConsentError:
    said = "start --despite-calibration" if cmd == "start" else cmd
    return ConsentError(
        f"{said} is refused: {why}. Let an operator of this machine say it with `sensorium {said}`, which signs it "
        "with the operator's key (`sensorium keys show`)"
    )
