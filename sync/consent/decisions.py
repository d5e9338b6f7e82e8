"""The pure decision over grants, what happened to them, and pauses.

Nothing personal is recorded, shown, exported or uploaded unless :func:`decide` says so, and it says no by
default. The rules:

* A stream that is not personal is allowed.
* A span of capture time is allowed for a purpose when at every instant of it a grant covers the stream,
  *every* subject whose grants reach that instant allows it (of two people in view the stricter decides), and
  no pause is on. The span is all of ``[t - u, t + u]``, of a capture time and its uncertainty.
* A withdrawn, revoked or expired grant is dead for good, also for what was captured before: its subject stays
  in view and now refuses. Only a new grant of the same subject speaks for him again.
* A grant for zones permits nothing of a stream of which nobody says where it was captured.
* A pause denies captures (purposes ``record`` and ``live``) from the press on until the resume that names it.
  What was captured before stays as it was, and during the pause nothing is.
* Every rule is a statement about a set of events, so neither their order nor a clock that runs backwards can
  turn a denial into permission.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sensorium.sync.consent.grants import (
    AFTER_ALL_NS,
    BEFORE_ALL_NS,
    ConsentGrant,
    ConsentLedger,
    ConsentStatus,
    ConsentStream,
    Purpose,
    format_utc,
)
from sensorium.sync.consent.pauses import LivePauses
from sensorium.sync.episode.personal import source_grants
from sensorium.timebase import SECOND_NS

DAY_NS = 86_400 * SECOND_NS
_CAPTURING = frozenset({Purpose.RECORD, Purpose.LIVE})
_SAID = {
    ConsentStatus.WITHDRAWN: "was withdrawn",
    ConsentStatus.REVOKED: "was revoked",
    ConsentStatus.EXPIRED: "has expired",
    ConsentStatus.REFUSED: "was refused",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer; ``rule`` is the reason's short name: ``granted``, ``no_grant``, ``paused`` ..."""

    is_allowed: bool
    rule: str
    reason: str
    grant_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConsentSpan:
    """A stretch of capture time (UTC ns, end exclusive) over which one decision holds."""

    from_ns: int
    until_ns: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class FrozenConsent:
    """A stream's consent as the manifest keeps it.

    Attributes:
        decision: For the whole span.
        purposes: Everything that the whole span may be used for.
        spans: The timeline for recording; together they cover the span. Only allowed ones hold data.
    """

    decision: Decision
    purposes: tuple[Purpose, ...]
    spans: tuple[ConsentSpan, ...]


NOT_PERSONAL = Decision(True, "not_personal", "the stream is not personal")


def decide(
    stream: ConsentStream,
    span_utc_ns: tuple[int, int],
    purpose: Purpose,
    now_utc_ns: int,
    ledger: ConsentLedger,
    redactions: frozenset[str] = frozenset(),
) -> Decision:
    """Return whether ``purpose`` is allowed for what ``stream`` captured in a span. Pure; denies by default.

    Args:
        span_utc_ns: First and last instant of capture time, both included, widened by the uncertainty.
        redactions: What the caller makes unrecognisable before it uses the data.
    """
    if stream.is_personal is False:
        return NOT_PERSONAL
    return _lookup(timeline(stream, purpose, now_utc_ns, ledger, redactions), *span_utc_ns)


