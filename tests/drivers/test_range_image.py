import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.drivers.frame import Encoding, Frame, Modality, StreamInfo
from sensorium.drivers.payloads.envelope import AS_IT_CAME, AS_IT_CAME_ZSTD
from sensorium.drivers.payloads.ouster_metadata import PROFILES, OusterMetadata
from sensorium.drivers.payloads.range_image import (
    CODECS,
    LAYOUTS,
    VERSION,
    Role,
    decode,
    encode,
    ouster_layout,
)
from sensorium.errors import PayloadError
from sensorium.simulators.emulators.ouster_encoder import default_metadata, encode_scan
from sensorium.sync.sources.ouster_capture import OusterCaptureSource

CLOUD_BYTES = 16
"""Of a point as float32 x, y, z, intensity."""


def _packets(metadata: OusterMetadata, rng: np.random.Generator, revolution: int = 1) -> bytes:
    """Return a revolution of a room with some pixels without a return."""
    shape = (metadata.rings, metadata.columns)
    azimuth = np.linspace(0, 2 * np.pi, metadata.columns)
    room = 3000 + 1500 * np.sin(2 * azimuth) + 40 * np.arange(metadata.rings)[:, None]
    range_mm = np.rint(room + rng.normal(0, 8, shape)).astype(np.int64)
    range_mm[rng.random(shape) < 0.1] = 0
    pieces = encode_scan(
        metadata,
        revolution,
        range_mm,
        rng.integers(20, 40, shape),
        np.arange(metadata.columns) * 97_656 + rng.integers(0, 50, metadata.columns),
        signal=rng.poisson(100, shape),
        near_ir=rng.poisson(200, shape),
    )
    return b"".join(pieces)


def test_the_words_of_every_profile_cover_its_pixel_once() -> None:
    assert LAYOUTS.keys() == PROFILES.keys()
    for name, words in LAYOUTS.items():
        covered = [byte for word in words for byte in range(word.offset, word.offset + word.size_bytes)]
        assert sorted(covered) == list(range(PROFILES[name].pixel_bytes))
        assert all(word.is_inside(PROFILES[name].pixel_bytes) for word in words)
        assert words[0].role is Role.RANGE


@pytest.mark.parametrize("profile", LAYOUTS)
def test_a_revolution_comes_back_byte_for_byte_and_smaller(profile: str) -> None:
    metadata = default_metadata(32, 256, 10.0, profile=profile)
    packets = _packets(metadata, np.random.default_rng(1))
    coded = encode(packets, ouster_layout(metadata))
    assert coded[0] == VERSION
    assert decode(coded) == packets
    assert len(coded) < len(packets) / 2


@settings(deadline=None, max_examples=200)
@given(data=st.data(), profile=st.sampled_from(sorted(LAYOUTS)), seed=st.integers(0, 2**32 - 1))
def test_any_bytes_of_whole_packets_come_back(data: st.DataObject, profile: str, seed: int) -> None:
    """Also those that no sensor sends: reserved bits, noise in every word, columns in any order."""
    rng = np.random.default_rng(seed)
    document = json.loads(default_metadata(data.draw(st.integers(1, 9)), 32, 10.0, profile=profile).text)
    document["data_format"]["columns_per_packet"] = data.draw(st.sampled_from([1, 2, 4, 8]))
    metadata = OusterMetadata.from_json(json.dumps(document))
    size = data.draw(st.integers(1, 4)) * metadata.packet_bytes
    packets = rng.integers(0, 256, size, np.uint8)
    packets[rng.random(size) < data.draw(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))] = 0
    coded = encode(packets.tobytes(), ouster_layout(metadata))
    assert decode(coded) == packets.tobytes()
    assert len(coded) <= size + 1


def test_the_packets_that_are_left_after_a_loss_are_an_image_too() -> None:
    metadata = default_metadata(16, 128, 10.0)
    packets = _packets(metadata, np.random.default_rng(2))
    some = packets[metadata.packet_bytes : 4 * metadata.packet_bytes]
    coded = encode(some, ouster_layout(metadata))
    assert coded[0] == VERSION
    assert decode(coded) == some


