"""What lies in a folder of others, without what desktops and NAS boxes leave there (``._cam0.yaml``, ``@eaDir``)."""

from pathlib import Path

_LITTER = frozenset(("@eadir", "thumbs.db", "desktop.ini", "__macosx"))


def files_in(folder: Path, *patterns: str) -> list[Path]:
    """Return what matches any of the patterns below ``folder``, sorted; nothing hidden, and no litter."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if not any(map(_is_litter, path.relative_to(folder).parts)))


def _is_litter(name: str) -> bool:
    return (name.startswith(".") and name != "..") or name.endswith("~") or name.lower() in _LITTER
