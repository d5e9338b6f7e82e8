"""What the sensors saw: images, sweeps, LiDAR on the image, waveforms."""

from functools import partial

from sensorium.agent.reporting import page, plots
from sensorium.agent.reporting.material import Material, attempt, rate_text
from sensorium.agent.reporting.pictures import bird_view, overlay_picture, thumbnail
from sensorium.agent.reporting.sound import MOST_HZ, MOST_S, player
from sensorium.agent.reporting.survey import OverlayPair, Snapshot, StreamSurvey
from sensorium.drivers.frame import PCM_BYTES, Encoding, Modality, StreamInfo
from sensorium.drivers.roles import Role, has_role
from sensorium.sync.decoding import cloud
from sensorium.sync.episode.manifest import StreamRecord
from sensorium.timebase import SECOND_NS

_MAX_PANEL_COLUMNS = 24


def cameras(material: Material) -> str:
    rows = [_camera(material, record) for record in material.records if has_role(record.info, Role.IMAGE)]
    return page.section("cameras", "Cameras", "".join(rows), "First, middle and last recorded image.")


def _camera(material: Material, record: StreamRecord) -> str:
    info = record.info
    found = material.streams.get(info.name)
    size = "×".join(str(length) for length in info.shape[1::-1]) if len(info.shape) > 1 else ""
    details = " · ".join(part for part in (info.encoding, size, rate_text(record)) if part)
    title = f'<h3>{page.text(info.name)} <span class="lead">{page.text(details)}</span></h3>'
    withheld = material.withheld(record)
    if withheld:
        return f'<div class="camera-row">{title}{page.note(withheld)}</div>'
    if found is None or found.first is None:
        return f'<div class="camera-row">{title}{page.note("no image was recorded")}</div>'
    shots = dict.fromkeys(shot for shot in (found.first, found.middle, found.last) if shot is not None)
    strip = "".join(_shot(material, info, shot) for shot in shots)
    return f'<div class="camera-row">{title}<div class="strip">{strip}</div></div>'


def _shot(material: Material, info: StreamInfo, shot: Snapshot) -> str:
    when = f"{material.seconds(shot.capture_ns):.3f} s · {material.utc(shot.capture_ns)}"
    return (
        "<figure>"
        + attempt(f"this image of {info.name}", lambda: page.image(thumbnail(info, shot.payload), when))
        + f"<figcaption>{page.text(when)}</figcaption></figure>"
    )


def lidar(material: Material) -> str:
    clouds = [record for record in material.records if has_role(record.info, Role.CLOUD)]
    originals = [record for record in clouds if not record.info.reference_of] or clouds
    birds = "".join(_bird(material, record) for record in originals)
    overlays = "".join(each for record in originals for each in _overlays(material, record))
    stacks = [f'<div class="stack">{content}</div>' for content in (birds, overlays) if content]
    return page.section("lidar", "LiDAR", page.grid(stacks, "two"))


def _bird(material: Material, record: StreamRecord) -> str:
    info = record.info
    title = f"{info.name}: from above"
    withheld = material.withheld(record)
    found = material.streams.get(info.name)
    if withheld or found is None or found.middle is None:
        return page.figure(page.note(withheld or "no sweep was recorded"), title)
    shot = found.middle

    def make() -> str:
        picture = bird_view(cloud(info, shot.payload).points)
        caption = f"Sweep at {material.seconds(shot.capture_ns):.3f} s: {picture.caption}."
        return page.figure(page.image(picture, title), title, caption)

    return attempt(title, make)


def _overlays(material: Material, lidar: StreamRecord) -> list[str]:
    cameras = [record for record in material.records if record.info.modality is Modality.CAMERA]
    return [attempt(_overlay_title(lidar, c), partial(_overlay, material, lidar, c)) for c in cameras]


def _overlay_title(lidar: StreamRecord, camera: StreamRecord) -> str:
    return f"{lidar.info.name} on {camera.info.name}"


