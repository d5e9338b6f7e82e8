"""What is said of an episode after its seal: signed revisions of its manifest, each naming the one before.

``manifest.json`` is the first seal and stays as it is; ``manifest-2.json``, ``manifest-3.json`` ... follow it. The
newest says what the episode is now: which files it has, and of those that are gone, why (tombstones).
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.episode.files import MANIFEST_FILE
from sensorium.sync.episode.manifest import Manifest, dump_manifest, read_manifest, revision_file
from sensorium.sync.episode.spool import write_durably
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key

_REVISION = re.compile(r"manifest-[1-9][0-9]{0,5}\.json")


def is_revision(name: str) -> bool:
    """Return whether a file is named as a later revision of a manifest is."""
    return _REVISION.fullmatch(name) is not None


def revision_files(folder: Path) -> list[Path]:
    """Return the manifest and its revisions, oldest first."""
    found = [folder / MANIFEST_FILE]
    while os.path.lexists(path := folder / revision_file(len(found) + 1)):
        found.append(path)
    return found


def revise(folder: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Add a revision, signed by this machine; durable on return. Nobody else may be changing the folder.

    Raises:
        EpisodeError: If the folder holds no episode that checks out, or the disk does not take it.
    """
    present = read_manifest(folder)
    last = revision_files(folder)[-1]
    try:
        key = signing_key(Role.DEVICE)
        next_one = replace(
            change(present),
            revision=present.revision + 1,
            supersedes=blake3(last.read_bytes()).hexdigest(),
            device_public_key=key.public.hex(),
        )
        write_durably(folder / revision_file(next_one.revision), key.sign(dump_manifest(next_one)))
    except (OSError, TrustError) as err:
        raise EpisodeError(f"{folder}: its manifest cannot be revised: {err}") from err
    return next_one
