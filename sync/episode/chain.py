"""Seals an episode, and links it to the one that this device sealed before, so that none can be taken out unseen."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.files import BESIDE_THE_SEAL, MANIFEST_FILE, is_litter, is_scratch
from sensorium.sync.episode.manifest import (
    Manifest,
    TrustPoint,
    dump_manifest,
    hash_file,
    manifest_digest,
    read_manifest,
)
from sensorium.sync.episode.spool import Spool, sync_folder, write_durably
from sensorium.sync.episode.ulid import ULID, new_ulid
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import Role, SigningKey
from sensorium.sync.trust.store import TrustStore, signing_key
from sensorium.timebase import HostClock

_CHAIN, _POINTER = "chain", "chain-folder"
_NO_LINK = {"chain": "", "episode": "", "head": "", "prev": ""}


def seal(open_folder: Path, manifest: Manifest) -> Path:
    """Hash, sign and move an episode to ``sealed/``; return its new folder.

    Every file is synced before the manifest, the manifest before the rename, so that a power cut
    leaves either an open episode or a whole sealed one. Safe to repeat after a crash.

    Raises:
        EpisodeError: If the disk does not take it; the episode stays open.
    """
    spool = Spool.of(open_folder)
    spool.create()
    key = _device_key(open_folder)
    names = [
        path
        for path in sorted(open_folder.iterdir())
        if path.is_file() and path.name not in BESIDE_THE_SEAL and not is_litter(path.name)
    ]
    try:
        for path in names:
            _sync_file(path)
        chain = _chain_of(spool)
        previous = chain["prev"] if chain["episode"] == manifest.episode_id else chain["head"]
        record = TrustStore(key_home()).record()
        complete = replace(
            manifest,
            files=tuple(hash_file(path) for path in names),
            device_public_key=key.public.hex(),
            prev_manifest=previous,
            trust=TrustPoint(record.seq, record.head),
        )
        envelope = key.sign(dump_manifest(complete))
        write_durably(open_folder / MANIFEST_FILE, envelope)
        _link(spool, manifest.episode_id, blake3(envelope).hexdigest(), previous, chain["chain"])
        return _move_to_sealed(spool, open_folder, manifest.episode_id)
    except TrustError as err:
        raise EpisodeError(f"{open_folder} cannot be sealed: {err}") from err
    except OSError as err:
        raise EpisodeError(f"{open_folder} cannot be sealed: {err.strerror}") from err


def _device_key(open_folder: Path) -> SigningKey:
    try:
        return signing_key(Role.DEVICE)
    except TrustError as err:
        raise EpisodeError(f"{open_folder} cannot be sealed: {err}") from err


def finish_seal(open_folder: Path) -> Path:
    """Move an episode that was signed but not yet moved when the agent died; return its new folder.

    Raises:
        EpisodeError: If its manifest does not check out or it cannot be moved.
    """
    spool = Spool.of(open_folder)
    manifest = read_manifest(open_folder)
    chain = _chain_of(spool)
    if chain["episode"] != manifest.episode_id:
        head = manifest_digest(open_folder)
        _link(spool, manifest.episode_id, head, manifest.prev_manifest, chain["chain"])
    try:
        return _move_to_sealed(spool, open_folder, manifest.episode_id)
    except OSError as err:
        raise EpisodeError(f"{open_folder} cannot be sealed: {err.strerror}") from err


def _link(spool: Spool, episode_id: str, head: str, previous: str, chain_id: str) -> None:
    """Note which manifest was signed last: for the next one in the spool, for whoever verifies with the keys."""
    link = {"chain": chain_id, "episode": episode_id, "head": head, "prev": previous}
    write_durably(spool.chain_file, json.dumps(link).encode())
    try:
        # Nobody but this machine believes these notes: they need not be among what its key is known to have signed.
        anchor, key = _anchor(chain_id), TrustStore(key_home()).ring.signing_key(Role.DEVICE)
        anchor.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(anchor, sign_document(link, key, _CHAIN))
        if _pointed(spool) != chain_id:
            write_durably(_pointer(spool), sign_document({"chain": chain_id}, key, _POINTER))
    except (TrustError, OSError) as err:
        raise EpisodeError(f"the end of the chain of {spool.root} cannot be noted: {err}") from err


def _anchor(chain_id: str) -> Path:
    """Return where this machine notes the end of a chain: by its own name, because a spool is moved and copied."""
    return key_home() / "chains" / f"{chain_id}.json"


def _pointer(spool: Spool) -> Path:
    """Return where this machine notes which chain it wrote last in a folder: one that is gone from there is missed."""
    name = hashlib.sha256(str(spool.root.resolve()).encode()).hexdigest()[:32]
    return key_home() / "chains" / f"{name}.spool"


def _anchored(chain_id: str) -> dict[str, str]:
    """Return the end of a chain by this machine's word; nothing is said of one that it never wrote.

    Raises:
        EpisodeError: If the note cannot be read or was changed.
    """
    if not chain_id:
        return dict(_NO_LINK)
    try:
        found, _ = open_document(_anchor(chain_id).read_bytes(), _CHAIN, _own_keys())
        return {name: str(found[name]) for name in _NO_LINK}
    except FileNotFoundError:
        return dict(_NO_LINK)
    except (TrustError, OSError, KeyError) as err:
        raise EpisodeError(f"where chain {chain_id} ends is not known here: {err}") from err


def _chain_of(spool: Spool) -> dict[str, str]:
    """Return the link to seal after: the spool's, or where that was set back, copied or lost, this machine's."""
    here = _read_chain(spool.chain_file)
    chain_id = here["chain"] or _pointed(spool)
    there = _anchored(chain_id)
    if not chain_id:
        return here | {"chain": new_ulid(HostClock().utc_ns())}
    # One that is a step behind was cut off by a crash between the two notes.
    return (
        here | {"chain": chain_id}
        if there["head"] in ("", here["head"], here["prev"]) and here["head"]
        else there
    )


def _pointed(spool: Spool) -> str:
    try:
        found, _ = open_document(_pointer(spool).read_bytes(), _POINTER, _own_keys())
        return str(found["chain"])
    except FileNotFoundError:
        return ""
    except (OSError, KeyError, TrustError) as err:
        raise EpisodeError(f"which chain {spool.root} has is not known here: {err}") from err


def _own_keys() -> list[bytes]:
    """Return every device key of this machine, replaced and revoked ones too: a chain outlives its keys."""
    return [key.raw for key in TrustStore(key_home()).entries() if key.is_own and key.role is Role.DEVICE]


def chain_heads(spool: Spool) -> frozenset[str]:
    """Return the digests of the manifest that was signed last, by the spool's word and by this machine's.

    Raises:
        EpisodeError: If either cannot be read or was changed.
    """
    try:
        TrustStore(key_home()).check_signatures()
    except TrustError as err:
        raise EpisodeError(f"where the chain of {spool.root} ends cannot be told: {err}") from err
    here = _read_chain(spool.chain_file)
    heads = {here["head"]} | {_anchored(each)["head"] for each in {here["chain"], _pointed(spool)}}
    return frozenset(heads - {""})


def _move_to_sealed(spool: Spool, open_folder: Path, episode_id: str) -> Path:
    sealed = spool.sealed_folder(episode_id)
    if sealed.exists():
        raise EpisodeError(f"{sealed} exists already; an episode is never overwritten")
    for scratch in open_folder.iterdir():
        if is_scratch(scratch.name) and not scratch.is_dir():
            scratch.unlink()
    open_folder.rename(sealed)
    sync_folder(spool.sealed_dir)
    sync_folder(spool.open_dir)
    return sealed


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_chain(path: Path) -> dict[str, str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return dict(_NO_LINK)
    try:
        found = json.loads(data)
        link = {name: str(found[name]) for name in _NO_LINK}
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise EpisodeError(
            f"{path} is damaged ({err}); remove it: the chain goes on where this machine knows that it ended"
        ) from err
    if link["chain"] and not ULID.fullmatch(link["chain"]):
        raise EpisodeError(f"{path} names no chain: {link['chain'][:40]!r}; remove it")
    return link