def _overlay(material: Material, lidar: StreamRecord, camera: StreamRecord) -> str:
    title = _overlay_title(lidar, camera)
    reason = material.withheld(camera) or material.withheld(lidar) or material.calibration_problem
    if reason or material.calibration is None:
        return page.figure(page.note(reason), title)
    pair = _pair(material, lidar.info.name, camera.info.name)
    sweep = material.streams[lidar.info.name].wanted.get(pair.lidar_seq) if pair else None
    image = material.streams[camera.info.name].wanted.get(pair.camera_seq) if pair else None
    if pair is None or sweep is None or image is None:
        return page.figure(page.note("no reference tick has both a sweep and an image"), title)
    points = cloud(lidar.info, sweep.payload).points
    picture = overlay_picture(camera.info, image.payload, points, lidar.info, material.calibration)
    caption = (
        f"Tick at {material.seconds(pair.tick_ns):.3f} s; middle of the sweep and image are "
        f"{plots.duration_text(pair.apart_ns / SECOND_NS)} apart; red is near, blue is far. "
        "The sweep is not corrected for motion."
    )
    return page.figure(page.image(picture, title), title, caption)


def _pair(material: Material, lidar: str, camera: str) -> OverlayPair | None:
    pairs = material.survey.overlays if material.survey else []
    return next((pair for pair in pairs if (pair.lidar, pair.camera) == (lidar, camera)), None)


def waveforms(material: Material) -> str:
    panels: list[str] = []
    for record in material.records:
        info = record.info
        if info.plain_encoding not in (Encoding.COLUMNS, *PCM_BYTES):
            continue
        withheld = material.withheld(record)
        found = material.streams.get(info.name)
        if withheld or found is None or found.envelope is None:
            panels.append(page.figure(page.note(withheld or "no sample was recorded"), info.name))
            continue
        make = partial(_panels, material, info, found)
        panels.append(attempt(f"waveform of {info.name}", make))
    body = "".join(f'<div class="waves">{panel}</div>' for panel in panels)
    return page.section("waveforms", "Waveforms", body, "Least and greatest value over time.")


def _panels(material: Material, info: StreamInfo, found: StreamSurvey) -> str:
    assert found.envelope is not None
    is_audio = info.plain_encoding in PCM_BYTES
    columns = (
        [(f"channel {index + 1}", "full scale") for index in range(found.envelope.low.shape[1])]
        if is_audio
        else [(column.name, column.unit) for column in info.columns]
    )
    groups: dict[str, list[int]] = {}
    for index, (_, unit) in enumerate(columns[:_MAX_PANEL_COLUMNS]):
        if unit != "ns":  # the device's own stamps: a straight line
            groups.setdefault(unit, []).append(index)
    chosen = [
        (unit, indices[begin : begin + 6])
        for unit, indices in groups.items()
        for begin in range(0, len(indices), 6)
    ]
    parts = []
    for unit, indices in chosen:
        drawing = plots.wave_plot(found.envelope, indices, material.length_s, is_audio, len(chosen) == 1)
        legend = "".join(
            f'<span><i class="w{line}"></i>{page.text(columns[index][0])}</span>'
            for line, index in enumerate(indices)
        )
        content = drawing or page.note("no finite value")
        title = f"{info.name} ({page.unit(unit)})" if unit else info.name
        parts.append(page.figure(f'{content}<div class="legend">{legend}</div>', title))
    if is_audio:
        what = f"{info.name}: to listen to, at most {MOST_S:g} s at {MOST_HZ / 1e3:g} kHz"
        parts.append(attempt(what, lambda: page.figure(player(material.folder, info), what)))
    if len(columns) > _MAX_PANEL_COLUMNS:
        parts.append(
            page.note(f"{len(columns) - _MAX_PANEL_COLUMNS} more columns of {info.name} are not drawn")
        )
    return page.grid(parts, "two" if len(parts) > 1 else "one")
