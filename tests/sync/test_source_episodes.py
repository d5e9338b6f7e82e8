"""Our own episodes as a source: identical declarations and frames, consent inherited, nothing unverified."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from episode_samples import (
    STREAMS,
    TIMELINE,
    all_frames,
    begin_episode,
    manifest_of,
    sealed_episode,
    write_frames,
)

from sensorium.drivers.frame import Frame, Loss, Place
from sensorium.errors import SourceError
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.manifest import ConsentRecord
from sensorium.sync.sources import open_source
from sensorium.sync.sources.episodes import EpisodeSource
from sensorium.timebase import SECOND_NS

FRAMES = 5


def _same(one: Frame, other: Frame) -> bool:
    assert bytes(one.payload) == bytes(other.payload)
    np.testing.assert_array_equal(one.arrival_ns, other.arrival_ns)
    if one.device_ticks is None or other.device_ticks is None:
        assert one.device_ticks is other.device_ticks
    else:
        np.testing.assert_array_equal(one.device_ticks, other.device_ticks)
    return (one.stream, one.seq, one.count, one.meta) == (other.stream, other.seq, other.count, other.meta)


def test_every_frame_comes_back_as_it_was_published(tmp_path: Path) -> None:
    with open_source(sealed_episode(tmp_path, FRAMES)) as source:
        found = [item for item in source.frames() if isinstance(item, Frame)]
    written = [frame for frame, _ in all_frames(FRAMES)]
    assert len(found) == len(written)
    for name in (info.name for info in STREAMS):
        pairs = zip(
            (frame for frame in found if frame.stream == name),
            (frame for frame in written if frame.stream == name),
            strict=True,
        )
        assert all(_same(one, other) for one, other in pairs)
    arrivals = [int(frame.arrival_ns[-1]) for frame in found]
    assert arrivals == sorted(arrivals)


def test_declarations_and_timeline_are_those_of_the_recording(tmp_path: Path) -> None:
    with open_source(sealed_episode(tmp_path)) as source:
        assert {info.name: info for info in source.streams} == {info.name: info for info in STREAMS}
        assert source.timeline == replace(TIMELINE, is_virtual=True)
        assert source.problems == ()
        assert source.end_ns - source.start_ns == SECOND_NS


def test_consent_comes_with_the_episode(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, FRAMES)
    writer.close()
    manifest = manifest_of(writer)
    consent = ConsentRecord("allow", "grant g1", ("g1",), ("training",))
    streams = tuple(
        replace(record, consent=consent) if record.info.name == "cam" else record
        for record in manifest.streams
    )
    with open_source(seal(writer.folder, replace(manifest, streams=streams))) as source:
        assert isinstance(source, EpisodeSource)
        assert source.consents["cam"] == consent
        assert {info.name for info in source.streams if info.is_personal} == {"cam", "mic"}


def test_an_episode_that_is_not_what_was_signed_is_refused_unless_asked_for(tmp_path: Path) -> None:
    folder = sealed_episode(tmp_path)
    (folder / "extra.txt").write_text("added later")
    with pytest.raises(
        SourceError, match=r"extra\.txt is in the folder but not in the manifest.*allow_unverified"
    ):
        open_source(folder)
    with open_source(folder, allow_unverified=True) as source:
        assert [problem.kind for problem in source.problems] == ["unverified"]
        assert sum(1 for item in source.frames() if isinstance(item, Frame)) == FRAMES * len(STREAMS)


def test_an_episode_that_was_never_sealed_is_refused_unless_asked_for(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, FRAMES)
    writer.close()
    with pytest.raises(SourceError, match="never sealed"):
        open_source(writer.folder)
    with open_source(writer.folder, allow_unverified=True) as source:
        frames = [item for item in source.frames() if isinstance(item, Frame)]
        assert source.start_ns == min(int(frame.arrival_ns[0]) for frame in frames)
        assert source.end_ns == max(int(frame.arrival_ns[-1]) for frame in frames)


def test_numbers_lost_before_the_file_are_losses_at_the_source(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    for frame, stamped in all_frames(FRAMES):
        if frame.stream == "imu" and frame.seq in (0, 20, 30):
            continue
        writer.write(frame, stamped, instance=0)
    writer.close()
    with open_source(writer.folder, allow_unverified=True) as source:
        imu = [item for item in source.frames() if item.stream == "imu"]
    assert imu[0] == Loss("imu", 10, Place.SOURCE, "before the first recorded sample")
    assert imu[2] == Loss("imu", 20, Place.SOURCE, "not in the recording")
    assert [item.seq for item in imu if isinstance(item, Frame)] == [10, 40]


def test_a_driver_that_was_restarted_while_recording_is_one_instance_in_the_replay(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    for instance in (0, 1):
        for frame, stamped in all_frames(FRAMES):
            later = frame.arrival_ns + instance * 10**9
            writer.write(replace(frame, arrival_ns=later), stamped, instance)
    writer.close()
    with open_source(seal(writer.folder, manifest_of(writer))) as source:
        cam = [item.seq for item in source.frames() if isinstance(item, Frame) and item.stream == "cam"]
        assert cam == list(range(2 * FRAMES))
        assert {problem.kind for problem in source.problems} == {"restarted"}


@pytest.mark.parametrize("victim", ["data.mcap", "cam.mcap", "manifest.json"])
def test_an_episode_cut_anywhere_is_refused_with_one_clear_line(tmp_path: Path, victim: str) -> None:
    folder = sealed_episode(tmp_path)
    whole = (folder / victim).read_bytes()
    for end in (0, 5, 8, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (folder / victim).write_bytes(whole[:end])
        with pytest.raises(SourceError) as caught:
            open_source(folder)
        assert "\n" not in str(caught.value)
