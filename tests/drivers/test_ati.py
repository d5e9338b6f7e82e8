"""The Net F/T driver against an emulator on real loopback sockets."""

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from sensorium.drivers.devices.ati_netft import AtiNetFtConfig, AtiNetFtDriver
from sensorium.drivers.devices.rdt import NEWTON, NEWTON_METRE, parse_calibration
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import ClockKind, Frame, Loss, StreamInfo
from sensorium.drivers.stages import BatchStage, Pipeline
from sensorium.errors import DeviceError
from sensorium.simulators.emulators.ati_netft import AtiNetFtEmulator, force_signal
from sensorium.simulators.emulators.emulator import WireFaults
from sensorium.timebase import SECOND_NS, HostClock

CLOCK = HostClock()
LOOPBACK = "127.0.0.1"
INTERNAL_HZ = 7000


def config_for(emulator: AtiNetFtEmulator, **changes: Any) -> AtiNetFtConfig:
    options = {
        "host": LOOPBACK,
        "port": emulator.port,
        "http_port": emulator.http_port,
        "rate_hz": emulator.rate_hz,
    }
    return AtiNetFtConfig.model_validate(options | changes)


@contextmanager
def opened(
    emulator: AtiNetFtEmulator, tmp_path: Path, **changes: Any
) -> Iterator[tuple[AtiNetFtDriver, StreamInfo]]:
    driver = AtiNetFtDriver(config_for(emulator, **changes), DriverContext("force", "host", CLOCK, tmp_path))
    with emulator:
        try:
            (info,) = driver.open()
            yield driver, info
        finally:
            driver.close()


def read_samples(driver: AtiNetFtDriver, count: int) -> list[Frame | Loss]:
    items: list[Frame | Loss] = []
    deadline_ns = CLOCK.now_ns() + 10 * SECOND_NS
    while sum(item.count for item in items if isinstance(item, Frame)) < count:
        assert CLOCK.now_ns() < deadline_ns, "the emulator's records did not come"
        items += driver.read(0.1)
    return items


def batched(items: Sequence[Frame | Loss], info: StreamInfo) -> list[Frame | Loss]:
    """Return the items as the driver's host joins them."""
    pipeline = Pipeline([BatchStage(10_000_000)], [info])
    return pipeline.apply(items) + pipeline.flush()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_ns = CLOCK.now_ns() + 5 * SECOND_NS
    while not condition():
        assert CLOCK.now_ns() < deadline_ns
        CLOCK.sleep_until(CLOCK.now_ns() + 1_000_000)


def frames_of(items: Sequence[Frame | Loss]) -> list[Frame]:
    return [item for item in items if isinstance(item, Frame)]


def sequence(frames: Sequence[Frame]) -> NDArray[np.int64]:
    return np.concatenate([np.arange(frame.seq, frame.next_seq) for frame in frames])


def ticks_of(frames: Sequence[Frame]) -> NDArray[np.int64]:
    return np.concatenate([frame.device_ticks for frame in frames if frame.device_ticks is not None])


def samples_of(frames: Sequence[Frame], rate_hz: float) -> NDArray[np.int64]:
    """Return the emulator's sample numbers, from the internal counter that every record carries."""
    return np.rint(ticks_of(frames) * rate_hz / INTERNAL_HZ).astype(np.int64)


def values_of(frames: Sequence[Frame], info: StreamInfo) -> NDArray[np.float64]:
    """Return (n, 6) N and Nm."""
    blocks = [np.frombuffer(frame.payload, "<i4").reshape(6, -1).T for frame in frames]
    return np.concatenate(blocks) * [column.scale for column in info.columns]


def test_values_stamps_and_numbers_arrive_as_the_sensor_made_them(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0)
    with opened(emulator, tmp_path) as (driver, info):
        frames = frames_of(read_samples(driver, 300))
    assert [(column.name, column.unit, column.dtype) for column in info.columns] == [
        (name, "N" if name[0] == "f" else "Nm", "<i4") for name in ("fx", "fy", "fz", "tx", "ty", "tz")
    ]
    assert (info.clock.kind, info.clock.modulus) == (ClockKind.FREE, 1 << 32)
    assert info.clock.tick_ns == pytest.approx(1e9 / INTERNAL_HZ)
    np.testing.assert_array_equal(sequence(frames), np.arange(len(sequence(frames))))
    samples = samples_of(frames, 1000.0)
    np.testing.assert_array_equal(np.diff(samples), 1)
    truth = np.array([force_signal(int(sample)) for sample in samples])
    np.testing.assert_allclose(values_of(frames, info), truth, atol=0.5e-6)  # half a count
    assert max(frame.count for frame in frames) <= 20
    for frame in frames:
        assert len(frame.payload) == frame.count * info.row_bytes <= info.max_payload_bytes
        assert (np.diff(frame.arrival_ns) >= 0).all()


