"""The batch stage: what goes in comes out, later by no more than its bound."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensorium.drivers.bus.header import pack_header, unpack_header
from sensorium.drivers.frame import (
    PCM_BYTES,
    ClockKind,
    Column,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Loss,
    Modality,
    Place,
    RecordedStamps,
    StreamInfo,
    stamps,
)
from sensorium.drivers.stages import BATCH_BYTES, BatchStage, Item
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.timebase import SECOND_NS

MS = 1_000_000
BATCH_NS = 10 * MS
COLUMNS = (Column("a", "N", "<i2"), Column("b", "N", "<f8"), Column("c", "", "<u1"))
FORCE = StreamInfo(
    "force", Modality.FORCE, Encoding.COLUMNS, 1000.0, "f", columns=COLUMNS, meta_fields=("status_any",)
)
SOUND = StreamInfo(
    "mic",
    Modality.AUDIO,
    Encoding.PCM_S16LE,
    8000.0,
    "m",
    clock=DeviceClock(ClockKind.SAMPLES, SECOND_NS, 8000),
    shape=(2,),
    frame_rate_hz=1000.0,
    meta_fields=("gain_db",),
)
INFOS = {info.name: info for info in (FORCE, SOUND)}
Rows = NDArray[np.void]
ROW = {
    "force": np.dtype([("a", "<i2"), ("b", "<f8"), ("c", "<u1")]),
    "mic": np.dtype([("pcm", "<i2", (2,))]),
}


def payload(stream: str, rows: Rows) -> bytes:
    return b"".join(np.ascontiguousarray(rows[name]).tobytes() for name in rows.dtype.names or ())


def rows_of(frame: Frame) -> Rows:
    rows = np.empty(frame.count, ROW[frame.stream])
    offset = 0
    for name in rows.dtype.names or ():
        size = rows.dtype[name].itemsize * frame.count
        rows[name] = np.frombuffer(frame.payload[offset : offset + size], rows.dtype[name])
        offset += size
    assert offset == len(frame.payload)
    return rows


def frame(
    seq: int,
    arrival_ms: Sequence[float],
    *,
    stream: str = "force",
    meta: tuple[float, ...] = (0.0,),
    ticks: bool = True,
) -> Frame:
    """Return a frame of one sample per arrival; its values tell its sequence numbers."""
    count = len(arrival_ms)
    rows = np.zeros(count, ROW[stream])
    numbers = np.arange(seq, seq + count)
    for name in rows.dtype.names or ():
        shape = (count,) + (1,) * (rows[name].ndim - 1)
        rows[name] = (numbers % 251).reshape(shape)
    arrival_ns = np.array([round(at * MS) for at in arrival_ms], np.int64)
    device_ticks = (7 * numbers if stream == "force" else numbers + 100) if ticks else None
    return Frame(stream, seq, count, device_ticks, arrival_ns, payload(stream, rows), meta)


def stage(*infos: StreamInfo) -> BatchStage:
    found = BatchStage(BATCH_NS)
    found.declare(infos or (FORCE, SOUND))
    return found


def seqs(items: Sequence[Item]) -> list[tuple[int, int] | Loss]:
    return [(item.seq, item.count) if isinstance(item, Frame) else item for item in items]


# What goes in comes out


@st.composite
def rides(draw: st.DrawFn) -> list[tuple[Item, int]]:
    """Items of two streams in the order of a device, each with the host time at which it is handed over."""
    found: list[tuple[Item, int]] = []
    now_ms = 0.0
    next_seq = dict.fromkeys(INFOS, 0)
    for _ in range(draw(st.integers(1, 40))):
        stream = draw(st.sampled_from(sorted(INFOS)))
        kind = draw(
            st.sampled_from(["frame"] * 5 + ["single"] * 3 + ["loss", "gap", "jump", "recorded", "large"])
        )
        if kind == "loss":
            count = draw(st.integers(1, 5))
            place = draw(st.sampled_from([Place.KERNEL, Place.DRIVER]))
            found.append((Loss(stream, count, place, "for the test"), round(now_ms * MS)))
            next_seq[stream] += count
            continue
        if kind == "gap":
            next_seq[stream] += draw(st.integers(1, 9))
        count = 3000 if kind == "large" else draw(st.integers(1, 6))
        steps = [draw(st.sampled_from([0.0, 0.2, 1.0, 4.0, 12.0])) for _ in range(min(count, 6))]
        arrivals = list(now_ms + np.cumsum([*steps, *[0.0] * (count - len(steps))]))
        now_ms = arrivals[-1]
        meta = (draw(st.sampled_from([0.0, 0.0, 4.0, 2.0**31 + 1])),)
        made = frame(next_seq[stream], arrivals, stream=stream, meta=meta, ticks=draw(st.integers(0, 9)) > 0)
        if kind == "single":  # one stamp for all samples
            first = None if made.device_ticks is None else made.device_ticks[:1]
            made = replace(made, device_ticks=first, arrival_ns=made.arrival_ns[-1:])
        if kind == "jump" and made.device_ticks is not None:  # the device's own count, not the driver's
            made = replace(made, device_ticks=made.device_ticks + 5)
        if kind == "recorded":
            made = replace(made, recorded=RecordedStamps(made.arrival_ns - 5, 1.0, 2.0, 3.0, 0))
        next_seq[stream] += count
        found.append((made, round(now_ms * MS)))
        now_ms += draw(st.sampled_from([0.0, 0.1, 3.0, 25.0]))
    return found


def ticks_of(item: Frame) -> list[int | None]:
    """Return each sample's device stamp, where the frame or its clock tells it."""
    if item.device_ticks is None:
        return [None] * item.count
    ticks: list[int | None] = item.device_ticks.tolist()
    if len(ticks) == item.count:
        return ticks
    first = int(item.device_ticks[0])
    if item.stream == "mic":  # whose clock counts samples
        return list(range(first, first + item.count))
    return [first] + [None] * (item.count - 1)


