"""The synchronizer, step by step on a virtual clock: starts together, splits in time, denies, keeps verdicts."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zmq
from synchronizer_bench import START_NS, Bench

from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.bus.counters import CounterFile
from sensorium.drivers.bus.publisher import BusPublisher
from sensorium.drivers.bus.wire import Declare
from sensorium.drivers.frame import Column, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.errors import SensoriumError, VerdictError
from sensorium.sync.episode.manifest import Manifest
from sensorium.sync.recording.check_book import CheckerReport, CheckMessage, PlannedCheck
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.timebase import SECOND_NS, Timeline
from sensorium.verdict import Quantity, Status, Verdict

MS = 1_000_000
FORCE = StreamInfo(
    "force",
    Modality.FORCE,
    Encoding.COLUMNS,
    10.0,
    "force",
    columns=(Column("fz", "N", "<i4"),),
    is_sampled=True,
)
MICROPHONE = StreamInfo(
    "mic", Modality.AUDIO, Encoding.PCM_S16LE, 100.0, "mic", shape=(1,), is_personal=True, frame_rate_hz=10.0
)


def reading(bench: Bench, seq: int) -> Frame:
    return Frame("force", seq, 1, None, stamps(bench.clock.now_ns()), seq.to_bytes(4, "little"))


def sound(bench: Bench, seq: int) -> Frame:
    return Frame("mic", seq, 10, None, stamps(bench.clock.now_ns()), bytes(20))


def test_nobody_is_welcome_before_all_devices_are_there(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bench = Bench(tmp_path, context, ("force", "mic"))
    force = bench.driver(FORCE, 1)
    bench.settle(force)
    assert not force.is_welcome
    assert bench.synchronizer.episode is None
    mic = bench.driver(MICROPHONE, 2)
    bench.settle(force, mic)
    assert force.is_welcome
    assert mic.is_welcome
    assert bench.synchronizer.episode is not None
    force.end(linger_s=0.05)
    mic.end(linger_s=0.05)
    bench.settle()
    assert bench.close() == []  # nothing was produced, so nothing is sealed


def test_an_episode_ends_after_max_s_and_the_next_goes_on_without_a_gap(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bench = Bench(tmp_path, context, ("force",), max_s=2.0)
    force = bench.driver(FORCE, 1)
    bench.settle(force)
    for seq in range(50):
        assert force.publish(reading(bench, seq))
        bench.advance(0.1, force)
    force.end(linger_s=0.05)
    bench.settle()
    manifests = bench.close()
    balances = [next(iter(manifest.stream("force").balances.values())) for manifest in manifests]
    assert len(balances) == 3
    assert sum(balance.recorded for balance in balances) == 50
    for before, after in pairwise(balances):
        assert before.first_seq + before.produced == after.first_seq


def test_what_is_personal_is_booked_but_not_stored_without_a_grant(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bench = Bench(tmp_path, context, ("mic",))
    mic = bench.driver(MICROPHONE, 1)
    bench.settle(mic)
    for block in range(5):
        mic.publish(sound(bench, 10 * block))
        bench.advance(0.1, mic)
    mic.end(linger_s=0.05)
    bench.settle()
    (manifest,) = bench.close()
    record = manifest.stream("mic")
    assert record.total.dropped == {"synchronizer": {"consent: no_grant": 50}}
    assert record.total.is_exact
    assert record.consent.decision == "denied"


def test_a_pause_that_cannot_be_written_down_holds_all_the_same(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, context, ("mic",))
    blocked = tmp_path / "consent"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(SensoriumError):
        bench.synchronizer.pause("button")
    assert bench.synchronizer.consent.is_paused
    blocked.unlink()
    bench.synchronizer.resume("button")
    assert not bench.synchronizer.consent.is_paused
    bench.close()


def window(status: Status, *, subject: str = "a~b", at_s: float = 0.0) -> JudgedWindow:
    """A window of one second that begins ``at_s`` after the bench's start."""
    reasons = () if status is Status.OK else ("pitch moved",)
    start_ns = START_NS + int(at_s * SECOND_NS)
    return JudgedWindow(Verdict("stereo", subject, status, (), reasons), start_ns, start_ns + SECOND_NS)


class Recording:
    """A bench that records one force sensor under a policy for failed checks."""

    def __init__(self, tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], **options: object) -> None:
        self.bench = Bench(tmp_path, context, ("force",), **options)
        self.synchronizer = self.bench.synchronizer
        self._force = self.bench.driver(FORCE, 1)
        self._seq = 0
        self.bench.settle(self._force)

    @property
    def episode(self) -> str:
        assert self.synchronizer.episode is not None
        return self.synchronizer.episode.episode_id

    def sample(self) -> None:
        self._force.publish(reading(self.bench, self._seq))
        self._seq += 1
        self.bench.advance(0.1, self._force)

    def check(self, *windows: JudgedWindow, episode: str = "") -> None:
        self.synchronizer.take_check(CheckMessage(episode or self.episode, windows))

    def close(self) -> list[Manifest]:
        self._force.end(linger_s=0.05)
        self.bench.settle()
        return self.bench.close()


