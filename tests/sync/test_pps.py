"""Seconds from a PPS, and the system clock held against them."""

import numpy as np

from sensorium.sync.clocks.pps import Edge, PpsTracker
from sensorium.timebase import SECOND_NS


def _edges(count: int, seed: int = 1, skew_ppm: float = 40.0) -> list[int]:
    rng = np.random.default_rng(seed)
    late = rng.exponential(3000, count)
    return [int(5e9 + i * SECOND_NS * (1 + skew_ppm * 1e-6) + late[i]) for i in range(count)]


def test_a_pps_is_named_by_its_messages_and_followed_to_microseconds() -> None:
    tracker = PpsTracker()
    for second, edge_ns in enumerate(_edges(60)):
        tracker.edge(edge_ns)
        tracker.label(1_800_000_000 + second, edge_ns + 300_000_000)
    state = tracker.state
    assert state is not None
    assert state.utc_s == 1_800_000_059
    true_ns = 5e9 + 59 * SECOND_NS * (1 + 40e-6)
    assert abs(state.edge_ns - true_ns) < 3000
    assert abs((state.ns_per_second / SECOND_NS - 1) * 1e6 - 40) < 1
    half = state.utc_ns(state.edge_ns + SECOND_NS // 2)
    assert abs(half - (1_800_000_059 * SECOND_NS + SECOND_NS / 2)) < 30_000


def test_missed_edges_glitches_and_wrong_names_are_counted() -> None:
    tracker = PpsTracker()
    kinds = []
    for second, edge_ns in enumerate(_edges(40)):
        if second in (10, 11, 25):
            continue
        kinds.append(tracker.edge(edge_ns))
        if second == 20:
            assert tracker.edge(edge_ns + 123_000_000) is Edge.GLITCH
        name = 1_800_000_000 + second + (1 if second == 30 else 0)
        tracker.label(name, edge_ns + 300_000_000)
    assert (tracker.missed, tracker.glitches, tracker.bad_labels) == (3, 1, 1)
    assert kinds.count(Edge.SECOND) == 36
    assert tracker.state is not None
    assert tracker.state.utc_s == 1_800_000_039


def test_a_first_edge_that_was_a_glitch_is_given_up() -> None:
    tracker = PpsTracker()
    tracker.edge(4_300_000_000)
    for second, edge_ns in enumerate(_edges(10)):
        tracker.edge(edge_ns)
        tracker.label(1_800_000_000 + second, edge_ns + 300_000_000)
    assert tracker.state is not None
    assert tracker.state.utc_s == 1_800_000_009
