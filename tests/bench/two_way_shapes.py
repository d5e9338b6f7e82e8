"""What the two-way estimators are tried on: laws of delay, and the runs that follow them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.floating[Any]]

DURATION_S = 1200.0
BURST = 8
BURST_GAP_S = 0.064
BURST_EVERY_S = 2.0
SETTLE_S = 15.0


@dataclass(frozen=True)
class Shape:
    """Delays of both directions: a least delay plus an exponential excess (means in ns)."""

    name: str
    least_ns: float
    request_ns: float
    reply_ns: float
    goal_p99_us: float | None
    goal_max_us: float | None
    asymmetry_ns: float = 0.0
    """What the least delay of the request has more than that of the reply."""
    is_hardware: bool = False
    """Network cards stamp: see :func:`simulate_pair`; the means are those of the few that wait in a queue."""


SHAPES = (
    Shape("lan_0.2ms", 150e3, 0.2e6, 0.2e6, 43, 242),
    Shape("wifi_3ms", 1e6, 3e6, 3e6, 154, 837),
    Shape("asymmetric_load", 150e3, 2e6, 0.2e6, 91, 705),
    Shape("asymmetric_path_50us", 150e3, 0.2e6, 0.2e6, None, None, 50e3),
    Shape("hardware_pair_8us", 840e3, 3.5e6, 1.5e6, 14, None, -16e3, is_hardware=True),
)


@dataclass(frozen=True)
class Run:
    """One simulated run: (bursts, 8, 4) stamps t1 ... t4, and the truth on the asking grid.

    ``answers`` holds the burst that is the last complete one at each asking time.
    """

    stamps_ns: IntArray
    asked_ns: IntArray
    answers: IntArray
    truth_ns: FloatArray


def simulate(shape: Shape, seed: int, duration_s: float = DURATION_S) -> Run:
    """Return a run: clock as in 2a; bursts of 8, 64 ms apart, every 2 s; a stall of 50 ... 200 ms of one
    direction each minute; 20 s in which one direction, by chance, is congested by a further exp(8 ms)."""
    random = np.random.default_rng([seed, SHAPES.index(shape), 2])
    grid_s = np.arange(-1.0, duration_s + 3, 0.1)
    walk = np.cumsum(random.normal(0, 0.005 * 0.1**0.5, grid_s.size))
    rate_ppm = (
        random.uniform(-50, 50)
        + 10 * random.choice([-1, 1]) * np.exp(-np.maximum(grid_s, 0) / 100)
        + 4.8 * np.sin(2 * np.pi * grid_s / 300 + random.uniform(0, 2 * np.pi))
        + walk
    )
    gained_ns = np.concatenate(([0.0], np.cumsum((rate_ppm[1:] + rate_ppm[:-1]) / 2 * 0.1))) * 1e3
    start_ns = random.uniform(-1e9, 1e9)

    def theta(local_s: FloatArray) -> FloatArray:
        offset_ns: FloatArray = np.interp(local_s, grid_s, gained_ns) + start_ns
        return offset_ns

    bursts = int(duration_s / BURST_EVERY_S)
    sent_s = np.arange(bursts)[:, None] * BURST_EVERY_S + np.arange(BURST) * BURST_GAP_S
    sent_s = sent_s + random.uniform(0, 1e-3, sent_s.shape)
    jam_from_s = random.uniform(60, duration_s - 30)
    jam_way = int(random.integers(2))
    excess = [
        random.exponential(shape.request_ns, sent_s.shape),
        random.exponential(shape.reply_ns, sent_s.shape),
    ]
    is_jammed = (sent_s >= jam_from_s) & (sent_s < jam_from_s + 20)
    excess[jam_way] = excess[jam_way] + is_jammed * random.exponential(8e6, sent_s.shape)
    way_s = [(shape.least_ns + shape.asymmetry_ns + excess[0]) * 1e-9, (shape.least_ns + excess[1]) * 1e-9]
    stalls = []
    for minute in range(int(duration_s // 60)):
        begin = minute * 60 + random.uniform(5, 55)
        stalls.append((begin, begin + random.uniform(0.05, 0.2), int(random.integers(2))))
    arrived_s = _held(sent_s + way_s[0], stalls, 0)
    answered_s = arrived_s + random.uniform(20e-6, 60e-6, sent_s.shape)
    received_s = _held(answered_s + way_s[1], stalls, 1)
    stamps = np.stack(
        (
            sent_s * 1e9,
            arrived_s * 1e9 + theta(arrived_s),
            answered_s * 1e9 + theta(answered_s),
            received_s * 1e9,
        ),
        axis=-1,
    )
    complete_s = received_s.max(axis=1)
    asked_s = np.arange(SETTLE_S, duration_s - 1, 0.5)
    answers = np.searchsorted(np.maximum.accumulate(complete_s), asked_s, side="right") - 1
    return Run(
        10**12 + np.rint(stamps).astype(np.int64),
        10**12 + np.rint(asked_s * 1e9).astype(np.int64),
        answers,
        theta(asked_s),
    )


PAIR_S = 3600.0
PAIR_CORE_NS, PAIR_SPREAD_NS = 15e3, 5e3
PAIR_BUSY = 0.35
PAIR_TICK_NS = 8


def simulate_pair(shape: Shape, seed: int) -> Run:
    """Return an hour of one exchange per second between two network cards that stamp in hardware.

    After the figures of a real PTP testbed (specs/clocks.md 3): two thirds of the delays gather in a core, a
    third waits in queues for milliseconds; the ways differ by 16 us, so that every method is 8 us off. The
    clocks are syntonised but for 1 ppm. Eight exchanges make a burst for the references.
    """
    random = np.random.default_rng([seed, SHAPES.index(shape), 2])
    bursts = int(PAIR_S / BURST)
    sent_s = (np.arange(bursts * BURST) + random.uniform(0, 1e-3, bursts * BURST)).reshape(bursts, BURST)
    way_s = []
    for least_ns, queue_ns in (
        (shape.least_ns, shape.request_ns),
        (shape.least_ns - shape.asymmetry_ns, shape.reply_ns),
    ):
        core_ns = np.abs(random.normal(PAIR_CORE_NS, PAIR_SPREAD_NS, sent_s.shape))
        waits = random.random(sent_s.shape) < PAIR_BUSY
        way_s.append((least_ns + core_ns + waits * random.exponential(queue_ns, sent_s.shape)) * 1e-9)
    grid_s = np.arange(-1.0, PAIR_S + 20, 0.5)
    walk = np.cumsum(random.normal(0, 0.001 * 0.5**0.5, grid_s.size))
    phase = random.uniform(0, 2 * np.pi)
    rate_ppm = random.uniform(-1, 1) + 0.8 * np.sin(2 * np.pi * grid_s / 900 + phase) + walk
    gained_ns = np.concatenate(([0.0], np.cumsum((rate_ppm[1:] + rate_ppm[:-1]) / 2 * 0.5))) * 1e3

    def theta(local_s: FloatArray) -> FloatArray:
        return np.asarray(np.interp(local_s, grid_s, gained_ns))

    arrived_s = sent_s + way_s[0]
    answered_s = arrived_s + random.uniform(20e-6, 60e-6, sent_s.shape)
    received_s = answered_s + way_s[1]
    remote_ns = [at_s * 1e9 + theta(at_s) for at_s in (arrived_s, answered_s)]
    stamps = np.stack((sent_s * 1e9, *remote_ns, received_s * 1e9), axis=-1)
    asked_s = np.arange(60.0, PAIR_S - BURST - 1, 0.5)
    complete_s = np.maximum.accumulate(received_s.max(axis=1))
    return Run(
        10**12 + np.rint(stamps / PAIR_TICK_NS).astype(np.int64) * PAIR_TICK_NS,
        10**12 + np.rint(asked_s * 1e9).astype(np.int64),
        np.searchsorted(complete_s, asked_s, side="right") - 1,
        theta(asked_s),
    )


def _held(arrive_s: FloatArray, stalls: Sequence[tuple[float, float, int]], way: int) -> FloatArray:
    out: FloatArray = arrive_s.copy()
    for begin, end, stalled in stalls:
        if stalled == way:
            out[(out > begin) & (out < end)] = end
    return out
