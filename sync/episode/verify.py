"""Proves that a sealed episode is what its device signed, and says who signed it and whether that is anybody known.

Three questions, each with its own answer: is it intact (every file, hash, checksum and count is what the manifest
says), by whom (whose key signed it), and is that one trusted here.
"""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.files import (
    BESIDE_THE_SEAL,
    CONSENT_STATE_FILE,
    MANIFEST_FILE,
    REMAP_FILE,
    SIGNED_RECORDS,
    is_litter,
)
from sensorium.sync.episode.folder import name_in, names_in
from sensorium.sync.episode.manifest import (
    LEAF_BYTES,
    FileRecord,
    Manifest,
    hash_file,
    read_manifest,
    read_seal,
)
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.remapped import check_remap
from sensorium.sync.episode.revisions import revision_files
from sensorium.sync.episode.spool import read_plain
from sensorium.sync.episode.ulid import ULID
from sensorium.sync.trust.documents import open_document
from sensorium.sync.trust.dsse import key_id
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.record import TrustedKey
from sensorium.sync.trust.store import TrustStore, trusted_keys
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "episode_integrity"


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose key signed an episode.

    Attributes:
        key_id: SHA-256 of the public key; "" where the manifest cannot be read.
        name: What this machine knows the key as; "" if it does not.
        distrust: Why its word does not count here; "" if it does.
        is_own: It is or was a key of this machine.
    """

    key_id: str
    name: str
    distrust: str
    is_own: bool = False

    @property
    def is_trusted(self) -> bool:
        return not self.distrust


@dataclass(frozen=True, slots=True)
class Verification:
    """What is known about an episode once it was looked at.

    Attributes:
        remarks: What is worth a word and speaks against nothing.
    """

    intact: Verdict
    signer: Signer
    remarks: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that speaks against it."""
        return (*self.intact.reasons, *filter(None, [self.signer.distrust]))

    @property
    def is_proven(self) -> bool:
        """Whether it is intact and signed by somebody whose word counts here."""
        return self.intact.status is Status.OK and self.signer.is_trusted


def examine(folder: Path, full: bool = True) -> Verification:
    """Return whether an episode is whole, who signed it, and whether this machine trusts the signer.

    A folder that a store was given (file names that carry their hash) is examined like any other.

    Raises:
        TrustError: If this machine's own trust store cannot be read.
    """
    try:
        manifest = read_manifest(folder)
    except EpisodeError as err:
        return Verification(
            _with_forged(folder, _unreadable(folder, err)),
            Signer("", "", "nobody is known to have signed it"),
        )
    intact = _with_forged(folder, _compared(folder, manifest, full))
    seal = manifest if manifest.revision == 1 else read_seal(folder)
    return Verification(intact, _signer_of(folder, seal), tuple(_remarks(folder, manifest)))


def _with_forged(folder: Path, intact: Verdict) -> Verdict:
    forged = tuple(_forged_records(folder))
    return replace(intact, status=Status.FAILED, reasons=(*intact.reasons, *forged)) if forged else intact


def _unreadable(folder: Path, err: EpisodeError) -> Verdict:
    return Verdict(CHECK, folder.name, Status.FAILED, reasons=(str(err),))


def _forged_records(folder: Path) -> Iterator[str]:
    """Yield which records beside the seal nobody signed whose word counts here."""
    if os.path.lexists(folder / REMAP_FILE):
        try:
            check_remap(folder / REMAP_FILE)
        except TrustError as err:
            yield f"{REMAP_FILE} counts for nothing: {err}; remove it"
    for name, kind in SIGNED_RECORDS.items():
        try:
            role = Role.OPERATOR if name == CONSENT_STATE_FILE else Role.DEVICE
            open_document(read_plain(folder / name), kind, trusted_keys(role))
        except FileNotFoundError:
            continue
        except (TrustError, OSError) as err:
            yield f"{name} counts for nothing: {err}; remove it"


def signer_of(folder: Path) -> Signer:
    """Return who sealed an episode first.

    Raises:
        EpisodeError: If its manifest does not check out.
        TrustError: If this machine's own trust store cannot be read.
    """
    return _signer_of(folder, read_seal(folder))


