"""Better stamps for a stored episode, kept beside it: the two-sided estimate of every stream.

While recording, an estimate may only use what came before. Afterwards each sample's time can be told from both
sides. The sidecar ``remap.npz`` holds new capture times and uncertainties; the episode itself never changes.
"""

import contextlib
import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ClockError, ConfigError, EpisodeError, TrustError
from sensorium.sync.clocks.model import ONE_WAY, Stamped, Uncertainty
from sensorium.sync.clocks.remap import remap
from sensorium.sync.episode.aligned import StampsOf
from sensorium.sync.episode.files import MANIFEST_FILE, REMAP_FILE
from sensorium.sync.episode.manifest import manifest_digest
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.spool import write_durably
from sensorium.sync.episode.triggers import restamped, rows_of
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key, trusted_keys

_VERSION = 1
_METHOD = "two-sided"
_KIND = "remap"
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, EOFError, OverflowError, SyntaxError),
    *(RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error),
)
"""What zipfile and numpy raise of damaged archives: encrypted, of no version, with a header that is no Python."""

_MOST_BYTES = 4 << 30
"""Unpacked: more than the stamps of a week at 1 kHz."""


def remap_episode(episode: Episode) -> dict[tuple[str, int, int], Stamped]:
    """Return new stamps of every frame by (stream, instance, first sequence number).

    Each instance of a driver is estimated by itself, in order of arrival. Frames whose trigger pulse was recorded
    have the time of the pulse; frames stamped by PTP or a node's clock keep what it said.
    """
    rows = rows_of(episode)
    followed = {
        (entry.stream, entry.instance, entry.model.epoch)
        for entry in episode.models()
        if entry.model.method != ONE_WAY
    }
    found: dict[tuple[str, int, int], Stamped] = {}
    for (stream, instance), own in rows.items():
        for row, stamped in zip(own, remap(episode.streams[stream], own), strict=True):
            is_followed = (stream, instance, row.stamped.epoch) in followed
            found[stream, instance, row.seq] = row.stamped if is_followed else stamped
    for info in episode.streams.values():
        # Where pulses are of no use the recording has the ordinary estimate, too; the sync report says why.
        with contextlib.suppress(ClockError, ConfigError):
            found.update(restamped(info, episode.streams, rows, found))
    return found


def write_remap(episode: Episode, path: Path | None = None) -> Path:
    """Estimate an episode's stamps anew, write the sidecar and return its path.

    Raises:
        EpisodeError: If the disk does not take it.
    """
    stamps = remap_episode(episode)
    path = path or episode.path / REMAP_FILE
    streams = list(dict.fromkeys(stream for stream, _, _ in stamps))
    arrays: dict[str, Any] = {
        "head": np.frombuffer(json.dumps(_head(episode, streams)).encode(), np.uint8),
        "stream": np.array([streams.index(stream) for stream, _, _ in stamps], np.int32),
        "instance": np.array([instance for _, instance, _ in stamps], np.int64),
        "seq": np.array([seq for _, _, seq in stamps], np.int64),
        "epoch": np.array([stamped.epoch for stamped in stamps.values()], np.int64),
        "count": np.array([len(stamped.capture_ns) for stamped in stamps.values()], np.int64),
        "capture_ns": np.concatenate(
            [stamped.capture_ns for stamped in stamps.values()] or [np.empty(0, np.int64)]
        ),
        "uncertainty_ns": np.array(
            [
                (s.uncertainty.statistical_ns, s.uncertainty.floor_ns, s.uncertainty.asymmetry_ns)
                for s in stamps.values()
            ],
            np.float64,
        ).reshape(-1, 3),
    }
    buffer = io.BytesIO()
    try:
        seal = sign_document({"digest": _digest(arrays)}, signing_key(Role.DEVICE), _KIND)
        np.savez_compressed(buffer, seal=np.frombuffer(seal, np.uint8), **arrays)
        write_durably(path, buffer.getvalue())
    except OSError as err:
        raise EpisodeError(f"re-map {path} cannot be written: {err.strerror}") from err
    except TrustError as err:
        raise EpisodeError(f"re-map {path} cannot be signed: {err}") from err
    return path


def read_remap(episode: Episode, path: Path | None = None) -> StampsOf:
    """Return the stamps of a sidecar, as ``Episode.aligned(stamps=...)`` takes them.

    Raises:
        EpisodeError: If there is none, it is damaged, it was made for another episode or other bytes, or by nobody
            whose word counts here: stamps decide what a sample means.
    """
    path = path or episode.path / REMAP_FILE
    try:
        arrays = _load(path)
        _check_seal(arrays)
        head = json.loads(arrays["head"].tobytes())
        expected = _head(episode, head["streams"])
        if head != expected:
            raise EpisodeError(
                f"re-map {path} was made for episode {head.get('episode')} in another state; make it anew"
            )
        ends = np.cumsum(arrays["count"])
        pieces = np.split(arrays["capture_ns"], ends[:-1]) if len(ends) else []
        keys = zip(
            arrays["stream"].tolist(), arrays["instance"].tolist(), arrays["seq"].tolist(), strict=True
        )
        rows = zip(keys, pieces, arrays["uncertainty_ns"].tolist(), arrays["epoch"].tolist(), strict=True)
        return {
            (head["streams"][stream], instance, seq): Stamped(capture, Uncertainty(*parts), epoch)
            for (stream, instance, seq), capture, parts, epoch in rows
        }
    except FileNotFoundError as err:
        raise EpisodeError(
            f"{path} does not exist; make it with: sensorium sync remap {episode.path}"
        ) from err
    except TrustError as err:
        raise EpisodeError(
            f"re-map {path}: {err}; make it anew: sensorium sync remap {episode.path}"
        ) from err
    except _UNREADABLE as err:
        raise EpisodeError(f"re-map {path} cannot be read: {err}") from err


def check_remap(path: Path) -> None:
    """Refuse a sidecar that nobody signed whose word counts here.

    Raises:
        TrustError: If so, or if it is damaged.
    """
    try:
        _check_seal(_load(path))
    except _UNREADABLE as err:
        raise TrustError(f"it cannot be read: {err}") from err


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a sidecar; no memory is taken for what it only claims to hold."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked_bytes = sum(entry.file_size for entry in entries)
        if unpacked_bytes > _MOST_BYTES:
            raise ValueError(f"it unpacks to {unpacked_bytes} bytes, more than any episode's stamps")
        for entry in entries:
            with archive.open(entry) as member:
                _check_shape(member, entry)
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _check_shape(member: IO[bytes], entry: zipfile.ZipInfo) -> None:
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError(f"{entry.filename} has an unknown version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > entry.file_size:
        raise ValueError(f"{entry.filename} claims to hold more than it does")


def _check_seal(arrays: dict[str, NDArray[Any]]) -> None:
    seal = arrays.pop("seal", None)
    if seal is None:
        raise TrustError("nobody signed it")
    document, _ = open_document(seal.tobytes(), _KIND, trusted_keys(Role.DEVICE))
    if document.get("digest") != _digest(arrays):
        raise TrustError("it was changed after signing")


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of what the arrays are called, are and hold."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(json.dumps([name, array.dtype.str, array.shape, array.nbytes]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _head(episode: Episode, streams: list[str]) -> dict[str, Any]:
    """Return what ties a sidecar to the bytes it was made from."""
    sealed = (episode.path / MANIFEST_FILE).exists()
    return {
        "version": _VERSION,
        "method": _METHOD,
        "episode": episode.episode_id,
        "manifest": manifest_digest(episode.path) if sealed else "",
        "streams": streams,
    }
