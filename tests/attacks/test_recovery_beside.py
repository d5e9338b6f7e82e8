"""A recorder that replaces a killed one serves the bus at once, however much the killed one left behind."""

import os
from pathlib import Path

from episode_samples import begin_episode, write_frames

from sensorium.sync.recording.boundary import draw_boundary, orphans_of


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_the_next_recorder_reads_nothing_of_a_torn_episode_before_it_serves(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=12)
    writer.close()
    data = writer.folder / "data.mcap"
    size = data.stat().st_size
    os.truncate(data, 8 << 30)  # sparse: as much as an hour of recording
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    before = bytes_read()
    draw_boundary(writer.folder.parent.parent, run_dir)
    assert bytes_read() - before < 100_000
    assert orphans_of(run_dir) == [writer.folder.name]
    assert data.stat().st_size == 8 << 30 > size