def _signer_of(folder: Path, manifest: Manifest) -> Signer:
    store = TrustStore(key_home())
    store.own(Role.DEVICE)
    public = bytes.fromhex(manifest.device_public_key)
    found = next((key for key in store.entries() if key.raw == public), None)
    distrust = _distrust(store, found, public, (folder / MANIFEST_FILE).read_bytes())
    if not distrust and found is not None and found.is_own:
        distrust = _set_back(store, manifest)
    return Signer(key_id(public), found.name if found else "", distrust, found is not None and found.is_own)


def _set_back(store: TrustStore, manifest: Manifest) -> str:
    """Return what an episode of this machine says against its trust store; "" if nothing."""
    there, record = manifest.trust, store.record()
    if not there.seq or record.knows(there.seq, there.head):
        return ""
    return (
        f"sealed when the trust store of this machine was at version {there.seq}, which version {record.seq} of today "
        "does not come from: it was set back, and keys that were revoked since count again; restore the newest, or say "
        f"again what was revoked and then `sensorium keys trust {manifest.episode_id} --name 'this machine'`"
    )


def _distrust(store: TrustStore, key: TrustedKey | None, public: bytes, envelope: bytes) -> str:
    short = key_id(public)[:16]
    if key is None:
        return (
            f"signed by key {short}, which nobody enrolled here: if you know whose it is, "
            f"`sensorium keys enroll {public.hex()} --name WHO`"
        )
    if not key.revoked and key.role is not Role.DEVICE:
        return f"signed by key {short} ({key.name}), which is no device's but of role {key.role.value}"
    return store.objection(key, envelope)


def verify(folder: Path, full: bool = True, trusted: Collection[bytes] | None = None) -> Verdict:
    """Return whether an episode is whole; every reason names the file or stream and what differs.

    Args:
        full: Read every byte: hashes, chunk checksums, samples counted again from the files. Without it only
            signature, names and sizes are checked.
        trusted: Raw public keys of known devices; None accepts the key that the manifest itself names, which
            proves that it is whole and says nothing about who made it (:func:`examine` does).
    """
    try:
        manifest = read_manifest(folder, trusted)
    except EpisodeError as err:
        return _unreadable(folder, err)
    return _compared(folder, manifest, full)


def _compared(folder: Path, manifest: Manifest, full: bool) -> Verdict:
    """Return what the files say against a manifest that was read from their folder."""
    names = names_in(folder, manifest)
    reasons = list(_compare_name(folder, manifest))
    reasons += strangers(folder, manifest)
    reasons += _compare_files(folder, manifest, names, full)
    reasons += _compare_totals(manifest)
    if full and not reasons:
        reasons += _compare_contents(folder, manifest)
    quantities = (
        Quantity("files", len(manifest.files), "files"),
        Quantity("size", sum(file.bytes for file in manifest.files), "bytes"),
    )
    status = Status.FAILED if reasons else Status.OK
    return Verdict(CHECK, manifest.episode_id, status, quantities, tuple(reasons))


def _compare_name(folder: Path, manifest: Manifest) -> Iterator[str]:
    if ULID.fullmatch(folder.name) and folder.name != manifest.episode_id:
        yield f"the folder is called {folder.name}, and holds episode {manifest.episode_id}: it was swapped or copied"


