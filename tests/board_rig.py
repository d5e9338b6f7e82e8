"""An episode of the simulated rig before its chessboard, stamped by the simulator's truth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from simulated_rig import START_NS, run
from upload_samples import grant_for

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.sync.align import Match, Matched, SyncRow
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import Balance, Manifest, StreamRecord
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.timebase import SECOND_NS, HostClock, Timeline

BOARD = ("--board", "9x6x0.12", "--board-size", "1.5x1.14")
TOUR_S = 33.25
"""The first 19 stops before the board."""

TIMELINE = Timeline("bench", 1_700_000_000 * SECOND_NS)


def board_episode(folder: Path, seconds: float, devices: Mapping[str, Mapping[str, Any]]) -> Path:
    """Return a sealed episode of some devices of the demo's rig, which goes from stop to stop."""
    streams: dict[str, tuple[StreamInfo, list[Frame]]] = {}
    captures: dict[str, dict[int, int]] = {}
    for name, options in devices.items():
        infos, frames = run(name, folder, seconds=seconds, motion="board", **options)
        streams[name] = (infos[name], frames[name])
        truth = np.fromfile(folder / f"truth/{name}.i64", "<i8").reshape(-1, 2)
        captures[name] = dict(truth.tolist())
    spool = Spool(folder / "spool")
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE)
    for info, _ in streams.values():
        writer.declare(info)
    for name, (_, taken) in streams.items():
        for frame in taken:
            numbers = range(frame.seq, frame.next_seq)
            capture_ns = np.array([captures[name][seq] for seq in numbers], np.int64)
            writer.write(frame, Stamped(capture_ns, Uncertainty(0.0, 0.0, 0.0), 0), 0)
    first, *others = devices
    for seq, tick_ns in captures[first].items():
        matches = []
        for name in others:
            near, near_ns = min(captures[name].items(), key=lambda item: abs(item[1] - tick_ns))
            matches.append(Matched(name, Match.MATCHED, near, near_ns - tick_ns))
        writer.write_row(SyncRow(seq, tick_ns, tuple(matches)))
    writer.close()
    records = tuple(
        StreamRecord(streams[name][0], {0: Balance(found.samples, found.samples, {})})
        for (name, _), found in writer.written().items()
    )
    start_utc_ns = TIMELINE.utc_minus_host_ns + START_NS
    end_utc_ns = start_utc_ns + int(seconds * SECOND_NS)
    manifest = Manifest(
        episode_id,
        "0.1",
        SessionFacts(rig="simulated"),
        start_utc_ns,
        end_utc_ns,
        TIMELINE,
        records,
        reference=first,
    )
    shown = grant_for(1, (Purpose.LIVE,), (start_utc_ns, end_utc_ns + SECOND_NS), HostClock().utc_ns())
    ConsentStore(spool.root / "consent").grant(shown)
    return seal(writer.folder, manifest)
