"""The balance closes at every point, and a wrong tally is visible."""

from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from sensorium.drivers.bus.counters import StreamCounts
from sensorium.drivers.frame import Place
from sensorium.sync.recording.accounting import InstanceStream, settle_torn

FATE = st.sampled_from(["recorded", "refused", "reported", "vanished"])


def play(stream: InstanceStream, fates: Iterable[str], counts: StreamCounts) -> None:
    """Send frames of two samples with the given fates through the account, as a driver and bus would."""
    for fate in fates:
        seq = counts.next_seq
        counts.next_seq += 2
        if fate == "vanished":
            continue
        if fate == "reported":
            key = (Place.DEVICE, "gap")
            counts.lost[key] = counts.lost.get(key, 0) + 2
            stream.report_lost(seq, 2, *key)
        elif stream.arrive(seq, 2):
            if fate == "recorded":
                assert stream.account is not None
                stream.account.recorded += 2
            else:
                stream.drop(2, Place.SYNCHRONIZER, "no grant")


@given(st.lists(FATE, max_size=60), st.lists(FATE, max_size=60))
def test_the_balance_closes_in_both_episodes_of_a_split(first: list[str], second: list[str]) -> None:
    stream, counts = InstanceStream(), StreamCounts(0)
    stream.open_account()
    play(stream, first, counts)
    one = stream.take_account()
    stream.open_account()
    play(stream, second, counts)
    stream.reach(counts.next_seq)
    two = stream.take_account()
    assert one is not None
    assert two is not None
    assert one.is_balanced
    assert two.is_balanced
    assert one.produced + two.produced == counts.next_seq
    fates = Counter(first + second)
    dropped = one.dropped + two.dropped
    assert one.recorded + two.recorded == 2 * fates["recorded"]
    assert dropped[Place.DEVICE, "gap"] == 2 * fates["reported"]
    assert sum(n for (place, _), n in dropped.items() if place is Place.BUS) == 2 * fates["vanished"]


@given(st.lists(FATE, max_size=40), st.lists(st.sampled_from(["reported", "vanished"]), max_size=20))
def test_the_tail_of_a_killed_driver_is_settled_from_its_counter_file(
    seen: list[str], tail: list[str]
) -> None:
    stream, counts = InstanceStream(), StreamCounts(0)
    stream.open_account()
    play(stream, seen, counts)
    for fate in tail:
        counts.next_seq += 2
        if fate == "reported":
            counts.lost[Place.BUS, "out of credit"] = counts.lost.get((Place.BUS, "out of credit"), 0) + 2
    stream.settle(counts)
    account = stream.take_account()
    assert account is not None
    assert account.is_balanced
    assert account.produced == counts.next_seq
    assert account.dropped[Place.BUS, "out of credit"] == 2 * tail.count("reported")


def test_frames_that_were_settled_before_are_ignored_when_they_arrive_late() -> None:
    stream = InstanceStream()
    stream.open_account()
    stream.settle(StreamCounts(10))
    assert not stream.arrive(8, 2)
    assert stream.arrive(10, 2)


def test_a_torn_episode_books_what_was_not_on_disk_to_the_synchronizer() -> None:
    counts = StreamCounts(100, {(Place.DEVICE, "gap"): 12})
    account = settle_torn(20, Counter({(Place.DEVICE, "gap"): 4}), 60, counts)
    assert account.is_balanced
    assert account.dropped == {
        (Place.DEVICE, "gap"): 8,
        (Place.SYNCHRONIZER, "not yet on disk when the synchronizer died"): 12,
    }


def test_a_wrong_tally_shows() -> None:
    stream = InstanceStream()
    account = stream.open_account()
    stream.arrive(0, 5)
    account.recorded += 4
    assert not account.is_balanced
