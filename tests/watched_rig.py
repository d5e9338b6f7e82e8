"""Aligned sets of the simulated rig without processes: real drivers, capture times from the simulator's truth."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulated_rig import START_NS, run

from sensorium.drivers.frame import StreamInfo
from sensorium.simulators.truth import load_truth
from sensorium.sync.thinking.sets import MARGIN_NS, AlignedSet, KeptFrame, SetRequest, following_frames
from sensorium.timebase import SECOND_NS

SECONDS = 21.0
STEP_S = 2.1
"""From one image to the next. With the seed of the demo they are taken when the LiDAR looks ahead."""
SLOW: dict[str, dict[str, Any]] = {
    "camera_left": {"rate_hz": 1 / STEP_S},
    "camera_right": {"rate_hz": 1 / STEP_S},
    "lidar": {},
    "imu": {},
}


@dataclass(frozen=True, slots=True)
class WatchedRig:
    """Frames of a rig by stream, in order of time; sets can be asked for at any world time."""

    frames: dict[str, list[KeptFrame]]
    episode: str = "episode"
    started_ns: int = START_NS

    @property
    def infos(self) -> list[StreamInfo]:
        return [kept[0].info for kept in self.frames.values()]

    def at(self, request: SetRequest, world_s: float) -> AlignedSet:
        """Return the set at the tick of the first stream that is nearest to a world time."""
        wanted_ns = START_NS + round(world_s * SECOND_NS)
        tick = min(self.frames[request.streams[0]], key=lambda kept: abs(kept.first_ns - wanted_ns))
        others = (
            min(
                self.frames[name],
                key=lambda kept: abs((kept.first_ns + kept.last_ns) // 2 - tick.first_ns),
            )
            for name in request.streams[1:]
        )
        members = (tick, *others)
        until_ns = tick.first_ns + request.burst_ns
        burst = following_frames(self.frames[request.streams[0]], tick, until_ns, request.burst_step_ns)
        margin_ns = 2 * MARGIN_NS if request.burst_ns else MARGIN_NS
        start_ns = min(kept.first_ns for kept in members) - margin_ns
        end_ns = max(kept.last_ns for kept in (*members, *burst)) + margin_ns
        beside = tuple(
            kept
            for name in request.beside
            for kept in self.frames[name]
            if kept.last_ns >= start_ns and kept.first_ns <= end_ns
        )
        return AlignedSet(self.episode, self.started_ns, members[0].first_ns, members, beside, burst)

    def with_frames_of(self, other: "WatchedRig", name: str) -> "WatchedRig":
        return replace(self, frames={**self.frames, name: other.frames[name]})

    def stamped_late(self, name: str, by_s: float) -> "WatchedRig":
        """Return the rig with one stream's capture times off."""
        moved = [
            replace(kept, capture_ns=kept.capture_ns + round(by_s * SECOND_NS)) for kept in self.frames[name]
        ]
        return replace(self, frames={**self.frames, name: moved})

    def with_payloads(self, name: str, payload: Any) -> "WatchedRig":
        """Return the rig with ``payload(kept)`` instead of each payload of a stream."""
        changed = [
            replace(kept, frame=replace(kept.frame, payload=payload(kept))) for kept in self.frames[name]
        ]
        return replace(self, frames={**self.frames, name: changed})


def watched_rig(run_dir: Path, devices: dict[str, dict[str, Any]] = SLOW, **common: Any) -> WatchedRig:
    """Run devices of the demo's rig to their end on a virtual clock."""
    found: dict[str, list[KeptFrame]] = {}
    for name, options in devices.items():
        infos, frames = run(name, run_dir, **{"seconds": SECONDS, **options, **common})
        truths = load_truth(run_dir)
        for stream, info in infos.items():
            if not info.reference_of:
                times = dict(truths[stream].tolist())
                found[stream] = [
                    KeptFrame(info, frame, _captures(times, frame.seq, frame.count))
                    for frame in frames[stream]
                ]
    return WatchedRig(found)


def _captures(times: dict[int, int], seq: int, count: int) -> NDArray[np.int64]:
    return np.array([times[seq + index] for index in range(count)], np.int64)
