"""Truth files: what really happened, beside what was recorded.

``run_dir/truth/<stream>.i64`` holds little-endian int64 pairs (sequence number, capture host ns) of every
sample produced, lost ones included; of audio, one pair per block (its first sample). A restarted driver
appends: its numbers begin at 0 again. Rows are written ahead of delivery, so the last ones may never have
been published.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import SourceError

FOLDER = "truth"
SUFFIX = ".i64"


class TruthWriter:
    """Appends the truth of one stream; unbuffered, so that a killed process leaves whole rows."""

    def __init__(self, run_dir: Path, stream: str) -> None:
        folder = run_dir / FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = (folder / (stream + SUFFIX)).open("ab", buffering=0)

    def write(self, seq: NDArray[np.int64], capture_ns: NDArray[np.int64]) -> None:
        """Append (n,) sequence numbers and (n,) capture times."""
        self._file.write(np.stack([seq, capture_ns], axis=1).astype("<i8").tobytes())

    def close(self) -> None:
        self._file.close()


def load_truth(run_dir: Path | str) -> dict[str, NDArray[np.int64]]:
    """Return (n, 2) rows (sequence number, capture host ns) by stream; empty where nothing was simulated.

    Raises:
        SourceError: If a file cannot be read. A torn last row is left out.
    """
    found = {}
    for path in sorted(Path(run_dir).glob(f"{FOLDER}/*{SUFFIX}")):
        try:
            data = path.read_bytes()
        except OSError as err:
            raise SourceError(f"truth file {path} cannot be read: {err}") from err
        values = np.frombuffer(data[: len(data) // 16 * 16], "<i8").astype(np.int64)
        found[path.stem] = values.reshape(-1, 2)
    return found
