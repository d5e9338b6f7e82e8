"""Small signed documents: receipts, tombstones, anchors, consent states, trust itself; one way for all."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from sensorium.errors import TrustError
from sensorium.sync.trust.dsse import key_id, open_envelope, peek_payload, signer_of
from sensorium.sync.trust.keys import SigningKey
from sensorium.sync.trust.trusted import check_vouched


def sign_document(document: Mapping[str, Any], key: SigningKey, kind: str) -> bytes:
    """Return a JSON document in an envelope signed by ``key``; ``kind`` keeps one from passing for another.

    Raises:
        ValueError: If it holds a number that JSON has no word for.
    """
    payload = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return key.sign(payload, _type_of(kind))


def open_document(data: bytes, kind: str, trusted: Collection[bytes]) -> tuple[dict[str, Any], bytes]:
    """Return a signed document and the raw public key that signed it.

    Args:
        trusted: Raw public keys whose word counts.

    Raises:
        TrustError: If it is no signed document of that kind, was changed, or none of these keys
            signed it, or one that was replaced, later.
    """
    claimed = signer_of(data)
    public = next((public for public in trusted if key_id(public) == claimed), None)
    if public is None:
        raise TrustError(f"it is signed by key {claimed[:16]}, which is not trusted here")
    found = _parse(open_envelope(data, public, _type_of(kind)))
    check_vouched(trusted, public, data)
    return found, public


def peek_document(data: bytes) -> dict[str, Any]:
    """Return what a document says, whoever signed it; nothing of it is proven.

    Raises:
        TrustError: If it is no signed document.
    """
    return _parse(peek_payload(data))


def _type_of(kind: str) -> str:
    return f"application/vnd.sensorium.{kind}+json"


def _parse(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as err:
        raise TrustError(f"it holds no JSON: {err}") from err
    if not isinstance(document, dict):
        raise TrustError(f"it holds a {type(document).__name__}, not a document")
    return document