@pytest.mark.parametrize(
    ("statuses", "kept", "counts", "has_alarm"),
    [
        (["insufficient", "ok"], "ok", {"insufficient": 1, "ok": 1}, False),
        (["ok", "suspect", "ok", "ok"], "ok", {"ok": 3, "withdrawn": 1}, False),
        (["ok", "suspect"], "suspect", {"ok": 1, "suspect": 1}, True),
        (
            ["suspect", "insufficient", "suspect", "ok"],
            "suspect",
            {"suspect": 2, "insufficient": 1, "ok": 1},
            True,
        ),
        (["suspect", "failed", "ok"], "failed", {"suspect": 1, "failed": 1, "ok": 1}, True),
    ],
)
def test_the_window_that_weighs_most_is_kept_unless_the_next_one_takes_a_suspicion_back(
    statuses: list[str],
    kept: str,
    counts: dict[str, int],
    has_alarm: bool,
    tmp_path: Path,
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    recording = Recording(tmp_path, context)
    for index, status in enumerate(statuses):
        recording.check(window(Status(status), at_s=10.0 * index))
    recording.sample()
    (manifest,) = recording.close()
    (verdict,) = manifest.calibration.verdicts
    (record,) = manifest.calibration.checks
    assert verdict.status.value == kept
    assert record.windows == counts
    first_alarm = next(i for i, status in enumerate(statuses) if status == "suspect") if has_alarm else None
    assert record.first_alarm_ns == (None if first_alarm is None else START_NS + first_alarm * 10 * SECOND_NS)
    kept_at = max(i for i, status in enumerate(statuses) if status == kept)
    assert (record.start_ns, record.end_ns) == (
        START_NS + kept_at * 10 * SECOND_NS,
        START_NS + (kept_at * 10 + 1) * SECOND_NS,
    )


def test_verdicts_belong_to_the_episode_whose_frames_they_judged(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    recording = Recording(tmp_path, context)
    recording.sample()
    first = recording.episode
    recording.check(window(Status.SUSPECT))
    recording.synchronizer.stop()
    recording.synchronizer.start()
    recording.check(window(Status.FAILED, at_s=1.0), episode=first)  # it comes after its episode was closed
    recording.sample()
    before, after = recording.close()
    assert [verdict.status for verdict in before.calibration.verdicts] == [Status.SUSPECT]
    assert after.calibration.verdicts == ()
    assert after.limitations == ()


def test_numbers_that_are_none_do_not_keep_an_episode_from_being_sealed(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    recording = Recording(tmp_path, context)
    recording.sample()
    quantities = (
        Quantity("yaw", 0.0, "deg", 0.25, float("inf")),
        Quantity("plane_rms", float("nan"), "m"),
        Quantity("pitch", 0.1, "deg", 0.25, 0.01),
    )
    verdict = Verdict("lidar_lidar", "a~b", Status.INSUFFICIENT, quantities, ("no planes",))
    recording.check(JudgedWindow.of(verdict, START_NS, START_NS))
    (manifest,) = recording.close()
    (kept,) = manifest.calibration.verdicts
    assert kept.quantities == (Quantity("yaw", 0.0, "deg", 0.25), quantities[2])


def test_a_check_that_came_to_no_verdict_is_insufficient_unless_nobody_asked_for_it(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    recording = Recording(tmp_path, context)
    recording.sample()
    checks = (
        PlannedCheck("stereo", "a~b", 5.0, note="nothing is recorded of a for 4 s"),
        PlannedCheck("ground_gravity", "c~d", 10.0, is_optional=True),
    )
    recording.synchronizer.take_check(CheckMessage("", (), CheckerReport(0.2, 0.1, 0.0, checks)))
    (manifest,) = recording.close()
    (verdict,) = manifest.calibration.verdicts
    assert (verdict.subject, verdict.status) == ("a~b", Status.INSUFFICIENT)
    assert verdict.reasons == ("nothing is recorded of a for 4 s",)


def test_a_failed_check_splits_once_and_the_next_episode_says_why_it_began(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    recording = Recording(tmp_path, context, on_failed_check="split")
    recording.sample()
    first = recording.episode
    recording.check(window(Status.FAILED))
    assert recording.episode != first
    recording.sample()
    second = recording.episode
    recording.check(window(Status.FAILED, at_s=5.0))
    recording.check(window(Status.FAILED, subject="b~c", at_s=6.0))
    assert recording.episode == second  # it still fails: nothing new has happened
    before, after = recording.close()
    assert [verdict.status for verdict in before.calibration.verdicts] == [Status.FAILED]
    assert before.limitations == ()
    (limitation,) = after.limitations
    assert limitation == f"began because in episode {first} calibration stereo on a~b failed: pitch moved"


def test_a_pair_that_was_ok_again_splits_again(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    recording = Recording(tmp_path, context, on_failed_check="split")
    episodes = []
    for index, status in enumerate((Status.FAILED, Status.OK, Status.FAILED)):
        recording.sample()
        recording.check(window(status, at_s=5.0 * index))
        episodes.append(recording.episode)
    assert episodes[0] == episodes[1] != episodes[2]
    recording.close()


def test_a_failed_check_that_comes_late_splits_nothing_but_is_told_to_the_next_episode(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    recording = Recording(tmp_path, context, on_failed_check="split")
    recording.sample()
    first = recording.episode
    recording.synchronizer.stop()
    second = recording.synchronizer.start()
    recording.check(window(Status.FAILED), episode=first)
    assert recording.episode == second
    recording.sample()
    _, after = recording.close()
    assert "began before it was known" in after.limitations[0]
    assert first in after.limitations[0]


def test_after_a_failed_check_nothing_begins_until_the_operator_says_so(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    recording = Recording(tmp_path, context, on_failed_check="stop")
    recording.sample()
    first = recording.episode
    recording.check(window(Status.FAILED))
    assert recording.synchronizer.episode is None
    assert not recording.synchronizer.fault  # the drivers go on
    with pytest.raises(VerdictError, match=r"stereo on a~b failed.*--despite-calibration"):
        recording.synchronizer.start_when_allowed()
    recording.synchronizer.start_when_allowed(despite_calibration=True)
    recording.check(window(Status.FAILED, at_s=5.0))  # from now on it only warns
    recording.sample()
    before, after = recording.close()
    assert before.episode_id == first
    assert "ended because calibration stereo on a~b failed" in before.limitations[0]
    assert "by the operator's word" in after.limitations[0]
    assert [verdict.status for verdict in after.calibration.verdicts] == [Status.FAILED]


def test_a_refusal_survives_a_restart_and_ends_with_a_new_calibration(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    good, moved = (
        RigCalibration(rig="bench", edges=(Edge("a", "b", transform(np.eye(3), (x_m, 0, 0))),))
        for x_m in (0.1, 0.2)
    )
    good.save(tmp_path / "good.yaml")
    moved.save(tmp_path / "moved.yaml")
    under = {"on_failed_check": "stop", "calibration": tmp_path / "good.yaml"}
    recording = Recording(tmp_path, context, **under)
    recording.sample()
    recording.check(window(Status.FAILED))
    recording.close()
    again = Recording(tmp_path, context, **under)
    assert again.synchronizer.episode is None
    with pytest.raises(VerdictError):
        again.synchronizer.start_when_allowed()
    again.close()
    new = Recording(tmp_path, context, **{**under, "calibration": tmp_path / "moved.yaml"})
    assert new.synchronizer.episode is not None
    new.sample()
    (manifest,) = new.close()
    assert manifest.limitations == ()


def test_a_driver_that_comes_back_as_another_instance_has_a_balance_of_its_own(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bench = Bench(tmp_path, context, ("force",))
    first = bench.driver(FORCE, 1)
    bench.settle(first)
    first.publish(reading(bench, 0))
    first.publish(reading(bench, 4))
    bench.settle(first)
    second = bench.driver(FORCE, 2)
    bench.settle(second)
    bench.clock.advance(100 * MS)
    second.publish(reading(bench, 0))
    second.end(linger_s=0.05)
    first.end(linger_s=0.05)
    bench.settle()
    (manifest,) = bench.close()
    balances = manifest.stream("force").balances
    assert (balances[1].produced, balances[1].recorded) == (5, 2)
    assert balances[1].dropped == {"device": {"gap in the device's counter": 3}}
    assert (balances[2].produced, balances[2].recorded) == (1, 1)


def test_a_stream_of_another_device_cannot_be_taken_over(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    bench = Bench(tmp_path, context, ("force",))
    force = bench.driver(FORCE, 1)
    bench.settle(force)
    thief = BusPublisher(bench.endpoint, 9, bench.clock, context)
    declare = Declare(
        instance=9,
        device="thief",
        driver="bench",
        streams=(FORCE,),
        timeline=Timeline("here", 0),
        is_live=True,
        counters="",
    )
    thief.declare(declare, CounterFile(tmp_path / "thief.counters", 9, ["force"]))
    bench.settle(force, thief)
    assert not thief.is_welcome
    assert any("belongs to force" in reason for reason in bench.synchronizer.receiver.rejected)
    thief.end(linger_s=0.05)
    force.end(linger_s=0.05)
    bench.settle()
    bench.close()
