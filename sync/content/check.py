"""Asks an episode's own data whether its clocks are right: turning seen and felt, claps heard, felt and seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Intrinsics, undistort
from sensorium.drivers.frame import Modality, StreamInfo
from sensorium.drivers.roles import Role, force_columns, has_role, vector
from sensorium.errors import ClockError, PayloadError
from sensorium.sync.clocks.model import Uncertainty
from sensorium.sync.content.events import event_offset
from sensorium.sync.content.image_rotation import RotationFinder, gyro_offset
from sensorium.sync.content.offset import ContentOffset, Delay, judge
from sensorium.sync.content.onsets import Onset, audio_onsets, flash_onset, force_onsets
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict

Floats = NDArray[np.float64]

_SECONDS = 20.0
_STEPS_HZ = 10.0
"""Images a second that are tracked: slower steps see more turning over the same noise."""
_SETTLE_S = 2.0
"""The clocks' first seconds are left out where the episode is long enough."""
_ROOM_M = 6.0
_FLASH_S = 0.4
"""Images this long before and after a clap are looked at for its flash."""
_FLASH_CELLS = (12, 16)
"""Rows and columns of the grid on which brightness is compared."""
_MIN_FLASHES = 2
_WANTED_FLASH_NS = 40e6
"""A flash is seen to one period of the camera; more than a common camera's is not asked for."""


@dataclass(frozen=True, slots=True)
class ContentInputs:
    """What the data cannot tell by itself.

    Attributes:
        clap_distance_m: From the place of the claps to the microphone, with its bound; by default anywhere in a room.
        filter_delay_ns: Group delay of a stream's anti-alias filter (data sheet), by stream name.
    """

    clap_distance_m: float = _ROOM_M / 2
    clap_distance_bound_m: float = _ROOM_M / 2
    filter_delay_ns: Mapping[str, float] = field(default_factory=dict)

    def delay(self, stream: str) -> Delay:
        return Delay(self.filter_delay_ns.get(stream, 0.0))


@dataclass(slots=True)
class _Signal:
    """Samples of one stream with their stamps; ``claim`` is the worst uncertainty that the clock states."""

    times_ns: NDArray[np.int64]
    values: Floats
    claim: Uncertainty


def check_content(
    episode: Episode, cameras: Mapping[str, Intrinsics], inputs: ContentInputs | None = None
) -> tuple[Verdict, ...]:
    """Return what content says: cameras against the gyro, microphones and cameras against the force sensor.

    The other side is the fastest gyro, and the first force sensor. For turning, cameras need intrinsics; flashes
    are sought where there are claps.

    Args:
        cameras: Camera models by frame id or stream name.
    """
    inputs = inputs or ContentInputs()
    verdicts = []
    infos = list(episode.streams.values())
    gyros = [info for info in infos if has_role(info, Role.GYRO)]
    gyro = max(gyros, key=lambda info: info.rate_hz, default=None)
    force = next((info for info in infos if force_columns(info)), None)
    span = _span(episode)
    for info in infos:
        if info.modality is Modality.CAMERA and gyro is not None:
            model = cameras.get(info.frame_id) or cameras.get(info.name)
            if model is not None:
                subject = f"{info.name}~{gyro.name}"
                make = partial(_turning, episode, info, model, gyro, span, inputs)
                verdicts.append(_guarded("content_gyro-visual", subject, make))
        if has_role(info, Role.SOUND) and force is not None:
            subject = f"{force.name}~{info.name}"
            make = partial(_claps, episode, force, info, span, inputs)
            verdicts.append(_guarded("content_clap", subject, make))
    cameras_seen = [info for info in infos if info.modality is Modality.CAMERA and not info.reference_of]
    if force is not None and cameras_seen:
        verdicts += _flashes(episode, force, cameras_seen, span, inputs)
    return tuple(verdicts)


def _guarded(check: str, subject: str, make: Callable[[], Verdict]) -> Verdict:
    try:
        return make()
    except ClockError as err:
        return Verdict(check, subject, Status.INSUFFICIENT, (), (str(err),))


def _span(episode: Episode) -> tuple[int, int]:
    """Return the stretch to look at: some seconds from the middle, without the beginning."""
    first_ns: int | None = None
    last_ns = 0
    for _, row in episode.stamps():
        first_ns = int(row.stamped.capture_ns[0]) if first_ns is None else first_ns
        last_ns = max(last_ns, int(row.stamped.capture_ns[-1]))
    if first_ns is None:
        return 0, 0
    start_ns = first_ns + int(min(_SETTLE_S * SECOND_NS, 0.2 * (last_ns - first_ns)))
    spare_ns = max(last_ns - start_ns - int(_SECONDS * SECOND_NS), 0)
    return start_ns + spare_ns // 2, last_ns - spare_ns // 2


