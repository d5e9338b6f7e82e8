"""Calibration checks, consent decisions, marks and events."""

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.agent.reporting import page
from sensorium.agent.reporting.material import Material
from sensorium.agent.reporting.mounting import mounting

_SHOWN_EVENTS = 150


def calibration(material: Material) -> str:
    body = verdict_table(material.found["calibration"].get("checks", ()))
    body = body or page.note("no calibration check ran")
    found_id = material.found["calibration"].get("id")
    lead = f"Calibration <code>{page.text(found_id)}</code>." if found_id else "No calibration is in force."
    return page.section("calibration", "Calibration", body + mounting(material), lead)


def verdict_table(checks: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of verdicts with one line per number; "" without verdicts."""
    rows = []
    for check in checks:
        status = (
            f'{page.badge(check["status"])}<span class="sub">{page.prose("; ".join(check["reasons"]))}</span>'
        )
        subject = (
            f"<strong>{page.text(check['check'])}</strong>"
            f'<span class="sub">{page.text(check["subject"])}{page.text(_windows(check))}</span>'
        )
        for index, (name, quantity) in enumerate(check["quantities"].items() or [("", {})]):
            first = [subject, status] if index == 0 else ["", ""]
            digits = 0 if quantity.get("unit") == "1" else 3
            values = [page.number(quantity.get(key), digits) for key in ("value", "sigma", "threshold")]
            rows.append([*first, page.text(name), *values, page.text(page.unit(quantity.get("unit")))])
    head = ["check", "verdict", "quantity", "value", "sigma", "threshold", "unit"]
    return page.table(head, rows, (3, 4, 5)) if rows else ""


def _windows(check: Mapping[str, Any]) -> str:
    """Return when the verdict's window was captured, how all of them came out, and the first alarm."""
    if "windows" not in check:
        return ""
    counts = ", ".join(f"{count} {status}" for status, count in check["windows"].items())
    alarm = f"; first alarm {check['first_alarm_s']:.1f} s" if check["first_alarm_s"] is not None else ""
    return f"; captured {check['from_s']:.1f} to {check['to_s']:.1f} s; windows: {counts}{alarm}"


def consent(material: Material) -> str:
    rows = [
        [
            f"<strong>{page.text(record.info.name)}</strong>",
            page.badge(record.consent.decision or "not decided"),
            page.prose(record.consent.reason),
            page.text(", ".join(record.consent.purposes) if record.info.is_personal else "any"),
        ]
        for record in material.records
    ]
    return page.section(
        "consent", "Consent", page.table(["stream", "decision", "reason", "purposes"], rows) if rows else ""
    )


def events(material: Material) -> str:
    if material.survey is None:
        return ""
    events = material.survey.events
    rows = [
        [
            f"{material.seconds(event.host_ns):.3f}",
            page.text(event.kind),
            page.text(event.stream),
            page.text(event.detail),
        ]
        for event in events[:_SHOWN_EVENTS]
    ]
    more = len(events) + material.survey.more_events - len(rows)
    body = page.table(["time (s)", "kind", "stream", "what"], rows, (0,)) if rows else ""
    return page.section(
        "events", "Marks and events", body + (page.note(f"{more} more are in the episode") if more else "")
    )
