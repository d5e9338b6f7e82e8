import contextlib
import zlib
from dataclasses import replace

import numpy as np
import pytest
from episode_samples import STREAMS, make_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.drivers.frame import Column, Frame, Modality, StreamInfo, stamps
from sensorium.errors import ConfigError, EpisodeError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode import schemas
from sensorium.sync.episode.checksum import combine_crc32, crc32, plain_combine_crc32
from sensorium.sync.episode.layouts import (
    channel_for,
    dump_stream_info,
    load_stream_info,
    timestamp_field,
    unwrap,
    wrap,
)
from sensorium.sync.episode.stamp_reader import unpack_stamps
from sensorium.sync.episode.stamp_rows import StampRows, pack_few

UTC_NS = 1_700_000_000_123_456_789
MESSAGES = {f"foxglove.{name}": message for name, message in schemas.FOXGLOVE.items()} | {
    "sensorium.SampleBlock": schemas.SampleBlock,
    "sensorium.Packets": schemas.Packets,
}
PROTOBUF_STREAMS = [info for info in STREAMS if info.schema is None]


@pytest.mark.parametrize("info", STREAMS, ids=lambda info: info.name)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), utc_ns=st.integers(0, 2**62))
def test_a_payload_comes_back_byte_for_byte(info: StreamInfo, seed: int, utc_ns: int) -> None:
    frame, _ = make_frame(info, 7, np.random.default_rng(seed))
    assert unwrap(info, wrap(info, frame, utc_ns)) == frame.payload


@pytest.mark.parametrize("info", PROTOBUF_STREAMS, ids=lambda info: info.name)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), utc_ns=st.integers(0, 2**62))
def test_messages_are_the_bytes_that_protobuf_writes(info: StreamInfo, seed: int, utc_ns: int) -> None:
    frame, _ = make_frame(info, 7, np.random.default_rng(seed))
    data = wrap(info, frame, utc_ns)
    message = MESSAGES[channel_for(info).schema.name].FromString(data)
    assert message.SerializeToString() == data
    assert message.timestamp.seconds * 1_000_000_000 + message.timestamp.nanos == utc_ns


def test_a_message_of_somebody_elses_schema_is_stored_untouched() -> None:
    info = next(info for info in STREAMS if info.encoding == "message")
    frame, _ = make_frame(info, 0, np.random.default_rng(0))
    assert wrap(info, frame, UTC_NS) == frame.payload
    assert channel_for(info).schema == info.schema


def test_raw_images_carry_their_geometry() -> None:
    info = next(info for info in STREAMS if info.name == "depth")
    frame, _ = make_frame(info, 0, np.random.default_rng(0))
    image = schemas.FOXGLOVE["RawImage"].FromString(wrap(info, frame, UTC_NS))
    assert (image.height, image.width, image.step, image.encoding) == (4, 6, 12, "mono16")


def test_blocks_describe_their_columns() -> None:
    info = next(info for info in STREAMS if info.name == "imu")
    frame, _ = make_frame(info, 0, np.random.default_rng(0))
    block = schemas.SampleBlock.FromString(wrap(info, frame, UTC_NS))
    found = tuple(Column(column.name, column.unit, column.dtype, column.scale) for column in block.columns)
    assert found == info.columns
    assert block.count == frame.count


def test_every_declaration_comes_back_equal() -> None:
    for info in STREAMS:
        assert load_stream_info(dump_stream_info(info)) == info


def test_a_declaration_with_an_unknown_key_is_refused() -> None:
    text = dump_stream_info(STREAMS[0]).replace('"name"', '"nmae"', 1)
    with pytest.raises(EpisodeError, match="nmae"):
        load_stream_info(text)


@pytest.mark.parametrize("name", ["grey", "imu", "points", "mic"])
def test_a_frame_of_the_wrong_size_is_refused(name: str) -> None:
    info = next(info for info in STREAMS if info.name == name)
    frame = Frame(name, 0, 1, None, stamps(0), b"1")
    with pytest.raises(EpisodeError, match=name):
        wrap(info, frame, UTC_NS)


def test_an_unknown_encoding_and_pixels_without_a_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match="h265"):
        channel_for(StreamInfo("x", Modality.CAMERA, "h265", 30.0, "x"))
    with pytest.raises(ConfigError, match="height, width"):
        channel_for(StreamInfo("x", Modality.CAMERA, "bgr8", 30.0, "x"))


@pytest.mark.parametrize("info", PROTOBUF_STREAMS, ids=lambda info: info.name)
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=80))
def test_garbage_is_unwrapped_or_refused_but_never_crashes(info: StreamInfo, data: bytes) -> None:
    with contextlib.suppress(EpisodeError):
        unwrap(info, data)


def test_timestamps_before_1970_are_written_as_protobuf_does() -> None:
    block = schemas.SampleBlock(timestamp={"seconds": -1, "nanos": 5})
    assert timestamp_field(-999_999_995) == block.SerializeToString()


@given(st.binary(), st.binary())
def test_checksums_of_parts_combine_to_that_of_the_whole(first: bytes, second: bytes) -> None:
    whole = zlib.crc32(first + second)
    assert crc32(second, crc32(first, 0)) == whole
    assert combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == whole
    assert plain_combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == whole


