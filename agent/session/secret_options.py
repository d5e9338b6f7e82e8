"""How a device's password reaches its driver's process: through standard input, never through a file or an argument."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sensorium.drivers.host import OPTIONS_ON_STDIN
from sensorium.masking import masked_document, secrets_of


def without_secrets(spec: Mapping[str, Any]) -> tuple[Mapping[str, Any], bytes]:
    """Return a driver host's spec as it may lie in a file, and what its process has to be told; b"" = nothing."""
    options = spec["options"]
    if not secrets_of(options):
        return spec, b""
    shown = {**spec, "options": masked_document(options), OPTIONS_ON_STDIN: True}
    return shown, json.dumps(options).encode()


@contextmanager
def standard_input(told: bytes) -> Iterator[int]:
    """Yield a descriptor that a process reads ``told`` from: memory without a name, that no disk ever holds."""
    if not told:
        yield subprocess.DEVNULL
        return
    descriptor = os.memfd_create("options")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(told)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
