"""Whether a store's address can ever be served, asked before anything is recorded for it."""

import errno
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sensorium.errors import ConfigError
from sensorium.masking import masked_address

_PASSING = frozenset(
    {
        errno.ENOTCONN,
        errno.ESTALE,
        errno.EIO,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.ENODEV,
        errno.ENOSPC,
        errno.EDQUOT,
    }
)
"""A server or a disk that is away or full now, not for good: the uploader waits for it."""


def check_address(url: str, *, will_be_written: bool) -> None:
    """Raise if no store can be had at an address; whether it works now is asked when something is sent.

    Args:
        will_be_written: Ask also whether the folder is, or can be made.

    Raises:
        ConfigError: Says what the address lacks, and how it is written.
    """
    from sensorium.uploader.stores.opening import KINDS

    examples = ", ".join(each.example for each in KINDS.values())
    parts = urlsplit(url)
    if parts.scheme not in KINDS:
        said = f"nobody serves {parts.scheme!r} addresses here" if parts.scheme else "it has no kind in front"
        path = f"; for a folder write file://{Path(url).absolute()}" if not parts.scheme else ""
        raise ConfigError(f"{masked_address(url)!r}: {said}; a store is written {examples}{path}")
    if parts.scheme == "file":
        path_text = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path_text.startswith("/"):
            raise ConfigError(
                f"{masked_address(url)!r} names a machine ({parts.netloc}); mount its folder and write {examples}, "
                "with three slashes"
            )
        if will_be_written:
            check_folder(Path(path_text))


def check_folder(folder: Path, what: str = "") -> None:
    """Raise if a folder is not there and cannot be made, or this user may not write to it; leaves nothing.

    Args:
        what: Whose folder it is, for the message.

    Raises:
        ConfigError: Says what is in the way.
    """
    name = f"{what} {folder}".lstrip()
    there = folder
    try:
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise ConfigError(f"{name} cannot be a folder: {there} is a file; choose another place")
        if there == folder:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"{name} cannot be written to by this user; choose another place, or its owner changes its mode"
                )
            return
        probe = there / f".sensorium-probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as err:
        if err.errno in _PASSING:
            return
        raise ConfigError(
            f"{name} does not exist, and nothing can be made in {there}: {err.strerror}; choose another place"
        ) from err
