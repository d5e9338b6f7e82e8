"""The word of a key about its successor: how other machines that trust the one come to trust the other.

Signed by the old key, and in it the new key's own word, so that nobody has a key of somebody else called theirs. It
lists what the old key signed: nothing else of it counts from then on.
"""

import base64
import binascii
from dataclasses import dataclass

from sensorium.errors import TrustError
from sensorium.sync.trust.documents import open_document, peek_document, sign_document
from sensorium.sync.trust.dsse import is_signed
from sensorium.sync.trust.keys import Role, SigningKey
from sensorium.sync.trust.signatures import DIGEST_BYTES

_KIND = "rotation"
MOST_BYTES = 64 << 20
"""Of a document: a million and a half signatures."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A key that took the place of another.

    Attributes:
        signed: SHA-256 of each envelope that the old key signed, one after the other.
    """

    old: bytes
    new: bytes
    role: Role
    at_utc_ns: int
    signed: bytes


def pack_rotation(rotation: Rotation, old: SigningKey, new: SigningKey) -> bytes:
    """Return the signed document."""
    accepted = new.sign_detached(_acceptance(rotation.old, rotation.new))
    document = {
        "v": 1,
        "old": rotation.old.hex(),
        "new": rotation.new.hex(),
        "role": rotation.role.value,
        "at": rotation.at_utc_ns,
        "signed": base64.b64encode(rotation.signed).decode(),
        "accepted": accepted.hex(),
    }
    return sign_document(document, old, _KIND)


def read_rotation(data: bytes) -> Rotation:
    """Return a rotation once both keys' words were checked; whether the old one's counts is for whoever asks.

    Raises:
        TrustError: If it is none, or either key did not sign it.
    """
    if len(data) > MOST_BYTES:
        raise TrustError(f"a rotation has at most {MOST_BYTES} bytes, found {len(data)}")
    try:
        old = bytes.fromhex(str(peek_document(data)["old"]))
        found, _ = open_document(data, _KIND, [old])
        new, accepted = bytes.fromhex(found["new"]), bytes.fromhex(found["accepted"])
        signed = base64.b64decode(found["signed"], validate=True)
        rotation = Rotation(old, new, Role(found["role"]), int(found["at"]), signed)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as err:
        raise TrustError(f"it is no rotation of a key: {err}") from err
    if len(signed) % DIGEST_BYTES or old == new or not is_signed(_acceptance(old, new), accepted, new):
        raise TrustError("it is no rotation of a key: the new key did not agree to it, or it is damaged")
    return rotation


def _acceptance(old: bytes, new: bytes) -> bytes:
    return b"sensorium rotation v1 " + old + new
