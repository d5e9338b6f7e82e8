"""Consent for one zone: what a rig says of where its devices stand reaches the decision and the manifest."""

from dataclasses import replace
from pathlib import Path

from sessions import CLOCK, SMALL_RIG, read_manifest, sensorium, write_rig
from upload_samples import grant_for

from sensorium.drivers.driver import CAPTURE_ZONE
from sensorium.sync.consent.grants import Purpose, Scope
from sensorium.sync.consent.store import ConsentStore

CAMERA = {**SMALL_RIG["camera_left"], "mount": "camera_left"}


def test_a_grant_for_a_zone_lets_the_device_there_be_recorded_and_no_other(tmp_path: Path) -> None:
    devices = {"here": {**CAMERA, "zone": "hall2"}, "there": {**CAMERA, "zone": "hall3"}, "somewhere": CAMERA}
    given = grant_for(1, (Purpose.RECORD,), valid_around_ns=CLOCK.utc_ns())
    store = ConsentStore(tmp_path / "spool" / "consent", CLOCK)
    store.grant(replace(given, scope=Scope(("*",), zones=("hall2",))))
    done = sensorium("record", write_rig(tmp_path, devices), "--seconds", "1", "--json")
    manifest = read_manifest(done.episodes[0])
    recorded = {record.info.name: record.total.recorded for record in manifest.streams}
    assert recorded["here"] > 0
    assert (recorded["there"], recorded["somewhere"]) == (0, 0)
    assert manifest.stream("here").info.details[CAPTURE_ZONE] == "hall2"
    assert "no grant covers" in manifest.stream("there").consent.reason
    assert "nothing says where stream somewhere" in manifest.stream("somewhere").consent.reason
