"""What became of closed episodes, in a file of the run that outlives every process of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SEALED_FILE = "sealed.jsonl"


@dataclass(frozen=True, slots=True)
class Sealed:
    """An episode that is finished and signed, or the reason why it could not be.

    Attributes:
        path: Its folder; None where there is nothing to sign.
        remark: Why there was nothing, in words; no error.
    """

    episode_id: str
    path: Path | None
    error: str = ""
    remark: str = ""

    def row(self) -> dict[str, str]:
        """Return it for a file or a machine."""
        path = "" if self.path is None else str(self.path)
        return {"episode": self.episode_id, "path": path, "error": self.error, "remark": self.remark}


def report_sealed(run_dir: Path, fresh: Sequence[Sealed]) -> None:
    """Append what was sealed since the last time."""
    if fresh:
        with (run_dir / SEALED_FILE).open("a") as file:
            file.writelines(json.dumps(each.row()) + "\n" for each in fresh)
