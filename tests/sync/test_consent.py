"""Consent: the decision's properties, the store's durability, and attempts to get around both."""

import json
import timeit
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.drivers.driver import CAPTURE_ZONE
from sensorium.drivers.frame import Column, Encoding, Modality, StreamInfo
from sensorium.errors import ConfigError, ConsentError
from sensorium.sync.consent.decisions import StreamConsent, decide, freeze, timeline
from sensorium.sync.consent.grants import (
    Conditions,
    ConsentEvent,
    ConsentGrant,
    ConsentLedger,
    ConsentStatus,
    EventKind,
    Evidence,
    LawfulBasis,
    PauseEvent,
    Purpose,
    Scope,
    format_utc,
    parse_utc,
)
from sensorium.sync.consent.store import ConsentStore, read_grant
from sensorium.timebase import SECOND_NS, VirtualClock

NOON = parse_utc("2026-03-01T12:00:00Z")
HOUR = 3600 * SECOND_NS
CAMERA = StreamInfo("cam_left", Modality.CAMERA, Encoding.JPEG, 30.0, "cam_left", is_personal=True)
IMU = StreamInfo(
    "imu", Modality.IMU, Encoding.COLUMNS, 100.0, "imu", columns=(Column("wx", "rad/s"),), is_sampled=True
)
BOTH_GATES = (Purpose.RECORD, Purpose.UPLOAD)


def make_grant(
    number: int = 0,
    subject: str = "sub:a",
    valid: tuple[int, int] = (NOON - HOUR, NOON + HOUR),
    captured: tuple[int | None, int | None] = (None, None),
    purposes: Sequence[Purpose] = BOTH_GATES,
    streams: tuple[str, ...] = ("cam*",),
    redact: tuple[str, ...] = (),
    retain_days: int | None = None,
    state: ConsentStatus = ConsentStatus.GIVEN,
    zones: tuple[str, ...] = (),
) -> ConsentGrant:
    return ConsentGrant(
        id=f"01J{number:023d}",
        subject=subject,
        controller="Lab, privacy@example.org",
        lawful_basis=LawfulBasis.EXPLICIT_CONSENT,
        purposes=tuple(purposes),
        scope=Scope(streams, (), *captured, zones=zones),
        valid_from=valid[0],
        valid_until=valid[1],
        evidence=Evidence("signature", by="operator:7"),
        conditions=Conditions(redact, retain_days),
        state=state,
    )


def ledger_of(
    *grants: ConsentGrant, extra: Sequence[ConsentEvent] = (), pauses: Sequence[PauseEvent] = ()
) -> ConsentLedger:
    given_ = [ConsentEvent(grant.id, EventKind.GIVEN, grant.valid_from, "", grant.digest) for grant in grants]
    return ConsentLedger(grants, (*given_, *extra), tuple(pauses))


# Small numbers make coincidences (equal ends, touching spans) frequent.
instants = st.integers(0, 30)


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, int]:
    first = draw(instants)
    return first, first + draw(st.integers(0, 10))


@st.composite
def grants(draw: st.DrawFn, number: int) -> ConsentGrant:
    start = draw(instants)
    captured_from = draw(st.none() | instants)
    return make_grant(
        number,
        subject=draw(st.sampled_from(["sub:a", "sub:b"])),
        valid=(start, start + draw(st.integers(1, 20))),
        captured=(
            captured_from,
            None if captured_from is None else captured_from + draw(st.integers(21, 50)),
        ),
        purposes=draw(st.lists(st.sampled_from(BOTH_GATES), min_size=1, max_size=2, unique=True)),
        streams=draw(st.sampled_from([("*",), ("cam*",), ("mic",)])),
        redact=draw(st.sampled_from([(), ("face",), ("voice",)])),
        state=draw(st.sampled_from([ConsentStatus.GIVEN, ConsentStatus.GIVEN, ConsentStatus.REFUSED])),
        zones=draw(st.sampled_from([(), (), ("hall",), ("hall", "yard")])),
    )