def _turning(
    episode: Episode,
    camera: StreamInfo,
    model: Intrinsics,
    gyro: StreamInfo,
    span: tuple[int, int],
    inputs: ContentInputs,
) -> Verdict:
    finder = RotationFinder(lambda points: undistort(points, model), scale=0.5)
    times: list[int] = []
    claims: list[Uncertainty] = []
    step_ns = int(0.75 * SECOND_NS / _STEPS_HZ)
    decoder = StreamDecoder(camera)
    for recorded in _within(episode, camera, span):
        at_ns = int(recorded.stamped.capture_ns[0])
        if times and at_ns - times[-1] < step_ns:
            decoder.skip(recorded.frame.payload)
            continue
        image = _grey(decoder, recorded)
        if image is None:
            continue
        finder.add(image)
        times.append(at_ns)
        claims.append(recorded.uncertainty)
    felt, axes = _signal(episode, gyro, span), vector(gyro, Role.GYRO)
    if felt is None or axes is None or len(times) < 2:
        raise ClockError(f"{camera.name} or {gyro.name} has no samples in the stretch that was looked at")
    order = np.concatenate([[True], np.diff(felt.times_ns) > 0])
    found = gyro_offset(
        finder,
        np.array(times, np.int64),
        felt.times_ns[order],
        felt.values[order][:, axes.columns] * axes.factor,
        gyro_delay=inputs.delay(gyro.name),
        visual_delay=_exposure_delay(episode, camera),
    )
    return judge(found, f"{camera.name}~{gyro.name}", _worst(claims), felt.claim)


def _exposure_delay(episode: Episode, camera: StreamInfo) -> Delay:
    """Return what turns the camera's stamp into mid-exposure."""
    if camera.stamp_of != "exposure_start" or "exposure_ns" not in camera.meta_fields:
        return Delay()
    place = camera.meta_fields.index("exposure_ns")
    first = next(iter(episode.frames([camera.name])), None)
    return Delay(-0.5 * first.frame.meta[place]) if first is not None else Delay()


def _claps(
    episode: Episode, force: StreamInfo, audio: StreamInfo, span: tuple[int, int], inputs: ContentInputs
) -> Verdict:
    felt, heard = _signal(episode, force, span), _signal(episode, audio, span)
    if felt is None or heard is None:
        raise ClockError(f"{audio.name} or {force.name} has no samples in the stretch that was looked at")
    origin_ns = span[0]
    knocks = _knocks(felt, force)
    claps = audio_onsets(heard.values[:, 0], audio.rate_hz)
    travel = Delay.of_sound(inputs.clap_distance_m, inputs.clap_distance_bound_m)
    filtered = inputs.delay(audio.name)
    found: ContentOffset = event_offset(
        _times(felt, [onset.sample for onset in knocks], origin_ns),
        _times(heard, [onset.sample for onset in claps], origin_ns),
        first_sigma_ns=max((onset.sigma for onset in knocks), default=0.0) / force.rate_hz * SECOND_NS,
        second_sigma_ns=max((onset.sigma for onset in claps), default=0.0) / audio.rate_hz * SECOND_NS,
        first_delay=inputs.delay(force.name),
        second_delay=Delay(travel.delay_ns + filtered.delay_ns, travel.bound_ns + filtered.bound_ns),
    )
    # Half a room of sound travel is in the bound, so a proof of better than that is not asked for.
    return judge(found, f"{force.name}~{audio.name}", felt.claim, heard.claim, wanted_ns=20e6)


def _knocks(felt: _Signal, force: StreamInfo) -> list[Onset]:
    """Return the knocks of the axis that feels them most."""
    return max(
        (force_onsets(felt.values[:, axis], force.rate_hz) for axis in force_columns(force)),
        key=lambda onsets: sum(onset.strength for onset in onsets),
    )