def test_what_is_no_whole_packet_is_kept_as_it_came_and_says_so() -> None:
    metadata = default_metadata(16, 128, 10.0)
    odd = _packets(metadata, np.random.default_rng(3))[:-1]
    noise = np.random.default_rng(4).bytes(1000)
    for payload, form in ((odd, AS_IT_CAME_ZSTD), (noise, AS_IT_CAME), (b"", AS_IT_CAME)):
        coded = encode(payload, ouster_layout(metadata))
        assert coded[0] == form
        assert decode(coded) == payload
        assert len(coded) <= len(payload) + 1


def test_packets_of_a_profile_without_a_layout_are_kept_as_they_came() -> None:
    metadata = default_metadata(16, 128, 10.0)
    packets = _packets(metadata, np.random.default_rng(5))
    coded = encode(packets, None)
    assert coded[0] == AS_IT_CAME_ZSTD
    assert decode(coded) == packets


def test_a_sensor_whose_metadata_is_not_understood_is_recorded_all_the_same() -> None:
    info = StreamInfo("lidar", Modality.LIDAR, Encoding.OUSTER, 640.0, "lidar", details={"metadata": "{}"})
    (codec,) = CODECS
    packets = _packets(default_metadata(16, 128, 10.0), np.random.default_rng(8))
    coded = codec.packer(info, 0)(packets, 8)
    assert coded is not None
    assert coded[0] == AS_IT_CAME_ZSTD
    assert decode(coded) == packets


def test_a_field_that_repeats_another_is_stored_once() -> None:
    metadata = default_metadata(16, 256, 10.0)
    rng = np.random.default_rng(6)
    shape = (16, 256)
    seen = rng.integers(0, 200, shape)
    scan = (metadata, 1, np.full(shape, 5000), seen, np.zeros(256, np.int64))
    same = b"".join(encode_scan(*scan, near_ir=seen, with_crc=False))
    other = b"".join(encode_scan(*scan, near_ir=rng.permuted(seen), with_crc=False))
    coded_same, coded_other = (encode(packets, ouster_layout(metadata)) for packets in (same, other))
    assert decode(coded_same) == same
    assert len(coded_other) - len(coded_same) > 0.9 * seen.size


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_payload_is_refused_or_decodes_to_some_packets(data: st.DataObject) -> None:
    metadata = default_metadata(8, 64, 10.0)
    coded = bytearray(encode(_packets(metadata, np.random.default_rng(7)), ouster_layout(metadata)))
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(coded)))
    for damaged in (bytes(coded), bytes(coded[:cut])):
        with contextlib.suppress(PayloadError):
            assert isinstance(decode(damaged), bytes)


def test_a_payload_of_a_newer_version_is_refused_in_words() -> None:
    with pytest.raises(PayloadError, match=f"version {VERSION + 1} of range_image"):
        decode(bytes([VERSION + 1]) + bytes(100))


@pytest.mark.parametrize(
    ("name", "least_ratio"),
    [
        ("OS-0-128-U1_v2.3.0_1024x10", 10.0),
        # Two 16-bit fields of noise (signal, near infrared) take 8 of the 16 B that a point has: docs/codecs.md.
        ("OS-1-32-G_v2.1.1_1024x10", 4.0),
    ],
)
def test_real_captures_come_back_and_are_so_much_smaller_than_points(
    shared_data: Path, name: str, least_ratio: float
) -> None:
    source = OusterCaptureSource(shared_data / f"ouster/{name}.pcap")
    layout = ouster_layout(source.metadata)
    revolutions = [f for f in source.frames() if isinstance(f, Frame) and f.stream == "lidar"]
    assert revolutions
    for frame in revolutions:
        coded = encode(frame.payload, layout)
        assert decode(coded) == frame.payload
        points = source.metadata.rings * frame.count * source.metadata.columns_per_packet
        assert points * CLOUD_BYTES > least_ratio * len(coded)