def samples(items: Sequence[Item], stream: str) -> list[object]:
    """Return everything that the stream's items say, sample by sample, with the losses in their places."""
    found: list[object] = []
    for item in items:
        if item.stream != stream:
            continue
        if isinstance(item, Loss):
            found.append(item)
            continue
        seq = range(item.seq, item.next_seq)
        rows = rows_of(item).view(f"V{ROW[stream].itemsize}").tolist()
        ticks = ticks_of(item)
        arrivals = np.broadcast_to(item.arrival_ns, item.count).tolist()
        recorded = [None] * item.count if item.recorded is None else item.recorded.capture_ns.tolist()
        meta = item.meta if stream == "mic" else "joined"
        found += [(*sample, meta) for sample in zip(seq, rows, ticks, arrivals, recorded, strict=True)]
    return found


@settings(deadline=None)
@given(rides())
def test_samples_stamps_meta_values_numbers_and_losses_come_out_as_they_went_in(
    ride: list[tuple[Item, int]],
) -> None:
    batch = stage()
    out: list[Item] = []
    for item, now_ns in ride:
        out += batch.due(now_ns)
        out += batch.apply(item)
    out += batch.flush()
    given_items = [item for item, _ in ride]
    for stream in INFOS:
        assert samples(out, stream) == samples(given_items, stream)
    assert batch.due_ns is None
    assert not batch.flush()
    for made in out:
        if isinstance(made, Frame) and made.stream == "force":
            assert made.meta == (any_of(given_items, made),)


def any_of(items: Sequence[Item], made: Frame) -> float:
    """Return the bits that the frames inside ``made`` have between them."""
    bits = 0
    for item in items:
        if isinstance(item, Frame) and item.stream == made.stream and made.seq <= item.seq < made.next_seq:
            bits |= int(item.meta[0])
    return float(bits)


@settings(deadline=None)
@given(rides())
def test_nothing_waits_longer_than_the_bound_and_no_batch_outgrows_its_declaration(
    ride: list[tuple[Item, int]],
) -> None:
    batch = BatchStage(BATCH_NS)
    largest = {info.name: info.max_payload_bytes for info in batch.declare([FORCE, SOUND])}
    until_ns = [now_ns for _, now_ns in ride[1:]] + [1 << 60]
    for (item, now_ns), next_ns in zip(ride, until_ns, strict=True):
        out = [*batch.due(now_ns), *batch.apply(item)]
        assert batch.due_ns is None or batch.due_ns <= now_ns + BATCH_NS
        while batch.due_ns is not None and batch.due_ns <= next_ns:
            due_ns = batch.due_ns
            assert batch.due(due_ns - 1) == []
            released = batch.due(due_ns)
            assert released
            assert all(
                due_ns - int(made.arrival_ns[0]) <= BATCH_NS for made in released if isinstance(made, Frame)
            )
            out += released
        for made in out:
            if isinstance(made, Frame):
                assert len(made.payload) <= largest[made.stream]
                unpack_header(pack_header(1, made), made.payload)


def test_ten_samples_of_a_millisecond_travel_as_one() -> None:
    batch = stage()
    (declared, _) = BatchStage(BATCH_NS).declare([FORCE, SOUND])
    assert (declared.rate_hz, declared.frame_rate_hz) == (1000.0, 100.0)
    out = [item for seq in range(1000) for item in batch.apply(frame(seq, [float(seq)]))]
    out += batch.flush()
    assert seqs(out) == [(seq, 10) for seq in range(0, 1000, 10)]


def test_a_batch_leaves_on_time_although_the_device_has_fallen_silent() -> None:
    batch = stage()
    batch.apply(frame(0, [5.0]))
    batch.apply(frame(1, [9.0]))
    assert batch.due_ns == 15 * MS
    assert batch.due(15 * MS - 1) == []
    assert seqs(batch.due(15 * MS)) == [(0, 2)]
    assert batch.due_ns is None


def test_a_stamp_from_the_future_holds_nothing_back_for_longer() -> None:
    batch = stage()
    batch.apply(frame(0, [3_600_000.0]))
    assert batch.due(1 * MS) == []
    assert seqs(batch.due(11 * MS)) == [(0, 1)]


def test_a_loss_stays_between_the_samples_that_it_lies_between() -> None:
    batch = stage()
    lost = Loss("force", 2, Place.KERNEL, "overflow")
    items: list[Item] = [frame(0, [0.0]), frame(1, [1.0]), lost, frame(4, [2.0]), frame(5, [3.0])]
    out = [item for given_item in items for item in batch.apply(given_item)]
    assert seqs([*out, *batch.flush()]) == [(0, 2), lost, (4, 2)]


def test_status_bits_are_gathered_but_another_gain_ends_a_batch() -> None:
    batch = stage()
    for seq, status in enumerate([0.0, 2.0**31, 4.0]):
        assert not batch.apply(frame(seq, [float(seq)], meta=(status,)))
    out = [
        item
        for seq, gain in enumerate([6.0, 6.0, 12.0])
        for item in batch.apply(frame(seq, [float(seq)], stream="mic", meta=(gain,)))
    ]
    out += batch.flush()
    metas = [(item.stream, item.count, item.meta) for item in out if isinstance(item, Frame)]
    assert metas == [("mic", 2, (6.0,)), ("force", 3, (2.0**31 + 4,)), ("mic", 1, (12.0,))]


def test_small_audio_blocks_travel_together_each_with_its_own_arrival() -> None:
    batch = stage()
    blocks = [frame(8 * index, [index + 1.0] * 8, stream="mic") for index in range(20)]
    out: list[Item] = []
    for block in blocks:
        assert block.device_ticks is not None
        single = replace(block, device_ticks=block.device_ticks[:1], arrival_ns=block.arrival_ns[:1])
        out += batch.apply(single)
    out += batch.flush()
    assert seqs(out) == [(0, 80), (80, 80)]
    (joined, _) = out
    assert isinstance(joined, Frame)
    assert joined.device_ticks is not None
    assert joined.device_ticks.tolist() == [100]
    assert joined.arrival_ns.tolist() == [(index + 1) * MS for index in range(10) for _ in range(8)]


