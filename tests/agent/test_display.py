"""What the screen says of a running agent's calibration checks."""

from typing import Any

import pytest

from sensorium.agent.commands.display import print_status


def status(**changes: Any) -> dict[str, Any]:
    row = {
        "check": "stereo_epipolar",
        "subject": "left~right",
        "status": "ok",
        "age_s": 3.0,
        "reasons": [],
        "every_s": 5.0,
        "cost_s": 0.4,
        "note": "",
    }
    checks = {"cpu_share": 0.25, "cpu_used": 0.081, "postponed_s": 0.0, "silent_s": 1.0}
    found: dict[str, Any] = {
        "episode": None,
        "devices": {"left": "connected"},
        "fault": "",
        "refused": "",
        "disk": {"free_bytes": 1 << 40, "minutes_left": None},
        "checks": {**checks, "pairs": [row]},
    }
    found["checks"]["pairs"][0] |= changes.pop("row", {})
    found["checks"] |= changes.pop("checks", {})
    return found | changes


def test_verdict_age_cost_and_share_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(status())
    shown = capsys.readouterr().out
    for text in ("left~right", "ok", "0.40 s each 5 s", "checker: 8% of a core, 25% allowed"):
        assert text in shown
    assert "not heard" not in shown


def test_a_checker_that_is_late_or_silent_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    note = "a result took 30 s instead of 5 s: the checks may use 1% of a core (checker: cpu_share)"
    print_status(status(row={"note": note}, checks={"postponed_s": 12.0, "silent_s": 40.0}))
    shown = " ".join(capsys.readouterr().out.split())
    assert "a result took 30 s" in shown
    assert "12 s behind; not heard for 40 s" in shown


def test_a_refusal_is_shown_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(status(refused="refused: pitch moved. Record with a new calibration, or say ..."))
    assert "refused: pitch moved" in capsys.readouterr().out


def test_without_checks_nothing_is_said_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(status(checks={"pairs": []}))
    assert "checker" not in capsys.readouterr().out
