"""The device key and DSSE envelopes (https://github.com/secure-systems-lab/dsse, protocol version 1.0)."""

import base64
import binascii
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sensorium.errors import EpisodeError
from sensorium.sync.episode.spool import write_durably

KEY_FILE = "device.ed25519"
PUBLIC_KEY_FILE = "device.ed25519.pub"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """The key that says "this device sealed it"; it proves origin and integrity, not truth of capture."""

    private: Ed25519PrivateKey

    @property
    def public(self) -> bytes:
        """The raw 32 bytes of the public key."""
        return self.private.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        return key_id(self.public)

    def sign(self, payload: bytes) -> bytes:
        """Return the DSSE envelope of ``payload`` as canonical JSON."""
        return _envelope(payload, self.key_id, self.private.sign(_pae(payload)))


def key_id(public: bytes) -> str:
    """Return the SHA-256 of a raw public key in hex."""
    return hashlib.sha256(public).hexdigest()


def device_key(folder: Path) -> DeviceKey:
    """Return the device key in ``folder``, made on first use (mode 0600) with the public key beside it.

    Raises:
        EpisodeError: If the key file is damaged or readable by others.
    """
    path = folder / KEY_FILE
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = Ed25519PrivateKey.generate()
        write_durably(path, private.private_bytes_raw())
        write_durably(
            folder / PUBLIC_KEY_FILE, private.public_key().public_bytes_raw().hex().encode() + b"\n", 0o644
        )
        return DeviceKey(private)
    if path.stat().st_mode & 0o077:
        raise EpisodeError(
            f"device key {path} is readable by others (mode {path.stat().st_mode & 0o777:o}); chmod 600 it"
        )
    data = path.read_bytes()
    if len(data) != _KEY_BYTES:
        raise EpisodeError(
            f"device key {path} has {len(data)} bytes, expected {_KEY_BYTES}; restore it from a backup"
        )
    return DeviceKey(Ed25519PrivateKey.from_private_bytes(data))


def known_key(folder: Path) -> bytes | None:
    """Return the raw public key of the device that signs in ``folder``; None where nothing was signed yet.

    It makes nothing: a key is born where something is signed.

    Raises:
        EpisodeError: If what is there is no key.
    """
    path = folder / PUBLIC_KEY_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        return device_key(folder).public if (folder / KEY_FILE).exists() else None
    except (OSError, UnicodeDecodeError) as err:
        raise EpisodeError(f"device key {path} cannot be read: {err}") from err
    try:
        public = bytes.fromhex(text)
    except ValueError:
        public = b""
    if len(public) != _KEY_BYTES:
        raise EpisodeError(f"{path} holds no public key; remove it: {KEY_FILE} beside it holds it too")
    return public


def open_envelope(data: bytes, public: bytes) -> bytes:
    """Return the payload of an envelope signed with ``public``.

    Raises:
        EpisodeError: If it is not the canonical envelope of its payload, or the signature does not match.
    """
    payload, found_id, signature = _split(data)
    if found_id != key_id(public):
        raise EpisodeError(f"signed by key {found_id[:16]}, expected {key_id(public)[:16]}")
    if data != _envelope(payload, found_id, signature):
        raise EpisodeError("the envelope is not in canonical form; it was changed after signing")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _pae(payload))
    except (InvalidSignature, ValueError) as err:
        raise EpisodeError("the signature does not match the contents") from err
    return payload


def peek_payload(data: bytes) -> bytes:
    """Return the payload before its signature is checked, to learn which key it claims."""
    return _split(data)[0]


def choose_key(claimed: bytes, trusted: Collection[bytes] | None) -> bytes:
    """Return the key to check with: the one that a document claims, if it is trusted.

    With ``trusted`` None any key will do: that proves integrity since signing, not who signed.
    """
    if trusted is not None and claimed not in trusted:
        raise EpisodeError(f"key {key_id(claimed)[:16]} is not one of the {len(trusted)} trusted device keys")
    return claimed


def _pae(payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d " % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload)) + payload


def _envelope(payload: bytes, signer: str, signature: bytes) -> bytes:
    document = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
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
        raise EpisodeError(f"it is not a DSSE envelope: {err}") from err
