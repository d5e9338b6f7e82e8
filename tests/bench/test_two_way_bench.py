"""Two-way clocks beside their references; run with ``-m bench -s``. Only ratios are asserted."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from two_way import two_way_results
from two_way_live import live_results
from two_way_shapes import SHAPES, Shape

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_no_reference_has_a_lower_p99(shape: Shape) -> None:
    (row,) = two_way_results((900, 901), (shape,), live_s=0).values()
    print(shape.name, row["p99_us"], row["best_reference"], row["best_reference_p99_us"])
    assert row["p99_us"] <= row["best_reference_p99_us"]


def test_live_it_is_better_than_liblsl_in_the_same_run() -> None:
    results = live_results(30.0)
    if "skipped" in results:
        pytest.skip(results["skipped"])
    print(results)
    assert results["sensorium"]["p99_us"] <= results["liblsl"]["p99_us"]
