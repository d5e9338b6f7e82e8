"""Long silences in a recording: a few messages stamped 0 before a drive make 53 years of it."""

import itertools
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from sensorium.sync.sources.source import Problem
from sensorium.timebase import SECOND_NS

LONGEST_WAIT_NS = 60 * SECOND_NS
"""A replay does not wait through a longer silence than this."""

_BUCKET_NS = 10 * SECOND_NS
_MAX_BUCKETS = 100_000
_NAMED = 3
_MANY = 10  # messages at one instant; fewer may be what a node latches when it starts
_CLOCK_BEGUN_NS = 788_918_400 * SECOND_NS  # 1995: no recorder's clock that was ever set shows less


class ArrivalGaps:
    """Takes arrivals in any order, and then names what lies between them."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[int]] = {}  # number: first, last, count
        self._is_full = False

    def take(self, arrival_ns: int) -> None:
        bucket = self._buckets.get(arrival_ns // _BUCKET_NS)
        if bucket is not None:
            bucket[2] += 1
            if arrival_ns < bucket[0]:
                bucket[0] = arrival_ns
            elif arrival_ns > bucket[1]:
                bucket[1] = arrival_ns
        elif len(self._buckets) < _MAX_BUCKETS:
            self._buckets[arrival_ns // _BUCKET_NS] = [arrival_ns, arrival_ns, 1]
        else:
            self._is_full = True

    def problems(self) -> Iterator[Problem]:
        """Yield the silences that a replay jumps over, the longest ones by name."""
        if self._is_full:
            return  # stamps all over the centuries: nothing that could be called a gap
        ordered = [self._buckets[number] for number in sorted(self._buckets)]
        if len(ordered) == 1 and ordered[0][0] == ordered[0][1] and ordered[0][2] >= _MANY:
            yield _one_instant(*ordered[0][1:])
        before, gaps = 0, []
        for one, following in itertools.pairwise(ordered):
            before += one[2]
            if following[0] - one[1] > LONGEST_WAIT_NS:
                gaps.append((following[0] - one[1], one[1], following[0], before))
        for silence_ns, last_ns, next_ns, count in sorted(gaps, reverse=True)[:_NAMED]:
            yield _problem(silence_ns, last_ns, next_ns, count)
        if len(gaps) > _NAMED:
            text = f"{len(gaps) - _NAMED} more silences of over a minute are jumped over by a replay"
            yield Problem("gap", "", len(gaps) - _NAMED, text)


def _problem(silence_ns: int, last_ns: int, next_ns: int, count: int) -> Problem:
    length = timedelta(seconds=silence_ns // SECOND_NS)
    if last_ns < _CLOCK_BEGUN_NS <= next_ns:
        text = (
            f"the first {count} messages are stamped {_date(last_ns)} or before, as by a clock that was not set yet; "
            f"their arrival is their only time, and a replay jumps over the {length.days} days to {_date(next_ns)}"
        )
        return Problem("bad_stamp", "", count, text)
    text = f"nothing arrived for {length} from {_date(last_ns)} to {_date(next_ns)}; a replay jumps over it"
    return Problem("gap", "", 1, text)


def _one_instant(arrival_ns: int, count: int) -> Problem:
    text = (
        f"all {count} messages bear one and the same arrival, {_date(arrival_ns)}, as where a converter lost it; "
        f"their order is kept, but rates and times of arrival mean nothing: convert the recording anew"
    )
    return Problem("bad_stamp", "", count, text)


def _date(utc_ns: int) -> str:
    return datetime.fromtimestamp(utc_ns // SECOND_NS, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