int64s = st.integers(-(2**63), 2**63 - 1)


@st.composite
def rows(draw: st.DrawFn, meta_width: int = 2) -> tuple[int, Frame, Stamped]:
    count = draw(st.integers(1, 4))
    widths = st.sampled_from([1, count])
    ticks = draw(st.none() | widths.flatmap(lambda k: st.lists(int64s, min_size=k, max_size=k)))
    arrival = draw(widths.flatmap(lambda k: st.lists(int64s, min_size=k, max_size=k)))
    capture = draw(widths.flatmap(lambda k: st.lists(int64s, min_size=k, max_size=k)))
    meta = draw(st.tuples(*[st.floats(allow_nan=False)] * meta_width))
    parts = draw(st.tuples(*[st.floats(0, 1e12)] * 3))
    seq = draw(st.integers(0, 2**62))
    frame = Frame("s", seq, count, None if ticks is None else stamps(*ticks), stamps(*arrival), b"", meta)
    stamped = Stamped(stamps(*capture), Uncertainty(*parts), draw(st.integers(0, 2**31 - 1)))
    return draw(st.integers(0, 2**32 - 1)), frame, stamped


@settings(max_examples=60, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=6))
def test_stamps_come_back_exactly_and_are_valid_protobuf(entries: list[tuple[int, Frame, Stamped]]) -> None:
    packed = StampRows()
    for instance, frame, stamped in entries:
        packed.add(instance, frame, stamped, 0)
    data = packed.pack()
    assert schemas.Stamps.FromString(data).SerializeToString() == data
    for (instance, frame, stamped), row in zip(entries, unpack_stamps(data, 2), strict=True):
        assert (row.instance, row.seq, row.count, row.meta) == (instance, frame.seq, frame.count, frame.meta)
        assert row.stamped.uncertainty == stamped.uncertainty
        assert row.stamped.epoch == stamped.epoch
        np.testing.assert_array_equal(row.arrival_ns, frame.arrival_ns)
        np.testing.assert_array_equal(row.stamped.capture_ns, stamped.capture_ns)
        assert (row.device_ticks is None) == (frame.device_ticks is None)
        if frame.device_ticks is not None:
            np.testing.assert_array_equal(row.device_ticks, frame.device_ticks)


@settings(max_examples=200, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=12))
def test_few_stamps_are_packed_to_the_same_bytes(entries: list[tuple[int, Frame, Stamped]]) -> None:
    packed = StampRows()
    for instance, frame, stamped in entries:
        packed.add(instance, frame, stamped, 0)
    assert pack_few(packed.frames) in (packed.pack_many(), None)


@settings(max_examples=200, deadline=None)
@given(rows(), st.lists(st.tuples(st.integers(0, 2**62), int64s), max_size=8))
def test_few_stamps_that_are_alike_need_no_arrays(
    entry: tuple[int, Frame, Stamped], others: list[tuple[int, int]]
) -> None:
    instance, frame, stamped = entry
    packed = StampRows()
    packed.add(instance, frame, stamped, 0)
    for seq, shift in others:
        arrivals = frame.arrival_ns + shift
        packed.add(instance, replace(frame, seq=seq, arrival_ns=arrivals), stamped, 0)
    data = pack_few(packed.frames)
    assert data in (packed.pack_many(), None)
    assert data is not None or len(others) > 2


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_damaged_stamps_are_read_or_refused_but_never_crash(data: bytes) -> None:
    with contextlib.suppress(EpisodeError):
        list(unpack_stamps(data, 0))


@pytest.mark.parametrize("rows_of_each", [1, 20])
def test_numbers_that_fall_from_the_largest_to_none_come_back(rows_of_each: int) -> None:
    stamped = Stamped(stamps(5), Uncertainty(1.0, 2.0, 3.0), 0)
    seqs = [2**63 - 1, 0] * rows_of_each
    packed = StampRows()
    for seq in seqs:
        packed.add(2**32 - 1, Frame("s", seq, 4, None, stamps(5), b""), stamped, 0)
    assert [row.seq for row in unpack_stamps(packed.pack(), 0)] == seqs


@pytest.mark.parametrize(
    ("column", "steps"),
    [
        ("seq_gap", [1, 2, 3, 4]),
        ("epoch_step", [1]),
        ("arrival_counts_step", [-1, 4]),
        ("capture_counts_step", [1, 7]),
        ("capture_host_step_ns", [1, 2, 3]),
        ("statistical_ns", [1.0]),
        ("meta", [1.0]),
    ],
)
def test_stamps_whose_columns_do_not_fit_are_refused(column: str, steps: list[float]) -> None:
    names = [field.name for field in schemas.Stamps.DESCRIPTOR.fields if field.name != "meta"]
    fitting = {name: [1, 0] for name in names} | {"device_ticks_step": [1, 1]}
    assert len(list(unpack_stamps(schemas.Stamps(**fitting).SerializeToString(), 0))) == 2
    with pytest.raises(EpisodeError, match="damaged"):
        list(unpack_stamps(schemas.Stamps(**fitting | {column: steps}).SerializeToString(), 0))


def test_the_codec_does_not_depend_on_the_stream_being_personal() -> None:
    assert channel_for(STREAMS[0]) == channel_for(replace(STREAMS[0], is_personal=False))
