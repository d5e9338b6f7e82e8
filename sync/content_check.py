"""Asks an episode's own data whether its clocks are right: turning seen and felt, claps heard and felt."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Intrinsics, undistort
from sensorium.drivers.frame import Encoding, Modality, StreamInfo
from sensorium.errors import ClockError
from sensorium.sync.clocks.content import ContentOffset, Delay, event_offset, judge
from sensorium.sync.clocks.image_rotation import RotationFinder, gyro_offset
from sensorium.sync.clocks.model import Uncertainty
from sensorium.sync.clocks.onsets import audio_onsets, force_onsets
from sensorium.sync.episode.aligned import decode_samples
from sensorium.sync.episode.reader import Episode, RecordedFrame
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict

Floats = NDArray[np.float64]

_SECONDS = 20.0
_STEPS_HZ = 10.0
"""Images a second that are tracked: slower steps see more turning over the same noise."""
_GYRO_NAMES = (("gyro_x", "gyro_y", "gyro_z"), ("wx", "wy", "wz"))
_SETTLE_S = 2.0
"""The clocks' first seconds are left out where the episode is long enough."""
_ROOM_M = 6.0


@dataclass(slots=True)
class _Signal:
    """Samples of one stream with their stamps; ``claim`` is the worst uncertainty that the clock states."""

    times_ns: NDArray[np.int64]
    values: Floats
    claim: Uncertainty


def check_content(episode: Episode, cameras: Mapping[str, Intrinsics]) -> tuple[Verdict, ...]:
    """Return what content says about each camera and gyro, and each microphone and force sensor.

    The other side is the fastest gyro, and the first force sensor. Cameras without intrinsics are left out.

    Args:
        cameras: Camera models by frame id or stream name.
    """
    verdicts = []
    infos = list(episode.streams.values())
    gyros = [info for info in infos if info.modality is Modality.IMU and _gyro_columns(info)]
    gyro = max(gyros, key=lambda info: info.rate_hz, default=None)
    force = next((info for info in infos if info.modality is Modality.FORCE and info.columns), None)
    span = _span(episode)
    for info in infos:
        if info.modality is Modality.CAMERA and gyro is not None:
            model = cameras.get(info.frame_id) or cameras.get(info.name)
            if model is not None:
                subject = f"{info.name}~{gyro.name}"
                make = partial(_turning, episode, info, model, gyro, span)
                verdicts.append(_guarded("content_gyro-visual", subject, make))
        if info.modality is Modality.AUDIO and info.encoding == Encoding.PCM_S16LE and force is not None:
            subject = f"{force.name}~{info.name}"
            verdicts.append(_guarded("content_clap", subject, partial(_claps, episode, force, info, span)))
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


def _gyro_columns(info: StreamInfo) -> list[int]:
    names = [column.name for column in info.columns]
    for wanted in _GYRO_NAMES:
        if all(name in names for name in wanted):
            return [names.index(name) for name in wanted]
    return []


def _turning(
    episode: Episode, camera: StreamInfo, model: Intrinsics, gyro: StreamInfo, span: tuple[int, int]
) -> Verdict:
    finder = RotationFinder(lambda points: undistort(points, model), scale=0.5)
    times: list[int] = []
    claims: list[Uncertainty] = []
    step_ns = int(0.75 * SECOND_NS / _STEPS_HZ)
    for recorded in _within(episode, camera, span):
        at_ns = int(recorded.stamped.capture_ns[0])
        if times and at_ns - times[-1] < step_ns:
            continue
        image = cv2.imdecode(np.frombuffer(recorded.frame.payload, np.uint8), cv2.IMREAD_GRAYSCALE)
        if image is None:
            continue
        finder.add(np.asarray(image, np.uint8))
        times.append(at_ns)
        claims.append(recorded.uncertainty)
    felt = _signal(episode, gyro, span)
    if felt is None or len(times) < 2:
        raise ClockError(f"{camera.name} or {gyro.name} has no samples in the stretch that was looked at")
    order = np.concatenate([[True], np.diff(felt.times_ns) > 0])
    found = gyro_offset(
        finder,
        np.array(times, np.int64),
        felt.times_ns[order],
        felt.values[order][:, _gyro_columns(gyro)],
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


def _claps(episode: Episode, force: StreamInfo, audio: StreamInfo, span: tuple[int, int]) -> Verdict:
    felt, heard = _signal(episode, force, span), _signal(episode, audio, span)
    if felt is None or heard is None:
        raise ClockError(f"{audio.name} or {force.name} has no samples in the stretch that was looked at")
    origin_ns = span[0]
    # The axis with the strongest knock, of all that share the first one's unit.
    axes = [i for i, column in enumerate(force.columns) if column.unit == force.columns[0].unit]
    knocks = max(
        (force_onsets(felt.values[:, axis], force.rate_hz) for axis in axes),
        key=lambda onsets: sum(onset.strength for onset in onsets),
    )
    claps = audio_onsets(heard.values[:, 0], audio.rate_hz)
    # The place of a clap is not known: anywhere in a room.
    travel = Delay.of_sound(_ROOM_M / 2, _ROOM_M / 2)
    found: ContentOffset = event_offset(
        _times(felt, [onset.sample for onset in knocks], origin_ns),
        _times(heard, [onset.sample for onset in claps], origin_ns),
        first_sigma_ns=max((onset.sigma for onset in knocks), default=0.0) / force.rate_hz * SECOND_NS,
        second_sigma_ns=max((onset.sigma for onset in claps), default=0.0) / audio.rate_hz * SECOND_NS,
        second_delay=travel,
    )
    # Half a room of sound travel is in the bound, so a proof of better than that is not asked for.
    return judge(found, f"{force.name}~{audio.name}", felt.claim, heard.claim, wanted_ns=20e6)


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
    for recorded in _within(episode, info, span):
        frame, capture = recorded.frame, recorded.stamped.capture_ns
        block = decode_samples(info, frame.payload, frame.count)
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
