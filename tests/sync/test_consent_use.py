"""What an episode may be used for: the same question for every purpose and whoever holds it."""

from dataclasses import replace
from pathlib import Path

import pytest
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.state import consent_state
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.consent.use import consent_reasons, rights_of
from sensorium.sync.episode.files import SYNC_FILE
from sensorium.sync.episode.manifest import ClockSummary, Manifest, Tombstone, read_manifest
from sensorium.timebase import SECOND_NS, VirtualClock

NOW_NS = CAPTURED[1] + SECOND_NS


def manifest_with(folder: Path, **extra: bytes) -> Manifest:
    spool, trusted = begin_spool(folder / "spool")
    files = {name.replace("_", "."): content for name, content in extra.items()}
    return read_manifest(seal_episode(spool, extra=files), trusted)


def ledger_with(folder: Path, *purposes: Purpose, captured: tuple[int, int] | None = None) -> ConsentLedger:
    store = ConsentStore(folder / "consent", VirtualClock(NOW_NS))
    store.grant(grant_for(purposes=purposes, captured=captured))
    return store.ledger()


@pytest.mark.parametrize("purpose", [Purpose.UPLOAD, Purpose.EXPORT, Purpose.LIVE, Purpose.AI_TRAIN])
def test_a_grant_opens_the_gate_for_its_own_purpose_alone(tmp_path: Path, purpose: Purpose) -> None:
    manifest = manifest_with(tmp_path)
    ledger = ledger_with(tmp_path, purpose)
    for asked in Purpose:
        reasons = consent_reasons(manifest, ledger, asked, NOW_NS)
        assert [reason.split(":")[0] for reason in reasons] == (
            [] if asked is purpose else ["stream cam", "stream mic"]
        )


def test_only_the_streams_that_go_out_are_asked_for(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path, faces_bin=b"hidden")
    nobody = ConsentLedger()
    assert consent_reasons(manifest, nobody, Purpose.EXPORT, NOW_NS, {"lidar"}) == ()
    (reason,) = consent_reasons(manifest, nobody, Purpose.EXPORT, NOW_NS, {"lidar", "mic"})
    assert reason == "stream mic: no grant covers stream mic at that time"
    assert len(consent_reasons(manifest, nobody, Purpose.EXPORT, NOW_NS)) == 3


def test_our_own_shared_files_need_no_grant_and_strangers_are_refused(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path, sync_mcap=b"rows", lidar_mcap=b"points", x_bin=b"")
    assert SYNC_FILE in {file.name for file in manifest.files}
    ledger = ledger_with(tmp_path, Purpose.UPLOAD)
    assert consent_reasons(manifest, ledger, Purpose.UPLOAD, NOW_NS) == (
        "file lidar.mcap: belongs to no stream, so no grant can cover it",
        "file x.bin: belongs to no stream, so no grant can cover it",
    )


def test_the_span_that_must_be_granted_is_widened_by_the_clocks_uncertainty(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path)
    ledger = ledger_with(
        tmp_path, Purpose.EXPORT, captured=(CAPTURED[0] - 1_000_000, CAPTURED[1] + SECOND_NS)
    )
    for uncertainty_us, reasons in ((1000.0, 0), (1001.0, 2)):
        clock = ClockSummary(uncertainty_p95_us=uncertainty_us)
        unsure = replace(manifest, streams=tuple(replace(each, clock=clock) for each in manifest.streams))
        assert len(consent_reasons(unsure, ledger, Purpose.EXPORT, NOW_NS)) == reasons


def test_the_log_and_the_state_beside_a_copy_give_the_same_answers(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path)
    ledger = ledger_with(tmp_path, Purpose.UPLOAD, Purpose.AI_TRAIN)
    here = rights_of(manifest, ledger=ledger)
    elsewhere = rights_of(manifest, state=consent_state(manifest, ledger, NOW_NS))
    for purpose in Purpose:
        for stream in ("cam", "mic", "lidar", "nobody"):
            answers = [rights.permits(stream, purpose, NOW_NS).is_allowed for rights in (here, elsewhere)]
            is_allowed = stream == "lidar" or (
                stream != "nobody" and purpose in (Purpose.UPLOAD, Purpose.AI_TRAIN)
            )
            assert answers == [is_allowed] * 2, (stream, purpose)


def test_whoever_knows_nothing_of_consent_may_use_what_is_not_personal_alone(tmp_path: Path) -> None:
    rights = rights_of(manifest_with(tmp_path))
    assert rights.permits("lidar", Purpose.AI_TRAIN, NOW_NS).is_allowed
    decision = rights.permits("cam", Purpose.AI_TRAIN, NOW_NS)
    assert (decision.is_allowed, decision.rule) == (False, "no_state")


def test_the_state_of_another_episode_opens_nothing_personal(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path)
    state = consent_state(manifest, ledger_with(tmp_path, Purpose.AI_TRAIN), NOW_NS)
    foreign = rights_of(manifest, state=replace(state, episode_id="01J00000000000000000000002"))
    assert foreign.permits("cam", Purpose.AI_TRAIN, NOW_NS).rule == "no_state"


def test_what_was_erased_is_permitted_to_nobody(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path)
    grave = Tombstone("cam.mcap", "cam", "cam-0.mcap", 1, "", NOW_NS, "grant 1 was withdrawn")
    erased = replace(manifest, tombstones=(grave,))
    decision = rights_of(erased, ledger=ledger_with(tmp_path, *Purpose)).permits("cam", Purpose.LIVE, NOW_NS)
    assert (decision.rule, decision.reason) == ("erased", "stream cam was erased: grant 1 was withdrawn")
