"""What the files of an episode are called in a folder: their own names, or in a store's copy those with the hash."""

import os
from pathlib import Path

from sensorium.errors import EpisodeError
from sensorium.sync.episode.files import DATA_FILE, MANIFEST_FILE
from sensorium.sync.episode.manifest import FileRecord, Manifest, read_manifest, stored_name


def is_episode(path: Path) -> bool:
    """Return whether a folder is an episode's: sealed or open, here or in a store."""
    return path.is_dir() and ((path / DATA_FILE).is_file() or (path / MANIFEST_FILE).is_file())


def name_in(folder: Path, file: FileRecord) -> str:
    """Return what a file of the manifest is called in a folder; its own name where neither is there."""
    stored = stored_name(file)
    is_stored = not os.path.lexists(folder / file.name) and os.path.lexists(folder / stored)
    return stored if is_stored else file.name


def names_in(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Return for each file of the manifest what it is called in a folder."""
    return {file.name: name_in(folder, file) for file in manifest.files}


def file_in(folder: Path, name: str) -> Path:
    """Return where a file lies whose name in the manifest is ``name``, whether or not it is there."""
    path = folder / name
    if path.exists() or not (folder / MANIFEST_FILE).is_file():
        return path
    try:
        manifest = read_manifest(folder)
    except EpisodeError:
        return path  # whoever asks for the manifest itself is told
    return folder / names_in(folder, manifest).get(name, name)
