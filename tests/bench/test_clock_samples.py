"""Foreign generators of clock samples: what is accepted, and what a wrong file is told."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import clock_scores
from clock_samples import GeneratorError, read_generators

WHOLE = """
import numpy as np

def _helper():
    raise AssertionError("not a row")

def every_10_ms(seed):
    random = np.random.default_rng(seed)
    capture = 10**12 + np.arange(3000) * 10_000_000
    arrival = np.maximum.accumulate(capture + random.exponential(1e6, 3000).astype(int))
    return {"capture_ns": capture, "device_ticks": capture // 1000 % 2**32, "arrival_ns": arrival,
            "modulus": 2**32, "rate_hz": 100.0}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "rows.py"
    path.write_text(text)
    return path


def test_a_foreign_row_is_judged_beside_the_references(tmp_path: Path) -> None:
    rows = read_generators(written(tmp_path, WHOLE))
    assert list(rows) == ["every_10_ms"]
    result = clock_scores.bench(rows, (1, 2), lambda text: None)["every_10_ms"]
    assert set(result["by_age"]) == {"0-1", "1-5", "5-20", "20+"}
    assert sum(one["n"] for one in result["by_age"].values()) == 6000
    assert result["best_reference_p99_us"] == min(result["reference_p99_us"].values())
    assert result["verdicts"]["resets"] == result["verdicts"]["false_resets"] == 0
    # The first cell is of 200 samples: its interval is Wilson's.
    low, high = result["by_age"]["0-1"]["interval"]
    assert low < result["by_age"]["0-1"]["coverage"] <= high + 1e-9


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"capture_ns": capture, ', "", "no field capture_ns"),
        ('"modulus"', '"modolus"', "unknown field modolus"),
        ("capture // 1000 % 2**32", "capture[1:]", "one length"),
        ("capture // 1000 % 2**32", "capture / 7", "found fractions"),
        ('"arrival_ns": arrival', '"arrival_ns": capture - 1', "before capture_ns, first at sample 0"),
        ('"rate_hz": 100.0', '"rate_hz": "fast"', "rate_hz is to be int, found 'fast'"),
        ("arrival = np", "1 / 0; arrival = np", "seed 1 raised ZeroDivisionError"),
        ("    return {", "    return None\n    return {", "returned nothing"),
    ],
)
def test_samples_that_cannot_be_are_refused_with_a_reason(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    assert before in WHOLE
    rows = read_generators(written(tmp_path, WHOLE.replace(before, after)))
    with pytest.raises(GeneratorError, match=r"rows\.py, every_10_ms: .*" + said):
        rows["every_10_ms"](1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (", "cannot be run: SyntaxError"),
        ("x = 1", "no public function"),
        ("def f(rate): pass", "f: wants rate"),
    ],
)
def test_a_file_that_is_no_file_of_generators_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(GeneratorError, match=said):
        read_generators(written(tmp_path, text))
    with pytest.raises(GeneratorError, match="no such file"):
        read_generators(tmp_path / "absent.py")
