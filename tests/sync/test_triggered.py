"""Frames stamped by their pulses while they come: causal, counted, and the same however they were interleaved."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sensorium.drivers.frame import (
    ClockKind,
    Column,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Modality,
    StreamInfo,
    stamps,
)
from sensorium.errors import ConfigError
from sensorium.sync.clocks import triggered
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.clocks.trigger import TriggerCounts
from sensorium.sync.clocks.triggered import TriggerMatcher, TriggerSettings
from sensorium.verdict import Status

START_NS = 10**12
PERIOD_NS = 33_333_333
MS = 1_000_000
LATENCY_NS = 12 * MS
STAMP_BOUND_NS = 20_000
CAMERA = StreamInfo(
    "cam",
    Modality.CAMERA,
    Encoding.MONO8,
    30.0,
    "cam",
    clock=DeviceClock(ClockKind.FREE, 1000, 1, 1 << 32),
    latency=Latency(min_ns=LATENCY_NS),
    stamp_of="exposure_mid",
    shape=(481, 2),
    has_device_counter=True,
    meta_fields=("exposure_ns",),
)
PULSES = StreamInfo(
    "pulses",
    Modality.OTHER,
    Encoding.COLUMNS,
    30.0,
    "pulses",
    clock=DeviceClock(ClockKind.HOST),
    latency=Latency(min_uncertainty_ns=STAMP_BOUND_NS),
    columns=(Column("realtime", "ns", "<i8"),),
    has_device_counter=True,
)
SETTINGS = TriggerSettings(pulses="pulses", drives=("cam",), delay_us=150.0, bound_us=3.0, row_us=10.0)
EXPOSURE_NS = 4.0 * MS
AFTER_NS = 150_000 + 2 * MS + 240 * 10_000
"""Edge to mid-exposure of row 240, the middle of 481."""
STATED_NS = STAMP_BOUND_NS + 3000


LATENCIES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "exponential": lambda rng, n: rng.exponential(1.5 * MS, n),
    "long": lambda rng, n: rng.exponential(5 * MS, n),
    "soft": lambda rng, n: rng.uniform(0, MS, n) + rng.exponential(1.5 * MS, n),
    "gamma": lambda rng, n: rng.gamma(3, 0.5 * MS, n),
    "bimodal": lambda rng, n: rng.exponential(1.5 * MS, n) + 4 * MS * (rng.random(n) < 0.3),
    "drifting": lambda rng, n: rng.exponential(1.5 * MS, n) + 0.15 * MS * (1 + np.sin(np.arange(n) / 1432)),
    "stalls": lambda rng, n: (
        rng.exponential(1.5 * MS, n) + (rng.random(n) < 2e-3) * rng.uniform(50 * MS, 200 * MS, n)
    ),
}
"""Above the least; the floor of "drifting" moves by 0.3 ms in 300 s."""


@dataclass(frozen=True, slots=True)
class Arrival:
    at_ns: int
    pulse: Frame | None = None
    image: Frame | None = None


class Bench:
    """A trigger, a camera on it, and what gets lost on the way; all in order of arrival."""

    def __init__(
        self,
        count: int = 600,
        *,
        ignored: tuple[int, ...] = (),
        lost: tuple[int, ...] = (),
        unrecorded: tuple[int, ...] = (),
        spurious: tuple[tuple[int, float], ...] = (),
        skew_ppm: float = 30.0,
        extra_ppm: float = 0.0,
        warmup_ppm: float = 0.0,
        latency: str = "exponential",
        seed: int = 1,
    ) -> None:
        """Args:
        spurious: (after this pulse, at this share of the period) exposures of the camera's own accord.
        extra_ppm: The camera runs by itself, so much slower than the trigger.
        warmup_ppm: Of the camera's stamps, with a time constant of 100 s.
        latency: One of ``LATENCIES``.
        """
        rng = np.random.default_rng(seed)
        edges_ns = START_NS + np.arange(count) * PERIOD_NS
        late_ns = rng.exponential(2000, count).astype(np.int64)
        middles = np.rint(START_NS + np.arange(count) * PERIOD_NS * (1 + extra_ppm * 1e-6)) + AFTER_NS
        exposed = [(int(middles[i]), i) for i in range(count) if i not in ignored]
        exposed += [(int(edges_ns[i] + share * PERIOD_NS) + AFTER_NS, -1) for i, share in spurious]
        exposed.sort()
        self.true_ns = {seq: middle_ns for seq, (middle_ns, _) in enumerate(exposed)}
        self.spurious = [seq for seq, (_, pulse) in enumerate(exposed) if pulse < 0]
        self.arrivals: list[Arrival] = []
        for i in range(count):
            if i not in unrecorded:
                edge_ns, at_ns = int(edges_ns[i] + late_ns[i]), int(edges_ns[i] + 300_000)
                frame = Frame("pulses", i, 1, stamps(edge_ns), stamps(at_ns), bytes(8))
                self.arrivals.append(Arrival(at_ns, pulse=frame))
        last_ns = 0
        jitter_ns = LATENCIES[latency](rng, len(exposed)).astype(np.int64)
        for seq, (middle_ns, pulse) in enumerate(exposed):
            last_ns = max(last_ns, middle_ns + LATENCY_NS + int(jitter_ns[seq]))
            since_ns = middle_ns - START_NS
            warm_ns = warmup_ppm * 1e-6 * 100e9 * -np.expm1(-since_ns / 100e9)
            ticks = stamps(round((since_ns / (1 + skew_ppm * 1e-6) - warm_ns) / 1000) + 77_000_000)
            image = Frame("cam", seq, 1, ticks, stamps(last_ns), bytes(962), (EXPOSURE_NS,))
            if pulse < 0 or pulse not in lost:
                self.arrivals.append(Arrival(last_ns, image=image))
        self.arrivals.sort(key=lambda arrival: arrival.at_ns)

    def interleaved(self, seed: int, up_to_ns: int) -> list[Arrival]:
        """Return the arrivals as the bus may bring them: each stream in order, each held up at random."""
        rng = np.random.default_rng(seed)
        held = [(a.at_ns + int(rng.integers(0, up_to_ns)), a) for a in self.arrivals]
        kinds = ([e for e in held if e[1].pulse is not None], [e for e in held if e[1].pulse is None])
        merged = []
        for kind in kinds:
            until_ns = np.maximum.accumulate([at_ns for at_ns, _ in kind])
            merged += [(int(at_ns), a) for at_ns, (_, a) in zip(until_ns, kind, strict=True)]
        return [Arrival(at_ns, a.pulse, a.image) for at_ns, a in sorted(merged, key=lambda entry: entry[0])]


@dataclass(frozen=True, slots=True)
class Outcome:
    stamped: dict[int, Stamped]
    estimates: dict[int, int]
    counts: TriggerCounts
    events: list[str]
    held_ns: int

    def errors_ns(self, bench: Bench) -> NDArray[np.int64]:
        return np.array([int(s.capture_ns[0]) - bench.true_ns[seq] for seq, s in self.stamped.items()])

    def by_pulse(self) -> set[int]:
        """Frames that state the bound of a pulse, not that of the ordinary estimate."""
        return {seq for seq, s in self.stamped.items() if s.uncertainty.bound95_ns == STATED_NS}


def run(
    arrivals: list[Arrival],
    settings: TriggerSettings = SETTINGS,
    camera: StreamInfo = CAMERA,
    pulses: StreamInfo = PULSES,
) -> Outcome:
    """Send everything through trackers and matcher as the synchronizer does."""
    matcher = TriggerMatcher(camera, settings, pulses)
    trackers = (StreamTracker(camera), StreamTracker(pulses))
    found: dict[int, Stamped] = {}
    estimates: dict[int, int] = {}
    longest_ns = 0

    def take(now_ns: int | None) -> None:
        nonlocal longest_ns
        for frame, stamped in matcher.ready(now_ns):
            found[frame.seq] = stamped
            assert int(stamped.capture_ns[0]) <= int(frame.arrival_ns[0])
            if now_ns is not None:
                longest_ns = max(longest_ns, now_ns - int(frame.arrival_ns[0]))

    for arrival in arrivals:
        if arrival.pulse is not None:
            matcher.pulse(arrival.pulse, trackers[1].update(arrival.pulse))
        if arrival.image is not None:
            estimate = trackers[0].update(arrival.image)
            estimates[arrival.image.seq] = int(estimate.capture_ns[0])
            matcher.frame(arrival.image, estimate, arrival.at_ns)
        take(arrival.at_ns)
    take(None)
    captures = [int(s.capture_ns[0]) for s in found.values()]
    assert captures == sorted(captures), "time ran backwards"
    return Outcome(
        found, estimates, matcher.take_counts(), [e.detail for e in matcher.take_events()], longest_ns
    )


def test_frames_get_the_time_of_their_pulse_within_its_stated_bound() -> None:
    bench = Bench()
    found = run(bench.arrivals)
    assert list(found.stamped) == sorted(bench.true_ns)
    assert found.counts.matched == len(bench.true_ns) - found.counts.estimated.total()
    by_pulse = found.by_pulse()
    assert len(by_pulse) == found.counts.matched > 590
    error_ns = np.array([int(found.stamped[seq].capture_ns[0]) - bench.true_ns[seq] for seq in by_pulse])
    assert np.abs(error_ns).max() <= STATED_NS
    ordinary_ns = np.array([found.estimates[seq] - bench.true_ns[seq] for seq in by_pulse])
    assert np.percentile(np.abs(error_ns), 99) < np.percentile(np.abs(ordinary_ns), 50)
    verdict = found.counts.verdict("cam")
    assert verdict.status is Status.OK, verdict
    assert found.held_ns == 0, "no frame had to wait for its pulse"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_kind_of_fault_ends_in_its_own_counter(seed: int) -> None:
    bench = Bench(
        ignored=(100, 101, 300),
        lost=(150, 151, 350, 420),
        unrecorded=(200, 450, 451),
        spurious=((250, 0.4), (500, 0.7)),
        seed=seed,
    )
    found = run(bench.arrivals)
    counts = found.counts
    assert counts.ignored_pulses == 3
    assert counts.lost_frames == 4
    assert counts.unrecorded_pulses == 3
    assert counts.spurious_frames == 2
    assert counts.slips == 0
    assert counts.verdict("cam").status is Status.SUSPECT
    error_ns = {seq: int(s.capture_ns[0]) - bench.true_ns[seq] for seq, s in found.stamped.items()}
    assert max(abs(error_ns[seq]) for seq in found.by_pulse()) <= STATED_NS
    assert not set(bench.spurious) & found.by_pulse()
    # Without a pulse of its own a frame has the ordinary estimate, with the ordinary uncertainty.
    for seq in set(found.stamped) - found.by_pulse():
        assert int(found.stamped[seq].capture_ns[0]) == found.estimates[seq]
    assert counts.estimated.total() == len(found.stamped) - len(found.by_pulse())


@pytest.mark.parametrize("latency", LATENCIES)
def test_whatever_the_latency_no_frame_leaves_its_pulse(latency: str) -> None:
    bench = Bench(3600, latency=latency, warmup_ppm=10.0)
    found = run(bench.arrivals)
    assert found.counts.slips == 0
    assert found.counts.ignored_pulses == found.counts.spurious_frames == 0
    assert found.counts.estimated == Counter({triggered.NOT_KNOWN: 2})
    assert np.abs(found.errors_ns(bench)[2:]).max() <= STATED_NS


@pytest.mark.parametrize("seed", range(5))
def test_however_the_bus_interleaves_them_the_stamps_are_the_same(seed: int) -> None:
    bench = Bench(
        300, ignored=(100,), lost=(150,), unrecorded=(1, 180, 181), spurious=((220, 0.3),), seed=seed
    )
    expected = run(bench.arrivals)
    found = run(bench.interleaved(seed, up_to_ns=60 * MS))
    assert found.stamped.keys() == expected.stamped.keys()
    for seq, was in expected.stamped.items():
        assert int(found.stamped[seq].capture_ns[0]) == int(was.capture_ns[0]), seq
        assert found.stamped[seq].uncertainty == was.uncertainty
    assert found.counts == expected.counts


def test_a_trigger_that_falls_silent_is_waited_for_once() -> None:
    bench = Bench(300)
    silent = [a for a in bench.arrivals if a.pulse is None or not 100 <= a.pulse.seq < 200]
    found = run(silent)
    assert found.counts.estimated[triggered.NO_PULSE] == 100
    assert found.counts.unrecorded_pulses == 100
    assert found.counts.matched > 190
    assert found.held_ns <= triggered.PATIENCE_NS + PERIOD_NS
    assert np.abs(found.errors_ns(bench)[-90:]).max() <= STATED_NS, "and is used again when it is back"
    replayed = run(silent)
    assert [s.capture_ns[0] for s in replayed.stamped.values()] == [
        s.capture_ns[0] for s in found.stamped.values()
    ]


def test_without_any_pulse_the_verdict_says_so() -> None:
    bench = Bench(60)
    found = run([a for a in bench.arrivals if a.pulse is None])
    assert found.counts.estimated == Counter({triggered.NO_PULSE: 60})
    verdict = found.counts.verdict("cam")
    assert verdict.status is Status.FAILED
    assert "is the trigger running" in verdict.reasons[0]


@pytest.mark.parametrize("ppm", [20.0, -60.0, 5000.0])
def test_a_camera_that_runs_freely_is_found_out(ppm: float) -> None:
    bench = Bench(6000, extra_ppm=ppm)
    found = run(bench.arrivals)
    verdict = found.counts.verdict("cam")
    assert verdict.status is not Status.OK, (found.counts, found.events)
    if abs(ppm) < 100:
        assert verdict.status is Status.FAILED
        assert found.counts.estimated[triggered.LOOSE] > 1000


def test_a_latency_known_worse_than_half_a_period_is_refused_with_what_to_do() -> None:
    bench = Bench(60)
    found = run(bench.arrivals, SETTINGS.model_copy(update={"late_ms": (-17.0, 17.0)}))
    assert found.counts.matched == 0
    assert found.counts.estimated == Counter({triggered.UNCERTAIN: 60})
    verdict = found.counts.verdict("cam")
    assert verdict.status is Status.INSUFFICIENT
    assert "known to 17.0 ms only" in verdict.reasons[0]
    assert "narrow late_ms" in verdict.reasons[0]


def test_a_constant_latency_nobody_knew_of_is_taken_out_and_reported() -> None:
    camera = replace(CAMERA, latency=Latency(min_ns=LATENCY_NS - 5 * MS, min_uncertainty_ns=8 * MS))
    bench = Bench()
    found = run(bench.arrivals, camera=camera)
    quantities = {q.name: q.value for q in found.counts.verdict("cam").quantities}
    assert quantities["ordinary estimates are late by"] == pytest.approx(5000, abs=300)
    error_ns = found.errors_ns(bench)[50:]
    assert np.abs(error_ns).max() <= STATED_NS


def test_a_camera_without_device_stamps_is_matched_by_its_arrivals() -> None:
    camera = replace(CAMERA, clock=DeviceClock(), stamp_of="arrival")
    bench = Bench()
    plain = [
        Arrival(a.at_ns, a.pulse, None if a.image is None else replace(a.image, device_ticks=None))
        for a in bench.arrivals
    ]
    settings = SETTINGS.model_copy(update={"late_ms": (0.0, 4.0)})
    found = run(plain, settings, camera)
    assert found.counts.matched > 500
    error_ns = np.array([int(found.stamped[s].capture_ns[0]) - bench.true_ns[s] for s in found.by_pulse()])
    assert np.abs(error_ns).max() <= STATED_NS


def test_a_camera_whose_driver_knows_no_latency_is_matched_by_what_the_rig_file_says() -> None:
    camera = replace(CAMERA, latency=Latency())
    bench = Bench()
    # Its ordinary times are 12 ms late and more, of a period of 33 ms.
    found = run(bench.arrivals, SETTINGS.model_copy(update={"late_ms": (5.0, 30.0)}), camera)
    error_ns = found.errors_ns(bench)
    assert len(found.by_pulse()) > 590
    assert np.abs(error_ns[10:]).max() <= STATED_NS
    quantities = {q.name: q.value for q in found.counts.verdict("cam").quantities}
    assert quantities["ordinary estimates are late by"] == pytest.approx(12_000, abs=300)
    kept = [s for seq, s in found.stamped.items() if seq not in found.by_pulse()]
    assert kept
    assert all(s.uncertainty.asymmetry_ns == 12.5 * MS for s in kept)


def test_stamps_of_the_start_of_the_exposure_are_moved_to_its_middle() -> None:
    camera = replace(CAMERA, stamp_of="exposure_start")
    bench = Bench(100)
    found = run(bench.arrivals[:1] + [a for a in bench.arrivals if a.pulse is None], camera=camera)
    # Nothing was matched; ticks mean the middle here, so all are late by half the exposure and the rows.
    moved_ns = {int(s.capture_ns[0]) - found.estimates[seq] for seq, s in found.stamped.items()}
    assert moved_ns == {2 * MS + 240 * 10_000}


@pytest.mark.parametrize("exposure_ns", [float("nan"), float("inf"), -1.0, 1e300])
def test_an_exposure_time_that_makes_no_sense_costs_its_frame_only(exposure_ns: float) -> None:
    bench = Bench(100)
    odd = [
        Arrival(a.at_ns, a.pulse, replace(a.image, meta=(exposure_ns,)))
        if a.image is not None and a.image.seq in (40, 41)
        else a
        for a in bench.arrivals
    ]
    found = run(odd)
    assert found.counts.estimated[triggered.BAD_EXPOSURE] == 2
    assert not {40, 41} & found.by_pulse()
    assert len(found.by_pulse()) == found.counts.matched >= 90


def test_a_frame_that_comes_late_to_the_synchronizer_still_waits_for_its_pulse() -> None:
    bench = Bench(200)
    # The machine stalls for a second: then all images come through first, their pulses 100 ms later.
    start_ns, end_ns = START_NS + 3_000 * MS, START_NS + 4_000 * MS
    until_ns = {True: end_ns + 100 * MS, False: end_ns}
    held = [
        replace(a, at_ns=max(a.at_ns, until_ns[a.pulse is not None])) if a.at_ns >= start_ns else a
        for a in bench.arrivals
    ]
    found = run(sorted(held, key=lambda arrival: arrival.at_ns))
    assert found.counts == run(bench.arrivals).counts


@pytest.mark.parametrize(
    ("camera", "settings", "words"),
    [
        (replace(CAMERA, meta_fields=()), SETTINGS, "set exposure_us"),
        (replace(CAMERA, modality=Modality.LIDAR), SETTINGS, "is no camera"),
        (replace(CAMERA, latency=Latency()), SETTINGS, "set late_ms"),
    ],
)
def test_what_is_missing_for_a_match_is_named(
    camera: StreamInfo, settings: TriggerSettings, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        TriggerMatcher(camera, settings, PULSES)
