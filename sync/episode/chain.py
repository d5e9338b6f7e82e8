"""Seals an episode, and links it to the one that this device sealed before, so that none can be taken out unseen."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.files import BESIDE_THE_SEAL, MANIFEST_FILE, is_litter, is_scratch
from sensorium.sync.episode.manifest import Manifest, dump_manifest, hash_file, manifest_digest, read_manifest
from sensorium.sync.episode.spool import Spool, sync_folder, write_durably
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import Role, SigningKey
from sensorium.sync.trust.store import signing_key, trusted_keys

_CHAIN = "chain"


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
        chain = _read_chain(spool.chain_file)
        previous = chain["prev"] if chain["episode"] == manifest.episode_id else chain["head"]
        complete = replace(
            manifest,
            files=tuple(hash_file(path) for path in names),
            device_public_key=key.public.hex(),
            prev_manifest=previous,
        )
        envelope = key.sign(dump_manifest(complete))
        write_durably(open_folder / MANIFEST_FILE, envelope)
        _link(spool, {"episode": manifest.episode_id, "head": blake3(envelope).hexdigest(), "prev": previous})
        return _move_to_sealed(spool, open_folder, manifest.episode_id)
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
    chain = _read_chain(spool.chain_file)
    if chain["episode"] != manifest.episode_id:
        head = manifest_digest(open_folder)
        _link(spool, {"episode": manifest.episode_id, "head": head, "prev": manifest.prev_manifest})
    try:
        return _move_to_sealed(spool, open_folder, manifest.episode_id)
    except OSError as err:
        raise EpisodeError(f"{open_folder} cannot be sealed: {err.strerror}") from err


def _link(spool: Spool, link: dict[str, str]) -> None:
    """Note which manifest was signed last: for the next one in the spool, for whoever verifies with the keys."""
    write_durably(spool.chain_file, json.dumps(link).encode())
    try:
        anchor = _chain_anchor(spool)
        anchor.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(anchor, sign_document(link, signing_key(Role.DEVICE), _CHAIN))
    except (TrustError, OSError) as err:
        raise EpisodeError(f"the end of the chain of {spool.root} cannot be noted: {err}") from err


def _chain_anchor(spool: Spool) -> Path:
    name = hashlib.sha256(str(spool.root.resolve()).encode()).hexdigest()[:32]
    return key_home() / "chains" / f"{name}.json"


def chain_heads(spool: Spool) -> frozenset[str]:
    """Return the digests of the manifest that was signed last, by the spool's word and by this machine's.

    Raises:
        EpisodeError: If either cannot be read or was changed.
    """
    heads = {_read_chain(spool.chain_file)["head"]}
    try:
        path = _chain_anchor(spool)
        if path.exists():
            heads.add(str(open_document(path.read_bytes(), _CHAIN, trusted_keys(Role.DEVICE))[0]["head"]))
    except (TrustError, OSError, KeyError) as err:
        raise EpisodeError(f"where the chain of {spool.root} ends is not known here: {err}") from err
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
    empty = {"episode": "", "head": "", "prev": ""}
    if not path.exists():
        return empty
    try:
        found = json.loads(path.read_bytes())
        return {name: str(found[name]) for name in empty}
    except (ValueError, KeyError, TypeError) as err:
        raise EpisodeError(f"{path} is damaged ({err}); remove it to begin a new chain") from err