@pytest.mark.parametrize(
    ("force_unit", "torque_unit"), [("lbf", "lbf-in"), ("kN", "N-mm"), ("kgf", "kgf-cm")]
)
def test_other_units_become_newton_and_newton_metre(
    tmp_path: Path, force_unit: str, torque_unit: str
) -> None:
    plain_torque = torque_unit.replace("-", "")
    assert {force_unit, plain_torque} <= set(NEWTON) | set(NEWTON_METRE)
    emulator = AtiNetFtEmulator(
        1000.0,
        counts_per_force=100_000,
        counts_per_torque=50_000,
        force_unit=force_unit,
        torque_unit=plain_torque,
    )
    with opened(emulator, tmp_path) as (driver, info):
        frames = frames_of(read_samples(driver, 40))
    truth = np.array([force_signal(int(sample)) for sample in samples_of(frames, 1000.0)])
    half_count = [0.5 * column.scale for column in info.columns]
    assert (np.abs(values_of(frames, info) - truth) <= np.array(half_count) * 1.001).all()


PAGE = "<netft><scfgfu>{}</scfgfu><scfgtu>{}</scfgtu><cfgcpf>1000</cfgcpf><cfgcpt>2000</cfgcpt></netft>"


@pytest.mark.parametrize(
    ("force", "torque", "newton", "newton_metre"),
    [
        ("lbf", "lbf-in", 4.4482216152605, 0.1129848290276167),
        ("Lb", "in-lbs", 4.4482216152605, 0.1129848290276167),
        ("LBF", "Ft-Lb", 4.4482216152605, 1.3558179483314004),
        ("klb", "lb-ft", 4448.2216152605, 1.3558179483314004),
        ("kg", "kg-cm", 9.80665, 0.0980665),
        ("gf", "kgf cm", 0.00980665, 0.0980665),
        ("Newtons", "N\u00b7m", 1.0, 1.0),
        ("kN", "kN-m", 1000.0, 1000.0),
        ("n", "N*mm", 1.0, 0.001),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_units_are_those_of_the_sensors_page_however_it_spells_them(
    force: str, torque: str, newton: float, newton_metre: float, encoding: str
) -> None:
    found = parse_calibration(PAGE.format(force, torque).encode(encoding))
    assert found.newton_per_count == pytest.approx(newton / 1000, rel=1e-12)
    assert found.newton_metre_per_count == pytest.approx(newton_metre / 2000, rel=1e-12)


@pytest.mark.parametrize(
    ("force", "torque", "words"),
    [
        ("stone", "Nm", r"unit of force \(scfgfu\) is 'stone'; known: N, kN.*counts_per_newton"),
        ("N", "N", r"unit of torque \(scfgtu\) is 'N'; known: Nm"),
        ("ft", "Nm", r"unit of force \(scfgfu\) is 'ft'"),
        ("", "Nm", r"lacks scfgfu, the unit of force"),
    ],
)
def test_a_unit_that_is_not_known_is_named_with_those_that_are(force: str, torque: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        parse_calibration(PAGE.format(force, torque))


def test_given_counts_need_no_web_page(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0, counts_per_force=1000, counts_per_torque=2000)
    changes = {"counts_per_newton": 1000, "counts_per_newton_metre": 2000, "http_port": 1}
    with opened(emulator, tmp_path, **changes) as (_, info):
        assert [column.scale for column in info.columns] == pytest.approx([1e-3] * 3 + [5e-4] * 3)


def test_buffered_datagrams_carry_several_records(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0, buffer_records=7)
    with opened(emulator, tmp_path, buffered=True) as (driver, info):
        frames = frames_of(read_samples(driver, 100))
    np.testing.assert_array_equal(sequence(frames), np.arange(len(sequence(frames))))
    truth = np.array([force_signal(int(sample)) for sample in samples_of(frames, 1000.0)])
    np.testing.assert_allclose(values_of(frames, info), truth, atol=0.5e-6)


def test_both_counters_wrap_without_a_gap(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0, first_rdt_seq=(1 << 32) - 100, first_ft_seq=(1 << 32) - 1400)
    with opened(emulator, tmp_path) as (driver, _):
        frames = frames_of(read_samples(driver, 400))
    np.testing.assert_array_equal(sequence(frames), np.arange(len(sequence(frames))))
    ticks = ticks_of(frames)
    assert ticks.min() < INTERNAL_HZ
    assert ticks.max() > (1 << 32) - 1400
    np.testing.assert_array_equal(np.diff(ticks) % (1 << 32), 7)
    assert driver.records.restarts == 0


def test_dropped_records_are_gaps_at_the_right_place(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0, faults=WireFaults(drop_every=13))
    with opened(emulator, tmp_path) as (driver, _):
        frames = frames_of(read_samples(driver, 200))
    samples, seqs = samples_of(frames, 1000.0), sequence(frames)
    assert (samples[samples > 0] % 13 != 0).all()
    np.testing.assert_array_equal(seqs - seqs[0], samples - samples[0])


def test_garbage_and_short_datagrams_are_counted_and_cost_only_themselves(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0, faults=WireFaults(garbage_every=10, corrupt_every=17, seed=1))
    with opened(emulator, tmp_path) as (driver, info):
        frames = frames_of(read_samples(driver, 300))
    samples, seqs = samples_of(frames, 1000.0), sequence(frames)
    assert driver.counters.malformed > 0
    assert (samples[samples > 0] % 17 != 0).all()
    np.testing.assert_array_equal(seqs - seqs[0], samples - samples[0])
    truth = np.array([force_signal(int(sample)) for sample in samples])
    np.testing.assert_allclose(values_of(frames, info), truth, atol=0.5e-6)


def test_records_of_a_stranger_are_left_out(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0)
    with opened(emulator, tmp_path) as (driver, _):
        read_samples(driver, 20)
        assert driver.port is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(struct.pack(">III6i", 9, 9, 0, *range(6)), (LOOPBACK, driver.port))
        items = read_samples(driver, 100)
    assert driver.counters.foreign == 1
    np.testing.assert_array_equal(np.diff(sequence(frames_of(items))), 1)


def test_status_words_are_counted_and_kept(tmp_path: Path) -> None:
    saturated, monitor = 0x80020000, 0x80010000
    emulator = AtiNetFtEmulator(1000.0, status=lambda sample: [0, saturated, monitor][sample % 3])
    with opened(emulator, tmp_path) as (driver, info):
        frames = frames_of(batched(read_samples(driver, 60), info))
    count = len(sequence(frames))
    assert info.meta_fields == ("status_any",)
    assert {frame.meta for frame in frames if frame.count >= 3} == {(float(saturated | monitor),)}
    assert driver.counters.error_records == pytest.approx(count / 3, abs=20)  # the rest of a block is unread
    assert driver.counters.warning_records == pytest.approx(count / 3, abs=20)


def test_a_sensor_that_forgot_its_client_is_started_again(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0)
    with opened(emulator, tmp_path) as (driver, _):
        items = read_samples(driver, 50)
        emulator.forget_client()
        wait_until(lambda: not driver.read(0.0))
        items += read_samples(driver, 200)
    frames = frames_of(items)
    assert emulator.starts == 2
    assert driver.records.restarts == 1
    # The internal counter ran on, so the break is counted although rdt_seq began anew.
    samples, seqs = samples_of(frames, 1000.0), sequence(frames)
    assert (np.diff(samples) > 400).sum() == 1
    np.testing.assert_array_equal(seqs - seqs[0], samples - samples[0])


def test_close_stops_the_stream(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0)
    with opened(emulator, tmp_path) as (driver, _):
        read_samples(driver, 5)
        assert emulator.has_client
        driver.close()
        driver.close()
        wait_until(lambda: not emulator.has_client)
        with pytest.raises(DeviceError, match="not open"):
            driver.read(0.0)


def test_a_sensor_that_vanishes_is_an_error_with_its_address(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0, faults=WireFaults(disconnect_after=500))
    with (
        opened(emulator, tmp_path, silence_s=0.7) as (driver, _),
        pytest.raises(DeviceError, match=f"{LOOPBACK}: no record for"),
    ):
        read_samples(driver, 10_000)


def test_a_sensor_without_rdt_is_refused_at_opening(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind((LOOPBACK, 0))
        port = deaf.getsockname()[1]
        with (
            pytest.raises(DeviceError, match=f"no RDT record from UDP port {port}"),
            opened(emulator, tmp_path, port=port, silence_s=0.2),
        ):
            pass


def test_a_different_rate_is_refused_with_both_values(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0)
    with (
        pytest.raises(DeviceError, match="sends at 1000 Hz, the rig file says 7000 Hz"),
        opened(emulator, tmp_path, rate_hz=7000.0),
    ):
        pass


def test_a_sensor_that_does_not_answer_over_http_is_refused(tmp_path: Path) -> None:
    emulator = AtiNetFtEmulator(1000.0)
    with socket.socket() as closed:
        closed.bind((LOOPBACK, 0))
        port = closed.getsockname()[1]
    with (
        pytest.raises(DeviceError, match=f"no calibration from http://{LOOPBACK}:{port}/netftapi2.xml"),
        opened(emulator, tmp_path, http_port=port),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<netft", "not XML"),
        ("<netft><cfgcpf>1</cfgcpf></netft>", "scfgfu"),
        (
            "<netft><scfgfu>N</scfgfu><scfgtu>Nm</scfgtu><cfgcpf>0</cfgcpf><cfgcpt>1</cfgcpt></netft>",
            "wrong number",
        ),
        ("<netft><scfgfu>stone</scfgfu><scfgtu>Nm</scfgtu></netft>", "stone"),
    ],
)
def test_a_wrong_calibration_page_is_refused_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        parse_calibration(text)


def test_config_refuses_half_a_calibration_and_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="both counts_per_newton"):
        AtiNetFtConfig(host="x", counts_per_newton=1.0)
    with pytest.raises(ValidationError, match="rate"):
        AtiNetFtConfig.model_validate({"host": "x", "rate": 1})
