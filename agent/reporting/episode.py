"""The HTML report of an episode: one page without any file beside it.

Whatever cannot be shown (a damaged payload, a stream without consent, an encoding that nobody here decodes)
becomes a sentence in its place: a report never fails the session that it is about.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.agent.reporting import page
from sensorium.agent.reporting.clocks import clocks
from sensorium.agent.reporting.events import calibration, consent, events
from sensorium.agent.reporting.material import Material, attempt, utc_text
from sensorium.agent.reporting.numbers import alignment, streams
from sensorium.agent.reporting.survey import (
    survey,
)
from sensorium.agent.reporting.timeline import timeline
from sensorium.agent.reporting.views import cameras, lidar, waveforms
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError, EpisodeError, SensoriumError
from sensorium.simulators.truth import load_truth
from sensorium.sync.consent.use import Rights
from sensorium.sync.episode.files import CALIBRATION_FILE, REPORT_FILE
from sensorium.sync.episode.folder import file_in
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.reader import Episode
from sensorium.sync.reading.locate import locate
from sensorium.sync.reading.rights import consent_of, rights_by
from sensorium.timebase import HostClock


def write_report(
    folder: Path,
    found: Mapping[str, Any],
    run_dir: Path,
    path: Path | None = None,
    *,
    rights: Rights | None = None,
) -> Path:
    """Write the report, ``report.html`` beside the episode unless said otherwise, and return its path.

    Args:
        found: The session's document; see :func:`sensorium.agent.session.outcome.document`.
        run_dir: Folder of the session's processes, where simulated devices leave their truth.
        rights: By which personal streams are drawn, where they permit the purpose ``live``: to show it to people
            on this machine; None = those where it lies.

    Raises:
        EpisodeError: If the folder does not take the file.
    """
    path = path or folder / REPORT_FILE
    html = render(_gather(folder, found, run_dir, rights))
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as err:
        raise EpisodeError(f"report {path} cannot be written: {err.strerror}") from err
    return path


def _gather(folder: Path, found: Mapping[str, Any], run_dir: Path, rights: Rights | None) -> Material:
    material = Material(folder, found, now_utc_ns=HostClock().utc_ns())
    try:
        material.manifest = read_manifest(folder)
        material.rights = rights or rights_by(material.manifest, consent_of(locate(folder)))
        with Episode(folder) as episode:
            material.survey = survey(episode, material.manifest)
        material.problems += material.survey.problems
    except (SensoriumError, ValueError, OSError) as err:
        material.problems.append(f"the episode cannot be read: {err}")
    try:
        material.truth = load_truth(run_dir)
    except SensoriumError as err:
        material.problems.append(str(err))
    try:
        calibration = file_in(folder, CALIBRATION_FILE)
        if calibration.exists():
            material.calibration = RigCalibration.load(calibration)
        else:
            material.calibration_problem = "the episode has no calibration"
    except CalibrationError as err:
        material.calibration_problem = str(err)
    return material


def render(material: Material) -> str:
    """Return the page."""
    sections: tuple[tuple[str, Callable[[Material], str]], ...] = (
        ("header", _header),
        ("verdicts", _cards),
        ("problems", _problems),
        ("timeline", timeline),
        ("streams", streams),
        ("cameras", cameras),
        ("LiDAR", lidar),
        ("clocks", clocks),
        ("waveforms", waveforms),
        ("alignment", alignment),
        ("calibration", calibration),
        ("consent", consent),
        ("events", events),
        ("files", _files),
        ("footer", _footer),
    )
    body = "".join(attempt(name, partial(make, material)) for name, make in sections)
    rig = material.manifest.facts.rig if material.manifest else material.folder.name
    return page.page(f"{rig}: episode {material.folder.name}", body)


def _header(material: Material) -> str:
    manifest = material.manifest
    if manifest is None:
        return f"<header><h1>{page.text(material.folder.name)}</h1></header>"
    words = [page.badge(word) for word, is_set in _tags(manifest) if is_set]
    when = material.utc(material.survey.span[0]) if material.survey else utc_text(manifest.start_utc_ns)
    return (
        f"<header><h1>{page.text(manifest.facts.rig)}</h1>{''.join(words)}"
        f'<span class="when">{page.text(when)} · {material.length_s:.1f} s recorded</span>'
        f'<span class="id">{page.text(manifest.episode_id)}</span></header>'
    )


def _tags(manifest: Manifest) -> tuple[tuple[str, bool], ...]:
    return (("synthetic", manifest.synthetic), ("incomplete", manifest.truncated))


def _cards(material: Material) -> str:
    found = material.found
    verdicts = (
        ("quality", found["quality"]["status"], found["quality"]["reasons"]),
        ("calibration", found["calibration"]["status"], found["calibration"]["reasons"]),
        ("clocks", found["clocks"]["status"], found["clocks"]["reasons"]),
        ("consent", found["consent"]["decision"], [found["consent"]["reason"]]),
        ("verification", found["verification"]["status"], _verification_reasons(found["verification"])),
    )
    cards = [
        f'<div class="card"><b>{name}</b>{page.badge(status)}<br>{page.prose(_brief(reasons))}</div>'
        for name, status, reasons in verdicts
    ]
    return f'<div class="cards">{"".join(cards)}{_count_cards(material)}</div>'


def _verification_reasons(verification: Mapping[str, Any]) -> list[str]:
    where = [f"in {verification['store']}"] if verification.get("store") else []
    return where + [str(reason) for reason in verification.get("reasons", ())]


def _brief(reasons: Sequence[str]) -> str:
    """Return the first reason, cut to a card's size, and how many more there are."""
    said = [str(reason) for reason in reasons if reason]
    if not said:
        return ""
    first = said[0] if len(said[0]) <= 90 else said[0][:88].rpartition(" ")[0] + " …"
    return first if len(said) == 1 else f"{first}; {len(said) - 1} more below"


