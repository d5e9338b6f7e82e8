"""Where the LiDAR's edges lie on the image, as calibrated and as the episode itself says."""

from dataclasses import replace
from functools import partial

from sensorium.agent.calibrating.checking.report import Overlay
from sensorium.agent.calibrating.checking.run import run_checks
from sensorium.agent.calibrating.opening import open_recording
from sensorium.agent.calibrating.recording import PreparedMaterial, spread
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.agent.reporting import page
from sensorium.agent.reporting.material import Material, attempt
from sensorium.agent.reporting.pictures import encoded
from sensorium.sync.recording.judged import MOUNTING
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict

KEYFRAMES = 4
"""Enough for a first answer in a second or two; ``sensorium calibration check`` takes its time."""


def mounting(material: Material) -> str:
    """Return figures of LiDAR edges on the first camera that may be shown; nothing without such a pair."""
    if material.manifest is None or material.calibration is None:
        return ""
    return attempt("LiDAR edges on the image", partial(_figures, material))


def _figures(material: Material) -> str:
    recording = open_recording(material.folder)
    pairs = [task for task in recording.tasks if task.kind.name == "camera_lidar"]
    shown = [task for task in pairs if _may_be_shown(material, task)]
    if not shown:
        return ""
    first = max(shown, key=lambda task: task.subject in alarmed_pairs(material))
    chosen = recording.material.camera_lidar(first)
    if not chosen.shots:
        return ""
    since_s = moved_before_s(material)
    after = [shot for shot, at_s in zip(chosen.shots, chosen.times_s, strict=False) if at_s >= since_s]
    shots = [(after or chosen.shots)[index] for index in spread(len(after or chosen.shots), KEYFRAMES)]
    few = PreparedMaterial(camera_lidar=[replace(chosen, shots=shots, times_s=())])
    report = run_checks(replace(recording, material=few, tasks=few.tasks, problems=[]), with_pictures=True)
    verdict = report.verdicts[0]
    figures = "".join(_figure(overlay) for overlay in report.overlays[:2])
    return page.grid([figures], "two") + page.note(_sentence(verdict, len(shots))) if figures else ""


def alarmed_pairs(material: Material) -> set[str]:
    """Return the pairs that were suspect or failed while recording."""
    verdicts = material.manifest.calibration.verdicts if material.manifest is not None else ()
    return {found.subject for found in verdicts if found.status in (Status.SUSPECT, Status.FAILED)}


def moved_before_s(material: Material) -> float:
    """Return the second of the episode from which on a sensor is known to have moved; 0 if none has.

    Pictures of later frames show how things stand now, not a mean of before and after.
    """
    if material.manifest is None:
        return 0.0
    started_ns = material.manifest.start_utc_ns - material.manifest.timeline.utc_minus_host_ns
    moved = [found.end_ns for found in material.manifest.calibration.checks if found.check == MOUNTING]
    return (max(moved) - started_ns) / SECOND_NS if moved else 0.0


def _may_be_shown(material: Material, task: CheckTask) -> bool:
    records = [record for record in material.records if record.info.frame_id in task.frames]
    return not any(material.withheld(record) for record in records)


def _figure(overlay: Overlay) -> str:
    title = overlay.caption.partition(":")[0]
    return page.figure(page.image(encoded(overlay.image), overlay.caption), title, f"{overlay.caption}.")


def _sentence(verdict: Verdict, count: int) -> str:
    said = f"{verdict.subject}, read from {count} images after recording: {verdict.status.value}"
    reasons = "" if verdict.status is Status.OK else f" ({'; '.join(verdict.reasons)})"
    return f"{said}{reasons}. For all pairs and a closer look: sensorium calibration check on this episode."
