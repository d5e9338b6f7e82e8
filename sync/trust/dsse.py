"""DSSE envelopes (https://github.com/secure-systems-lab/dsse, protocol version 1.0) with one ed25519 signature."""

import base64
import binascii
import hashlib
import json
from collections.abc import Collection

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sensorium.errors import TrustError

STATEMENT_TYPE = "application/vnd.in-toto+json"
"""Payload type of a manifest."""


def key_id(public: bytes) -> str:
    """Return the SHA-256 of a raw public key in hex."""
    return hashlib.sha256(public).hexdigest()


def seal_envelope(payload: bytes, private: Ed25519PrivateKey, payload_type: str = STATEMENT_TYPE) -> bytes:
    """Return the envelope of ``payload`` as canonical JSON."""
    signer = key_id(private.public_key().public_bytes_raw())
    return _envelope(payload, signer, private.sign(_pae(payload, payload_type)), payload_type)


def open_envelope(data: bytes, public: bytes, payload_type: str = STATEMENT_TYPE) -> bytes:
    """Return the payload of an envelope signed with ``public``.

    Raises:
        TrustError: If it is not the canonical envelope of its payload, or the signature does not match.
    """
    payload, found_id, signature = _split(data)
    if found_id != key_id(public):
        raise TrustError(f"signed by key {found_id[:16]}, expected {key_id(public)[:16]}")
    if data != _envelope(payload, found_id, signature, payload_type):
        raise TrustError("the envelope is not in canonical form; it was changed after signing")
    if not is_signed(_pae(payload, payload_type), signature, public):
        raise TrustError("the signature does not match the contents")
    return payload


def is_signed(data: bytes, signature: bytes, public: bytes) -> bool:
    """Return whether ``signature`` is that of ``data`` by a raw public key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def peek_payload(data: bytes) -> bytes:
    """Return the payload before its signature is checked, to learn which key it claims.

    Raises:
        TrustError: If it is not an envelope.
    """
    return _split(data)[0]


def signer_of(data: bytes) -> str:
    """Return the id of the key that an envelope claims to be signed with.

    Raises:
        TrustError: If it is not an envelope.
    """
    return _split(data)[1]


def choose_key(claimed: bytes, trusted: Collection[bytes] | None) -> bytes:
    """Return the key to check with: the one that a document claims, if it is trusted.

    With ``trusted`` None any key will do: that proves integrity since signing, not who signed.

    Raises:
        TrustError: If it is not trusted.
    """
    if trusted is not None and claimed not in trusted:
        raise TrustError(f"key {key_id(claimed)[:16]} is not one of the {len(trusted)} trusted device keys")
    return claimed


def _pae(payload: bytes, payload_type: str) -> bytes:
    return b"DSSEv1 %d %s %d " % (len(payload_type), payload_type.encode(), len(payload)) + payload


def _envelope(payload: bytes, signer: str, signature: bytes, payload_type: str) -> bytes:
    document = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": signer, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _split(data: bytes) -> tuple[bytes, str, bytes]:
    try:
        document = json.loads(data)
        (signature,) = document["signatures"]
        payload = base64.b64decode(document["payload"], validate=True)
        return payload, str(signature["keyid"]), base64.b64decode(signature["sig"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as err:
        raise TrustError(f"it is not a DSSE envelope: {err}") from err