def _flashes(
    episode: Episode,
    force: StreamInfo,
    cameras: Sequence[StreamInfo],
    span: tuple[int, int],
    inputs: ContentInputs,
) -> Iterator[Verdict]:
    """Yield a verdict for each camera that saw lamps go on at the knocks; nothing is said of the others."""
    felt = _signal(episode, force, span)
    knocks = [] if felt is None else _knocks(felt, force)
    if felt is None or len(knocks) < _MIN_FLASHES:
        return
    knock_ns = _times(felt, [onset.sample for onset in knocks], span[0]) - inputs.delay(force.name).delay_ns
    for camera in cameras:
        images, claims = _images_near(episode, camera, knock_ns + span[0])
        seen = [flash for at_ns in knock_ns + span[0] if (flash := _flash(images, at_ns)) is not None]
        if len(seen) < _MIN_FLASHES:
            continue
        half_ns = max(half for _, half in seen)
        found = event_offset(
            knock_ns,
            np.array([at - span[0] for at, _ in seen]),
            second_sigma_ns=half_ns / np.sqrt(3),
            max_offset_ns=_FLASH_S * SECOND_NS,
            window_ns=2 * half_ns,
            method="flash",
        )
        subject = f"{force.name}~{camera.name}"
        yield judge(found, subject, felt.claim, _worst(claims), wanted_ns=_WANTED_FLASH_NS)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One image: when its exposure began and how long it lasted (ns), and its grey values on a coarse grid."""

    start_ns: float
    exposure_ns: float
    cells: Floats


def _images_near(
    episode: Episode, camera: StreamInfo, events_ns: Floats
) -> tuple[list[_Seen], list[Uncertainty]]:
    """Return the images around some events, and what the camera's clock claims there."""
    reach_ns = _FLASH_S * SECOND_NS
    span = (round(events_ns.min() - reach_ns), round(events_ns.max() + reach_ns))
    images, claims = [], []
    exposure_at = camera.meta_fields.index("exposure_ns") if "exposure_ns" in camera.meta_fields else None
    decoder = StreamDecoder(camera)
    for recorded in _within(episode, camera, span):
        at_ns = float(recorded.stamped.capture_ns[0])
        if np.abs(events_ns - at_ns).min() > reach_ns:
            decoder.skip(recorded.frame.payload)
            continue
        image = _grey(decoder, recorded)
        if image is None:
            continue
        exposure_ns = 0.0 if exposure_at is None else float(recorded.frame.meta[exposure_at])
        start_ns = at_ns - (exposure_ns / 2 if camera.stamp_of == "exposure_mid" else 0.0)
        cells = cv2.resize(image, _FLASH_CELLS[::-1], interpolation=cv2.INTER_AREA).astype(np.float64)
        images.append(_Seen(start_ns, exposure_ns, cells))
        claims.append(recorded.uncertainty)
    return images, claims


def _flash(images: Sequence[_Seen], event_ns: float) -> tuple[float, float] | None:
    """Return (time, half width) in ns of a lamp that went on near an event.

    It is sought in the cell that brightens most against its usual changes, which are those of the rig's motion.
    """
    near = [image for image in images if abs(image.start_ns - event_ns) <= _FLASH_S * SECOND_NS]
    if len(near) < 4:
        return None
    grid = np.array([image.cells for image in near])
    steps = np.diff(grid, axis=0)
    usual = 1.0 + np.median(np.abs(steps), axis=0)
    row, column = np.unravel_index(np.argmax(steps.max(axis=0) / usual), _FLASH_CELLS)
    starts = np.array([image.start_ns for image in near])
    return flash_onset(starts, near[0].exposure_ns, grid[:, row, column])


def _grey(decoder: StreamDecoder, recorded: RecordedFrame) -> NDArray[np.uint8] | None:
    """Return an image's brightness; None where it does not decode: what it lacks is said by the other images."""
    try:
        return decoder.grey(recorded.frame.payload)
    except PayloadError:
        return None


def _times(signal: _Signal, samples: list[float], origin_ns: int) -> Floats:
    index = np.arange(len(signal.times_ns))
    times: Floats = np.interp(samples, index, (signal.times_ns - origin_ns).astype(np.float64))
    return times


def _within(episode: Episode, info: StreamInfo, span: tuple[int, int]) -> Iterator[RecordedFrame]:
    for recorded in episode.frames([info.name]):
        at_ns = int(recorded.stamped.capture_ns[0])
        if span[0] <= at_ns < span[1]:
            yield recorded
        elif at_ns >= span[1] + SECOND_NS:
            return


def _signal(episode: Episode, info: StreamInfo, span: tuple[int, int]) -> _Signal | None:
    times, values, claims = [], [], []
    decoder = StreamDecoder(info)
    for recorded in _within(episode, info, span):
        frame, capture = recorded.frame, recorded.stamped.capture_ns
        block = decoder.samples(frame.payload, frame.count)
        if block is None:
            return None
        if len(capture) != frame.count:
            capture = capture[0] + np.rint(np.arange(frame.count) * SECOND_NS / info.rate_hz).astype(np.int64)
        times.append(capture)
        values.append(block)
        claims.append(recorded.uncertainty)
    if not times:
        return None
    return _Signal(np.concatenate(times), np.concatenate(values), _worst(claims))


def _worst(claims: list[Uncertainty]) -> Uncertainty:
    """Return the uncertainty that holds for most of the stretch: the 95th percentile of the bounds."""
    order = sorted(claims, key=lambda claim: claim.bound95_ns)
    asymmetry_ns = max(claim.asymmetry_ns for claim in claims)
    chosen = order[min(int(0.95 * len(order)), len(order) - 1)]
    return Uncertainty(chosen.statistical_ns, chosen.floor_ns, asymmetry_ns)