@st.composite
def endings(draw: st.DrawFn) -> ConsentEvent:
    kind = draw(st.sampled_from([EventKind.WITHDRAWN, EventKind.REVOKED, EventKind.EXPIRED]))
    return ConsentEvent(f"01J{draw(st.integers(0, 2)):023d}", kind, draw(instants))


@st.composite
def pauses(draw: st.DrawFn) -> PauseEvent:
    start = draw(instants)
    until = draw(st.none() | st.integers(start + 1, start + 15))
    return PauseEvent(str(draw(st.integers())), start, until, draw(st.sampled_from([("*",), ("mic",)])))


@st.composite
def ledgers(draw: st.DrawFn) -> ConsentLedger:
    chosen = [draw(grants(number)) for number in range(draw(st.integers(0, 3)))]
    return ledger_of(
        *chosen, extra=draw(st.lists(endings(), max_size=2)), pauses=draw(st.lists(pauses(), max_size=2))
    )


redactions = st.frozensets(st.sampled_from(["face", "voice"]))


class TestDecision:
    @given(spans(), instants, st.sampled_from(Purpose), redactions, ledgers())
    def test_without_a_live_grant_nothing_personal_is_allowed(
        self,
        span: tuple[int, int],
        now: int,
        purpose: Purpose,
        redacted: frozenset[str],
        ledger: ConsentLedger,
    ) -> None:
        live = [
            grant
            for grant in ledger.grants
            if ledger.status(grant, now).is_valid and purpose in grant.purposes and grant.valid_from <= now
        ]
        decision = decide(CAMERA, span, purpose, now, ledger, redacted)
        if decision.is_allowed:
            assert set(decision.grant_ids) <= {grant.id for grant in live}
            assert decision.grant_ids
        if not live:
            assert not decision.is_allowed

    @given(spans(), instants, ledgers(), endings())
    def test_adding_a_withdrawal_never_allows_what_was_denied(
        self, span: tuple[int, int], now: int, ledger: ConsentLedger, event: ConsentEvent
    ) -> None:
        before = decide(CAMERA, span, Purpose.RECORD, now, ledger)
        after = decide(CAMERA, span, Purpose.RECORD, now, replace(ledger, events=(*ledger.events, event)))
        assert before.is_allowed or not after.is_allowed

    @given(spans(), instants, ledgers(), pauses())
    def test_adding_a_pause_never_allows_what_was_denied(
        self, span: tuple[int, int], now: int, ledger: ConsentLedger, pause: PauseEvent
    ) -> None:
        before = decide(CAMERA, span, Purpose.RECORD, now, ledger)
        after = decide(CAMERA, span, Purpose.RECORD, now, replace(ledger, pauses=(*ledger.pauses, pause)))
        assert before.is_allowed or not after.is_allowed

    @given(spans(), st.data(), instants, ledgers())
    def test_a_span_is_allowed_exactly_when_both_of_its_parts_are(
        self, span: tuple[int, int], data: st.DataObject, now: int, ledger: ConsentLedger
    ) -> None:
        cut = data.draw(st.integers(*span))
        whole = decide(CAMERA, span, Purpose.RECORD, now, ledger)
        parts = [
            decide(CAMERA, part, Purpose.RECORD, now, ledger) for part in ((span[0], cut), (cut, span[1]))
        ]
        assert whole.is_allowed == all(part.is_allowed for part in parts)
        if whole.is_allowed:
            assert set(whole.grant_ids) == {grant_id for part in parts for grant_id in part.grant_ids}

    @given(instants, instants, ledgers(), st.tuples(st.integers(-5, 5), st.integers(0, 10)))
    def test_a_clock_that_is_in_doubt_never_allows_what_was_denied(
        self, instant: int, now: int, ledger: ConsentLedger, doubt: tuple[int, int]
    ) -> None:
        """Whatever UTC is allowed to be in the doubtful case, each reading alone allows it too."""
        least, most = doubt[0], doubt[0] + doubt[1]

        def allows(offsets: tuple[int, int]) -> bool:
            parts = timeline(CAMERA, Purpose.UPLOAD, now, ledger, utc_offsets_ns=offsets)
            return next(part for part in parts if instant < part.until_ns).decision.is_allowed

        if allows((least, most)):
            assert all(allows((reading, reading)) for reading in range(least, most + 1))

    @given(spans(), instants, ledgers(), st.randoms(use_true_random=False))
    def test_the_order_of_grants_events_and_pauses_does_not_matter(
        self, span: tuple[int, int], now: int, ledger: ConsentLedger, random: object
    ) -> None:
        shuffled = ConsentLedger(
            tuple(random.sample(ledger.grants, len(ledger.grants))),  # type: ignore[attr-defined]
            tuple(random.sample(ledger.events, len(ledger.events))),  # type: ignore[attr-defined]
            tuple(random.sample(ledger.pauses, len(ledger.pauses))),  # type: ignore[attr-defined]
        )
        first = decide(CAMERA, span, Purpose.RECORD, now, ledger)
        second = decide(CAMERA, span, Purpose.RECORD, now, shuffled)
        assert (first.is_allowed, first.grant_ids) == (second.is_allowed, second.grant_ids)

    @given(spans(), instants, st.sampled_from(BOTH_GATES), redactions, grants(0), grants(1))
    def test_with_two_subjects_in_view_the_stricter_one_decides(
        self,
        span: tuple[int, int],
        now: int,
        purpose: Purpose,
        redacted: frozenset[str],
        one: ConsentGrant,
        other: ConsentGrant,
    ) -> None:
        one = replace(one, subject="sub:a", scope=Scope(("*",), (), 0, 100))
        other = replace(other, subject="sub:b", scope=Scope(("*",), (), 0, 100))
        alone = [
            decide(CAMERA, span, purpose, now, ledger_of(grant), redacted).is_allowed
            for grant in (one, other)
        ]
        together = decide(CAMERA, span, purpose, now, ledger_of(one, other), redacted).is_allowed
        assert together == all(alone)

    @given(st.lists(instants, min_size=2, max_size=2).map(sorted), instants, ledgers())
    def test_withdrawal_is_absorbing(self, nows: list[int], at: int, ledger: ConsentLedger) -> None:
        """Whatever the grants say, once all are withdrawn no later (or earlier) clock allows anything."""
        ended = [ConsentEvent(grant.id, EventKind.WITHDRAWN, at) for grant in ledger.grants]
        dead = replace(ledger, events=(*ledger.events, *ended))
        assert not any(
            decide(CAMERA, (t, t), Purpose.RECORD, now, dead).is_allowed for now in nows for t in nows
        )

    @given(spans(), st.integers(0, 5), st.integers(0, 5), instants, ledgers())
    def test_an_uncertainty_that_grows_never_allows_what_was_denied(
        self, span: tuple[int, int], earlier: int, later: int, now: int, ledger: ConsentLedger
    ) -> None:
        sure = decide(CAMERA, span, Purpose.RECORD, now, ledger)
        unsure = decide(CAMERA, (span[0] - earlier, span[1] + later), Purpose.RECORD, now, ledger)
        assert sure.is_allowed or not unsure.is_allowed

    @given(spans(), instants, st.integers(0, 60), ledgers())
    def test_a_clock_that_was_set_back_revives_nothing(
        self, span: tuple[int, int], now: int, seen: int, ledger: ConsentLedger
    ) -> None:
        """Whatever is allowed rests on grants that were not over by the latest time that the log has seen."""
        decision = decide(CAMERA, span, Purpose.UPLOAD, now, replace(ledger, seen_ns=seen))
        used = [grant for grant in ledger.grants if grant.id in decision.grant_ids]
        assert all(grant.valid_until > max(now, seen) for grant in used)
        assert not decision.is_allowed or decide(CAMERA, span, Purpose.UPLOAD, now, ledger).is_allowed

    @given(spans(), instants, ledgers(), st.sampled_from(["", "hall", "yard", "attic"]))
    def test_a_zone_permits_only_what_is_known_to_be_captured_there(
        self, span: tuple[int, int], now: int, ledger: ConsentLedger, zone: str
    ) -> None:
        camera = replace(CAMERA, details={CAPTURE_ZONE: zone} if zone else {})
        decision = decide(camera, span, Purpose.RECORD, now, ledger)
        used = [grant for grant in ledger.grants if grant.id in decision.grant_ids]
        assert all(not grant.scope.zones or zone in grant.scope.zones for grant in used)
        if not zone:  # not known: whoever could be in view is, as if he stood there
            everywhere = [
                decide(replace(CAMERA, details={CAPTURE_ZONE: each}), span, Purpose.RECORD, now, ledger)
                for each in ("hall", "yard", "attic")
            ]
            assert not decision.is_allowed or all(each.is_allowed for each in everywhere)

    def test_a_zone_that_nobody_can_locate_is_denied_with_the_reason(self) -> None:
        ledger = ledger_of(make_grant(zones=("hall2",)))
        decision = decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, ledger)
        assert decision.rule == "zone"
        assert "nothing says where stream cam_left was captured" in decision.reason
        there = replace(CAMERA, details={CAPTURE_ZONE: "hall2"})
        assert decide(there, (NOON, NOON), Purpose.RECORD, NOON, ledger).is_allowed
        elsewhere = replace(CAMERA, details={CAPTURE_ZONE: "hall3"})
        assert decide(elsewhere, (NOON, NOON), Purpose.RECORD, NOON, ledger).rule == "no_grant"

    @pytest.mark.parametrize("zone", ["", " ", "hall 2", "../hall", "a" * 65, "hall\n"])
    def test_a_name_that_is_no_zone_is_refused(self, zone: str) -> None:
        with pytest.raises(ValueError, match="zone"):
            make_grant(zones=(zone,))

    def test_a_stream_that_is_not_personal_needs_no_grant(self) -> None:
        decision = decide(IMU, (NOON, NOON), Purpose.UPLOAD, NOON, ConsentLedger())
        assert (decision.is_allowed, decision.rule) == (True, "not_personal")

    def test_a_stream_info_is_judged_by_its_own_flag(self) -> None:
        info = StreamInfo("cam_left", Modality.CAMERA, Encoding.JPEG, 30.0, "cam", is_personal=True)
        assert decide(info, (NOON, NOON), Purpose.RECORD, NOON, ConsentLedger()).rule == "no_grant"
        assert decide(info, (NOON, NOON), Purpose.RECORD, NOON, ledger_of(make_grant())).is_allowed

    def test_the_uncertainty_must_lie_inside_the_grant_too(self) -> None:
        ledger = ledger_of(make_grant(valid=(NOON, NOON + HOUR)))
        consent = StreamConsent(ledger, CAMERA, Purpose.RECORD, NOON + 1)
        assert not consent.allows(NOON + 100, 101).is_allowed
        assert consent.allows(NOON + 100, 100).is_allowed
        assert not consent.allows(NOON + HOUR - 100, 100).is_allowed

    def test_touching_grants_cover_the_seam(self) -> None:
        seam = NOON + HOUR
        ledger = ledger_of(make_grant(0, captured=(NOON, seam)), make_grant(1, captured=(seam, seam + HOUR)))
        decision = decide(CAMERA, (seam - 5, seam + 5), Purpose.RECORD, NOON, ledger)
        assert decision.is_allowed
        assert len(decision.grant_ids) == 2

    def test_a_grant_for_the_past_covers_only_the_past(self) -> None:
        last_year = parse_utc("2025-03-01T12:00:00Z")
        ledger = ledger_of(make_grant(captured=(last_year, last_year + HOUR)))
        assert decide(CAMERA, (last_year, last_year + 1), Purpose.UPLOAD, NOON, ledger).is_allowed
        assert not decide(CAMERA, (NOON, NOON), Purpose.UPLOAD, NOON, ledger).is_allowed

    def test_an_expired_grant_permits_nothing_also_for_what_it_covered(self) -> None:
        ledger = ledger_of(make_grant())
        captured = (NOON, NOON + 1)
        assert decide(CAMERA, captured, Purpose.UPLOAD, NOON + HOUR - 1, ledger).is_allowed
        assert decide(CAMERA, captured, Purpose.UPLOAD, NOON + HOUR, ledger).rule == "expired"

    def test_a_clock_behind_the_log_does_not_revive_an_expired_grant(self) -> None:
        ledger = replace(ledger_of(make_grant()), seen_ns=NOON + 2 * HOUR)
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, ledger).rule == "expired"

    def test_a_new_grant_does_not_speak_for_the_time_of_a_withdrawn_one(self) -> None:
        withdrawn = make_grant(0, captured=(NOON, NOON + 100))
        renewed = make_grant(1, captured=(NOON + 50, NOON + 200), state=ConsentStatus.RENEWED)
        ledger = ledger_of(
            withdrawn, renewed, extra=[ConsentEvent(withdrawn.id, EventKind.WITHDRAWN, NOON + 60)]
        )
        assert decide(CAMERA, (NOON, NOON + 40), Purpose.UPLOAD, NOON + 300, ledger).rule == "withdrawn"
        assert decide(CAMERA, (NOON + 50, NOON + 150), Purpose.UPLOAD, NOON + 300, ledger).is_allowed

    def test_a_grant_that_asks_for_redaction_permits_nothing_unredacted(self) -> None:
        ledger = ledger_of(make_grant(redact=("face",)))
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, ledger).rule == "redaction"
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, ledger, frozenset({"face"})).is_allowed

    def test_what_is_older_than_the_retention_is_denied(self) -> None:
        day = 24 * HOUR
        ledger = ledger_of(make_grant(valid=(NOON, NOON + 90 * day), retain_days=30))
        assert decide(CAMERA, (NOON + day, NOON + day), Purpose.UPLOAD, NOON + 31 * day, ledger).is_allowed
        assert decide(CAMERA, (NOON, NOON), Purpose.UPLOAD, NOON + 31 * day, ledger).rule == "retention"

    def test_what_was_captured_around_a_pause_may_still_be_uploaded(self) -> None:
        ledger = ledger_of(make_grant(), pauses=[PauseEvent("p", NOON + 100, NOON + 200)])
        assert decide(CAMERA, (NOON, NOON + 300), Purpose.UPLOAD, NOON + 400, ledger).is_allowed
        assert decide(CAMERA, (NOON, NOON + 300), Purpose.RECORD, NOON + 400, ledger).rule == "paused"

    def test_a_reversed_span_is_denied(self) -> None:
        assert not decide(CAMERA, (NOON + 1, NOON), Purpose.RECORD, NOON, ledger_of(make_grant())).is_allowed

    def test_the_frozen_timeline_shows_the_pause_and_covers_the_span(self) -> None:
        pause = PauseEvent("p", NOON + 100, NOON + 200)
        frozen = freeze(CAMERA, (NOON, NOON + 300), NOON + 400, ledger_of(make_grant(), pauses=[pause]))
        assert [(span.from_ns - NOON, span.until_ns - NOON) for span in frozen.spans] == [
            (0, 100),
            (100, 200),
            (200, 301),
        ]
        assert [span.decision.rule for span in frozen.spans] == ["granted", "paused", "granted"]
        assert not frozen.decision.is_allowed
        assert frozen.purposes == (Purpose.UPLOAD,)


