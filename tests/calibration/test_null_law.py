"""What edges would show by chance, worked out for each window."""

import numpy as np
import pytest

from sensorium.calibration.agreement import Expectation
from sensorium.calibration.null_law import NullLaw, null_law


def test_a_chi_square_exceeds_its_limits_as_often_as_a_normal_law_does() -> None:
    law = NullLaw(mean=5.0, freedom=5.0, chance=1.0, certainty=1e6)
    drawn = np.random.default_rng(1).chisquare(5.0, 20_000)
    beyond = np.mean([law.deviations(float(value)) > 1.645 for value in drawn])
    assert beyond == pytest.approx(0.05, abs=0.006)


def test_what_is_hardly_known_needs_a_larger_gain() -> None:
    sure, unsure = (NullLaw(5.0, 5.0, 0.5, certainty) for certainty in (1000.0, 8.0))
    assert unsure.deviations(15.0) < sure.deviations(15.0)


def test_a_window_without_edges_proves_nothing() -> None:
    law = null_law((), np.eye(4), np.zeros(6), Expectation.of(None))
    assert law.deviations(1000.0) == 0.0
