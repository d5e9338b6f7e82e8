"""Answers the login that a camera's web server asks for: Digest where it offers it, else Basic.

Source: RFC 7616 (Digest; with qop, and without it as in RFC 2069, which old cameras speak), RFC 7617 (Basic).
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sensorium.masking import Login

_HASHES = {"SHA-256": "sha256", "SHA-512-256": "sha512_256", "MD5": "md5"}
"""Digest algorithms, the strongest first."""
_WORD = re.compile(r'\s*,?\s*([A-Za-z0-9_*-]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]+))?')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to log in that a server offers; names of schemes and parameters in small letters."""

    scheme: str
    fields: dict[str, str]


def challenges(headers: Sequence[str]) -> list[Challenge]:
    """Return what the values of ``WWW-Authenticate`` headers offer; one may hold several, separated by commas."""
    found: list[Challenge] = []
    for header in headers:
        for name, value in _words(header):
            if value is None:
                found.append(Challenge(name.lower(), {}))
            elif found:
                found[-1].fields[name.lower()] = value
    return found


def _words(header: str) -> Iterator[tuple[str, str | None]]:
    at = 0
    while (word := _WORD.match(header, at)) is not None and word.end() > at:
        at = word.end()
        value = word[2]
        if value is not None and value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        yield word[1], value


def authorization(
    offered: Sequence[Challenge], login: Login, method: str, uri: str, cnonce: str = ""
) -> str | None:
    """Return the ``Authorization`` header that answers the best of the challenges; None if none is known.

    A server that offers nothing, as some cameras do, gets Basic.

    Args:
        uri: Path and query exactly as requested.
        cnonce: Our own number used once; by chance unless given.
    """
    digests = [each for each in offered if each.scheme == "digest" and _hash_name(each) is not None]
    if digests:
        order = list(_HASHES)
        best = min(digests, key=lambda each: order.index(_algorithm(each)))
        return _digest(best.fields, login, method, uri, cnonce or secrets.token_hex(8))
    if not offered or any(each.scheme == "basic" for each in offered):
        return "Basic " + base64.b64encode(f"{login.user}:{login.password or ''}".encode()).decode()
    return None


def _algorithm(challenge: Challenge) -> str:
    return challenge.fields.get("algorithm", "MD5").upper().removesuffix("-SESS")


def _hash_name(challenge: Challenge) -> str | None:
    name = _HASHES.get(_algorithm(challenge))
    return name if name in hashlib.algorithms_available else None


def _digest(fields: dict[str, str], login: Login, method: str, uri: str, cnonce: str) -> str:
    name = _HASHES[_algorithm(Challenge("digest", fields))]

    def digest(*parts: str) -> str:
        return hashlib.new(name, ":".join(parts).encode(), usedforsecurity=False).hexdigest()

    realm, nonce, count = fields.get("realm", ""), fields.get("nonce", ""), "00000001"
    who = digest(login.user, realm, login.password or "")
    if fields.get("algorithm", "").lower().endswith("-sess"):
        who = digest(who, nonce, cnonce)
    ways = [way.strip().lower() for way in fields.get("qop", "").split(",") if way.strip()]
    way = "auth" if "auth" in ways or not ways else ways[0]
    what = digest(method, uri, digest("")) if way == "auth-int" else digest(method, uri)
    said = {"username": login.user, "realm": realm, "nonce": nonce, "uri": uri}
    if ways:
        said["response"] = digest(who, nonce, count, cnonce, way, what)
    else:
        said["response"] = digest(who, nonce, what)
    if "opaque" in fields:
        said["opaque"] = fields["opaque"]
    quoted = [f'{key}="{_escaped(value)}"' for key, value in said.items()]
    plain = [f"algorithm={fields['algorithm']}"] if "algorithm" in fields else []
    if ways:
        plain += [f"qop={way}", f"nc={count}", f'cnonce="{cnonce}"']
    return ("Digest " + ", ".join([*quoted, *plain])).encode().decode("latin-1")  # http.client sends latin-1


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
