"""The sentence that ends a session: whose fault a loss is, and whether there was one."""

from pathlib import Path
from typing import Any

from sensorium.agent.session.summary import machine_too_slow, summarize
from sensorium.simulators.pace import PaceWriter
from sensorium.timebase import SECOND_NS


def stream(
    produced: int = 100, recorded: int = 100, reasons: dict[str, dict[str, int]] | None = None, early: int = 0
) -> dict[str, Any]:
    reasons = reasons or {}
    return {
        "produced": produced,
        "recorded": recorded,
        "dropped": {place: sum(counts.values()) for place, counts in reasons.items()},
        "dropped_reasons": reasons,
        "capture_after_arrival": early,
    }


LOST = stream(100, 88, {"bus": {"out of credit": 12}})


def too_slow(folder: Path) -> dict[str, Any]:
    for name, late_s in (("lidar", 3), ("imu", 2)):
        pace = PaceWriter(folder, name)
        pace.note(0, late_s * SECOND_NS)
        pace.flush()
    return machine_too_slow(folder)


def test_a_machine_that_kept_up_has_nothing_to_explain(tmp_path: Path) -> None:
    assert machine_too_slow(tmp_path) == {}
    said = summarize({"imu": stream()}, {}, simulated=True)
    assert "the pipeline is right" in said
    assert said.endswith("this machine kept up with the simulated rig")


def test_a_slow_machine_is_named_with_the_device_that_was_furthest_behind(tmp_path: Path) -> None:
    slow = too_slow(tmp_path)
    assert slow["behind_s"] == {"imu": 2.0, "lidar": 3.0}
    assert "this machine is too slow for the simulated rig: lidar ran up to 3 s" in slow["reason"]
    said = summarize({"imu": stream()}, slow, simulated=True)
    assert "the pipeline is right" in said
    assert slow["reason"] in said


def test_on_a_slow_machine_a_loss_is_not_the_pipelines_fault(tmp_path: Path) -> None:
    said = summarize({"lidar": LOST, "imu": stream()}, too_slow(tmp_path), simulated=True)
    assert "12 of lidar" in said
    assert "too slow for the simulated rig" in said
    assert "pipeline" not in said


def test_on_a_machine_that_kept_up_a_loss_is_the_pipelines_fault() -> None:
    said = summarize({"lidar": LOST}, {}, simulated=True)
    assert said.startswith("the pipeline does not keep up: samples were lost")
    assert "12 of lidar" in said


def test_what_consent_withheld_and_what_devices_lost_is_no_loss_on_the_way() -> None:
    withheld = stream(100, 0, {"synchronizer": {"consent: no grant": 100}})
    torn = stream(100, 90, {"device": {"missing sequence numbers": 10}})
    said = summarize({"camera": withheld, "imu": torn}, {}, simulated=False)
    assert said.startswith("the pipeline is right")
    assert "machine" not in said


def test_an_open_balance_and_a_stamp_from_the_future_are_wrong() -> None:
    assert "samples of imu are unaccounted for" in summarize({"imu": stream(100, 99)}, {}, simulated=True)
    assert "stamped after their arrival" in summarize({"imu": stream(early=1)}, {}, simulated=True)
    assert summarize({}, {}, simulated=False) == "nothing was recorded"


def test_the_sentence_says_whether_the_store_gave_back_what_was_sent() -> None:
    said = summarize({"imu": stream()}, {}, simulated=True, upload="verified")
    assert "; the store gave back every byte that was sent to it; " in said
    assert "the upload is wrong" in summarize({"imu": stream()}, {}, simulated=True, upload="quarantined")
    assert "upload" not in summarize({"imu": stream()}, {}, simulated=True, upload="pending")
