"""A verdict has one shape in JSON, and no number in it that JSON cannot write."""

import json
import math
from typing import Any

import pytest

from sensorium.agent.calibrating.checking.report import judged_document
from sensorium.agent.commands.output import print_json, print_json_line
from sensorium.verdict import Quantity, Status, Verdict, finite

VERDICT = Verdict(
    "stereo_epipolar",
    "left~right",
    Status.SUSPECT,
    (
        Quantity("pitch", 0.3, "deg", 0.1, 0.02),
        Quantity("baseline", 0.0, "deg", 0.2, math.inf),
        Quantity("misses", math.nan, "1"),
    ),
    ("pitch is off",),
)


def test_a_verdict_is_written_with_its_quantities_by_name() -> None:
    assert VERDICT.document() == {
        "check": "stereo_epipolar",
        "subject": "left~right",
        "status": "suspect",
        "reasons": ["pitch is off"],
        "quantities": {
            "pitch": {"value": 0.3, "unit": "deg", "threshold": 0.1, "sigma": 0.02},
            "baseline": {"value": 0.0, "unit": "deg", "threshold": 0.2, "sigma": None},
            "misses": {"value": None, "unit": "1", "threshold": None, "sigma": None},
        },
    }
    json.dumps(VERDICT.document(), allow_nan=False)


def test_a_check_says_of_each_degree_how_it_stands_beside_the_same_numbers() -> None:
    found = judged_document(VERDICT)
    assert {key: found[key] for key in VERDICT.document()} == VERDICT.document()
    numbers = found["quantities"]
    assert found["degrees"] == {
        "pitch": numbers["pitch"] | {"tolerance": 0.1, "status": "suspect"},
        "baseline": numbers["baseline"] | {"tolerance": 0.2, "status": "insufficient"},
    }


@pytest.mark.parametrize(("value", "written"), [(1, 1.0), (None, None), (math.nan, None), (-math.inf, None)])
def test_what_is_no_number_is_null(value: float | None, written: float | None) -> None:
    assert finite(value) == written


@pytest.mark.parametrize("show", [print_json, print_json_line])
def test_documents_are_printed_without_numbers_that_are_none(show: Any, capsys: Any) -> None:
    show({"rates": [1.5, math.nan], "skew": {"ppm": -math.inf}})
    assert json.loads(capsys.readouterr().out) == {"rates": [1.5, None], "skew": {"ppm": None}}
