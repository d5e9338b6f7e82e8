"""Whether an episode gives back, bit for bit, what the devices had, through whatever codec and batching."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rigs.driver import Revolution, expected_period_ns
from rigs.loads import Load, column_count, load_named
from rigs.producers import Run
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recorded import RecordedFrame


def differences(path: Path, run: Run, streams: Sequence[str]) -> list[str]:
    """Return one line for each of the streams whose frames do not decode to what its device had."""
    wrong: dict[str, list[int]] = {}
    with Episode(path) as episode:
        truths = {name: _Truth(load_named(run.rig, name), run) for name in streams}
        decoders = {name: Decoder(info) for name, info in episode.streams.items() if name in truths}
        for recorded in episode.frames([name for name in streams if name in decoders]):
            frame = recorded.frame
            plain = decoders[frame.stream].plain(frame.payload, frame.count)
            if not truths[frame.stream].holds(recorded, memoryview(plain)):
                wrong.setdefault(frame.stream, []).append(frame.seq)
    return [
        f"{name}: {len(seqs)} frames do not decode to what the device had, the first at sample {seqs[0]}"
        for name, seqs in wrong.items()
    ]


class _Truth:
    """What a device had, by sample number."""

    def __init__(self, load: Load, run: Run) -> None:
        self._load = load
        self._period_ns = expected_period_ns(load, run.multiple)
        pool = np.fromfile(run.folder / f"{load.name}.pool", np.uint8).reshape(-1, load.frame_bytes)
        self._pool = pool
        self._revolution = Revolution(pool[0].tobytes()) if load.kind == "ouster" else None
        self._samples = self._by_sample(pool)

    def _by_sample(self, pool: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (samples of the pool, bytes of one) rows."""
        load = self._load
        if load.kind != "columns":
            return pool.reshape(len(pool) * load.samples, -1)
        columns = pool.reshape(len(pool), column_count(load), load.samples, 4)
        rows: NDArray[np.uint8] = columns.transpose(0, 2, 1, 3).reshape(len(pool) * load.samples, -1)
        return rows

    def holds(self, recorded: RecordedFrame, plain: memoryview) -> bool:
        frame, load = recorded.frame, self._load
        if self._revolution is not None:
            assert frame.device_ticks is not None
            index = frame.seq // load.samples
            expected, _ = self._revolution.at(index, int(frame.device_ticks[0]), self._period_ns)
            return bytes(plain) == bytes(expected)
        rows = self._samples[np.arange(frame.seq, frame.seq + frame.count) % len(self._samples)]
        if load.kind == "columns":
            rows = rows.reshape(frame.count, -1, 4).transpose(1, 0, 2)
        return bytes(plain) == rows.tobytes()