class TestStreamConsent:
    @given(st.lists(st.tuples(instants, st.integers(0, 5)), max_size=20), instants, ledgers())
    def test_the_fast_path_gives_the_same_answers(
        self, frames: list[tuple[int, int]], now: int, ledger: ConsentLedger
    ) -> None:
        # A pause that is on holds from when it was first seen, so only presses that lie behind compare.
        ledger = replace(ledger, pauses=tuple(p for p in ledger.pauses if not p.is_on or p.from_ns <= now))
        consent = StreamConsent(ledger, CAMERA, Purpose.RECORD, now)
        for capture, uncertainty in frames:
            span = (capture - uncertainty, capture + uncertainty)
            assert consent.allows(capture, uncertainty) == decide(CAMERA, span, Purpose.RECORD, now, ledger)

    def test_a_pause_denies_from_the_press_on_and_nothing_before(self) -> None:
        ledger = ledger_of(make_grant())
        consent = StreamConsent(ledger, CAMERA, Purpose.RECORD, NOON)
        press = NOON + 1000
        paused = replace(ledger, pauses=(PauseEvent("p", press),))
        consent.update(paused, press + 20)
        assert consent.allows(press - 11, 10).is_allowed
        assert not consent.allows(press - 10, 10).is_allowed
        assert not consent.allows(press + HOUR // 2, 0).is_allowed

    def test_a_press_stamped_in_the_future_holds_from_when_it_was_seen(self) -> None:
        ledger = ledger_of(make_grant())
        consent = StreamConsent(ledger, CAMERA, Purpose.RECORD, NOON)
        paused = replace(ledger, pauses=(PauseEvent("p", NOON + HOUR // 2),))
        consent.update(paused, NOON + 10)
        consent.update(replace(paused), NOON + 20)
        assert not consent.allows(NOON + 15, 0).is_allowed

    def test_a_pause_takes_hold_of_a_replay(self) -> None:
        then = parse_utc("2014-03-01T12:00:00Z")
        ledger = ledger_of(make_grant(captured=(then, then + HOUR)))
        consent = StreamConsent(ledger, CAMERA, Purpose.RECORD, NOON, then)
        assert consent.allows(then + 5, 0).is_allowed
        consent.update(replace(ledger, pauses=(PauseEvent("p", NOON + 10),)), NOON + 20, then + 10)
        assert consent.allows(then + 9, 0).is_allowed
        assert not consent.allows(then + 10, 0).is_allowed
        resumed = replace(ledger, pauses=(PauseEvent("p", NOON + 10, NOON + 30),))
        consent.update(resumed, NOON + 30, then + 20)
        assert not consent.allows(then + 15, 0).is_allowed
        assert consent.allows(then + 20, 0).is_allowed

    def test_the_end_of_validity_takes_effect_while_recording(self) -> None:
        ledger = ledger_of(make_grant(captured=(NOON, NOON + 9 * HOUR)))
        consent = StreamConsent(ledger, CAMERA, Purpose.RECORD, NOON)
        consent.update(ledger, NOON + HOUR - 1)
        assert consent.allows(NOON + HOUR - 1, 0).is_allowed
        consent.update(ledger, NOON + HOUR)
        assert consent.allows(NOON + HOUR, 0).rule == "expired"

    def test_a_decision_costs_less_than_five_microseconds(self) -> None:
        many = [make_grant(n, subject=f"sub:{n}", captured=(NOON, NOON + HOUR)) for n in range(20)]
        consent = StreamConsent(ledger_of(*many), CAMERA, Purpose.RECORD, NOON)
        seconds = min(timeit.repeat(lambda: consent.allows(NOON + 5000, 100), number=10_000, repeat=5))
        assert seconds / 10_000 < 5e-6


class TestStore:
    def store(self, folder: Path, clock: VirtualClock | None = None) -> ConsentStore:
        return ConsentStore(folder / "consent", clock or VirtualClock(NOON))

    def test_a_grant_survives_the_way_to_disk_and_back(self, tmp_path: Path) -> None:
        grant = make_grant(retain_days=30, captured=(NOON + 1, NOON + 2))
        self.store(tmp_path).grant(grant)
        again = self.store(tmp_path).ledger()
        assert again.grants == (grant,)
        assert decide(CAMERA, (NOON + 1, NOON + 1), Purpose.RECORD, NOON, again).is_allowed

    def test_a_withdrawal_is_known_to_every_other_process(self, tmp_path: Path) -> None:
        grant = self.store(tmp_path).grant(make_grant())
        other = self.store(tmp_path)
        before = other.poll()
        assert other.poll() is before
        self.store(tmp_path).withdraw(grant.id)
        assert decide(CAMERA, (NOON, NOON), Purpose.UPLOAD, NOON, other.poll()).rule == "withdrawn"

    def test_withdrawing_a_subject_ends_all_its_grants(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        for number, subject in enumerate(["sub:a", "sub:b", "sub:a"]):
            store.grant(make_grant(number, subject=subject))
        assert len(store.withdraw_subject("sub:a")) == 2
        assert store.withdraw_subject("sub:a") == ()

    def test_withdrawing_an_unknown_grant_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConsentError, match="no grant"):
            self.store(tmp_path).withdraw(make_grant().id)

    def test_a_grant_is_never_rewritten(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.grant(make_grant())
        with pytest.raises(ConsentError, match="exists already"):
            store.grant(make_grant(subject="sub:z"))

    def test_a_pause_survives_a_restart_and_ends_with_resume(self, tmp_path: Path) -> None:
        clock = VirtualClock(NOON)
        self.store(tmp_path, clock).grant(make_grant())
        self.store(tmp_path, clock).pause()
        clock.advance(50)
        restarted = self.store(tmp_path, clock)
        assert restarted.poll().is_paused
        assert not decide(
            CAMERA, (NOON + 50, NOON + 50), Purpose.RECORD, NOON + 50, restarted.poll()
        ).is_allowed
        assert len(restarted.resume()) == 1
        assert restarted.resume() == ()
        ledger = restarted.poll()
        assert decide(CAMERA, (NOON + 49, NOON + 49), Purpose.RECORD, NOON + 99, ledger).rule == "paused"
        assert decide(CAMERA, (NOON + 50, NOON + 99), Purpose.RECORD, NOON + 99, ledger).is_allowed

    def test_a_clock_set_back_between_pauses_leaves_the_last_one_on(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.pause(NOON)
        store.grant(make_grant())
        store.resume(NOON - HOUR)
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, store.ledger()).rule == "paused"
        store.pause(NOON - HOUR)
        assert store.ledger().is_paused

    def test_an_expired_grant_stays_expired_when_the_clock_is_set_back_after_a_restart(
        self, tmp_path: Path
    ) -> None:
        self.store(tmp_path).grant(make_grant())
        self.store(tmp_path).poll(NOON + HOUR)
        after_restart = self.store(tmp_path).poll(NOON)
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, after_restart).rule == "expired"

    def test_expiry_is_entered_once(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.grant(make_grant())
        first = store.poll(NOON + HOUR)
        assert store.poll(NOON + 2 * HOUR) is first

    def test_a_grant_file_edited_after_it_was_given_permits_nothing(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        grant = store.grant(make_grant(purposes=[Purpose.RECORD]))
        path = store.folder / f"{grant.id}.yaml"
        path.write_text(path.read_text().replace("- record", "- record\n- upload"))
        decision = decide(CAMERA, (NOON, NOON), Purpose.UPLOAD, NOON, store.poll())
        assert decision.rule == "fault"
        assert grant.id in decision.reason

    def test_a_grant_file_put_into_the_folder_counts_once_adopted(self, tmp_path: Path) -> None:
        source = self.store(tmp_path / "elsewhere")
        grant = source.grant(make_grant())
        store = self.store(tmp_path)
        store.folder.mkdir()
        (store.folder / "anna.yaml").write_bytes((source.folder / f"{grant.id}.yaml").read_bytes())
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, store.poll()).rule == "not_given"
        assert store.adopt(by="operator:7") == (grant.id,)
        assert store.adopt() == ()
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, store.poll()).is_allowed

    def test_a_removed_withdrawal_row_is_noticed_and_denies_everything(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        grant = store.grant(make_grant())
        store.withdraw(grant.id)
        store.pause()
        log = store.folder / "events.jsonl"
        rows = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(rows[0] + rows[2])
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, store.poll()).rule == "fault"
        with pytest.raises(ConfigError, match="row 2"):
            store.ledger()

    def test_a_row_that_a_crash_cut_off_is_left_out_and_written_over(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        grant = store.grant(make_grant())
        log = store.folder / "events.jsonl"
        log.write_bytes(log.read_bytes() + b'{"v":1,"kind":"pau')
        assert not store.poll().is_paused
        store.withdraw(grant.id)
        rows = [json.loads(line) for line in log.read_bytes().splitlines()]
        assert [row["kind"] for row in rows] == ["given", "withdrawn"]
        assert not decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, store.poll()).is_allowed

    def test_two_processes_that_append_keep_one_chain(self, tmp_path: Path) -> None:
        stores = [self.store(tmp_path), self.store(tmp_path)]
        for number in range(6):
            stores[number % 2].grant(make_grant(number))
        assert len(self.store(tmp_path).ledger().events) == 6

    def test_a_broken_grant_file_denies_instead_of_raising_while_running(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.grant(make_grant())
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, store.poll()).is_allowed
        broken = store.folder / "broken.yaml"
        broken.write_text("purposes: [record")
        faulty = store.poll()
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, faulty).rule == "fault"
        assert decide(IMU, (NOON, NOON), Purpose.RECORD, NOON, faulty).is_allowed
        assert store.poll() is faulty
        broken.unlink()
        assert decide(CAMERA, (NOON, NOON), Purpose.RECORD, NOON, store.poll()).is_allowed

    def test_the_folder_is_private(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        store.grant(make_grant())
        assert all(path.stat().st_mode & 0o077 == 0 for path in [store.folder, *store.folder.iterdir()])


GRANT_FILE = """
id: 01J00000000000000000000000
subject: "sub:a"
controller: Lab, privacy@example.org
lawful_basis: consent
purposes: [record, "ai:train"]
scope: {streams: ["cam*"], modalities: [camera]}
valid_from: 2026-03-01T11:00:00Z
valid_until: 2026-03-01T14:00:00.000000001+01:00
evidence: {method: paper}
"""


class TestGrantFile:
    def write(self, folder: Path, text: str) -> Path:
        path = folder / "grant.yaml"
        path.write_text(text)
        return path

    def test_a_hand_written_file_is_read(self, tmp_path: Path) -> None:
        grant = read_grant(self.write(tmp_path, GRANT_FILE))
        assert grant.valid_until == NOON + HOUR + 1
        assert grant.purposes == (Purpose.RECORD, Purpose.AI_TRAIN)

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("purposes:", "purpose:", r"purpose: unknown key; did you mean 'purposes'"),
            ("modalities", "modalitys", r"scope\.modalitys: unknown key; did you mean 'modalities'"),
            ("ai:train", "ai:trian", r"purposes\.1: .*'ai:train'"),
            ("2026-03-01T11:00:00Z", "2026-03-01T11:00:00", r"valid_from: .*the zone is needed"),
            ("2026-03-01T11:00:00Z", "2027-03-01T11:00:00Z", r"ends before it begins"),
            ("sub:a", "Anna Smith", r"subject 'Anna Smith' must look like"),
            ("consent\n", "consent\nlawful_basis: contract\n", r"'lawful_basis' stands twice"),
            ("id: 01J", "id: 91J", r"not a ULID"),
            ("[record, ", "[record, ", None),
            ('subject: "sub:a"\n', "", r"subject: .*required"),
            (GRANT_FILE, "[]", r"a grant is a mapping, found list"),
        ],
    )
    def test_a_mistake_is_named_with_file_and_key(
        self, tmp_path: Path, old: str, new: str, said: str | None
    ) -> None:
        path = self.write(tmp_path, GRANT_FILE.replace(old, new))
        if said is None:
            assert read_grant(path).subject == "sub:a"
            return
        with pytest.raises(ConfigError, match=rf"grant\.yaml: .*{said}"):
            read_grant(path)


@given(st.integers(-(1 << 62), (1 << 62)))
def test_times_survive_the_way_through_text(utc_ns: int) -> None:
    assert parse_utc(format_utc(utc_ns)) == utc_ns
