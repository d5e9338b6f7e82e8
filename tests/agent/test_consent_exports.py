"""Receipts and records of consent for people and systems elsewhere."""

import json
from pathlib import Path

from sessions import sensorium


def test_a_receipt_and_a_record_say_what_was_granted_and_what_became_of_it(tmp_path: Path) -> None:
    granted = sensorium(
        *("consent", "grant", "sub:a", "--stream", "wrist", "--purpose", "record", "--purpose", "ai:train"),
        *("--controller", "Lab", "--spool", tmp_path, "--json"),
    )
    grant_id = json.loads(granted.out)["grant"]
    receipt = json.loads(sensorium("consent", "receipt", grant_id, "--spool", tmp_path).out)
    assert (receipt["version"], receipt["consentReceiptID"]) == ("KI-CR-v1.1.0", grant_id)
    (service,) = receipt["services"]
    assert [each["purpose"] for each in service["purposes"]] == ["record", "ai:train"]
    assert receipt["piiControllers"][0]["piiController"] == "Lab"
    assert len(receipt["publicKey"]) == 64
    assert sensorium("consent", "withdraw", grant_id, "--spool", tmp_path).code == 0
    (record,) = json.loads(sensorium("consent", "export", "--spool", tmp_path).out)["records"]
    assert record["dct:identifier"] == grant_id
    assert record["dpv:hasConsentStatus"] == "dpv:ConsentWithdrawn"
    assert [event["dct:type"] for event in record["dpv:hasActivity"]] == ["given", "withdrawn"]


def test_a_receipt_of_an_unknown_grant_is_an_error(tmp_path: Path) -> None:
    done = sensorium("consent", "receipt", "01J00000000000000000000000", "--spool", tmp_path)
    assert done.code == 1
    assert "consent show" in done.err


def test_records_of_a_log_that_was_cut_permit_nothing(tmp_path: Path) -> None:
    assert sensorium("consent", "grant", "sub:a", "--spool", tmp_path).code == 0
    (tmp_path / "consent" / "events.jsonl").unlink()
    done = sensorium("consent", "export", "--spool", tmp_path)
    assert done.code == 1
    (record,) = json.loads(done.out)["records"]
    assert record["dpv:hasConsentStatus"] == "dpv:ConsentUnknown"
