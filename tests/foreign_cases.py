"""Inputs that users met: runs a generator of ``../shared/cases`` and gives what it says is right."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


def generate(name: str, folder: Path) -> dict[str, Any]:
    """Write the case's input into ``folder`` and return what is right; skip where the generators are absent."""
    script = CASES / f"{name}.py"
    if not script.is_file():
        pytest.skip(f"the generator {name} (../shared/cases) is not on this machine")
    folder.mkdir(parents=True, exist_ok=True)
    ran = subprocess.run(
        [sys.executable, str(script), str(folder)], check=True, capture_output=True, text=True, timeout=60
    )
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer
