"""Episodes of the simulated rig, sealed with the simulator's truth as capture times, for checks and solvers."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulated_rig import START_NS, drain
from upload_samples import grant_for

from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.drivers.registry import load_driver
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.force import TOOL_CENTRE_M, TOOL_KG
from sensorium.simulators.microphone import SPACING_M
from sensorium.sync.align import Match, Matched, SyncRow
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import Balance, Manifest, QualityRecord, StreamRecord
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.timebase import SECOND_NS, HostClock, Timeline, VirtualClock
from sensorium.verdict import Status

TIMELINE = Timeline("bench", 1_700_000_000 * SECOND_NS)
PAYLOAD = Payload(TOOL_KG, centre_m=np.array(TOOL_CENTRE_M), holds=True)
EARS = MicrophoneArray(((0.0, SPACING_M / 2, 0.0), (0.0, -SPACING_M / 2, 0.0)))
STILL_IMU = ImuModel((0.0,) * 3, (0.0,) * 3, 1.2e-4, 1.0e-3)
"""Noise as in the defaults of ``sim_imu``."""


def document(spare: bool = False) -> RigCalibration:
    """Return the truth, with what the sensors are known to read."""
    known = rig_calibration(1, ("lidar_rear",) if spare else ())
    return replace(
        known, imus={"imu": STILL_IMU}, force_torque={"force": PAYLOAD}, microphones={"microphone": EARS}
    )


def sensor_episode(
    folder: Path,
    devices: Mapping[str, Mapping[str, Any]],
    calibration: RigCalibration,
    seconds: float,
    marks: Mapping[float, str] | None = None,
    payloads: Mapping[str, bytes] | None = None,
    late_ns: Mapping[str, int] | None = None,
    is_calibration_sealed: bool = False,
    **shared: Any,
) -> Path:
    """Return a sealed episode of simulated devices that carries a calibration.

    Args:
        devices: Options by name; ``driver`` is the simulated driver.
        marks: Texts by world time (s).
        payloads: What every frame of a stream shows instead.
        late_ns: How late the stamps of a stream are.
        is_calibration_sealed: Seal the calibration with it, and return it where it lies in its spool.
        shared: Options of all devices (``motion``, ``seed``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    streams: dict[str, tuple[StreamInfo, list[Frame]]] = {}
    for name, given in devices.items():
        options = {"start_ns": START_NS, "seconds": seconds, **shared, **given}
        kind = load_driver(options.pop("driver"))
        context = DriverContext(name, "bench", VirtualClock(START_NS), folder)
        driver = kind(kind.config_type(**options), context)
        infos = {info.name: info for info in driver.open()}
        frames = drain(driver, infos)
        streams |= {info.name: (info, frames[info.name]) for info in infos.values() if not info.reference_of}
    captures = {
        name: dict(np.fromfile(folder / f"truth/{name}.i64", "<i8").reshape(-1, 2).tolist())
        for name in streams
    }
    for name, late in (late_ns or {}).items():
        captures[name] = {seq: at_ns + late for seq, at_ns in captures[name].items()}
    spool = Spool(folder / "spool")
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE)
    for info, _ in streams.values():
        writer.declare(info)
    for name, (info, taken) in streams.items():
        for made in taken:
            frame = replace(made, payload=payloads[name]) if payloads and name in payloads else made
            stamps_ns = _times(captures[name], info, frame)
            writer.write(frame, Stamped(stamps_ns, Uncertainty(0.0, 0.0, 0.0), 0), 0)
    for at_s, text in (marks or {}).items():
        writer.write_event(EpisodeEvent(START_NS + int(at_s * SECOND_NS), "mark", detail=text))
    for row in _rows(streams, captures):
        writer.write_row(row)
    writer.close()
    records = tuple(
        StreamRecord(streams[name][0], {0: Balance(found.samples, found.samples, {})})
        for (name, _), found in writer.written().items()
    )
    start_ns = TIMELINE.utc_minus_host_ns + START_NS
    end_ns = start_ns + int(seconds * SECOND_NS)
    reference = "lidar" if "lidar" in streams else next(iter(streams))
    manifest = Manifest(
        episode_id,
        "0.1",
        SessionFacts(rig="simulated"),
        start_ns,
        end_ns,
        TIMELINE,
        records,
        reference=reference,
        quality=QualityRecord(Status.INSUFFICIENT, ("nobody judged it",)),
    )
    if is_calibration_sealed:
        calibration.save(writer.folder / "calibration.yaml")
        return seal(writer.folder, manifest)
    captured = (start_ns - SECOND_NS, end_ns + SECOND_NS)
    ConsentStore(folder / "consent").grant(grant_for(1, (Purpose.LIVE,), captured, HostClock().utc_ns()))
    sealed = seal(writer.folder, manifest)
    kept = folder / "sealed/given"
    shutil.copytree(sealed, kept)
    calibration.save(kept / "calibration.yaml")
    return kept


def _times(captures: Mapping[int, int], info: StreamInfo, frame: Frame) -> NDArray[np.int64]:
    if frame.seq + 1 not in captures and frame.count > 1:  # audio: the truth is of each block's first sample
        steps = np.arange(frame.count) * SECOND_NS / info.rate_hz
        return captures[frame.seq] + np.rint(steps).astype(np.int64)
    return np.array([captures[seq] for seq in range(frame.seq, frame.next_seq)], np.int64)


def _rows(
    streams: Mapping[str, tuple[StreamInfo, Sequence[Frame]]], captures: Mapping[str, Mapping[int, int]]
) -> list[SyncRow]:
    """Return a row for each third sweep (or frame of the first stream): of every camera the nearest frame."""
    name = next((name for name in streams if name == "lidar"), next(iter(streams)))
    cameras = [other for other, (info, _) in streams.items() if other != name and "camera" in other]
    rows = []
    for frame in streams[name][1][2:-2:3]:
        tick_ns = int(_times(captures[name], streams[name][0], frame).mean())
        matches = []
        for other in cameras:
            seq, at_ns = min(captures[other].items(), key=lambda item: abs(item[1] - tick_ns))
            matches.append(Matched(other, Match.MATCHED, seq, at_ns - tick_ns))
        rows.append(SyncRow(frame.seq, tick_ns, tuple(matches)))
    return rows
