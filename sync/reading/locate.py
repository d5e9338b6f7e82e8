"""Where an episode lies: in a spool, by its folder or its id; in a store, by the store's URL; anywhere, as a copy."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sensorium.errors import EpisodeError, UsageError
from sensorium.sync.episode.files import DEFAULT_SPOOL, EPISODE_FOLDERS, MANIFEST_FILE
from sensorium.sync.episode.folder import is_episode, names_in
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import ULID

_STORED = "episodes"
"""Folder of a store that its episodes lie in."""

_SHOWN = 3


class Place(str, Enum):
    """Where an episode was found: in a spool, as a copy somewhere else, in a store that was named by its URL."""

    SPOOL = "spool"
    COPY = "copy"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class LocatedEpisode:
    """An episode that was found.

    Attributes:
        manifest: The newest revision, signature checked; None while the episode is not sealed.
        names: What each file of the manifest is called in ``folder``.
    """

    folder: Path
    manifest: Manifest | None
    names: Mapping[str, str]
    place: Place

    @property
    def episode_id(self) -> str:
        return self.folder.name if self.manifest is None else self.manifest.episode_id

    @property
    def is_delivered(self) -> bool:
        """Whether it lies as a store keeps it, file names with their hash: nothing is written beside it."""
        return self.place is Place.STORE or any(name != there for name, there in self.names.items())

    def file(self, name: str) -> Path:
        """Return where a file of the manifest lies, by its name there."""
        return self.folder / self.names.get(name, name)

    def output(self, name: str) -> Path:
        """Return where a file about the episode is written: beside it, or here where it was delivered to."""
        return Path(f"{self.episode_id}-{name}") if self.is_delivered else self.folder / name


def locate(text: str | Path, spool: Path | None = None) -> LocatedEpisode:
    """Return the episode that a user means.

    Args:
        text: A folder (of a spool, or a copy as a store keeps it), an episode's id, or a URL of a store with the
            id at its end: ``file:///var/lib/sensorium/central/01J...``. The id may be left out of a store with
            one episode.
        spool: Where ids are looked for; None = ``$SENSORIUM_SPOOL``, or ``spool`` here.

    Raises:
        UsageError: If nothing like it is there; says what is.
        EpisodeError: If it is none, or its manifest does not check out.
    """
    folder = folder_of(text, spool)
    if not folder.exists():
        raise UsageError(f"{text} does not exist; {_hint(str(text), spool)}")
    if not is_episode(folder):
        raise _not_an_episode(folder)
    manifest = read_manifest(folder) if (folder / MANIFEST_FILE).exists() else None
    names = {} if manifest is None else names_in(folder, manifest)
    return LocatedEpisode(folder, manifest, names, _place_of(text, folder))


def folder_of(text: str | Path, spool: Path | None = None) -> Path:
    """Return the path that a user means, where that is an id or a store's URL; any other text as a path.

    For commands that take other recordings, too. Nothing is opened.

    Raises:
        UsageError: If the spool has no such episode, or the store none or several, or it cannot be read from here.
    """
    if isinstance(text, Path):
        text = _as_written(text)
    if ULID.fullmatch(text) and not Path(text).exists():
        return _in_spool(text, Spool(DEFAULT_SPOOL if spool is None else spool))
    if "://" in text or text.startswith("file:"):
        return _in_store(text)
    return Path(text).expanduser()


def _as_written(path: Path) -> str:
    """Return a URL that was taken for a path, which makes one slash of several, as it was written."""
    text = str(path)
    scheme, _, rest = text.partition(":/")
    return f"{scheme}:///{rest.lstrip('/')}" if scheme == "file" and rest else text


def _in_spool(episode_id: str, spool: Spool) -> Path:
    found = [folder for name in EPISODE_FOLDERS if (folder := spool.root / name / episode_id).is_dir()]
    if not found:
        raise UsageError(
            f"spool {spool.root} has no episode {episode_id}; {_hint(episode_id, spool.root)}, or name its spool in "
            "SENSORIUM_SPOOL (or with --spool), or give its folder or its store's URL"
        )
    return found[0]


def _hint(text: str, spool: Path | None) -> str:
    sealed = [folder.name for folder in Spool(DEFAULT_SPOOL if spool is None else spool).sealed_folders()]
    near = difflib.get_close_matches(text.upper(), sealed, n=1)
    return f"did you mean {near[0]}?" if near else "`sensorium episodes list` names the episodes of a spool"


def _in_store(url: str) -> Path:
    parts = urlsplit(url)
    root = Path(unquote(parts.path))
    if parts.scheme != "file":
        raise UsageError(f"{url}: episodes are read from file:///absolute/path so far; copy its folder here")
    if parts.netloc not in ("", "localhost") or not root.is_absolute():
        raise UsageError(f"{url}: a store on this machine is written file:///absolute/path")
    if is_episode(root):
        return root
    if ULID.fullmatch(root.name) and (root.parent / _STORED / root.name).is_dir():
        return root.parent / _STORED / root.name
    if not root.is_dir():
        raise UsageError(f"{url}: there is no folder {root}")
    stored = _stored_episodes(root)
    if len(stored) != 1:
        raise UsageError(_choice(url, [folder.name for folder in stored]))
    return stored[0]


def _stored_episodes(root: Path) -> list[Path]:
    parent = root if root.name == _STORED else root / _STORED
    return sorted(folder for folder in parent.glob("*") if ULID.fullmatch(folder.name) and is_episode(folder))


def _choice(store: str, ids: list[str]) -> str:
    if not ids:
        return f"{store} holds no episode that is complete"
    shown = ", ".join(reversed(ids[-_SHOWN:]))
    return f"{store} holds {len(ids)} episodes: name one, {store.rstrip('/')}/ID; the newest are {shown}"


def _not_an_episode(path: Path) -> EpisodeError:
    if path.is_file():
        near = f"; its folder is one: {path.parent}" if is_episode(path.parent) else ""
        return EpisodeError(f"{path} is a file and no episode folder{near}")
    spool = Spool(path)
    kept = [folder.name for folder in spool.sealed_folders()]
    if kept:
        return EpisodeError(
            f"{path} is a spool and no episode folder: name {path / 'sealed' / kept[-1]}, say"
        )
    stored = [folder.name for folder in _stored_episodes(path)]
    if stored:
        return EpisodeError(_choice(path.resolve().as_uri(), stored))
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:_SHOWN]) or "nothing"
    return EpisodeError(f"{path} is not an episode folder: it holds no {MANIFEST_FILE} but {inside}")


def _place_of(text: str | Path, folder: Path) -> Place:
    if _as_written(Path(text)).startswith("file:"):
        return Place.STORE
    place = folder.resolve().parent
    return Place.SPOOL if place.name in EPISODE_FOLDERS else Place.COPY
