"""The sidecar of two-sided stamps: nearer to the truth, tied to its episode, used by aligned rows."""

from pathlib import Path

import numpy as np
import pytest
from episode_samples import TIMELINE, sealed_episode
from simulated_rig import run

from sensorium.errors import EpisodeError
from sensorium.simulators.truth import load_truth
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.episode.files import REMAP_FILE
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.remapped import read_remap, remap_episode, write_remap
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.verify import verify
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.verdict import Status


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, int]]:
    """An unsealed episode of 30 s of an IMU, stamped as live, and the true capture time of each sample."""
    folder = tmp_path_factory.mktemp("remap")
    infos, frames = run("imu", folder, seconds=30.0)
    spool = Spool(folder / "spool")
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE, None)
    writer.declare(infos["imu"])
    tracker = StreamTracker(infos["imu"])
    for frame in frames["imu"]:
        writer.write(frame, tracker.update(frame), 0)
        writer.step(int(frame.arrival_ns[-1]))
    writer.close()
    return writer.folder, dict(load_truth(folder)["imu"].tolist())


def test_two_sided_stamps_are_nearer_to_the_truth(recorded: tuple[Path, dict[int, int]]) -> None:
    folder, truth = recorded
    with Episode(folder) as episode:
        better = remap_episode(episode)
        causal_ns, two_sided_ns = [], []
        for _, row in episode.stamps():
            true_ns = np.array([truth[seq] for seq in range(row.seq, row.seq + row.count)])
            causal_ns.append(row.stamped.capture_ns - true_ns)
            two_sided_ns.append(better["imu", row.instance, row.seq].capture_ns - true_ns)
    causal, two_sided = (np.abs(np.concatenate(each)) for each in (causal_ns, two_sided_ns))
    assert np.percentile(two_sided, 99) < 0.5 * np.percentile(causal, 99)
    assert two_sided.max() < causal.max()


def test_a_written_sidecar_reads_back_and_moves_aligned_rows(
    recorded: tuple[Path, dict[int, int]], tmp_path: Path
) -> None:
    folder, _ = recorded
    with Episode(folder) as episode:
        path = write_remap(episode, tmp_path / REMAP_FILE)
        stamps = read_remap(episode, path)
        expected = remap_episode(episode)
        assert stamps.keys() == expected.keys()
        for key, stamped in expected.items():
            assert np.array_equal(stamps[key].capture_ns, stamped.capture_ns)
            assert stamps[key].uncertainty == stamped.uncertainty
            assert stamps[key].epoch == stamped.epoch
        start_ns = int(next(episode.frames()).frame.arrival_ns[0])
        options = {"rate_hz": 50.0, "start_ns": start_ns, "end_ns": start_ns + 10**9}
        plain = [row["imu"] for row in episode.aligned(**options)]  # type: ignore[arg-type]
        moved = [row["imu"] for row in episode.aligned(stamps=stamps, **options)]  # type: ignore[arg-type]
    assert len(plain) == len(moved) == 50
    both = [(a, b) for a, b in zip(plain, moved, strict=True) if a.is_present and b.is_present]
    assert np.median([b.bound_ns for _, b in both]) < np.median([a.bound_ns for a, _ in both])
    assert any(not np.array_equal(a.values, b.values) for a, b in both)  # type: ignore[arg-type]


def test_a_sidecar_lies_beside_the_seal_and_only_fits_its_own_episode(tmp_path: Path) -> None:
    one = sealed_episode(tmp_path / "a")
    other = sealed_episode(tmp_path / "b", serial=1)
    with Episode(one) as episode, Episode(other) as stranger:
        write_remap(episode)
        assert verify(one).status is Status.OK
        with pytest.raises(EpisodeError, match="another state"):
            read_remap(stranger, one / REMAP_FILE)
        with pytest.raises(EpisodeError, match="sensorium sync remap"):
            read_remap(stranger)
        (one / REMAP_FILE).write_bytes(b"PK\x03\x04 torn")
        with pytest.raises(EpisodeError, match="cannot be read"):
            read_remap(episode)
