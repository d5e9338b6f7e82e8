"""The judgement of claims, on other draws than those of the bench."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import clock_claims

from sensorium.verdict import Status


def test_truthful_devices_are_never_called_wrong() -> None:
    found = [one for seed in (301, 302) for one in clock_claims.runs(seed, count=10, seconds=40.0)]
    assert [one for one in found if one.worst is not Status.OK] == []


@pytest.mark.parametrize("ppm", [5.0, -5.0])
@pytest.mark.parametrize(("rate_hz", "jitter_ms", "within_s"), [(200.0, 0.3, 20), (30.0, 1.5, 90)])
def test_a_device_five_ppm_off_is_found_as_soon_as_its_arrivals_tell(
    rate_hz: float, jitter_ms: float, within_s: float, ppm: float
) -> None:
    random = np.random.default_rng(303)
    found = clock_claims.run(rate_hz, jitter_ms, "exponential", random, ppm, within_s)
    # By its rate, or sooner by how far it has gone meanwhile.
    assert found.worst is Status.FAILED
    assert any("free-running" in reason or "not synchronised" in reason for reason in found.reasons)


def test_where_the_arrivals_cannot_tell_the_verdict_says_how_well_the_rate_is_known() -> None:
    random = np.random.default_rng(304)
    found = clock_claims.run(10.0, 20.0, "exponential", random, 5.0, 60.0)
    assert found.worst is Status.OK
    assert found.told_ppm > 5
    assert f"its rate is known to {found.told_ppm:.0f} ppm so far" in found.reasons[0]
