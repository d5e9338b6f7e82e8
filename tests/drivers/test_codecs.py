"""What every exact codec promises, from the driver's frame through an episode and back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from episode_samples import TIMELINE

from sensorium.drivers.frame import Column, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.drivers.payloads.codec import CODECS, DEFAULTS, CodecChoice
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.drivers.payloads.table import TABLE, check_stream
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
    Encoding.MONO8: StreamInfo("grey", Modality.CAMERA, Encoding.MONO8, 30.0, "cam", shape=(24, 32)),
}
COUNTS = {Encoding.OUSTER: 8, Encoding.COLUMNS: 10}
ITEM_BYTES = {
    Encoding.OUSTER: METADATA.packet_bytes,
    Encoding.COLUMNS: 14,
    Encoding.MONO16: 1536,
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
    assert packed_info.details["codec"] == name
    assert packed_info.details["codec_is_exact"] == "true"
    decoder = Decoder(packed_info)
    for plain, found in zip(_frames(info), packed, strict=True):
        assert (found.seq, found.count, found.arrival_ns) == (plain.seq, plain.count, plain.arrival_ns)
        assert len(found.payload) <= packed_info.max_payload_bytes
        if packed_info.restores_to:
            assert decoder.plain(found.payload, found.count) == plain.payload


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
    for source, name in DEFAULTS.items():
        codec = CodecChoice(name).load()
        assert codec.is_exact
        assert source in codec.sources
        assert source in TABLE[codec.encoding].restores
