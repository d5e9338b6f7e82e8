"""A share of the processor over a window of time: work is let in when it fits, and never starves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.agent.calibrating.watching.budget import CpuBudget
from sensorium.timebase import SECOND_NS

MS = 1_000_000


class Machine:
    """A process on a machine of its own: work takes as long as it costs."""

    def __init__(self, share: float, over_s: float) -> None:
        self.now_ns = 0
        self.used_ns = 0
        self.done: list[tuple[int, int]] = []
        self.budget = CpuBudget(share, over_s, lambda: self.used_ns, 0)

    def work(self, cost_ns: int, expected_ns: int) -> None:
        self.now_ns = max(self.now_ns, self.budget.free_at(expected_ns, self.now_ns))
        self.done.append((self.now_ns, cost_ns))
        self.now_ns += cost_ns
        self.used_ns += cost_ns
        self.budget.note(self.now_ns)

    def busiest(self, over_ns: int) -> float:
        """Return the largest share used in any window that ends with a piece of work."""
        starts, costs = (np.array(column) for column in zip(*self.done, strict=True))
        ends = starts + costs
        shares = []
        for end in ends:
            overlap = np.clip(np.minimum(ends, end) - np.maximum(starts, end - over_ns), 0, None)
            shares.append(float(overlap.sum()) / over_ns)
        return max(shares)


@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0.05, 0.9),
    costs=st.lists(st.integers(20, 2000), min_size=30, max_size=120),
)
def test_no_window_uses_more_than_the_share_when_costs_are_known(share: float, costs: list[int]) -> None:
    machine = Machine(share, 60.0)
    for cost_ms in costs:
        machine.work(cost_ms * MS, cost_ms * MS)
    assert machine.busiest(60 * SECOND_NS) <= share + 1e-9 or max(costs) * MS > share * 60 * SECOND_NS


def test_a_misjudged_piece_of_work_is_paid_back() -> None:
    machine = Machine(0.2, 10.0)
    for _ in range(50):
        machine.work(900 * MS, 100 * MS)
    assert machine.busiest(10 * SECOND_NS) <= 0.2 + 0.09  # one piece too many
    assert machine.now_ns >= 0.95 * 50 * 0.9 * SECOND_NS / 0.29


def test_idling_leaves_room_for_a_burst() -> None:
    machine = Machine(0.25, 60.0)
    machine.now_ns = 100 * SECOND_NS
    for _ in range(14):
        machine.work(SECOND_NS, SECOND_NS)
    assert machine.now_ns == 114 * SECOND_NS  # 15 s are free
    machine.work(2 * SECOND_NS, 2 * SECOND_NS)
    assert machine.now_ns > 160 * SECOND_NS


def test_work_larger_than_the_whole_share_is_done_in_the_end() -> None:
    machine = Machine(0.01, 10.0)
    for _ in range(3):
        machine.work(SECOND_NS, SECOND_NS)
    assert machine.now_ns == pytest.approx(22 * SECOND_NS + SECOND_NS, abs=SECOND_NS)


def test_what_was_used_before_it_began_counts() -> None:
    budget = CpuBudget(0.1, 10.0, lambda: 3 * SECOND_NS, 0)
    budget.note(0)
    assert budget.free_at(0, 0) == 10 * SECOND_NS
    assert budget.used(10 * SECOND_NS) == pytest.approx(0.3)
