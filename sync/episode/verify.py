"""Proves that a sealed episode is what its device signed: hashes, checksums, balance of every stream."""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from sensorium.errors import EpisodeError
from sensorium.sync.episode.files import BESIDE_THE_SEAL, is_scratch
from sensorium.sync.episode.manifest import (
    LEAF_BYTES,
    FileRecord,
    Manifest,
    hash_file,
    read_manifest,
)
from sensorium.sync.episode.reader import Episode
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "episode_integrity"


def verify(folder: Path, full: bool = True, trusted: Collection[bytes] | None = None) -> Verdict:
    """Return whether an episode is whole; every reason names the file or stream and what differs.

    Args:
        full: Read every byte: hashes, chunk checksums, samples counted again from the files. Without it only
            signature, names and sizes are checked.
        trusted: Raw public keys of known devices; None accepts the key that the manifest itself names.
    """
    try:
        manifest = read_manifest(folder, trusted)
    except EpisodeError as err:
        return Verdict(CHECK, folder.name, Status.FAILED, reasons=(str(err),))
    reasons = list(_compare_files(folder, manifest, full))
    reasons += _compare_totals(manifest)
    if full and not reasons:
        reasons += _compare_counts(folder, manifest)
    quantities = (
        Quantity("files", len(manifest.files), "files"),
        Quantity("size", sum(file.bytes for file in manifest.files), "bytes"),
    )
    status = Status.FAILED if reasons else Status.OK
    return Verdict(CHECK, manifest.episode_id, status, quantities, tuple(reasons))


def _compare_files(folder: Path, manifest: Manifest, full: bool) -> Iterator[str]:
    listed = {file.name for file in manifest.files}
    for path in sorted(folder.iterdir()):
        if path.name not in listed | BESIDE_THE_SEAL and not is_scratch(path.name):
            yield f"{path.name} is in the folder but not in the manifest"
    for file in manifest.files:
        path = folder / file.name
        if path.is_symlink() or not path.is_file():
            yield f"{file.name} is missing"
        elif path.stat().st_size != file.bytes:
            yield f"{file.name} has {path.stat().st_size} bytes, the manifest says {file.bytes}"
        elif full:
            yield from _compare_hashes(path, file)


def _compare_hashes(path: Path, expected: FileRecord) -> Iterator[str]:
    try:
        found = hash_file(path)
    except EpisodeError as err:
        yield str(err)
        return
    if found == expected:
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


def _compare_counts(folder: Path, manifest: Manifest) -> Iterator[str]:
    try:
        counted = _count_samples(folder)
    except EpisodeError as err:
        yield str(err)
        return
    stated = {
        (record.info.name, instance): balance.recorded
        for record in manifest.streams
        for instance, balance in record.balances.items()
    }
    for stream, instance in sorted(counted.keys() | stated.keys()):
        here, there = counted.get((stream, instance), 0), stated.get((stream, instance), 0)
        if here != there:
            yield f"stream {stream} instance {instance}: {here} samples in the files, {there} in the manifest"


def _count_samples(folder: Path) -> dict[tuple[str, int], int]:
    """Return the samples in the files of an episode per (stream, instance).

    Raises:
        EpisodeError: If a file is torn or damaged.
    """
    found: Counter[tuple[str, int]] = Counter()
    with Episode(folder) as episode:
        for stream, row in episode.stamps():
            found[stream, row.instance] += row.count
    return dict(found)
