"""What to do about the clocks of an episode: each verdict that is not ok, worst first, with the next step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sensorium.sync.align import Match
from sensorium.verdict import Status, Verdict

_ORDER = {Status.FAILED: 0, Status.SUSPECT: 1, Status.INSUFFICIENT: 2, Status.OK: 3}
_DELAY = (
    "measure how late the later sensor is (data sheet: filter or processing delay) and give it with --filter-delay "
    "NAME=MS; if it has none, one of the two clocks claims too much: look at its driver's options"
)
_MORE = (
    "show the sensors more: turn the rig for ten seconds, clap, or switch a lamp in view, and record again"
)
_CLOCKS = "look at the clock before the next recording: `sensorium sync clocks RIG.yaml`"
_TRIGGERS = (
    "compare `triggers:` in the rig file (delay_us, late_ms, exposure_us) with the camera's data sheet"
)
_BROKEN = "this must not be: keep the episode, and report it with the output of `sensorium episodes verify`"
_STARVED = 0.9
"""A stream that answers fewer ticks than this is worth a word."""


def by_weight(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return verdicts with the worst first, else as they came."""
    return sorted(verdicts, key=lambda verdict: _ORDER[verdict.status])


def what_to_do(verdicts: Iterable[Verdict], alignment: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each thing that somebody can do; worst first, none where all is well.

    Args:
        alignment: By stream: ``outcomes``, the number of ticks by what became of them.
    """
    told = [
        f"{each.status.value}: {each.subject}: {reason}; {_step(each)}"
        for each in by_weight(verdicts)
        if each.status is not Status.OK
        for reason in each.reasons
    ]
    return [*told, *filter(None, (_starved(name, pair["outcomes"]) for name, pair in alignment.items()))]


def _step(verdict: Verdict) -> str:
    if verdict.check.startswith("content_"):
        return _MORE if verdict.status is Status.INSUFFICIENT else _DELAY
    if verdict.check == "stamps":
        return _BROKEN
    return _TRIGGERS if "trigger" in verdict.check else _CLOCKS


def _starved(name: str, outcomes: Mapping[str, int]) -> str:
    matched, ticks = outcomes.get("matched", 0), sum(outcomes.values())
    others = {why: count for why, count in outcomes.items() if why != "matched"}
    if not others or matched >= _STARVED * ticks:
        return ""
    why = max(others, key=lambda reason: others[reason])
    if why == Match.NEARER_TO_ANOTHER.value:
        return ""  # it is slower than the reference: each of its samples answers one tick
    return f"{name} answers {matched} of {ticks} ticks, the others mostly for: {why}; {_for(why)}"


def _for(why: str) -> str:
    steps: Sequence[tuple[str, str]] = (
        ("tolerance", "raise `episode: {tolerance_ms}` in the rig file, or trigger both sensors"),
        ("silent", "look at its drops and its driver's events, the stream stopped there"),
    )
    return next((step for word, step in steps if word in why), "look at its drops and its latency")
