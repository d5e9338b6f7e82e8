"""``sensorium record`` with a hardware trigger: cameras have the times of their pulses, and every fault its count."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sessions import (
    CLOCK,
    Done,
    check_balance,
    check_verifies,
    dropped_at,
    grant,
    read_manifest,
    recorded_rows,
    sensorium,
    write_rig,
)

from sensorium.agent.session.rig import load_rig
from sensorium.errors import ConfigError
from sensorium.simulators.truth import load_truth
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict

SECONDS = 10.0
SHUTTER = {"delay_us": 180.0, "jitter_us": 2.0, "row_us": 12.0}
TRIGGER = {"pulses": "trigger", "drives": ["camera_left"], "delay_us": 180.0, "bound_us": 2.0, "row_us": 12.0}
STAMP_BOUND_US = 10.0
STATED_NS = 1000 * (STAMP_BOUND_US + TRIGGER["bound_us"])  # type: ignore[operator]
FAULTS = {
    "trigger": [{"kind": "drop", "at_s": 3.0, "count": 2}, {"kind": "drop", "at_s": 7.5}],
    "camera_left": [
        {"kind": "ignore", "at_s": 4.0},
        {"kind": "ignore", "at_s": 8.2, "count": 2},
        {"kind": "drop", "at_s": 5.0, "count": 3},
        {"kind": "expose", "at_s": 6.0},
        {"kind": "expose", "at_s": 7.0},
    ],
}
COUNTS = {"pulses not recorded": 3, "pulses ignored": 3, "frames lost": 3, "frames without a pulse": 2}


def devices(**faults: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    common = {"seed": 3, "start_ns": CLOCK.now_ns() + 6 * SECOND_NS, "seconds": SECONDS}
    camera = {
        "driver": "sim_camera",
        "size": [160, 120],
        "render": "cached",
        "shutter": SHUTTER,
        "personal": False,
    }
    found = {
        "trigger": {"driver": "sim_trigger", "bound_us": STAMP_BOUND_US},
        "camera_left": camera,
        "camera_right": camera,  # the same pulses expose it, but the rig file does not say so
    }
    return {name: {**own, **common, "faults": faults.get(name, [])} for name, own in found.items()}


@dataclass(frozen=True, slots=True)
class Recording:
    folder: Path
    run_dir: Path
    done: Done

    @property
    def episode(self) -> Path:
        (episode,) = self.done.episodes
        return episode

    def errors_ns(self, stream: str) -> NDArray[np.int64]:
        """Return capture minus truth of all recorded frames of a camera."""
        truth = dict(load_truth(self.run_dir)[stream].tolist())
        rows = recorded_rows(self.episode)[stream]
        return np.array([row.capture_ns[0] - truth[row.seq] for row in rows])

    def bounds_ns(self, stream: str) -> NDArray[np.float64]:
        with Episode(self.episode) as opened:
            return np.array([row.stamped.uncertainty.bound95_ns for _, row in opened.stamps([stream])])

    def verdict(self, check: str, subject: str) -> Verdict:
        (found,) = (v for v in read_manifest(self.episode).clocks if (v.check, v.subject) == (check, subject))
        return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("triggered")
    rig = write_rig(folder, devices(**FAULTS), triggers=[TRIGGER], episode={"reference": "camera_left"})
    grant(folder / "spool")
    done = sensorium("record", rig, "--json")
    assert done.code == 0, done.err + done.out
    (run_dir,) = (folder / "spool" / "run").iterdir()
    return Recording(folder, run_dir, done)


def test_frames_are_as_exact_as_the_trigger_states_and_better_than_without_it(recorded: Recording) -> None:
    error_ns, bound_ns = np.abs(recorded.errors_ns("camera_left")), recorded.bounds_ns("camera_left")
    by_pulse = bound_ns == STATED_NS
    assert by_pulse.mean() > 0.9
    assert np.percentile(error_ns[by_pulse], 99) < STATED_NS
    without_ns = np.abs(recorded.errors_ns("camera_right"))
    assert np.percentile(error_ns[by_pulse], 99) < np.percentile(without_ns, 50)
    check_verifies(recorded.episode)
    check_balance([recorded.episode], recorded.run_dir)


def test_every_fault_ends_in_its_own_counter_with_the_number_that_was_injected(recorded: Recording) -> None:
    verdict = recorded.verdict("trigger", "camera_left")
    found = {quantity.name: quantity.value for quantity in verdict.quantities}
    assert {name: found[name] for name in COUNTS} == COUNTS
    assert verdict.status is Status.SUSPECT
    # Frames that keep the ordinary estimate are counted, and they state its uncertainty.
    kept = int((recorded.bounds_ns("camera_left") != STATED_NS).sum())
    assert found["frames with the ordinary estimate"] == kept
    assert found["frames matched"] == len(recorded.bounds_ns("camera_left")) - kept
    manifests = [read_manifest(recorded.episode)]
    assert dropped_at(manifests, "trigger")["device"] == 3
    assert dropped_at(manifests, "camera_left")["device"] == 3
    assert recorded.done.document["clocks"]["status"] == "suspect"


def test_the_report_finds_the_same_in_the_finished_recording(recorded: Recording) -> None:
    done = sensorium("sync", "report", recorded.episode, "--no-content", "--json")
    verdicts = {(v["check"], v["subject"]): v for v in done.document["verdicts"]}
    offline = verdicts["trigger_afterwards", "camera_left"]
    assert {name: offline["quantities"][name][0] for name in COUNTS} == COUNTS
    assert verdicts["trigger", "camera_left"]["status"] == "suspect"
    assert done.document["streams"]["camera_left"]["method"] == "trigger"
    page = Path(done.document["html"]).read_text()
    assert "pulses ignored by the camera: 3" in page


def test_its_replay_has_the_same_stamps(recorded: Recording, tmp_path: Path) -> None:
    done = sensorium("replay", recorded.episode, "--spool", tmp_path / "again", "--rate", "max", "--json")
    assert done.code in (0, 1), done.err
    before, after = recorded_rows(recorded.episode), recorded_rows(done.episodes[0])
    for name in ("trigger", "camera_left", "camera_right"):
        assert [row.capture_ns for row in after[name]] == [row.capture_ns for row in before[name]], name


def test_a_remap_keeps_the_times_of_the_pulses(recorded: Recording) -> None:
    done = sensorium("sync", "remap", recorded.episode, "--json")
    assert done.code == 0, done.err
    moved = done.document["streams"]
    assert moved["camera_left"]["moved_p50_us"] == 0
    assert moved["camera_right"]["moved_p50_us"] > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"drives": ["camera_lfet"]},
            "triggers: no device has a stream 'camera_lfet'; did you mean 'camera_left'?",
        ),
        ({"pulses": "trigge"}, "did you mean 'trigger'?"),
        ({"drives": ["camera_left", "trigger"]}, "trigger cannot drive itself"),
        ({"delay": 3}, "unknown key 'delay'; did you mean 'delay_us'?"),
        ({"bound_us": -1}, "triggers.0.bound_us: must be at least 0"),
    ],
)
def test_a_trigger_that_cannot_be_meant_is_refused_before_anything_starts(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = write_rig(tmp_path, devices(), triggers=[{**TRIGGER, **change}])
    with pytest.raises(ConfigError) as raised:
        load_rig(path)
    (line,) = str(raised.value).splitlines()
    assert words in line
    assert line.startswith(f"{path}:")


def test_a_camera_that_two_triggers_drive_is_refused(tmp_path: Path) -> None:
    path = write_rig(tmp_path, devices(), triggers=[TRIGGER, TRIGGER])
    with pytest.raises(ConfigError, match="camera_left is driven by trigger already"):
        load_rig(path)
