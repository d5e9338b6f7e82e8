"""The simulated trigger and the cameras on it: truth, faults, and what each of them counts."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from simulated_rig import START_NS, device, drain, run, ticks_of

from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame
from sensorium.drivers.registry import load_driver
from sensorium.simulators.truth import load_truth
from sensorium.timebase import VirtualClock

SHUTTER = {"delay_us": 180.0, "jitter_us": 2.0, "row_us": 12.0}
AFTER_NS = 180_000 + 2_000_000 + round(119 / 2 * 12_000)
"""Delay, half of 4 ms, and the rows above the middle of 120."""
SMALL = {"size": [160, 120], "render": "cached", "shutter": SHUTTER, "seconds": 2.0}


def pulses(run_dir: Path, **options: object) -> tuple[list[Frame], NDArray[np.int64]]:
    """Return the recorded pulses and the truth of all of them."""
    trigger = load_driver("sim_trigger")
    config = trigger.config_type.model_validate({"seed": 1, "start_ns": START_NS, "seconds": 2.0, **options})
    driver = trigger(config, DriverContext("trigger", "bench", VirtualClock(START_NS), run_dir))
    infos = [info.name for info in driver.open()]
    frames = drain(driver, infos)["trigger"]
    return frames, load_truth(run_dir)["trigger"]


def test_exposures_follow_the_pulses_by_delay_exposure_and_rows(tmp_path: Path) -> None:
    _, edges = pulses(tmp_path)
    for name in ("camera_left", "camera_right"):
        run(name, tmp_path, **SMALL)
        middles = load_truth(tmp_path)[name]
        after_ns = middles[:, 1] - edges[: len(middles), 1]
        assert np.abs(after_ns - AFTER_NS).max() <= 2000 + 1
        assert np.ptp(after_ns) > 2000, "the jitter is there"


def test_stamps_of_edges_are_late_never_early(tmp_path: Path) -> None:
    frames, edges = pulses(tmp_path, seconds=20.0)
    stamped_ns = ticks_of(frames)
    late_ns = stamped_ns - edges[:, 1]
    assert late_ns.min() >= 0
    assert late_ns.mean() == pytest.approx(1000, rel=0.15)
    assert (stamped_ns <= np.concatenate([frame.arrival_ns for frame in frames])).all()


def test_a_pulse_that_is_not_recorded_is_a_gap_in_the_count(tmp_path: Path) -> None:
    frames, edges = pulses(tmp_path, faults=[{"kind": "drop", "at_s": 1.0, "count": 2}])
    seqs = [frame.seq for frame in frames]
    assert sorted(set(edges[:, 0].tolist()) - set(seqs)) == [seqs[0] + i for i in (30, 31)]


def test_a_camera_that_ignores_a_pulse_does_not_count_it(tmp_path: Path) -> None:
    whole = run("camera_left", tmp_path / "a", **SMALL)[1]["camera_left"]
    faults = [{"kind": "ignore", "at_s": 0.5, "count": 3}]
    fewer = run("camera_left", tmp_path / "b", **SMALL, faults=faults)[1]["camera_left"]
    assert [frame.seq for frame in fewer] == list(range(len(whole) - 3))
    all_ns, taken_ns = (load_truth(tmp_path / name)["camera_left"][:, 1] for name in ("a", "b"))
    missing = np.setdiff1d(np.arange(len(all_ns)), [np.argmin(np.abs(all_ns - at_ns)) for at_ns in taken_ns])
    assert missing.tolist() == [15, 16, 17]


def test_an_exposure_out_of_turn_has_a_number_and_a_truth_of_its_own(tmp_path: Path) -> None:
    faults = [{"kind": "expose", "at_s": 0.5}, {"kind": "expose", "at_s": 1.2}]
    frames = run("camera_left", tmp_path, **SMALL, faults=faults)[1]["camera_left"]
    assert [frame.seq for frame in frames] == list(range(62))
    truth = load_truth(tmp_path)["camera_left"]
    assert np.isin(START_NS + np.array([500_000_000, 1_200_000_000]), truth[:, 1]).all()
    assert (np.diff(truth[:, 1]) > 0).all()


def test_without_a_shutter_the_trigger_marks_the_middle_as_before(tmp_path: Path) -> None:
    _, edges = pulses(tmp_path)
    driver = device("camera_left", tmp_path, size=[160, 120], render="cached", seconds=2.0)
    drain(driver, [info.name for info in driver.open()])
    middles = load_truth(tmp_path)["camera_left"]
    assert np.array_equal(middles[:, 1], edges[: len(middles), 1])