def timeline(
    stream: ConsentStream,
    purpose: Purpose,
    now_utc_ns: int,
    ledger: ConsentLedger,
    redactions: frozenset[str] = frozenset(),
    utc_offsets_ns: tuple[int, int] = (0, 0),
) -> tuple[ConsentSpan, ...]:
    """Return the decision for every instant of capture time, as consecutive spans over all of int64.

    Args:
        utc_offsets_ns: Least and most that UTC may be ahead of the clock of the captures and pauses, which is
            UTC itself unless said otherwise. A grant must cover all of what an instant may be in UTC.
    """
    if stream.is_personal is False:
        return (ConsentSpan(BEFORE_ALL_NS, AFTER_ALL_NS, NOT_PERSONAL),)
    if ledger.fault:
        denial = Decision(False, "fault", f"the consent records cannot be trusted: {ledger.fault}")
        return (ConsentSpan(BEFORE_ALL_NS, AFTER_ALL_NS, denial),)
    unknown = ledger.unknown(source_grants(stream.details))
    if unknown:
        denial = Decision(False, "unknown_grant", unknown_grant(stream.name, unknown))
        return (ConsentSpan(BEFORE_ALL_NS, AFTER_ALL_NS, denial),)
    judge = _Judge(stream, purpose, now_utc_ns, ledger, redactions, utc_offsets_ns)
    edges = [BEFORE_ALL_NS, *sorted(judge.edges()), AFTER_ALL_NS]
    spans: list[ConsentSpan] = []
    for start, end in pairwise(edges):
        decision = judge.at(start)
        if spans and spans[-1].decision == decision:
            spans[-1] = ConsentSpan(spans[-1].from_ns, end, decision)
        else:
            spans.append(ConsentSpan(start, end, decision))
    return tuple(spans)


def unknown_grant(name: str, grant_id: str) -> str:
    """Say that a stream was recorded under a grant of another log, and how to go on."""
    return (
        f"{name} was recorded under grant {grant_id}, which the consent log here does not know: name the folder "
        f"of the log that does (--consent), or put the grant's file into the folder of this one and adopt it "
        "with `sensorium consent adopt`"
    )


def freeze(
    stream: ConsentStream, span_utc_ns: tuple[int, int], now_utc_ns: int, ledger: ConsentLedger
) -> FrozenConsent:
    """Return what the manifest says of a stream's consent over its span (both ends included)."""
    first, last = span_utc_ns
    spans = tuple(
        ConsentSpan(max(first, part.from_ns), min(last + 1, part.until_ns), part.decision)
        for part in timeline(stream, Purpose.RECORD, now_utc_ns, ledger)
        if part.from_ns <= last and part.until_ns > first
    )
    purposes = tuple(p for p in Purpose if decide(stream, span_utc_ns, p, now_utc_ns, ledger).is_allowed)
    return FrozenConsent(_lookup(spans, first, last), purposes, spans)


