"""MTData2 against real messages, fuzz, and the driver on a pty with an emulated MTi."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from sensorium.drivers.devices.mtdata2 import (
    MTDATA2,
    ItemCounters,
    MessageParser,
    encode_message,
    parse_sample,
)
from sensorium.drivers.devices.xsens import XsensConfig, XsensDriver
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import ClockKind, Frame, Loss, StreamInfo
from sensorium.errors import DeviceError
from sensorium.simulators.emulators.emulator import NO_FAULTS, WireFaults
from sensorium.simulators.emulators.xsens import XsensEmulator, imu_signal
from sensorium.timebase import SECOND_NS, HostClock

CLOCK = HostClock()


@pytest.fixture
def real_frames(shared_data: Path) -> list[dict[str, object]]:
    frames: list[dict[str, object]] = json.loads(
        (shared_data / "imu_frames" / "xsens_mtdata2.json").read_text()
    )
    return frames


def test_real_messages_decode_to_their_quoted_values(real_frames: list[dict[str, object]]) -> None:
    names = {
        "0x1020": "counter",
        "0x1060": "ticks",
        "0x4020": "acceleration",
        "0x8020": "rate_of_turn",
        "0x2010": "quaternion",
        "0xe020": "status",
    }
    for real in real_frames:
        parser = MessageParser()
        (message,) = parser.feed(bytes.fromhex(str(real["hex"])), 5)
        assert (message.kind, message.arrival_ns, parser.skipped_bytes) == (MTDATA2, 5, 0)
        sample = parse_sample(message.data, ItemCounters())
        decoded = real["decoded"]
        assert isinstance(decoded, dict)
        for identifier, expected in decoded.items():
            if identifier in names:
                found = getattr(sample, names[identifier])
                assert found == (tuple(expected) if isinstance(expected, list) else expected)


def test_unknown_items_are_counted_and_the_known_ones_kept(real_frames: list[dict[str, object]]) -> None:
    counters = ItemCounters()
    (message,) = MessageParser().feed(bytes.fromhex(str(real_frames[1]["hex"])), 0)
    sample = parse_sample(message.data, counters)
    assert counters.unknown_items == {0xC020: 1}
    assert sample.acceleration is not None


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 40))
def test_valid_messages_are_found_between_garbage(garbage: bytes, datas: list[bytes], step: int) -> None:
    # Long enough that a false header in the garbage gets its length and is found out; no preamble in it.
    trailer = bytes(2100)
    parser = MessageParser()
    stream = b"".join(garbage + encode_message(MTDATA2, data) for data in datas) + trailer
    messages = [
        message
        for start in range(0, len(stream), step)
        for message in parser.feed(stream[start : start + step], start)
    ]
    found = [message.data for message in messages if message.kind == MTDATA2]
    position = 0
    for data in datas:
        # Garbage that is itself a valid message may add one; none of ours may be missing or out of order.
        if data in found[position:]:
            position = found.index(data, position) + 1
        else:
            assert is_hidden_in_a_valid_message(garbage, data)


def is_hidden_in_a_valid_message(garbage: bytes, data: bytes) -> bool:
    """Return whether garbage and message together happen to form one longer message with a right checksum."""
    whole = garbage + encode_message(MTDATA2, data)
    for start in range(len(garbage)):
        if whole[start : start + 2] == b"\xfa\xff" and MessageParser().feed(whole[start:], 0):
            return True
    return False


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_garbage_never_raises(garbage: bytes) -> None:
    MessageParser().feed(garbage, 0)
    parse_sample(garbage, ItemCounters())


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_flipped_bit_never_passes_as_the_same_message(data: bytes, draw: st.DataObject) -> None:
    message = bytearray(encode_message(MTDATA2, data))
    bit = draw.draw(st.integers(8 * 4, len(message) * 8 - 1))
    message[bit // 8] ^= 1 << bit % 8
    assert data not in [found.data for found in MessageParser().feed(bytes(message) + bytes(2100), 0)]


def test_a_message_with_extended_length_is_read() -> None:
    data = bytes(range(256)) * 3
    parser = MessageParser()
    (message,) = parser.feed(b"noise" + encode_message(MTDATA2, data), 0)
    assert (message.data, parser.skipped_bytes) == (data, 5)


def test_arrival_is_that_of_the_last_byte() -> None:
    first, second = encode_message(MTDATA2, b"abc"), encode_message(MTDATA2, b"def")
    parser = MessageParser()
    assert parser.feed(first[:4], 10) == []
    messages = parser.feed(first[4:] + second[:2], 20) + parser.feed(second[2:], 30)
    assert [message.arrival_ns for message in messages] == [20, 30]


def test_double_and_fixed_point_values_are_kept_exactly() -> None:
    double = bytes.fromhex("402318") + np.array([0.1, 0.2, 0.3], ">f8").tobytes()
    fixed = bytes.fromhex("80210C") + np.array([1 << 20, -1, 3], ">i4").tobytes()
    sample = parse_sample(double + fixed, ItemCounters())
    assert sample.acceleration == (0.1, 0.2, 0.3)
    assert sample.rate_of_turn == (1.0, -(2.0**-20), 3 * 2.0**-20)
    assert sample.is_double


def fixed_16_32(*values: float) -> bytes:
    """Return values as the device sends them: bytes 3 2 1 0 5 4 of a 48-bit integer, the lowest is 0."""
    numbers = [(round(value * 2**32) & (2**48 - 1)).to_bytes(6, "big") for value in values]
    return b"".join(number[2:] + number[:2] for number in numbers)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**47), 2**47 - 1), min_size=3, max_size=3))
def test_fixed_point_16_32_is_read_to_its_last_bit(counts: list[int]) -> None:
    values = [count / 2**32 for count in counts]
    sample = parse_sample(bytes.fromhex("402212") + fixed_16_32(*values), ItemCounters())
    assert sample.acceleration == tuple(values)
    assert sample.is_double


def test_an_item_of_another_length_than_its_format_is_counted_as_unknown() -> None:
    counters = ItemCounters()
    sample = parse_sample(bytes.fromhex("402211") + bytes(17) + bytes.fromhex("80220C") + bytes(12), counters)
    assert (sample.acceleration, sample.rate_of_turn) == (None, None)
    assert counters.unknown_items == {0x4022: 1, 0x8022: 1}


def test_a_torn_item_list_is_counted() -> None:
    counters = ItemCounters()
    parse_sample(bytes.fromhex("40200C0000"), counters)
    assert counters.torn_messages == 1


# The driver on a pty


@contextmanager
def opened(
    emulator: XsensEmulator, tmp_path: Path, config: XsensConfig | None = None
) -> Iterator[tuple[XsensDriver, StreamInfo]]:
    used = config or XsensConfig(port=emulator.port, rate_hz=emulator.rate_hz)
    driver = XsensDriver(used, DriverContext("imu", "host", CLOCK, tmp_path))
    with emulator:
        try:
            (info,) = driver.open()
            yield driver, info
        finally:
            driver.close()


def read_samples(driver: XsensDriver, count: int) -> list[Frame | Loss]:
    items: list[Frame | Loss] = []
    deadline_ns = CLOCK.now_ns() + 10 * SECOND_NS
    while sum(item.count for item in items if isinstance(item, Frame)) < count:
        assert CLOCK.now_ns() < deadline_ns, "the emulator's samples did not come"
        items += driver.read(0.1)
    return items


def frames_of(items: Sequence[Frame | Loss]) -> list[Frame]:
    return [item for item in items if isinstance(item, Frame)]


def sequence(frames: Sequence[Frame]) -> NDArray[np.int64]:
    return np.concatenate([np.arange(frame.seq, frame.next_seq) for frame in frames])


def ticks_of(frames: Sequence[Frame]) -> NDArray[np.int64]:
    return np.concatenate([frame.device_ticks for frame in frames if frame.device_ticks is not None])


def values_of(frames: Sequence[Frame], info: StreamInfo) -> NDArray[np.float64]:
    dtype = info.columns[0].dtype
    blocks = [np.frombuffer(frame.payload, dtype).reshape(len(info.columns), -1).T for frame in frames]
    return np.concatenate(blocks).astype(np.float64)


def test_values_stamps_and_numbers_arrive_as_the_device_made_them(tmp_path: Path) -> None:
    emulator = XsensEmulator(400.0)
    with opened(emulator, tmp_path) as (driver, info):
        frames = frames_of(read_samples(driver, 100))
    assert [column.name for column in info.columns] == [
        "acc_x",
        "acc_y",
        "acc_z",
        "gyro_x",
        "gyro_y",
        "gyro_z",
    ]
    assert (info.clock.kind, info.clock.tick_ns, info.clock.modulus) == (ClockKind.FREE, 100_000, 1 << 32)
    np.testing.assert_array_equal(sequence(frames), np.arange(len(sequence(frames))))
    samples = np.rint(ticks_of(frames) * 400 / 10_000).astype(int)
    np.testing.assert_array_equal(samples, samples[0] + np.arange(len(samples)))
    truth = np.array([imu_signal(int(sample)) for sample in samples])
    np.testing.assert_array_equal(values_of(frames, info), truth.astype("<f4").astype(np.float64))
    assert max(frame.count for frame in frames) <= 10
    assert {frame.meta for frame in frames} == {(3.0,)}
    for frame in frames:
        assert len(frame.payload) == frame.count * info.row_bytes <= info.max_payload_bytes


def test_the_driver_sets_the_rate_and_the_quaternion(tmp_path: Path) -> None:
    emulator = XsensEmulator(10.0)
    config = XsensConfig(port=emulator.port, rate_hz=200.0, quaternion=True)
    with opened(emulator, tmp_path, config) as (driver, info):
        frames = frames_of(read_samples(driver, 20))
        assert emulator.rate_hz == 200.0
    assert [column.name for column in info.columns[6:]] == ["quat_w", "quat_x", "quat_y", "quat_z"]
    np.testing.assert_array_equal(values_of(frames, info)[:, 6:], [[1, 0, 0, 0]] * len(sequence(frames)))
    assert info.details["device_id"] == "0380005A"


def test_a_rate_that_the_device_does_not_take_is_refused_with_both_values(tmp_path: Path) -> None:
    emulator = XsensEmulator(100.0)
    config = XsensConfig(port=emulator.port, rate_hz=333.0)
    with (
        pytest.raises(DeviceError, match=r"at 333 Hz was not accepted, the device has 200"),
        opened(emulator, tmp_path, config),
    ):
        pass


def test_a_device_that_only_talks_is_listened_to(tmp_path: Path) -> None:
    emulator = XsensEmulator(100.0)
    config = XsensConfig(port=emulator.port, rate_hz=100.0, configure=False)
    with opened(emulator, tmp_path, config) as (driver, info):
        frames = frames_of(read_samples(driver, 10))
    assert info.has_device_counter
    np.testing.assert_array_equal(sequence(frames), np.arange(len(sequence(frames))))


def item(identifier: int, data: bytes) -> bytes:
    return identifier.to_bytes(2, "big") + bytes([len(data)]) + data


def set_up_by_others(emulator: XsensEmulator, items: Callable[[int], bytes]) -> None:
    """Let the device send other items than the driver would ask for; the counter and time stay."""
    emulator.encode = lambda sample: encode_message(  # type: ignore[method-assign]
        MTDATA2,
        item(0x1020, (sample & 0xFFFF).to_bytes(2, "big"))
        + item(0x1060, (sample * 100).to_bytes(4, "big"))
        + items(sample),
    )


def test_a_device_that_was_set_up_in_fixed_point_beside_unknown_items_is_recorded(tmp_path: Path) -> None:
    emulator = XsensEmulator(100.0)
    utc = bytes.fromhex("0000000007E8030500000007")
    set_up_by_others(
        emulator,
        lambda _: (
            item(0x1010, utc)
            + item(0x4022, fixed_16_32(0.25, -0.5, 9.8125))
            + item(0x8022, fixed_16_32(0.125, -2.0, 1e-3))
            + item(0xC022, fixed_16_32(0.1, 0.2, 0.3))
            + item(0xE010, b"\1")
        ),
    )
    config = XsensConfig(port=emulator.port, rate_hz=100.0, configure=False)
    with opened(emulator, tmp_path, config) as (driver, info):
        frames = frames_of(read_samples(driver, 10))
    assert {column.dtype for column in info.columns} == {"<f8"}
    np.testing.assert_array_equal(
        values_of(frames, info)[:, :5], [[0.25, -0.5, 9.8125, 0.125, -2.0]] * len(sequence(frames))
    )
    np.testing.assert_allclose(values_of(frames, info)[:, 5], 1e-3, atol=2.0**-33)


def test_a_device_that_sends_other_items_is_told_by_their_names(tmp_path: Path) -> None:
    emulator = XsensEmulator(100.0)
    set_up_by_others(
        emulator, lambda _: item(0x4030, bytes(12)) + item(0x8030, bytes(16)) + item(0x7777, b"")
    )
    config = XsensConfig(port=emulator.port, rate_hz=100.0, configure=False, silence_s=0.3)
    with (
        pytest.raises(
            DeviceError, match=r"hold FreeAcceleration \(0x4030\), item \(0x7777\), DeltaQ \(0x8030\); switch"
        ),
        opened(emulator, tmp_path, config),
    ):
        pass


def test_counter_and_time_wrap_without_a_gap(tmp_path: Path) -> None:
    emulator = XsensEmulator(400.0, first_counter=65500, first_ticks=(1 << 32) - 2500)
    with opened(emulator, tmp_path) as (driver, _):
        frames = frames_of(read_samples(driver, 150))
    np.testing.assert_array_equal(sequence(frames), np.arange(len(sequence(frames))))
    ticks = ticks_of(frames)
    assert ticks.min() < 1000
    assert ticks.max() > (1 << 32) - 2500
    np.testing.assert_array_equal(np.diff(ticks) % (1 << 32), 25)


def test_dropped_samples_are_gaps_at_the_right_place(tmp_path: Path) -> None:
    emulator = XsensEmulator(400.0, faults=WireFaults(drop_every=7))
    with opened(emulator, tmp_path) as (driver, _):
        frames = frames_of(read_samples(driver, 60))
    seqs = sequence(frames)
    samples = np.rint(ticks_of(frames) * 400 / 10_000).astype(int)
    assert not (samples % 7 == 0)[samples > 0].any()
    np.testing.assert_array_equal(seqs - seqs[0], samples - samples[0])


def test_garbage_and_flipped_bits_cost_only_what_they_hit(tmp_path: Path) -> None:
    emulator = XsensEmulator(400.0, faults=WireFaults(garbage_every=5, corrupt_every=11, seed=3))
    with opened(emulator, tmp_path) as (driver, info):
        frames = frames_of(read_samples(driver, 200))
    assert driver.parser.skipped_bytes > 0
    assert driver.parser.bad_checksums > 0
    samples = np.rint(ticks_of(frames) * 400 / 10_000).astype(int)
    lost = set(range(samples[0], samples[-1] + 1)) - set(samples.tolist())
    assert all(sample % 11 == 0 for sample in lost)
    truth = np.array([imu_signal(int(sample)) for sample in samples]).astype("<f4").astype(np.float64)
    np.testing.assert_array_equal(values_of(frames, info), truth)
    seqs = sequence(frames)
    np.testing.assert_array_equal(seqs - seqs[0], samples - samples[0])


def test_an_unplugged_device_is_an_error_that_names_its_port(tmp_path: Path) -> None:
    emulator = XsensEmulator(400.0, faults=WireFaults(disconnect_after=300))
    with (
        opened(emulator, tmp_path) as (driver, _),
        pytest.raises(DeviceError, match=f"Xsens {emulator.port}: device is gone"),
    ):
        read_samples(driver, 1000)


def test_a_silent_device_is_an_error_that_names_its_port(tmp_path: Path) -> None:
    emulator = XsensEmulator(100.0)
    config = XsensConfig(port=emulator.port, rate_hz=100.0, silence_s=0.5)
    with opened(emulator, tmp_path, config) as (driver, _):
        read_samples(driver, 2)
        emulator.stop()
        with pytest.raises(DeviceError, match=f"{emulator.port}: no data for"):
            read_samples(driver, 1000)


def test_a_line_without_an_xsens_is_refused_at_opening(tmp_path: Path) -> None:
    emulator = XsensEmulator(100.0)  # never started: nobody answers
    try:
        for configure, words in ((True, "no answer to command 0x30"), (False, "no acceleration")):
            config = XsensConfig(port=emulator.port, configure=configure, silence_s=0.1)
            driver = XsensDriver(config, DriverContext("imu", "host", CLOCK, tmp_path))
            with pytest.raises(DeviceError, match=words):
                driver.open()
            driver.close()
    finally:
        emulator.close()


def test_a_missing_port_is_found_before_opening(tmp_path: Path) -> None:
    config = XsensConfig(port=str(tmp_path / "ttyUSB9"))
    with pytest.raises(DeviceError, match="ttyUSB9 does not exist"):
        XsensDriver.check(config)
    driver = XsensDriver(config, DriverContext("imu", "host", CLOCK, tmp_path))
    with pytest.raises(DeviceError, match="ttyUSB9 cannot be opened: No such file"):
        driver.open()
    driver.close()
    with pytest.raises(DeviceError, match="not open"):
        driver.read(0.0)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="baudrate"):
        XsensConfig.model_validate({"port": "/dev/null", "baudrate": 9600})


def test_without_faults_nothing_is_spoiled() -> None:
    assert not any(f(sample) for f in (NO_FAULTS.drops, NO_FAULTS.spoils) for sample in range(100))


def sample_bytes(counter: int, ticks: int) -> bytes:
    """Return a data message of its own, for breaks that an emulator in real time is too slow for."""
    items = bytes.fromhex("102002") + (counter % (1 << 16)).to_bytes(2, "big")
    items += bytes.fromhex("106004") + (ticks % (1 << 32)).to_bytes(4, "big")
    vectors = bytes.fromhex("40200C") + bytes(12) + bytes.fromhex("80200C") + bytes(12)
    return encode_message(MTDATA2, items + vectors)


@pytest.mark.parametrize("missed", [0, 1, 64_900, 65_535, 65_536, 2 * 65_536 + 7])
def test_a_break_of_any_length_is_counted_by_counter_and_time_together(tmp_path: Path, missed: int) -> None:
    emulator = XsensEmulator(400.0)
    with opened(emulator, tmp_path) as (driver, _):
        frames = frames_of(read_until_quiet(driver, emulator))
        last_sample = emulator.samples - 1
        next_sample = last_sample + missed + 1
        emulator.send(sample_bytes(next_sample, next_sample * 25))
        (frame,) = frames_of(read_samples(driver, 1))
    assert frame.seq == frames[-1].next_seq + missed
    assert driver.restarts == 0


def test_a_device_that_was_switched_off_and_on_goes_on_with_the_next_number(tmp_path: Path) -> None:
    emulator = XsensEmulator(400.0, first_counter=100, first_ticks=5_000_000)
    with opened(emulator, tmp_path) as (driver, _):
        frames = frames_of(read_until_quiet(driver, emulator))
        emulator.send(sample_bytes(0, 0))
        (frame,) = frames_of(read_samples(driver, 1))
    assert frame.seq == frames[-1].next_seq
    assert driver.restarts == 1


def read_until_quiet(driver: XsensDriver, emulator: XsensEmulator) -> list[Frame | Loss]:
    items = read_samples(driver, 8)
    emulator.stop()
    while read := driver.read(0.1):
        items += read
    return items
