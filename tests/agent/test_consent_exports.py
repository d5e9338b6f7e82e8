"""Receipts and records of consent for people and systems elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

from sessions import sensorium
from upload_samples import grant_for

from sensorium.sync.consent.grants import Conditions, ConsentGrant, Scope
from sensorium.sync.consent.particulars import Particulars, Party
from sensorium.sync.consent.receipts import dpv_record, kantara_receipt
from sensorium.sync.consent.store import ConsentStore, read_grant
from sensorium.timebase import VirtualClock

FULL = replace(
    grant_for(),
    scope=Scope(("cam*",), zones=("hall2",)),
    conditions=Conditions(("face",), 30),
    notice="https://lab.example/notice",
    jurisdiction="DE",
    particulars=Particulars(
        language="de",
        is_explicit=True,
        controller=Party(
            "Lab", "HRB 7", "controller", "Street 1", "desk", "a@lab.example", "1", "lab.example"
        ),
        recipients=(Party("University"),),
        personal_data=("face",),
        special_categories=("biometric",),
        storage_locations=("EU",),
        processing="training of models",
        service="robot study",
        withdrawal="privacy@lab.example",
        rights="https://lab.example/rights",
        codes_of_conduct=("house rules",),
    ),
)


def entered(folder: Path, grant: ConsentGrant) -> ConsentStore:
    store = ConsentStore(folder, VirtualClock(0, grant.valid_from + 1))
    store.grant(grant)
    return store


def test_every_field_of_the_record_survives_its_file_and_stands_in_the_receipt_and_the_record(
    tmp_path: Path,
) -> None:
    store = entered(tmp_path, FULL)
    assert read_grant(tmp_path / f"{FULL.id}.yaml") == FULL
    ledger = store.ledger()
    receipt = kantara_receipt(FULL, ledger, "00")
    (controller,) = receipt["piiControllers"]
    assert controller == {
        "piiController": FULL.controller,
        "contact": "desk",
        "address": "Street 1",
        "email": "a@lab.example",
        "phone": "1",
    }
    assert (receipt["language"], receipt["spiCat"]) == ("de", ["biometric"])
    (service,) = receipt["services"]
    purpose = service["purposes"][0]
    assert (service["service"], purpose["consentType"], purpose["piiCategory"]) == (
        "robot study",
        "EXPLICIT",
        ["face"],
    )
    assert (purpose["thirdPartyDisclosure"], purpose["thirdPartyName"]) == (True, "University")
    assert "privacy@lab.example" in purpose["termination"]
    assert "30 days" in purpose["termination"]
    record = json.dumps(dpv_record(FULL, ledger, FULL.valid_from + 2))
    for said in (
        *(
            "HRB 7",
            "Street 1",
            "University",
            "biometric",
            "EU",
            "training of models",
            "robot study",
            "house rules",
        ),
        *("https://lab.example/rights", "P30D", "hall2", "redaction of face", '"de"', "DE", "face", "button"),
    ):
        assert said in record, said


def test_what_a_grant_does_not_state_is_not_in_its_record(tmp_path: Path) -> None:
    grant = grant_for()
    record = dpv_record(grant, entered(tmp_path, grant).ledger(), grant.valid_from + 2)
    assert not {
        key
        for key in record
        if key in ("dct:language", "dpv:hasLocation", "dpv:hasStorageCondition", "dpv:hasRight")
    }
    assert record["dpv:hasDataController"] == grant.controller


def test_a_grant_without_particulars_keeps_the_digest_that_logs_of_before_have_pinned() -> None:
    assert grant_for().digest == "2ed315c1e0753153102411e73485cb5c8a52d8ad93b892a1114acb8829895e87"


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


def test_the_command_line_names_what_a_grant_reaches_and_for_how_long_it_is_kept(tmp_path: Path) -> None:
    words = ("consent", "grant", "sub:a", "--modality", "camera", "--zone", "hall2", "--retain-days", "30")
    said = ("--notice", "https://lab.example/notice", "--jurisdiction", "DE", "--spool", tmp_path)
    assert sensorium(*words, *said).code == 0
    (shown,) = sensorium("consent", "show", "--spool", tmp_path, "--json").document["grants"]
    assert (shown["modalities"], shown["zones"], shown["retain_days"]) == (["camera"], ["hall2"], 30)
    (grant,) = ConsentStore(tmp_path / "consent").ledger().grants
    assert (grant.notice, grant.jurisdiction) == ("https://lab.example/notice", "DE")
    for wrong, word in (("--modality", "camara"), ("--zone", "hall 2")):
        done = sensorium("consent", "grant", "sub:a", wrong, word, "--spool", tmp_path)
        assert done.code == 2
        assert word in done.err


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
