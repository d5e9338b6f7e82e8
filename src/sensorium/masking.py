"""The one place that keeps secrets out of what we write: logins in addresses, passwords and tokens in options.

An address is masked generously: a label that shows too little costs nothing. What connects uses
:func:`split_login`, which reads an address as RFC 3986 does and forgives a login that was not percent-encoded.
"""

import atexit
import base64
import contextlib
import faulthandler
import os
import re
import select
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
_LEAST_SECRET, _LEAST_PART = 3, 4
"""Shorter texts are masked where they stand in an address; anywhere else they would blot out every text."""

_SECRET = "pass|pwd|psw|pw|token|secret|auth|key|sig|cred|session|jwt|bearer|login"
_WHO = "user|usr|account|email"
_END = r"[^&;#\s\"<>]"
_PAIR = re.compile(rf"([\w.%~-]*(?:{_SECRET}|{_WHO})[\w.%~-]*)=({_END}*)", re.IGNORECASE)
_SECRET_PAIR = re.compile(rf"(?=((?:{_SECRET})[a-z0-9]*)=({_END}+))", re.IGNORECASE)
_NEXT_PAIR = re.compile(r"[_/?,]\w+=.*")
"""What some recorders put behind a value: ``user=admin_password=...`` in the path, without any ``&``."""
_OPTION = re.compile(r"pass|pwd|token|secret|credential|api_?key|access_?key|auth(?!or)", re.IGNORECASE)
_HOST = r"(?:\[[0-9a-fA-F:.%]+\]|[\w.-]+)"
_PLAIN_AUTHORITY = re.compile(rf"{_HOST}?(?::\d*)?")
_FAR_HOST = re.compile(
    r"(?:\[[0-9a-fA-F:.%]+\]|\d+(?:\.\d+){3}|localhost|[\w.-]+(?=:\d)|[\w-]+(?:\.[\w-]+)*\.[a-z]{2,})(?::\d+)?(?=[/?#]|$)"
)
_QUERY = re.compile(r"[?&;][\w.%~-]+=")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"<>]+")
_HEADER = re.compile(r"((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)[^\r\n'\"]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in; both parts decoded. ``password`` is None where the address names only a user."""

    user: str
    password: str | None


def split_login(address: str) -> tuple[str, Login | None]:
    """Return an address without its login, and the login.

    ``@``, ``/``, ``?`` and ``#`` in a password may stand as they are: where the part before the first of them is no
    host, or a host follows a later ``@``, the login reaches that far.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address, None
    at = _login_end(rest)
    if at < 0:
        return address, None
    user, colon, password = rest[:at].partition(":")
    return f"{scheme}://{rest[at + 1 :]}", Login(unquote(user), unquote(password) if colon else None)


def with_login(address: str, login: Login) -> str:
    """Return an address without login with one, percent-encoded, as programs want it that parse strictly."""
    scheme, separator, rest = address.partition("://")
    password = "" if login.password is None else ":" + quote(login.password, safe="")
    return f"{scheme}{separator}{quote(login.user, safe='')}{password}@{rest}"


def _login_end(rest: str) -> int:
    """Return where the ``@`` behind the login stands in what follows ``://``; -1 without one."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    near = authority.rfind("@")
    if near >= 0 and _PLAIN_AUTHORITY.fullmatch(authority[near + 1 :]) and not _is_cut(rest, near):
        return near
    if near < 0 and _PLAIN_AUTHORITY.fullmatch(authority) and not _is_cut(rest, -1):
        return -1
    ends = [match.start() for match in re.finditer("@", rest)]
    likely = [at for at in ends if _FAR_HOST.match(rest, at + 1)]
    return (likely or ends or [-1])[-1]


def _is_cut(rest: str, near: int) -> bool:
    """Return whether the authority is the head of a longer login: a far ``@`` has a plain host behind it."""
    head = rest[near + 1 :]
    path = _QUERY.split(head, maxsplit=1)[0]
    return any(_FAR_HOST.match(head, match.end()) for match in re.finditer("@", path))


def _last_at(rest: str) -> int:
    """Return where the last ``@`` stands that is in no value of a query; -1 without one."""
    return _QUERY.split(rest, maxsplit=1)[0].rfind("@")


def masked_address(address: str) -> str:
    """Return an address as it may be shown: login and the values of secret keys replaced by ``***``."""
    bare, login = split_login(address)
    scheme, separator, rest = bare.partition("://")
    far = _last_at(rest) if separator else -1
    if far >= 0:  # a login all the same, for all we know
        rest, login = rest[far + 1 :], Login("", "")
    rest = _PAIR.sub(rf"\1={MASK}", rest)
    shown = f"{scheme}{separator}{MASK}@{rest}" if login is not None else f"{scheme}{separator}{rest}"
    return _without(shown, _of_address(address))


def masked(text: str, secrets: Collection[str] = ()) -> str:
    """Return a text with every address in it masked, authorization headers cut, and ``secrets`` replaced."""
    text = _without(text, secrets)
    if "://" in text:
        text = _ADDRESS.sub(_masked_in_text, text)
    return _HEADER.sub(rf"\1{MASK}", text)


def _masked_in_text(found: re.Match[str]) -> str:
    address = found[0].rstrip("'`)]},.;:!")
    return masked_address(address) + found[0][len(address) :]


def masked_document(value: Any) -> Any:
    """Return nested options as they may be written to a file: strings masked, values of secret keys ``***``."""
    if isinstance(value, Mapping):
        return {
            key: MASK
            if _OPTION.search(str(key)) and isinstance(found, str | int) and not isinstance(found, bool)
            else masked_document(found)
            for key, found in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked_document(found) for found in value]
    if not isinstance(value, str):
        return value
    return masked_address(value) if "://" in value else value


def secrets_of(value: Any) -> frozenset[str]:
    """Return what must be shown nowhere of nested options: passwords and tokens in every form they may turn up in."""
    if isinstance(value, Mapping):
        found: set[str] = set()
        for key, each in value.items():
            if _OPTION.search(str(key)) and isinstance(each, str | int) and not isinstance(each, bool):
                found |= _forms(str(each))
            found |= secrets_of(each)
        return frozenset(found)
    if isinstance(value, list | tuple):
        return frozenset(secret for each in value for secret in secrets_of(each))
    return _of_address(value) if isinstance(value, str) and "://" in value else frozenset()


def _of_address(address: str) -> frozenset[str]:
    found: set[str] = set()
    for text in {address, unquote(address)}:  # an address may lie in the query of another
        for start in re.finditer("://", text):
            rest = text[start.end() :]
            _, login = split_login("x://" + rest)
            if login is not None:
                found |= _forms(login.user if login.password is None else login.password)
                found.add(base64.b64encode(f"{login.user}:{login.password or ''}".encode()).decode())
            found |= _forms(rest[: max(_last_at(rest), 0)].partition(":")[2])
        for pair in _SECRET_PAIR.finditer(text):
            found |= _forms(pair[2]) | _forms(_NEXT_PAIR.sub("", pair[2]))
    return frozenset(found)


def _forms(secret: str) -> set[str]:
    """Return a secret as written, decoded and encoded, and its parts: libraries cut it where it looks like syntax."""
    plain = unquote(secret)
    parts = {part for text in (secret, plain) for part in re.split(r"[@/:?#&=\s]", text)}
    whole = {secret, plain, quote(plain, safe=""), quote(plain), quote_plus(plain)}
    whole |= {re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), each) for each in whole}
    long = {each for each in whole if len(each) >= _LEAST_SECRET}
    return (long | {each for each in parts if len(each) >= _LEAST_PART}) - {MASK}


