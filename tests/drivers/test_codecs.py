"""What every exact codec promises, from the driver's frame through an episode and back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from episode_samples import FREE_CLOCK, TIMELINE

from sensorium.drivers.frame import Column, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.drivers.payloads.choice import CodecChoice
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.drivers.payloads.table import CODECS, DEFAULTS, TABLE, check_stream, driver_bytes
from sensorium.drivers.stages import CodecStage, Pipeline
from sensorium.simulators.emulators.ouster_encoder import default_metadata
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter

METADATA = default_metadata(16, 128, 10.0)
SOURCES = {
    Encoding.OUSTER: StreamInfo(
        "lidar",
        Modality.LIDAR,
        Encoding.OUSTER,
        80.0,
        "lidar",
        shape=(16, 128),
        details={"metadata": METADATA.text},
    ),
    Encoding.COLUMNS: StreamInfo(
        "imu",
        Modality.IMU,
        Encoding.COLUMNS,
        1000.0,
        "imu",
        columns=(Column("a", "m/s^2", "<i2", 0.01), Column("b", "", "<f4"), Column("t", "ns", "<i8")),
    ),
    Encoding.MONO16: StreamInfo("depth", Modality.DEPTH, Encoding.MONO16, 30.0, "cam", shape=(24, 32)),
    Encoding.PCM_S16LE: StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48_000.0, "mic", shape=(2,)),
    Encoding.MONO8: StreamInfo("grey", Modality.CAMERA, Encoding.MONO8, 30.0, "cam", shape=(24, 32)),
}
COUNTS = {Encoding.OUSTER: 8, Encoding.COLUMNS: 10, Encoding.PCM_S16LE: 480}
ITEM_BYTES = {
    Encoding.OUSTER: METADATA.packet_bytes,
    Encoding.COLUMNS: 14,
    Encoding.MONO16: 1536,
    Encoding.PCM_S16LE: 4,
    Encoding.MONO8: 768,
}
EXACT = [name for name in CODECS if CodecChoice(name).load().is_exact]


def _frames(info: StreamInfo) -> list[Frame]:
    """Return frames that a codec likes, that it does not like, and one of a single sample."""
    rng = np.random.default_rng(1)
    count, item = COUNTS.get(info.encoding, 1), ITEM_BYTES[info.encoding]
    payloads = [bytes(count * item), rng.bytes(count * item), rng.bytes(item)]
    seqs = np.cumsum([0, count, count]).tolist()
    return [
        Frame(info.name, seq, len(payload) // item, None, stamps(1000 + seq), payload)
        for seq, payload in zip(seqs, payloads, strict=True)
    ]


def _pipeline(name: str, info: StreamInfo) -> Pipeline:
    return Pipeline([CodecStage(CodecChoice(name), {}, must_fit=True)], [info])


def _packed(name: str, info: StreamInfo) -> tuple[StreamInfo, list[Frame]]:
    pipeline = _pipeline(name, info)
    found = pipeline.apply(_frames(info))
    assert all(isinstance(frame, Frame) for frame in found)
    return pipeline.infos[0], [frame for frame in found if isinstance(frame, Frame)]


def _cases() -> Sequence[tuple[str, str]]:
    cases = [(name, source) for name in EXACT for source in sorted(CodecChoice(name).load().sources)]
    return [(name, source) for name, source in cases if source in SOURCES]


@pytest.mark.parametrize(("name", "source"), _cases())
def test_an_exact_codec_gives_back_every_payload_and_every_stamp(name: str, source: str) -> None:
    info = SOURCES[source]
    packed_info, packed = _packed(name, info)
    check_stream(packed_info)
    assert packed_info.details["codec"].split(":")[0] == name
    assert packed_info.details["codec_is_exact"] == "true"
    decoder = Decoder(packed_info)
    for plain, found in zip(_frames(info), packed, strict=True):
        assert (found.seq, found.count, found.arrival_ns) == (plain.seq, plain.count, plain.arrival_ns)
        assert len(found.payload) <= packed_info.max_payload_bytes
        if packed_info.restores_to:
            assert decoder.plain(found.payload, found.count) == plain.payload


@pytest.mark.parametrize(("name", "source"), [*_cases(), ("jpeg", Encoding.MONO8), ("h264", Encoding.MONO8)])
def test_how_large_a_payload_was_before_it_was_packed_is_known(name: str, source: str) -> None:
    info, packed = _packed(name, SOURCES[source])
    sizes = [len(frame.payload) for frame in _frames(SOURCES[source])]
    find = driver_bytes(info)
    assert [find(frame.payload, frame.count) for frame in packed] == sizes
    plain = driver_bytes(SOURCES[source])
    assert [plain(frame.payload, frame.count) for frame in _frames(SOURCES[source])] == sizes


def test_a_damaged_payload_counts_as_large_as_it_is() -> None:
    info, _ = _packed("range_image", SOURCES[Encoding.OUSTER])
    for damaged in (b"", b"\1", b"\2", b"\xff" * 40):
        assert driver_bytes(info)(damaged, 3) == len(damaged)


@pytest.mark.parametrize(("name", "source"), _cases())
def test_a_packed_frame_lies_in_the_episode_as_it_was_packed(name: str, source: str, tmp_path: Path) -> None:
    info, packed = _packed(name, SOURCES[source])
    writer = EpisodeWriter(tmp_path / "e", new_ulid(TIMELINE.utc_minus_host_ns), TIMELINE)
    writer.declare(info)
    for frame in packed:
        writer.write(frame, Stamped(frame.arrival_ns - 5, Uncertainty(1.0, 1.0, 1.0), 0), 1)
    writer.close()
    with Episode(tmp_path / "e") as episode:
        assert episode.streams[info.name] == info
        found = [recorded.frame for recorded in episode.frames()]
    assert [(frame.seq, frame.payload) for frame in found] == [(frame.seq, frame.payload) for frame in packed]


def test_what_is_packed_by_default_is_packed_exactly_and_has_its_row() -> None:
    for source, codec in DEFAULTS.items():
        assert codec.is_exact
        assert source in codec.sources
        assert source in TABLE[codec.encoding].restores


@pytest.mark.parametrize("arrivals_per_block", [10, 1])
def test_a_small_stream_is_smaller_on_disk_than_as_the_driver_gave_it(
    tmp_path: Path, arrivals_per_block: int
) -> None:
    """An IMU at 1 kHz in blocks of 10: values, device stamps and arrivals, with all that an episode adds."""
    rng = np.random.default_rng(3)
    columns = tuple(Column(name, "m/s^2", "<i2", 0.01) for name in "abcdef")
    info = StreamInfo("imu", Modality.IMU, Encoding.COLUMNS, 1000.0, "imu", columns=columns, clock=FREE_CLOCK)
    pipeline = _pipeline("columns", info)
    writer = EpisodeWriter(tmp_path / "e", new_ulid(TIMELINE.utc_minus_host_ns), TIMELINE)
    writer.declare(pipeline.infos[0])
    empty_bytes = writer.bytes_stored()
    given_bytes = 0
    for start in range(0, 20_000, 10):
        sample = np.arange(start, start + 10)
        values = 3000 * np.sin(sample / 300 + np.arange(6)[:, None]) + rng.normal(0, 12, (6, 10))
        capture_ns = sample * 1_000_000
        arrival_ns = (capture_ns + 700_000 + np.cumsum(rng.integers(0, 20_000, 10)))[-arrivals_per_block:]
        frame = Frame("imu", start, 10, sample * 1000, arrival_ns, np.rint(values).astype("<i2").tobytes())
        given_bytes += len(frame.payload) + 8 * (10 + arrivals_per_block)
        (packed,) = pipeline.apply([frame])
        assert isinstance(packed, Frame)
        writer.write(packed, Stamped(capture_ns, Uncertainty(1000.0, 10.0, 0.0), 0), 1)
        writer.step(int(arrival_ns[-1]))
    writer.flush()
    values_bytes = 20_000 * 12
    stored_bytes = writer.bytes_stored() - empty_bytes
    assert stored_bytes < 0.55 * given_bytes
    if arrivals_per_block == 1:
        assert stored_bytes < values_bytes
    writer.close()
