"""A small file system in memory, for tests that fill one or take it away."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def mount_small_disk(folder: Path, options: str) -> None:
    """Make a folder and mount a tmpfs there with these options; skip where that is not allowed; the caller unmounts."""
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this machine does not let us mount a small disk: {done.stderr.decode().strip()}")
