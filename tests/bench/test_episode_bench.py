"""The episode's writer and reader beside their peers, see ``writing.py``. Only ratios of CPU time are asserted: they
hold on a busy machine too. Run with ``-m bench -s``."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from writing import measure, table

pytestmark = pytest.mark.bench


def test_the_writer_is_cheaper_than_its_peers(tmp_path: Path) -> None:
    document = measure(tmp_path, rounds=3)
    print("\n" + "\n".join(table(document)))
    mixed, small = document["mixed"], document["small"]
    ours = mixed["sensorium"]["cpu_s_per_gb"]
    assert mixed["mcap"]["cpu_s_per_gb"] > 1.5 * ours
    assert small["mcap"]["cpu_s_per_gb"] > 3 * small["sensorium, blocks of 100"]["cpu_s_per_gb"]
    if "foxglove_sdk" not in document["skipped"]:
        assert ours < 1.25 * mixed["foxglove_sdk"]["cpu_s_per_gb"]
        assert small["sensorium, blocks of 100"]["cpu_s_per_gb"] < small["foxglove_sdk"]["cpu_s_per_gb"]
