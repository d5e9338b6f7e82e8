"""The gate of a sealed episode: the same question for every purpose."""

from dataclasses import replace
from pathlib import Path

import pytest
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.sync.consent.gate import consent_reasons
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import SYNC_FILE
from sensorium.sync.episode.manifest import ClockSummary, Manifest, read_manifest
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