class _Judge:
    """Decides single instants for one stream, purpose and now."""

    def __init__(
        self,
        stream: ConsentStream,
        purpose: Purpose,
        now_utc_ns: int,
        ledger: ConsentLedger,
        redactions: frozenset[str],
        utc_offsets_ns: tuple[int, int],
    ) -> None:
        self._least_ns, self._most_ns = utc_offsets_ns
        self._stream = stream
        self._purpose = purpose
        self._now_ns = now_utc_ns
        self._ledger = ledger
        self._redactions = redactions
        self._pauses = [p for p in ledger.pauses if purpose in _CAPTURING and p.holds(stream)]
        self._grants = sorted(
            (grant for grant in ledger.grants if grant.scope.reaches(stream)), key=lambda grant: grant.id
        )
        self._objections = {grant.id: self._objection(grant) for grant in self._grants}
        self._kept_from_ns = {grant.id: self._kept_from(grant) for grant in self._grants}

    def edges(self) -> set[int]:
        """Return the instants at which the decision may change."""
        edges = {pause.from_ns for pause in self._pauses}
        edges |= {pause.until_ns for pause in self._pauses if pause.until_ns is not None}
        for grant in self._grants:
            edges |= {
                edge - offset_ns
                for edge in (grant.captured_from_ns, grant.captured_until_ns, self._kept_from_ns[grant.id])
                for offset_ns in (self._least_ns, self._most_ns)
            }
        return {edge for edge in edges if BEFORE_ALL_NS < edge < AFTER_ALL_NS}

    def at(self, instant_ns: int) -> Decision:
        for pause in self._pauses:
            if pause.from_ns <= instant_ns and (pause.until_ns is None or instant_ns < pause.until_ns):
                return Decision(False, "paused", f"paused, by the press {pause.id}")
        first_ns, last_ns = instant_ns + self._least_ns, instant_ns + self._most_ns
        present = [
            g for g in self._grants if g.captured_from_ns <= last_ns and first_ns < g.captured_until_ns
        ]
        if not present:
            return Decision(False, "no_grant", f"no grant covers stream {self._stream.name} at that time")
        granted: set[str] = set()
        denials: list[tuple[str, str]] = []
        for subject in sorted({grant.subject for grant in present}):
            objections = {
                g.id: self._objection_at(g, first_ns, last_ns) for g in present if g.subject == subject
            }
            live = {grant_id for grant_id, objection in objections.items() if objection is None}
            if live:
                granted |= live
            else:
                denials += [objection for objection in objections.values() if objection is not None]
        if denials:
            rule, reason = denials[0]
            return Decision(False, rule, reason)
        return Decision(True, "granted", f"granted by {', '.join(sorted(granted))}", tuple(sorted(granted)))

    def _objection_at(self, grant: ConsentGrant, first_ns: int, last_ns: int) -> tuple[str, str] | None:
        objection = self._objections[grant.id]
        if objection is None and not (
            grant.captured_from_ns <= first_ns and last_ns < grant.captured_until_ns
        ):
            return (
                "uncertain_time",
                f"the wall clock was set, so that the capture may lie outside of grant {grant.id}",
            )
        if objection is None and first_ns < self._kept_from_ns[grant.id]:
            days = grant.conditions.retain_days
            return (
                "retention",
                f"grant {grant.id} of {grant.subject} lets nothing be kept longer than {days} days",
            )
        return objection

    def _objection(self, grant: ConsentGrant) -> tuple[str, str] | None:
        """Return rule and sentence why a grant that is in scope permits nothing; None if it is live."""
        who = f"grant {grant.id} of {grant.subject}"
        status = self._ledger.status(grant, self._now_ns)
        if status is ConsentStatus.UNKNOWN:
            return "not_given", f"{who} was never entered in the log: adopt it with `sensorium consent adopt`"
        if status is ConsentStatus.INVALIDATED:
            return "altered", f"{who} was changed after it was given: restore the file or give a new grant"
        if not status.is_valid:
            return status.name.lower(), f"{who} {_SAID.get(status, f'is {status.value}')}"
        if self._now_ns < grant.valid_from:
            return "not_yet_valid", f"{who} is valid only from {format_utc(grant.valid_from)}"
        if self._purpose not in grant.purposes:
            return "purpose", f"{who} does not include the purpose {self._purpose.value}"
        if not grant.scope.is_located(self._stream):
            return "zone", (
                f"{who} is for {', '.join(grant.scope.zones)} alone, and nothing says where stream "
                f"{self._stream.name} was captured: name the zone of a fixed device in the rig file (zone:)"
            )
        missing = sorted(set(grant.conditions.redact) - self._redactions)
        if missing:
            return "redaction", f"{who} requires redaction of {', '.join(missing)}, which is not applied"
        return None

    def _kept_from(self, grant: ConsentGrant) -> int:
        if grant.conditions.retain_days is None:
            return BEFORE_ALL_NS
        return max(self._now_ns, self._ledger.seen_ns) - grant.conditions.retain_days * DAY_NS


def _lookup(spans: Sequence[ConsentSpan], first_ns: int, last_ns: int) -> Decision:
    """Return the decision over a closed span: a denial anywhere in it denies it all."""
    if not spans or not spans[0].from_ns <= first_ns <= last_ns < spans[-1].until_ns:
        return Decision(False, "no_span", f"{first_ns}..{last_ns} ns is not a span of capture time")
    start = bisect_right(spans, first_ns, key=_from_ns) - 1
    end = bisect_right(spans, last_ns, key=_from_ns)
    touched = [span.decision for span in spans[start:end]]
    if len(touched) == 1:
        return touched[0]
    for decision in touched:
        if not decision.is_allowed:
            return replace(decision, reason=f"part of the span is denied: {decision.reason}")
    ids = tuple(sorted({grant_id for decision in touched for grant_id in decision.grant_ids}))
    return Decision(True, "granted", f"granted by {', '.join(ids)}", ids)


