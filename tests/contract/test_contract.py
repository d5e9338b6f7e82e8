"""What every driver promises, whoever wrote it: the same tests for each."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from contract.cases import CASES, DriverCase, Options
from pydantic import ValidationError

from sensorium.drivers.driver import Driver, DriverContext
from sensorium.drivers.frame import (
    ClockKind,
    Encoding,
    Frame,
    Loss,
    StreamInfo,
    is_personal_by_default,
)
from sensorium.drivers.registry import load_driver
from sensorium.errors import DeviceError, EndOfStreamError
from sensorium.timebase import SECOND_NS, HostClock

DEVICE = "dev7"
TIMEOUT_S = 0.2
SLACK_S = 0.5  # two busy cores
CLOCK = HostClock()
RAW_BYTES_PER_VALUE = {Encoding.MONO8: 1, Encoding.BGR8: 1, Encoding.RGB8: 1, Encoding.MONO16: 2}


@dataclass(frozen=True, slots=True)
class Session:
    """What one run of a driver gave."""

    infos: Sequence[StreamInfo]
    items: Sequence[Frame | Loss]
    longest_read_s: float
    opened_ns: int
    closed_ns: int
    is_live: bool

    def frames(self, stream: str) -> list[Frame]:
        return [item for item in self.items if isinstance(item, Frame) and item.stream == stream]


@dataclass(frozen=True, slots=True)
class Bench:
    """A running emulator with the options that lead to it."""

    case: DriverCase
    options: Options
    folder: Path
    numbers: Iterator[int]

    def driver(self, **changes: Any) -> Driver[Any]:
        """Return a new instance, with a run folder of its own as its host would give it."""
        driver_type = load_driver(self.case.driver)
        config = driver_type.config_type.model_validate({**self.options, **changes})
        run_dir = self.folder / f"run{next(self.numbers)}"
        run_dir.mkdir(mode=0o700)
        return driver_type(config, DriverContext(DEVICE, "here", CLOCK, run_dir))

    def run(self, driver: Driver[Any], enough: int) -> Session:
        """Open, read until each stream gave ``enough`` frames (or the source ended), close."""
        opened_ns = CLOCK.now_ns()
        items: list[Frame | Loss] = []
        longest_ns = 0
        try:
            infos = driver.open()
            missing = {info.name: enough for info in infos}
            deadline_ns = CLOCK.now_ns() + round(self.case.patience_s * SECOND_NS)
            while any(count > 0 for count in missing.values()):
                before_ns = CLOCK.now_ns()
                assert before_ns < deadline_ns, f"still waiting for frames of {missing}"
                try:
                    taken = driver.read(TIMEOUT_S)
                except EndOfStreamError:
                    break
                longest_ns = max(longest_ns, CLOCK.now_ns() - before_ns)
                items += taken
                for item in taken:
                    if isinstance(item, Frame) and item.stream in missing:
                        missing[item.stream] -= 1
        finally:
            driver.close()
        is_live = driver.timeline is None
        return Session(infos, items, longest_ns / SECOND_NS, opened_ns, CLOCK.now_ns(), is_live)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.label)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    case: DriverCase = request.param
    reason = case.why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("c")
    with case.emulate(folder) as options:
        yield Bench(case, options, folder, itertools.count())


@pytest.fixture(scope="module")
def session(bench: Bench) -> Session:
    return bench.run(bench.driver(), bench.case.enough)


def test_an_unknown_option_is_refused(bench: Bench) -> None:
    with pytest.raises(ValidationError, match="rate_herz"):
        bench.driver(rate_herz=100)


def test_a_present_device_passes_its_check(bench: Bench) -> None:
    driver = bench.driver()
    driver.check(driver.config)


def test_streams_are_declared_once_under_the_name_of_their_device(session: Session) -> None:
    names = [info.name for info in session.infos]
    assert names
    assert len(set(names)) == len(names)
    if session.is_live:  # a replay keeps the names and the host of its recording
        assert all(name.startswith(DEVICE) for name in names)
        assert all(info.host_id == "here" for info in session.infos)


def test_personal_streams_are_flagged_unless_the_rig_file_says_otherwise(
    bench: Bench, session: Session
) -> None:
    if not session.is_live:
        pytest.skip("a replay inherits the flags of its source")
    for info in session.infos:
        assert info.is_personal == is_personal_by_default(info.modality), info.name
    default = any(info.is_personal for info in session.infos)
    turned = bench.run(bench.driver(personal=not default), 1)
    assert all(info.is_personal is not default for info in turned.infos)


def test_every_declared_stream_delivers_and_no_other_does(session: Session) -> None:
    declared = {info.name for info in session.infos}
    assert {item.stream for item in session.items} <= declared
    for name in declared:
        assert session.frames(name), f"{name} is silent"


def test_sequence_numbers_grow_and_gaps_are_explained(session: Session) -> None:
    for info in session.infos:
        expected, booked = 0, 0
        for item in session.items:
            if item.stream != info.name:
                continue
            if isinstance(item, Loss):
                assert item.count > 0
                assert item.reason
                booked += item.count
                continue
            gap = item.seq - expected
            if info.has_device_counter:
                assert gap >= booked, f"{info.name}: {booked} lost in a gap of {gap} before {item.seq}"
            else:
                assert gap == booked, f"{info.name}: gap of {gap} before {item.seq}, {booked} explained"
            expected, booked = item.next_seq, 0


def test_stamps_have_the_declared_form(session: Session) -> None:
    for info in session.infos:
        for frame in session.frames(info.name):
            assert frame.arrival_ns.dtype == np.int64
            if info.clock.kind is ClockKind.NONE:
                assert frame.device_ticks is None
            else:
                assert frame.device_ticks is not None
                assert frame.device_ticks.dtype == np.int64
                if info.clock.modulus is not None:
                    assert np.all((frame.device_ticks >= 0) & (frame.device_ticks < info.clock.modulus))
            assert len(frame.meta) == len(info.meta_fields)


def test_arrivals_never_run_backwards_and_lie_between_open_and_close(session: Session) -> None:
    for info in session.infos:
        arrivals = np.concatenate([frame.arrival_ns for frame in session.frames(info.name)])
        assert np.all(np.diff(arrivals) >= 0), info.name
        if session.is_live:
            assert session.opened_ns <= arrivals[0]
            assert arrivals[-1] <= session.closed_ns


def test_payloads_decode_and_stay_under_their_bound(session: Session) -> None:
    for info in session.infos:
        for frame in session.frames(info.name):
            assert 0 < len(frame.payload) <= info.max_payload_bytes, info.name
            _require_decodable(info, frame)


def test_reading_ends_within_its_timeout(session: Session) -> None:
    assert session.longest_read_s <= TIMEOUT_S + SLACK_S


def test_a_second_instance_starts_again_at_zero(bench: Bench, session: Session) -> None:
    again = bench.run(bench.driver(), 1)
    assert [info.name for info in again.infos] == [info.name for info in session.infos]
    for info in again.infos:
        first = again.frames(info.name)[0]
        before = again.items[: again.items.index(first)]
        lost = sum(item.count for item in before if isinstance(item, Loss) and item.stream == info.name)
        assert first.seq == lost


def test_closing_is_allowed_before_opening_and_twice(bench: Bench) -> None:
    driver = bench.driver()
    driver.close()
    driver.close()
    opened = bench.driver()
    bench.run(opened, 1)
    opened.close()


def test_a_closed_driver_leaves_no_thread_behind(bench: Bench) -> None:
    before = set(threading.enumerate())
    bench.run(bench.driver(), 1)
    left = [thread for thread in set(threading.enumerate()) - before if not _is_served(thread)]
    assert not left


def test_a_failed_open_names_the_device_problem_and_can_be_closed(bench: Bench) -> None:
    if bench.case.broken is None:
        pytest.skip("this device cannot be missing")
    before = set(threading.enumerate())
    driver = bench.driver(**bench.case.broken(bench.options))
    try:
        with pytest.raises(DeviceError):
            driver.open()
    finally:
        driver.close()
        driver.close()
    assert not [thread for thread in set(threading.enumerate()) - before if not _is_served(thread)]


def _is_served(thread: threading.Thread) -> bool:
    """Return whether the thread is the emulator's: one per connection, ending when it notices."""
    return "process_request" in thread.name or thread.name.startswith("emulator")


def _require_decodable(info: StreamInfo, frame: Frame) -> None:
    size = len(frame.payload)
    if info.encoding in (Encoding.JPEG, Encoding.PNG):
        pixels = cv2.imdecode(np.frombuffer(frame.payload, np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        assert pixels.shape[:2] == info.shape[:2]
    elif info.encoding in RAW_BYTES_PER_VALUE:
        assert size == np.prod(info.shape) * RAW_BYTES_PER_VALUE[info.encoding]
    elif info.encoding == Encoding.COLUMNS:
        assert size == frame.count * info.row_bytes
    elif info.encoding == Encoding.PCM_S16LE:
        assert size == frame.count * info.shape[0] * 2
    elif info.encoding == Encoding.OUSTER:
        assert size % frame.count == 0
        assert info.details["metadata"].lstrip().startswith("{")
    elif info.encoding == Encoding.POINTS:
        assert size % 16 == 0