def strangers(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what lies in the folder and is not the episode's; take it out, and the episode is whole again."""
    revisions = {path.name for path in revision_files(folder)}
    known = {*(name_in(folder, file) for file in manifest.files), *BESIDE_THE_SEAL, *revisions}
    erased = {name for each in manifest.tombstones for name in (each.file, each.stored)}
    for path in sorted(folder.iterdir()):
        if (path.name in BESIDE_THE_SEAL or path.name in revisions) and _is_link(path):
            yield f"{path.name} is a link: somebody else can change it"
        elif path.name in erased:
            yield f"{path.name} was erased, and is here again: remove it"
        elif path.name not in known and not is_litter(path.name):
            yield f"{path.name} is in the folder but not in the manifest"


def _compare_files(folder: Path, manifest: Manifest, names: dict[str, str], full: bool) -> Iterator[str]:
    for file in manifest.files:
        path = folder / names[file.name]
        try:
            found = path.lstat()
        except OSError:
            yield f"{file.name} is missing"
            continue
        if _is_link(path):
            yield f"{file.name} is a link: somebody else can change it; copy the file itself here"
        elif not stat.S_ISREG(found.st_mode):
            yield f"{file.name} is missing: what has its name is no file"
        elif found.st_size != file.bytes:
            yield f"{file.name} has {found.st_size} bytes, the manifest says {file.bytes}"
        elif full:
            yield from _compare_hashes(path, file)


def _is_link(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1)


def _compare_hashes(path: Path, expected: FileRecord) -> Iterator[str]:
    try:
        found = hash_file(path)
    except EpisodeError as err:
        yield str(err)
        return
    if (found.bytes, found.sha256, found.blake3_leaves) == (
        expected.bytes,
        expected.sha256,
        expected.blake3_leaves,
    ) and found.blake3_root == expected.blake3_root:
        return
    pairs = zip(found.blake3_leaves, expected.blake3_leaves, strict=False)
    places = [index * LEAF_BYTES for index, (here, there) in enumerate(pairs) if here != there]
    where = f" in the 8 MiB from byte {places[0]}" if places else ""
    yield f"{expected.name} does not match its hash{where}"


def _compare_totals(manifest: Manifest) -> Iterator[str]:
    for record in manifest.streams:
        for instance, balance in record.balances.items():
            if not balance.is_exact:
                yield (
                    f"stream {record.info.name} instance {instance}: produced {balance.produced} is not "
                    f"recorded {balance.recorded} + dropped {balance.dropped_total}"
                )


def _compare_contents(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Compare what the files themselves say: samples counted again, and each declaration with the manifest's."""
    if not manifest.files:
        return  # all of it was deleted
    try:
        with Episode(folder) as episode:
            counted: Counter[tuple[str, int]] = Counter()
            for stream, row in episode.stamps():
                counted[stream, row.instance] += row.count
            declared = dict(episode.streams)
    except EpisodeError as err:
        yield str(err)
        return
    stated = {
        (record.info.name, instance): balance.recorded
        for record in manifest.streams
        if record.info.name not in manifest.erased
        for instance, balance in record.balances.items()
    }
    for stream, instance in sorted(counted.keys() | stated.keys()):
        here, there = counted.get((stream, instance), 0), stated.get((stream, instance), 0)
        if here != there:
            yield f"stream {stream} instance {instance}: {here} samples in the files, {there} in the manifest"
    for record in manifest.streams:
        found = declared.get(record.info.name)
        if found is not None and found.is_personal != record.info.is_personal:
            words = {True: "personal", False: "not personal"}
            yield (
                f"stream {record.info.name} was recorded as {words[bool(found.is_personal)]}, and the manifest says "
                f"that it is {words[bool(record.info.is_personal)]}"
            )


def _remarks(folder: Path, manifest: Manifest) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.name in SIGNED_RECORDS or path.name == REMAP_FILE:
            continue
        if is_litter(path.name):
            yield f"{path.name} is none of the episode's files: nobody signed it, and nothing reads it"
        elif path.name in BESIDE_THE_SEAL - {MANIFEST_FILE}:
            yield f"{path.name} was made after the seal, which says nothing about it"
    if manifest.episode_id != folder.name:
        yield f"the folder is called {folder.name}, the episode {manifest.episode_id}"
    for each in manifest.tombstones:
        yield f"{each.file} was erased: {each.reason}"
    if manifest.truncated:
        yield "the recording was interrupted; this is what could be recovered"


def chain_gaps(manifests: Collection[tuple[str, str, str]], heads: Collection[str]) -> list[str]:
    """Return where a device's chain of episodes is broken, in words.

    Args:
        manifests: (episode id, BLAKE3 of its manifest, BLAKE3 of the one before; "" for the first) of all that
            are there, those included of which only the manifest is left.
        heads: BLAKE3 of the manifest that was signed last, by whoever knows it.
    """
    present = {digest for _, digest, _ in manifests}
    gaps = [
        f"the episode before {episode} is not here: it was removed, or its manifest was changed"
        for episode, _, previous in sorted(manifests)
        if previous and previous not in present
    ]
    if any(head not in present for head in heads):
        gaps.append(
            "the episode that was signed last is not here: it was removed, or its manifest was changed"
        )
    return gaps
