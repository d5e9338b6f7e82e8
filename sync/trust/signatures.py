"""What each key signed, by digest: once a key is replaced, its list is closed, and nothing else of it counts.

A date says nothing, because whoever has a former key writes the date. ``<home>/signed/<key id>`` holds a digest and its
check for each envelope, noted before anybody else can have it; the trust store holds the hash of a closed list.
"""

import hashlib
import os
from pathlib import Path

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.spool import sync_folder, write_all, write_durably

DIGEST_BYTES = 32
_CHECK_BYTES = 8
_ROW_BYTES = DIGEST_BYTES + _CHECK_BYTES


class Signatures:
    """The lists below a key home; whoever changes one holds the trust store's lock."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "signed"

    def note(self, key_id: str, envelope: bytes) -> None:
        """Note durably that a key signed an envelope.

        Raises:
            TrustError: If the disk does not take it: then it must not be used.
        """
        path = self._path(key_id)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            is_new = not path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                whole = size - size % _ROW_BYTES  # what a crash cut off was of nothing that anybody has
                os.ftruncate(descriptor, whole)
                os.lseek(descriptor, whole, os.SEEK_SET)
                write_all(descriptor, _row(hashlib.sha256(envelope).digest()))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                sync_folder(self._folder)
        except OSError as err:
            raise TrustError(
                f"{path}: what is signed cannot be noted ({err.strerror}); free space or check the disk"
            ) from err

    def read(self, key_id: str) -> bytes:
        """Return the digests of all that a key signed, one after the other.

        Raises:
            TrustError: If the list cannot be read, or is damaged.
        """
        try:
            rows = self._path(key_id).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as err:
            raise TrustError(f"{self._path(key_id)} cannot be read: {err.strerror}") from err
        starts = range(0, len(rows) - len(rows) % _ROW_BYTES, _ROW_BYTES)
        digests = [rows[start : start + DIGEST_BYTES] for start in starts]
        if any(
            rows[start : start + _ROW_BYTES] != _row(each)
            for start, each in zip(starts, digests, strict=True)
        ):
            raise TrustError(f"{self._path(key_id)}, what a key signed, is damaged; restore it from a backup")
        return b"".join(digests)

    def put(self, key_id: str, digests: bytes) -> None:
        """Take over the list of another machine's key.

        Raises:
            TrustError: If the disk does not take it.
        """
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            starts = range(0, len(digests), DIGEST_BYTES)
            rows = b"".join(_row(digests[start : start + DIGEST_BYTES]) for start in starts)
            write_durably(self._path(key_id), rows)
        except (OSError, EpisodeError) as err:
            raise TrustError(f"what key {key_id[:16]} signed cannot be noted: {err}") from err

    def objection(self, key_id: str, closed: str, signed: bytes) -> str:
        """Return why an envelope is not known to have been signed before a key was replaced; "" if it is.

        Args:
            closed: SHA-256 of the list as it was then.
        """
        digests = self.read(key_id)
        if hashlib.sha256(digests).hexdigest() != closed:
            return (
                f"{self._path(key_id)}, what key {key_id[:16]} signed until it was replaced, is gone or changed; "
                "restore it from a backup"
            )
        wanted = hashlib.sha256(signed).digest()
        at = digests.find(wanted)
        while at % DIGEST_BYTES and at >= 0:
            at = digests.find(wanted, at + 1)
        return "" if at >= 0 else "it is not among what that key is known to have signed until then"

    def _path(self, key_id: str) -> Path:
        return self._folder / key_id


def _row(digest: bytes) -> bytes:
    """Return a digest and its check, by which a flipped bit of either is seen."""
    return digest + hashlib.sha256(b"signed " + digest).digest()[:_CHECK_BYTES]