def _count_cards(material: Material) -> str:
    streams = material.found["streams"].values()
    produced, recorded = (sum(stream[key] for stream in streams) for key in ("produced", "recorded"))
    dropped = sum(sum(stream["dropped"].values()) for stream in streams)
    raw = sum(stream["bytes_raw"] for stream in streams)
    stored = material.found.get("bytes_on_disk", 0)
    ratio = f", {raw / stored:.2f} times smaller" if stored and raw > 1.005 * stored else ""
    balance = f"of {page.number(produced)} produced; {page.number(dropped)} dropped"
    return (
        f'<div class="card"><b>samples</b><span class="big">{page.number(recorded)}</span>{balance}</div>'
        f'<div class="card"><b>size on disk</b><span class="big">{page.size(stored)}</span>'
        f"{page.size(raw)} from the sensors{ratio}</div>"
    )


def _problems(material: Material) -> str:
    found = material.found
    groups = (
        ("problems", [*material.problems, *found.get("problems", ())]),
        ("quality", found["quality"]["reasons"]),
        ("limitations", found.get("limitations", ())),
        ("warnings", found.get("warnings", ())),
    )
    said: dict[str, None] = {}
    parts = []
    for name, sentences in groups:
        new = [sentence for sentence in dict.fromkeys(map(str, sentences)) if sentence not in said]
        said.update(dict.fromkeys(new))
        if new:
            parts.append(f"<h3>{name}</h3>{page.items(new)}")
    return page.section("problems", "What to know", "".join(parts))


def _files(material: Material) -> str:
    manifest = material.manifest
    if manifest is None:
        return ""
    rows = [
        [page.text(file.name), page.number(file.bytes), f"<code>{page.text(file.sha256)}</code>"]
        for file in manifest.files
    ]
    verification = material.found["verification"]
    reasons = page.prose("; ".join(_verification_reasons(verification)))
    lead = f"{page.badge(verification['status'])} {reasons}"
    return page.section("files", "Files", page.table(["file", "bytes", "SHA-256"], rows, (1,)), lead)


def _footer(material: Material) -> str:
    manifest = material.manifest
    if manifest is None:
        return ""
    facts = [
        ("agent", manifest.agent_version),
        ("host", manifest.timeline.host_id),
        *((name, value) for name, value in manifest.facts.model_dump().items() if name != "rig"),
        ("device key", manifest.device_public_key),
        ("previous episode", manifest.prev_manifest),
    ]
    return "<footer>" + " · ".join(f"{page.text(k)} {page.text(v)}" for k, v in facts if v) + "</footer>"
