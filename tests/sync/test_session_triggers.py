"""Triggered frames on their way through the synchronizer: held for their pulse, lost to nobody, judged at the seal."""

from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from synchronizer_bench import START_NS, Bench

from sensorium.drivers.bus.wire import Declare
from sensorium.drivers.devices.pps import pulse_stream
from sensorium.drivers.frame import (
    ClockKind,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Modality,
    StreamInfo,
    stamps,
)
from sensorium.sync.clocks.triggered import DETAIL, TriggerSettings, settings_of
from sensorium.sync.episode.manifest import Manifest
from sensorium.sync.recording.triggers import SessionTriggers
from sensorium.timebase import SECOND_NS, Timeline
from sensorium.verdict import Status, Verdict

MS = 1_000_000
PERIOD_NS = 100 * MS
CAMERA = StreamInfo(
    "cam",
    Modality.CAMERA,
    Encoding.MONO8,
    10.0,
    "cam",
    clock=DeviceClock(ClockKind.FREE, 1000),
    latency=Latency(min_ns=10 * MS),
    stamp_of="exposure_mid",
    shape=(4, 4),
    max_payload_bytes=16,
    meta_fields=("exposure_ns",),
    has_device_counter=True,
)
BOX = pulse_stream("box", 10.0, "here", Latency(min_uncertainty_ns=5000), details={})
PPS = pulse_stream("gnss", 1.0, "here", Latency(min_uncertainty_ns=5000), details={"marks": "utc_second"})
SETTINGS = TriggerSettings(pulses="box", drives=("cam",), delay_us=100, bound_us=1)
EXPOSURE_NS = 2.0 * MS
STATED_NS = 6000


