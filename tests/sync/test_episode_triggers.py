"""Triggered cameras of a finished recording, which was stamped without its trigger: found again, or found out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from episode_samples import TIMELINE
from simulated_rig import START_NS, drain, run

from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.drivers.registry import load_driver
from sensorium.simulators.truth import load_truth
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.clocks.triggered import DETAIL, TriggerSettings
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.remapped import remap_episode
from sensorium.sync.episode.triggers import CHECK, check_triggers
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.timebase import VirtualClock
from sensorium.verdict import Status, Verdict

SECONDS = 24.0
SHUTTER = {"delay_us": 180.0, "jitter_us": 2.0, "row_us": 12.0}
SETTINGS = TriggerSettings(pulses="box", drives=("camera_left",), delay_us=180, bound_us=2, row_us=12)
STATED_NS = 12_000
CAMERA = {"size": [160, 120], "render": "cached", "shutter": SHUTTER, "seconds": SECONDS}


def recorded(
    folder: Path,
    faults: Mapping[str, list[dict[str, Any]]] | None = None,
    *,
    settings: TriggerSettings = SETTINGS,
    names: tuple[str, ...] = ("box", "camera_left"),
    **camera: Any,
) -> Path:
    """Write an unsealed episode of the simulated trigger and a camera, with the ordinary stamps; return its folder."""
    faults = faults or {}
    trigger = load_driver("sim_trigger")
    options = {"seed": 1, "start_ns": START_NS, "seconds": SECONDS, "faults": faults.get("box", [])}
    box = trigger(
        trigger.config_type.model_validate(options),
        DriverContext("box", "bench", VirtualClock(START_NS), folder),
    )
    infos: dict[str, StreamInfo] = {info.name: info for info in box.open()}
    frames: dict[str, list[Frame]] = drain(box, ["box"])
    more_infos, more_frames = run(
        "camera_left", folder, **{**CAMERA, **camera}, faults=faults.get("camera_left", [])
    )
    infos |= more_infos
    frames |= more_frames
    details = {DETAIL: settings.model_dump_json()}
    infos["camera_left"] = replace(infos["camera_left"], details=details, is_personal=False)
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(folder / episode_id, episode_id, TIMELINE, None)
    trackers = {name: StreamTracker(infos[name]) for name in names}
    for name in names:
        writer.declare(infos[name])
    for frame in sorted((f for name in names for f in frames[name]), key=lambda f: int(f.arrival_ns[-1])):
        writer.write(frame, trackers[frame.stream].update(frame), 0)
        writer.step(int(frame.arrival_ns[-1]))
    writer.close()
    return writer.folder


def judged(folder: Path) -> Verdict:
    with Episode(folder) as episode:
        (verdict,) = check_triggers(episode)
    assert (verdict.check, verdict.subject) == (CHECK, "camera_left")
    return verdict


def test_a_remap_gives_old_frames_the_times_of_their_pulses(tmp_path: Path) -> None:
    faults = {
        "box": [{"kind": "drop", "at_s": 10.0, "count": 2}],
        "camera_left": [{"kind": "ignore", "at_s": 14.0}, {"kind": "expose", "at_s": 18.0}],
    }
    folder = recorded(tmp_path, faults)
    truth = dict(load_truth(tmp_path)["camera_left"].tolist())
    with Episode(folder) as episode:
        better = remap_episode(episode)
        rows = [row for name, row in episode.stamps() if name == "camera_left"]
    new = {row.seq: better["camera_left", 0, row.seq] for row in rows}
    by_pulse = {seq for seq, stamped in new.items() if stamped.uncertainty.bound95_ns == STATED_NS}
    error_ns = {seq: abs(int(stamped.capture_ns[0]) - truth[seq]) for seq, stamped in new.items()}
    assert len(by_pulse) == len(rows) - 3, "all but two unrecorded pulses and the exposure without one"
    assert max(error_ns[seq] for seq in by_pulse) <= STATED_NS
    before_ns = [abs(int(row.stamped.capture_ns[0]) - truth[row.seq]) for row in rows]
    assert np.percentile(list(error_ns.values()), 99) < 0.5 * np.percentile(before_ns, 99)
    captures = [int(new[row.seq].capture_ns[0]) for row in rows]
    assert captures == sorted(captures)
    verdict = judged(folder)
    assert verdict.status is Status.SUSPECT
    found = {quantity.name: quantity.value for quantity in verdict.quantities}
    assert (found["pulses not recorded"], found["pulses ignored"], found["frames without a pulse"]) == (
        2,
        1,
        1,
    )


def test_a_camera_that_follows_its_trigger_is_ok_afterwards(tmp_path: Path) -> None:
    assert judged(recorded(tmp_path)).status is Status.OK


def test_a_camera_that_runs_freely_at_nearly_the_same_rate_is_found_out(tmp_path: Path) -> None:
    folder = recorded(tmp_path, triggered=False)
    truth = load_truth(tmp_path)
    count = min(len(truth["box"]), len(truth["camera_left"]))
    phase_ns = (truth["camera_left"][:count, 1] - truth["box"][:count, 1]).astype(float)
    drift_ppm = np.polyfit(np.arange(count) * 1e9 / 30, phase_ns, 1)[0] * 1e6
    assert 10 < abs(drift_ppm) < 100, "or else the test says nothing"
    verdict = judged(folder)
    assert verdict.status is Status.SUSPECT
    assert "is the camera in trigger mode?" in " ".join(verdict.reasons)


def test_without_its_pulses_a_recording_says_so(tmp_path: Path) -> None:
    verdict = judged(recorded(tmp_path, names=("camera_left",)))
    assert verdict.status is Status.INSUFFICIENT
    assert verdict.reasons == ("the pulses of box are not in the recording",)
    with Episode(next(path for path in tmp_path.iterdir() if (path / "data.mcap").exists())) as episode:
        assert remap_episode(episode)


def test_a_latency_that_is_not_known_well_enough_is_refused_afterwards_too(tmp_path: Path) -> None:
    vague = SETTINGS.model_copy(update={"late_ms": (-20.0, 20.0)})
    verdict = judged(recorded(tmp_path, settings=vague))
    assert verdict.status is Status.INSUFFICIENT
    assert "known to 20.0 ms only" in verdict.reasons[0]
