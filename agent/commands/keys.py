"""What `sensorium keys` does; each function returns an exit code."""

from pathlib import Path
from typing import Any

from sensorium.agent.commands.output import print_json, say
from sensorium.errors import UsageError
from sensorium.sync.consent.grants import format_utc
from sensorium.sync.episode.manifest import read_seal
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.record import TrustedKey
from sensorium.sync.trust.rotation import MOST_BYTES
from sensorium.sync.trust.store import TrustStore

_PUBLIC_DIGITS = 64


def make_keys(as_json: bool) -> int:
    """Make what is missing of this machine's keys, and list all.

    Raises:
        TrustError: If they cannot be made, or those that are there are damaged.
    """
    store = TrustStore(key_home())
    for role in Role:
        store.own(role)
    return show_keys(as_json)


def show_keys(as_json: bool) -> int:
    """List the keys that are known here.

    Raises:
        TrustError: If the trust store was changed or cannot be read.
    """
    home = key_home()
    found = TrustStore(home).entries()
    if as_json:
        print_json({"home": str(home), "keys": [_row(key) for key in found]})
        return 0
    for key in found:
        say(_sentence(key))
    if not found:
        say("no key was made yet; `sensorium keys init` makes them, and so does the first use of each")
    return 0


def enroll_key(public: str, role: str, name: str, as_json: bool) -> int:
    """Let a key count from now on.

    Raises:
        UsageError: If it is no key, or there is no such role.
        TrustError: If it is known already.
    """
    store = TrustStore(key_home())
    rotation = _rotation(public)
    if rotation is not None:
        return _tell(store.enroll_rotation(rotation), "takes the place of the key before it", as_json)
    if not name.strip():
        raise UsageError("say whose key it is with --name")
    return _tell(store.enroll(_public_key(public), _role(role), name), "enrolled", as_json)


def trust_signer(episode: str, name: str, as_json: bool) -> int:
    """Enroll the key that signed an episode; of this machine's own, accept that the trust store it knew is lost.

    Raises:
        EpisodeError: If it is no sealed episode, or was changed since.
        TrustError: If the key is known already.
    """
    manifest = read_seal(Path(episode))
    store = TrustStore(key_home())
    public, there = bytes.fromhex(manifest.device_public_key), manifest.trust
    own = next((key for key in store.entries() if key.raw == public and key.is_own), None)
    if own is not None and there.seq and not store.record().knows(there.seq, there.head):
        store.accept_version(there.head)
        return _tell(own, f"trusted without version {there.seq} of the trust store", as_json)
    return _tell(store.enroll(public, Role.DEVICE, name), "enrolled", as_json)


def rotate_key(role: str, as_json: bool) -> int:
    """Replace a key of this machine.

    Raises:
        UsageError: If there is no such role.
        TrustError: If the new key cannot be written down.
    """
    store = TrustStore(key_home())
    key = store.rotate(_role(role))
    old = next(
        (each for each in reversed(store.entries()) if each.is_own and each.until_utc_ns == key.from_utc_ns),
        None,
    )
    path = None if old is None or old.revoked else store.rotation_path(old)
    if as_json:
        print_json({**_row(key), "rotation": None if path is None else str(path)})
    else:
        say(f"signs from now on: {_sentence(key)}")
        if path is not None:
            say(f"machines that trust the one before take it over with: sensorium keys enroll {path}")
    return 0


def revoke_key(key_id: str, reason: str, as_json: bool) -> int:
    """Let nothing count that a key signed.

    Raises:
        UsageError: If no reason is given.
        TrustError: If no key's id, or more than one, begins so.
    """
    if not reason.strip():
        raise UsageError("a key is revoked for a reason: say it with --reason")
    return _tell(TrustStore(key_home()).revoke(key_id, reason.strip()), "revoked", as_json)


def _tell(key: TrustedKey, what: str, as_json: bool) -> int:
    if as_json:
        print_json(_row(key))
    else:
        say(f"{what}: {_sentence(key)}")
    return 0


def _row(key: TrustedKey) -> dict[str, Any]:
    until = None if key.until_utc_ns is None else format_utc(key.until_utc_ns)
    return {
        "key_id": key.key_id,
        "public": key.public,
        "role": key.role.value,
        "name": key.name,
        "own": key.is_own,
        "until": until,
        "revoked": key.revoked,
    }


def _sentence(key: TrustedKey) -> str:
    state = ""
    if key.revoked:
        state = f", revoked: {key.revoked}"
    elif key.until_utc_ns is not None:
        state = f", replaced at {format_utc(key.until_utc_ns)}"
    return f"{key.key_id[:16]}  {key.role.value:9}  {key.name}{state}  (public key {key.public})"


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError as err:
        raise UsageError(f"{name!r} is no role; one of {', '.join(role.value for role in Role)}") from err


def _rotation(said: str) -> bytes | None:
    """Return the file of that name, if it holds a document rather than a key."""
    path = Path(said)
    try:
        if len(said) == _PUBLIC_DIGITS or not path.is_file():
            return None
        with path.open("rb") as file:
            found = file.read(MOST_BYTES + 1)
    except OSError as err:
        raise UsageError(f"{said} cannot be read: {err.strerror}") from err
    return found if found.lstrip().startswith(b"{") else None


def _public_key(said: str) -> bytes:
    """Return the key that was said, or that a file of that name holds.

    Raises:
        UsageError: If it is none.
    """
    text = said
    if len(said) != _PUBLIC_DIGITS and Path(said).is_file():
        text = Path(said).read_text(errors="replace").strip()
    try:
        public = bytes.fromhex(text)
    except ValueError:
        public = b""
    if 2 * len(public) != _PUBLIC_DIGITS:
        raise UsageError(
            f"{said!r} is no public key ({_PUBLIC_DIGITS} hex digits), nor a file that holds one; on the other "
            "machine `sensorium keys show` prints it"
        )
    return public
