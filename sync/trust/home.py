"""Where this machine keeps its keys and its trust: outside every spool, so that whoever swaps a spool swaps no key."""

import os
from pathlib import Path

from sensorium.errors import TrustError

ENVIRONMENT = "SENSORIUM_HOME"


def key_home() -> Path:
    """Return the folder (mode 0700, made on first use): ``$SENSORIUM_HOME``, else ``~/.config/sensorium``.

    Raises:
        TrustError: If it cannot be made, or others may write to it.
    """
    home = _place()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = home.stat()
    except OSError as err:
        raise TrustError(
            f"{home} cannot hold this machine's keys: {err.strerror}; set {ENVIRONMENT} to a folder that can"
        ) from err
    if found.st_mode & 0o022:
        raise TrustError(
            f"{home} holds keys, and others may write to it (mode {found.st_mode & 0o777:o}); chmod 700 it"
        )
    return home


def _place() -> Path:
    if said := os.environ.get(ENVIRONMENT):
        return Path(said)
    if said := os.environ.get("XDG_CONFIG_HOME"):
        return Path(said) / "sensorium"
    try:
        return Path.home() / ".config" / "sensorium"
    except RuntimeError as err:
        raise TrustError(
            f"no home folder is known for this user: set {ENVIRONMENT} to a private folder"
        ) from err
