"""Keys whose word counts, and of replaced ones, which words: a former key signs nothing new, whatever its date."""

from collections.abc import Callable, Collection, Iterable

from sensorium.errors import TrustError


class TrustedKeys(frozenset[bytes]):
    """Raw public keys whose word counts; of one that was replaced, only what it is known to have signed until then."""

    _objection: Callable[[bytes, bytes], str]

    def __new__(cls, keys: Iterable[bytes], objection: Callable[[bytes, bytes], str]) -> "TrustedKeys":
        """``objection(public, signed)`` returns why a signed document of one of them does not count; "" if it does."""
        made = super().__new__(cls, keys)
        made._objection = objection
        return made

    def with_key(self, public: bytes) -> "TrustedKeys":
        """Return these and another one, of which everything counts."""
        return TrustedKeys(
            self | {public}, lambda key, signed: self._objection(key, signed) if key in self else ""
        )

    def objection(self, public: bytes, signed: bytes) -> str:
        return self._objection(public, signed)


def with_key(trusted: frozenset[bytes], public: bytes) -> frozenset[bytes]:
    """Return the keys and another one; of one that is among them no more counts than before."""
    if public in trusted:
        return trusted
    return trusted.with_key(public) if isinstance(trusted, TrustedKeys) else trusted | {public}


def check_vouched(trusted: Collection[bytes] | None, public: bytes, signed: bytes) -> None:
    """Refuse what a replaced key signed later: it may be stolen, and writes any date.

    Raises:
        TrustError: If nobody knows that it was signed while the key was in use.
    """
    if isinstance(trusted, TrustedKeys) and (why := trusted.objection(public, signed)):
        raise TrustError(why)
