"""Episode ids: ULIDs, sortable by the time they were made."""

import re
import secrets

from sensorium.errors import EpisodeError

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_last = 0


def new_ulid(utc_ns: int) -> str:
    """Return a new id for this instant, greater than every one this process made before."""
    global _last
    value = (max(utc_ns, 0) // 1_000_000 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    _last = max(value, _last + 1)
    return "".join(_ALPHABET[_last >> shift & 31] for shift in range(125, -1, -5))


def utc_ns_of(ulid: str) -> int:
    """Return when an id was made, in UTC nanoseconds, to the millisecond.

    Raises:
        EpisodeError: If it is none.
    """
    if not ULID.fullmatch(ulid):
        raise EpisodeError(f"{ulid!r} is no episode id")
    value = 0
    for sign in ulid:
        value = value << 5 | _ALPHABET.index(sign)
    return (value >> _RANDOM_BITS) * 1_000_000
