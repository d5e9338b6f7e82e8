"""Verdicts of checks and lints, as the calibration commands print them."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from sensorium.agent.calibrating.checking.report import degrees
from sensorium.agent.commands.display import coloured
from sensorium.agent.commands.output import finite
from sensorium.verdict import Quantity, Status, Verdict


def plain_verdict(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict for machines, with what was judged by degrees of freedom apart."""
    judged = degrees(verdict)
    return {
        "check": verdict.check,
        "subject": verdict.subject,
        "status": verdict.status.value,
        "reasons": list(verdict.reasons),
        "degrees": {q.name: _plain_quantity(q) | {"status": status.value} for q, status in judged},
        "quantities": {
            q.name: _plain_quantity(q)
            for q in verdict.quantities
            if all(q is not other for other, _ in judged)
        },
    }


def _plain_quantity(quantity: Quantity) -> dict[str, Any]:
    found: dict[str, Any] = {"value": finite(quantity.value), "unit": quantity.unit}
    if quantity.threshold is not None:
        found["tolerance"] = finite(quantity.threshold)
    if quantity.sigma is not None:
        found["sigma"] = finite(quantity.sigma)
    return found


def print_findings(console: Console, findings: Sequence[Verdict]) -> None:
    """Print what looks odd in a calibration."""
    for finding in findings:
        what = "note" if finding.status is Status.OK else coloured(finding.status.value)
        for reason in finding.reasons:
            console.print(f"{what}: {finding.subject}: {reason}", highlight=False)
