"""What became of closed episodes, in a file of the run that outlives every process of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SEALED_FILE = "sealed.jsonl"


@dataclass(frozen=True, slots=True)
class Sealed:
    """An episode that is finished and signed, or the reason why it could not be."""

    episode_id: str
    path: Path | None
    error: str = ""


def report_sealed(run_dir: Path, fresh: Sequence[Sealed]) -> None:
    """Append what was sealed since the last time."""
    if fresh:
        rows = [
            {"episode": each.episode_id, "path": str(each.path or ""), "error": each.error} for each in fresh
        ]
        with (run_dir / SEALED_FILE).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
