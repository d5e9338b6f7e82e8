"""However a recording ends on a machine that suffers, it says so; run with ``-m slow``. See the bench for how."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from record_at_load import plan_of, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(1000, 1012))
def test_a_recording_never_ends_without_a_sentence(tmp_path: Path, seed: int) -> None:
    ending = run(plan_of(seed), tmp_path)
    assert not ending.complaint, ending