def test_a_gap_in_the_numbers_ends_a_batch() -> None:
    batch = stage()
    items = [frame(0, [0.0]), frame(1, [1.0]), frame(3, [2.0])]
    out = [item for given_item in items for item in batch.apply(given_item)]
    assert seqs([*out, *batch.flush()]) == [(0, 2), (3, 1)]


def test_a_frame_as_large_as_a_batch_is_the_same_object_on_the_other_side() -> None:
    batch = stage()
    count = BATCH_BYTES // FORCE.row_bytes + 1
    large = frame(0, [0.0] * count)
    (passed,) = batch.apply(large)
    assert passed is large


@pytest.mark.parametrize(
    "info",
    [
        replace(FORCE, frame_rate_hz=100.0),  # already one message in 10 ms
        replace(FORCE, rate_hz=0.0),
        StreamInfo("cam", Modality.CAMERA, Encoding.JPEG, 500.0, "cam"),
    ],
)
def test_a_stream_that_gains_nothing_keeps_its_declaration_and_its_frames(info: StreamInfo) -> None:
    batch = BatchStage(BATCH_NS)
    assert batch.declare([info]) == [info]
    given_frame = Frame(info.name, 0, 1, None, stamps(0), b"x" * 11)
    assert list(batch.apply(given_frame)) == [given_frame]
    assert batch.due_ns is None


def test_the_declared_latency_leaves_room_for_the_wait() -> None:
    info = replace(FORCE, latency=Latency(1, 2, 50 * MS))
    (declared,) = BatchStage(BATCH_NS).declare([info])
    assert declared.latency == Latency(1, 2, 60 * MS)


def test_joined_audio_has_the_capture_times_that_its_blocks_had() -> None:
    rate_hz, block, seconds = 48_000, 64, 20
    block_ns = round(block * SECOND_NS / rate_hz)
    info = replace(
        SOUND,
        rate_hz=float(rate_hz),
        frame_rate_hz=rate_hz / block,
        clock=DeviceClock(ClockKind.SAMPLES, SECOND_NS, rate_hz),
        latency=Latency(block_ns, 0, SECOND_NS),
        meta_fields=(),
    )
    rng = np.random.default_rng(1)
    count = seconds * rate_hz // block
    truth_ns = SECOND_NS + np.arange(count) * block_ns * (1 + 20e-6)
    arrival_ns = np.maximum.accumulate(truth_ns + block_ns + rng.exponential(300_000, count)).astype(np.int64)
    sent = [
        Frame(
            "mic",
            index * block,
            block,
            stamps(index * block),
            arrival_ns[index : index + 1],
            bytes(4 * block),
        )
        for index in range(count)
    ]
    batch = BatchStage(BATCH_NS)
    (declared,) = batch.declare([info])
    tracker = StreamTracker(declared)
    joined = [made for item in sent for made in batch.apply(item) if isinstance(made, Frame)]
    assert len(joined) < len(sent) / 6
    capture_ns = np.concatenate([tracker.update(made).capture_ns for made in joined])[::block]
    error_ns = (capture_ns - truth_ns[: len(capture_ns)])[count // 2 :]
    half_a_sample_ns = SECOND_NS / rate_hz / 2
    assert np.abs(error_ns).max() < half_a_sample_ns


def test_sound_of_any_width_is_joined_sample_by_sample() -> None:
    for encoding, item_bytes in PCM_BYTES.items():
        info = replace(SOUND, encoding=encoding, meta_fields=())
        batch = BatchStage(BATCH_NS)
        batch.declare([info])
        blocks = [np.random.default_rng(seq).bytes(8 * 2 * item_bytes) for seq in range(3)]
        for index, block in enumerate(blocks):
            batch.apply(Frame("mic", 8 * index, 8, stamps(8 * index), stamps(index * MS), block))
        (joined,) = batch.flush()
        assert isinstance(joined, Frame)
        assert (joined.count, joined.payload) == (24, b"".join(blocks))
