"""Device files that this user may not use, said before anything is opened."""

import grp
import os
from pathlib import Path

from sensorium.errors import DeviceError


def require_access(label: str, path: Path) -> None:
    """Raise if this user may not read and write a device file; opens nothing.

    Raises:
        DeviceError: Names the group that may, and how to join it.
    """
    if os.access(path, os.R_OK | os.W_OK):
        return
    try:
        group = grp.getgrgid(path.stat().st_gid).gr_name
    except (KeyError, OSError):
        group = "root"
    how = (
        f"it belongs to group {group}: `sudo usermod -aG {group} $USER`, then log in again"
        if group != "root"
        else "it belongs to root alone: let a udev rule give it a group that you are in"
    )
    raise DeviceError(f"{label}: this user may not use {path}; {how}")