class Line:
    """A trigger box and a camera on a bench; the clock stands at the edge of pulse 0."""

    def __init__(self, tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], **options: object) -> None:
        self.bench = Bench(tmp_path, context, ("box", "cam"), triggers=(SETTINGS,), **options)
        self.box, self.camera = self.bench.driver(BOX, 1), self.bench.driver(CAMERA, 2)
        self.bench.settle(self.box, self.camera)
        self.first = -1
        """Image before the first one of the camera's present driver."""

    def pulse(self, number: int) -> None:
        edge_ns = START_NS + number * PERIOD_NS
        frame = Frame("box", number, 1, stamps(edge_ns), stamps(edge_ns + MS), bytes(8))
        assert self.box.publish(frame)

    def image(self, number: int) -> None:
        # Ticks are cut off to microseconds; arrivals jitter by up to 1 ms, the least of them by nothing.
        middle_ns = START_NS + number * PERIOD_NS + 100_000 + int(EXPOSURE_NS / 2)
        arrival_ns = middle_ns + 10 * MS + number * 7919 % 11 * MS // 10
        ticks = stamps(middle_ns // 1000)
        assert self.camera.publish(
            Frame("cam", number - self.first - 1, 1, ticks, stamps(arrival_ns), bytes(16), (EXPOSURE_NS,))
        )

    def until(self, number: int) -> None:
        """Let it be 15 ms after a pulse's edge: its image has arrived."""
        self.bench.clock.sleep_until(START_NS + number * PERIOD_NS + 15 * MS)
        self.bench.settle(self.box, self.camera)

    @property
    def recorded(self) -> int:
        assert self.bench.synchronizer.episode is not None
        return self.bench.synchronizer.episode.streams["cam"].samples

    def close(self) -> list[Manifest]:
        self.box.end(linger_s=0.05)
        self.camera.end(linger_s=0.05)
        self.bench.settle()
        return self.bench.close()


def trigger_verdict(manifest: Manifest, check: str = "trigger") -> Verdict:
    (found,) = (verdict for verdict in manifest.clocks if verdict.check == check)
    return found


def numbers(verdict: Verdict) -> dict[str, float]:
    return {quantity.name: quantity.value for quantity in verdict.quantities}


def test_a_frame_that_overtakes_its_pulse_waits_for_it(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    line = Line(tmp_path, context)
    for number in range(30):
        line.image(number)
        line.until(number)
        assert line.recorded == number
        line.pulse(number)
        line.bench.settle(line.box, line.camera)
        assert line.recorded == number + 1
    (manifest,) = line.close()
    verdict = trigger_verdict(manifest)
    assert verdict.status is Status.OK
    found = numbers(verdict)
    assert found["frames matched"] == 28, "two frames before the counter difference is believed"
    assert manifest.stream("cam").clock.method == "trigger"
    assert settings_of(manifest.stream("cam").info) == SETTINGS, "the settings stay with the episode"
    assert DETAIL not in manifest.stream("box").info.details


def test_a_dead_trigger_loses_no_frame_and_holds_the_disk_up_once(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    line = Line(tmp_path, context)
    for number in range(30):
        line.image(number)
        if number < 10:
            line.pulse(number)
        line.until(number)
        if number == 13:
            assert line.recorded == 10
        if number > 15:
            assert line.recorded == number + 1
    (manifest,) = line.close()
    assert manifest.stream("cam").total.recorded == 30
    assert manifest.stream("cam").total.is_exact
    verdict = trigger_verdict(manifest)
    assert "frames with the ordinary estimate: 20, because no pulse came" in verdict.reasons


def test_frames_that_wait_at_a_split_belong_to_the_episode_that_ends(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    line = Line(tmp_path, context, max_s=2.0)
    for number in range(50):
        line.image(number)
        line.until(number)  # its pulse comes after the next image only
        if number:
            line.pulse(number - 1)
    first, second, third = line.close()
    balances = [next(iter(manifest.stream("cam").balances.values())) for manifest in (first, second, third)]
    assert sum(balance.recorded for balance in balances) == 50
    assert all(balance.is_exact for balance in balances)
    found = [numbers(trigger_verdict(manifest)) for manifest in (first, second, third)]
    for each, balance in zip(found, balances, strict=True):
        assert each["frames matched"] + each["frames with the ordinary estimate"] == balance.recorded
        assert each["pulses not recorded"] == 0


def test_a_camera_whose_driver_was_restarted_loses_no_frame_and_is_matched_again(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    line = Line(tmp_path, context)
    for number in range(20):
        line.pulse(number)
        line.image(number)
        line.until(number)
    line.image(20)  # its pulse is still on the way when the driver dies
    line.until(20)
    dead, line.camera = line.camera, line.bench.driver(CAMERA, 3)
    line.bench.settle(line.box, line.camera)
    assert line.recorded == 21
    line.first = 20
    for number in range(20, 40):
        line.pulse(number)
        if number > 20:
            line.image(number)
        line.until(number)
    dead.end(linger_s=0.05)  # it was only cut off, and says goodbye late
    (manifest,) = line.close()
    assert manifest.stream("cam").total.recorded == 40
    found = numbers(trigger_verdict(manifest))
    assert found["frames matched"] + found["frames with the ordinary estimate"] == 40
    assert found["frames matched"] == 18 + 17
    assert found["frames lost"] == 0


def test_a_refusal_is_a_limitation_an_event_and_a_verdict(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bench = Bench(tmp_path, context, ("box", "cam"), triggers=(SETTINGS,))
    blind = replace(CAMERA, meta_fields=())
    box, camera = bench.driver(BOX, 1), bench.driver(blind, 2)
    bench.settle(box, camera)
    camera.publish(Frame("cam", 0, 1, stamps(0), stamps(START_NS), bytes(16)))
    bench.advance(0.1, box, camera)
    for driver in (box, camera):
        driver.end(linger_s=0.05)
    bench.settle()
    (manifest,) = bench.close()
    verdict = trigger_verdict(manifest)
    assert verdict.status is Status.INSUFFICIENT
    assert verdict.reasons == ("triggers: frames of cam do not carry their exposure time; set exposure_us",)
    assert verdict.reasons[0] in manifest.limitations
    assert manifest.stream("cam").total.recorded == 1


def test_pulses_that_no_device_declares_are_named_with_the_nearest_stream(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    wrong = SETTINGS.model_copy(update={"pulses": "boxes"})
    bench = Bench(tmp_path, context, ("box", "cam"), triggers=(wrong,))
    box, camera = bench.driver(BOX, 1), bench.driver(CAMERA, 2)
    bench.settle(box, camera)
    camera.publish(Frame("cam", 0, 1, stamps(0), stamps(START_NS), bytes(16), (EXPOSURE_NS,)))
    bench.advance(0.1, box, camera)
    for driver in (box, camera):
        driver.end(linger_s=0.05)
    bench.settle()
    (manifest,) = bench.close()
    verdict = trigger_verdict(manifest)
    assert verdict.status is Status.INSUFFICIENT
    assert verdict.reasons[0].endswith("no stream 'boxes' was declared; did you mean 'box'?")
    assert verdict.reasons[0] in manifest.limitations


def test_seconds_of_a_pps_are_judged_at_the_seal(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bench = Bench(tmp_path, context, ("gnss",))
    gnss = bench.driver(PPS, 1)
    bench.settle(gnss)
    off_ns = 5 * MS
    for second in range(8):
        edge_ns = START_NS + second * SECOND_NS
        realtime_ns = 1_700_000_000 * SECOND_NS + edge_ns + off_ns
        payload = realtime_ns.to_bytes(8, "little", signed=True)
        assert gnss.publish(Frame("gnss", second, 1, stamps(edge_ns), stamps(edge_ns + 1000), payload))
        bench.advance(1.0, gnss)
    gnss.end(linger_s=0.05)
    bench.settle()
    (manifest,) = bench.close()
    verdict = trigger_verdict(manifest, "pps")
    assert verdict.status is Status.SUSPECT
    assert numbers(verdict)["phase of REALTIME"] == pytest.approx(5000, rel=0.03)


def declared(*infos: StreamInfo, instance: int = 1) -> Declare:
    return Declare(
        instance=instance,
        device="d",
        driver="bench",
        streams=infos,
        timeline=Timeline("here", 0),
        is_live=True,
        counters="",
    )


def test_only_driven_streams_are_described_anew_and_only_once() -> None:
    triggers = SessionTriggers((SETTINGS,))
    other = declared(BOX)
    assert triggers.describe(other) is other
    once = triggers.describe(declared(CAMERA, BOX))
    assert [DETAIL in info.details for info in once.streams] == [True, False]
    assert triggers.describe(once) == once


@pytest.mark.parametrize("text", ["", "{}", '{"pulses": "box", "drives": ["cam"], "bound_us": 1e999}', "[1]"])
def test_a_declaration_whose_trigger_makes_no_sense_is_a_problem_and_no_crash(
    text: str, tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bench = Bench(tmp_path, context, ("box", "cam"))
    box, camera = bench.driver(BOX, 1), bench.driver(replace(CAMERA, details={DETAIL: text}), 2)
    bench.settle(box, camera)
    camera.publish(Frame("cam", 0, 1, stamps(0), stamps(START_NS), bytes(16), (EXPOSURE_NS,)))
    bench.advance(0.1, box, camera)
    for driver in (box, camera):
        driver.end(linger_s=0.05)
    bench.settle()
    (manifest,) = bench.close()
    assert manifest.stream("cam").total.recorded == 1
    assert "cam declares a trigger that makes no sense" in trigger_verdict(manifest).reasons[0]
