"""The kernel PPS driver on a written file that stands for sysfs; a real source was not seen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorium.drivers.devices import pps
from sensorium.drivers.devices.pps import COUNT_MODULUS, KernelEdge, PpsConfig, PpsDriver, parse_edge
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame, Loss, Place
from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS, BaseReading, VirtualClock

START_NS = 1000 * SECOND_NS
UTC_MINUS_RAW_NS = 1_800_000_000 * SECOND_NS + 123_456_789
BRACKET_NS = 300


class Source:
    """A folder as the kernel shows a source, and a host whose REALTIME is known to the nanosecond."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.folder = folder
        self.clock = VirtualClock(START_NS)
        self.step_ns = 0
        monkeypatch.setattr(pps, "read_bases", self.bases)
        self.show("0.000000000#0")
        config = PpsConfig.model_validate({"source": folder, **options})
        self.driver = PpsDriver(config, DriverContext("gnss", "here", self.clock, folder))

    def bases(self) -> BaseReading:
        raw_ns = self.clock.now_ns()
        realtime_ns = raw_ns + UTC_MINUS_RAW_NS + self.step_ns
        return BaseReading(raw_ns, raw_ns, realtime_ns, realtime_ns, BRACKET_NS)

    def show(self, text: str) -> None:
        (self.folder / "assert").write_text(text + "\n")

    def pulse(self, raw_ns: int, count: int) -> None:
        realtime_ns = raw_ns + UTC_MINUS_RAW_NS + self.step_ns
        self.show(f"{realtime_ns // SECOND_NS}.{realtime_ns % SECOND_NS:09d}#{count}")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    return Source(tmp_path, monkeypatch)


def test_edges_come_on_the_raw_clock_with_the_kernels_count(source: Source) -> None:
    source.pulse(START_NS - SECOND_NS // 3, 41)
    (info,) = source.driver.open()
    assert info.latency.min_uncertainty_ns == 50_000
    assert source.driver.read(0.1) == (), "the edge that was there before is not news"
    frames = []
    for number in range(5):
        edge_ns = START_NS + (number + 1) * SECOND_NS + 17 * number
        source.clock.sleep_until(edge_ns + 3_000_000)
        source.pulse(edge_ns, 42 + number)
        (frame,) = source.driver.read(0.1)
        assert isinstance(frame, Frame)
        assert frame.device_ticks is not None
        assert frame.device_ticks.tolist() == [edge_ns]
        assert edge_ns <= frame.arrival_ns[0] <= edge_ns + 23_000_000
        assert np.frombuffer(frame.payload, "<i8").tolist() == [edge_ns + UTC_MINUS_RAW_NS]
        frames.append(frame)
    assert [frame.seq for frame in frames] == [0, 1, 2, 3, 4]
    source.driver.close()


def test_edges_that_were_overwritten_are_losses_and_a_gap_in_the_count(source: Source) -> None:
    source.driver.open()
    source.clock.advance(4 * SECOND_NS)
    source.pulse(START_NS + 4 * SECOND_NS - 1000, 4)
    lost, frame = source.driver.read(0.1)
    assert lost == Loss("gnss", 3, Place.KERNEL, "overwritten by the next edge before it was read")
    assert isinstance(frame, Frame)
    assert frame.seq == 3


def test_the_count_wraps_and_is_printed_as_a_signed_number(source: Source) -> None:
    assert parse_edge("12.000000345#-1\n") == KernelEdge(12_000_000_345, COUNT_MODULUS - 1)
    source.show("1.000000000#-2")
    source.driver.open()
    seqs = []
    for count in ("-1", "0", "1"):
        source.clock.advance(SECOND_NS)
        source.pulse(source.clock.now_ns() - 1000, 0)
        source.show((source.folder / "assert").read_text().split("#")[0] + "#" + count)
        (frame,) = source.driver.read(0.1)
        assert isinstance(frame, Frame)
        seqs.append(frame.seq)
    assert seqs == [0, 1, 2]


def test_a_step_of_the_system_clock_at_an_edge_costs_that_edge_only(source: Source) -> None:
    source.driver.open()
    source.clock.advance(SECOND_NS)
    source.pulse(source.clock.now_ns() - 1000, 1)
    source.step_ns = 2 * SECOND_NS  # between the edge and the reading
    assert source.driver.read(0.1) == [
        Loss("gnss", 1, Place.DRIVER, "the system clock was stepped at this edge")
    ]
    source.clock.advance(SECOND_NS)
    edge_ns = source.clock.now_ns() - 1000
    source.pulse(edge_ns, 2)
    (frame,) = source.driver.read(0.1)
    assert isinstance(frame, Frame)
    assert frame.seq == 1
    assert frame.device_ticks is not None
    assert frame.device_ticks[0] == edge_ns


def test_without_pulses_read_returns_in_time(source: Source) -> None:
    source.driver.open()
    assert source.driver.read(0.2) == ()
    assert source.clock.now_ns() == START_NS + SECOND_NS // 5


def test_a_source_that_was_set_up_anew_fails_with_its_count(source: Source) -> None:
    source.show("5.000000000#700")
    source.driver.open()
    source.clock.advance(SECOND_NS)
    source.pulse(source.clock.now_ns() - 1000, 1)
    with pytest.raises(DeviceError, match=r"count went to 1, .* was the source set up anew"):
        source.driver.read(0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "does not capture this edge"), ("soon#7", "expected seconds.nanoseconds#sequence")],
)
def test_a_file_of_another_form_is_refused(source: Source, text: str, words: str) -> None:
    source.show(text)
    with pytest.raises(DeviceError, match=words):
        source.driver.open()


def test_a_source_that_is_gone_fails_by_name(source: Source) -> None:
    source.driver.open()
    (source.folder / "assert").unlink()
    source.clock.advance(SECOND_NS)
    with pytest.raises(DeviceError, match=r"cannot be read"):
        source.driver.read(0.1)
    with pytest.raises(DeviceError, match="ls /sys/class/pps lists the sources"):
        PpsDriver.check(replaced(source.driver.config, source=source.folder / "pps7"))


def replaced(config: PpsConfig, **changes: Any) -> PpsConfig:
    return config.model_copy(update=changes)


def test_a_trigger_line_says_that_it_marks_no_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = Source(tmp_path, monkeypatch, rate_hz=30.0, marks_utc_second=False)
    (info,) = trigger.driver.open()
    assert "marks" not in info.details
    (seconds,) = Source(tmp_path, monkeypatch).driver.open()
    assert seconds.details["marks"] == "utc_second"
    assert replace(seconds, details={}, rate_hz=30.0) == replace(info, details={})