def _from_ns(span: ConsentSpan) -> int:
    return span.from_ns


class StreamConsent:
    """The decision for one stream and purpose, fast enough to be asked for every frame.

    ``update`` is told the ledger and the time, at least every 20 ms while recording; it does nothing while
    neither brings a change.

    Args:
        now_utc_ns: True UTC, which decides whether grants are valid.
        capture_now_ns: Now on the clock of the capture times, where that is another: host time, or for a
            replay the latest recorded arrival, so that a pause takes hold of a replay too.
        boot: Start of the machine that the capture times count from, so that presses are compared on one clock.
        utc_offsets_ns: Least and most that UTC may be ahead of the capture times.
    """

    def __init__(
        self,
        ledger: ConsentLedger,
        stream: ConsentStream,
        purpose: Purpose,
        now_utc_ns: int,
        capture_now_ns: int | None = None,
        boot: str = "",
        utc_offsets_ns: tuple[int, int] = (0, 0),
    ) -> None:
        self._stream = stream
        self._purpose = purpose
        self._latest_ns = now_utc_ns
        self._pauses = LivePauses(boot)
        self._utc_offsets_ns = utc_offsets_ns
        self._ledger = ledger
        self._spans: tuple[ConsentSpan, ...] = ()
        self._current = ConsentSpan(0, 0, NOT_PERSONAL)
        self._next_change_ns = now_utc_ns
        self._rebuild(now_utc_ns, now_utc_ns if capture_now_ns is None else capture_now_ns)

    def update(
        self,
        ledger: ConsentLedger,
        now_utc_ns: int,
        capture_now_ns: int | None = None,
        utc_offsets_ns: tuple[int, int] = (0, 0),
    ) -> None:
        """Take a new ledger, the passing of time or a step of the wall clock into account."""
        self._latest_ns = max(self._latest_ns, now_utc_ns)
        is_changed = ledger is not self._ledger or utc_offsets_ns != self._utc_offsets_ns
        if is_changed or now_utc_ns >= self._next_change_ns:
            self._ledger = ledger
            self._utc_offsets_ns = utc_offsets_ns
            self._rebuild(now_utc_ns, now_utc_ns if capture_now_ns is None else capture_now_ns)

    def allows(self, capture_ns: int, uncertainty_ns: int) -> Decision:
        """Return the decision for a capture time and the half width of its uncertainty, nanoseconds."""
        first_ns = capture_ns - uncertainty_ns
        last_ns = capture_ns + uncertainty_ns
        current = self._current
        if current.from_ns <= first_ns <= last_ns < current.until_ns:
            return current.decision
        index = bisect_right(self._spans, last_ns, key=_from_ns) - 1
        self._current = self._spans[max(0, index)]
        return _lookup(self._spans, first_ns, last_ns)

    def _rebuild(self, now_utc_ns: int, capture_now_ns: int) -> None:
        ledger = replace(
            self._ledger,
            pauses=self._pauses.place(self._ledger.pauses, capture_now_ns, self._utc_offsets_ns),
            seen_ns=max(self._ledger.seen_ns, self._latest_ns),
        )
        self._spans = timeline(
            self._stream, self._purpose, now_utc_ns, ledger, utc_offsets_ns=self._utc_offsets_ns
        )
        self._current = self._spans[-1]
        edges = [edge for grant in ledger.grants for edge in (grant.valid_from, grant.valid_until)]
        self._next_change_ns = min((edge for edge in edges if edge > now_utc_ns), default=AFTER_ALL_NS)