def _without(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


# -- what libraries print by themselves


class MaskedOutput:
    """Lets what this process prints, its C libraries included, pass through :func:`masked` line by line.

    FFmpeg and OpenCV write addresses to file descriptor 2. A crash's traceback goes past it: it holds no values.
    """

    _IDLE_S = 0.5
    """A line that nobody ends is shown after so long."""

    def __init__(self, secrets: Collection[str]) -> None:
        self._secrets = frozenset(secrets)
        self._reader, writer = os.pipe()
        self._target = os.dup(2)
        for descriptor in (1, 2):
            os.dup2(writer, descriptor)
        os.close(writer)
        if faulthandler.is_enabled():
            faulthandler.enable(self._target)
        self._thread = threading.Thread(target=self._pass_on, name="masked-output", daemon=True)
        self._thread.start()

    @classmethod
    def begin(cls, secrets: Collection[str]) -> None:
        """Mask what this process prints until it ends; nothing changes where there is no secret.

        Standard output joins standard error, which is one log in the processes that this is for.
        """
        if secrets:
            atexit.register(cls(secrets).close)

    def close(self) -> None:
        """Give the descriptors back; what was printed before is through."""
        for descriptor in (1, 2):
            os.dup2(self._target, descriptor)
        self._thread.join(timeout=2.0)

    def _pass_on(self) -> None:
        held = b""
        while True:
            is_idle = bool(held) and not select.select([self._reader], [], [], self._IDLE_S)[0]
            chunk = b"" if is_idle else os.read(self._reader, 1 << 16)
            is_over = not chunk and not is_idle
            lines, end, held = (held + chunk).rpartition(b"\n")
            if is_idle or is_over or len(held) > 1 << 16:
                lines, end, held = lines + end + held, b"", b""
            self._write(lines + end)
            if is_over:
                return

    def _write(self, data: bytes) -> None:
        if not data:
            return
        text = masked(data.decode("utf-8", "surrogateescape"), self._secrets)
        rest = text.encode("utf-8", "surrogateescape")
        with contextlib.suppress(OSError):  # a full disk ends no recording
            while rest:
                rest = rest[os.write(self._target, rest) :]
