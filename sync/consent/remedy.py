"""The command that would allow what consent forbids; every refusal of an upload or an export names it.

A command is named only if the decision, asked again with the grant that it would enter, allows the use. Who withdrew,
or was never asked, is not spoken for: the command says whose agreement it enters, and after a withdrawal there is none.
"""

import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sensorium.sync.consent.decisions import decide
from sensorium.sync.consent.gate import span_utc_ns
from sensorium.sync.consent.grants import (
    ConsentEvent,
    ConsentGrant,
    ConsentLedger,
    ConsentStatus,
    ConsentStream,
    EventKind,
    Evidence,
    LawfulBasis,
    Purpose,
    Scope,
)
from sensorium.sync.consent.use import LedgerRights, denials
from sensorium.sync.episode.manifest import Manifest, StreamRecord
from sensorium.timebase import SECOND_NS

_DAY_NS = 86_400 * SECOND_NS
_HYPOTHETICAL = "0" * 26
_SAID_NO = frozenset({ConsentStatus.WITHDRAWN, ConsentStatus.REVOKED, ConsentStatus.REFUSED})
_CURED_BY_A_GRANT = frozenset(
    {"no_grant", "purpose", "expired", "not_yet_valid", "retention", "uncertain_time"}
)


@dataclass(frozen=True, slots=True)
class GrantFolder:
    """Where grants for a spool are entered; ``consent`` is None for the spool's own folder."""

    spool: Path
    consent: Path | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        found = ("--spool", str(self.spool))
        if self.consent is None or self.consent.resolve() == (self.spool / "consent").resolve():
            return found
        return (*found, "--consent", str(self.consent))


def grant_command(
    subject: str,
    purposes: Iterable[Purpose],
    folder: GrantFolder,
    streams: Sequence[str] = (),
    episode: str = "",
) -> str:
    """Return a command that enters a grant, ready to be pasted into a shell.

    Args:
        streams: Names; none = every stream.
        episode: For captures of this episode; "" = for those from now on.
    """
    words = ["sensorium", "consent", "grant", subject]
    words += ["--for", episode] if episode else []
    words += [word for purpose in purposes for word in ("--purpose", purpose.value)]
    words += [word for name in streams for word in ("--stream", name)]
    return shlex.join([*words, *folder.arguments])


def site_subject(rig: str) -> str:
    """Return the pseudonym of everybody at a rig's site, for a grant of which no subject is known yet."""
    return f"site:{re.sub(r'[^A-Za-z0-9_.-]+', '-', rig).strip('-')[:64] or 'here'}"


def captured_utc_ns(manifest: Manifest) -> tuple[int, int]:
    """Return from when until when (exclusive) the personal streams of an episode captured, clock errors included."""
    spans = [span_utc_ns(manifest, record) for record in manifest.streams if record.info.is_personal]
    spans = spans or [(manifest.start_utc_ns, manifest.end_utc_ns)]
    return min(first for first, _ in spans), max(last for _, last in spans) + 1


def how_to_allow(
    manifest: Manifest,
    ledger: ConsentLedger,
    purpose: Purpose,
    now_utc_ns: int,
    folder: GrantFolder,
    streams: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Return a sentence with a command for each subject whose grant would allow what is denied now.

    () where nothing is denied, or no grant could help.
    """
    denied = denials(LedgerRights(manifest, ledger), manifest, purpose, now_utc_ns, streams)
    records = [
        record
        for record in manifest.streams
        if record.info.name in denied and denied[record.info.name].rule in _CURED_BY_A_GRANT
    ]
    wanted: dict[str, list[str]] = {}
    for record in records:
        for subject in _subjects(manifest, record, ledger, purpose, now_utc_ns):
            wanted.setdefault(subject, []).append(record.info.name)
    if not _would_help(manifest, ledger, purpose, now_utc_ns, wanted):
        return ()
    personal = {record.info.name for record in manifest.streams if record.info.is_personal}
    return tuple(
        f"if {subject} agrees: "
        f"`{grant_command(subject, [purpose], folder, () if set(names) == personal else names, manifest.episode_id)}`"
        for subject, names in wanted.items()
    )


def how_to_record(
    streams: Iterable[ConsentStream], ledger: ConsentLedger, now_utc_ns: int, folder: GrantFolder, rig: str
) -> tuple[str, ...]:
    """Return a sentence with a command for each subject whose grant would let the streams be recorded from now on.

    Args:
        rig: Whose site is named where nobody ever granted anything for a stream.
    """
    wanted: dict[str, list[str]] = {}
    for stream in streams:
        decision = decide(stream, (now_utc_ns, now_utc_ns), Purpose.RECORD, now_utc_ns, ledger)
        if not decision.is_allowed and decision.rule in _CURED_BY_A_GRANT:
            for subject in _subjects_now(stream, ledger, now_utc_ns) or (site_subject(rig),):
                wanted.setdefault(subject, []).append(stream.name)
    return tuple(
        f"if {subject} agrees: `{grant_command(subject, [Purpose.RECORD, Purpose.UPLOAD], folder, names)}`"
        for subject, names in wanted.items()
    )


def last_ended(stream: ConsentStream, ledger: ConsentLedger, now_utc_ns: int) -> ConsentGrant | None:
    """Return the grant for a stream that ended last by its own date; None if there was none."""
    ended = [
        grant
        for grant in ledger.grants
        if grant.scope.reaches(stream)
        and Purpose.RECORD in grant.purposes
        and ledger.status(grant, now_utc_ns) is ConsentStatus.EXPIRED
    ]
    return max(ended, key=lambda grant: grant.valid_until, default=None)


def _subjects_now(stream: ConsentStream, ledger: ConsentLedger, now_utc_ns: int) -> tuple[str, ...]:
    """Return who is in view now and does not let a stream be recorded, else whose grant for it ended last."""
    present = [
        grant
        for grant in ledger.grants
        if grant.scope.reaches(stream) and grant.captured_from_ns <= now_utc_ns < grant.captured_until_ns
    ]
    if not present:
        ended = last_ended(stream, ledger, now_utc_ns)
        return (ended.subject,) if ended is not None else ()
    refusing = []
    for subject in sorted({grant.subject for grant in present}):
        alone = replace(ledger, grants=tuple(grant for grant in present if grant.subject == subject))
        now = (now_utc_ns, now_utc_ns)
        if not decide(stream, now, Purpose.RECORD, now_utc_ns, alone).is_allowed:
            refusing.append(subject)
    return tuple(refusing)


def _subjects(
    manifest: Manifest, record: StreamRecord, ledger: ConsentLedger, purpose: Purpose, now_utc_ns: int
) -> tuple[str, ...]:
    """Return who has to agree (again); nobody where somebody said no, for whom no command speaks."""
    first_ns, last_ns = span_utc_ns(manifest, record)
    present = [
        grant
        for grant in ledger.grants
        if grant.scope.reaches(record.info)
        and grant.captured_from_ns <= last_ns
        and first_ns < grant.captured_until_ns
    ]
    if any(ledger.status(grant, now_utc_ns) in _SAID_NO for grant in present):
        return ()
    if not present:
        return (site_subject(manifest.facts.rig),)
    return tuple(
        subject
        for subject in sorted({grant.subject for grant in present})
        if _is_denied_by(subject, present, manifest, record, ledger, purpose, now_utc_ns)
    )


def _is_denied_by(
    subject: str,
    present: Sequence[ConsentGrant],
    manifest: Manifest,
    record: StreamRecord,
    ledger: ConsentLedger,
    purpose: Purpose,
    now_utc_ns: int,
) -> bool:
    alone = replace(ledger, grants=tuple(grant for grant in present if grant.subject == subject))
    return bool(denials(LedgerRights(manifest, alone), manifest, purpose, now_utc_ns, [record.info.name]))


def _would_help(
    manifest: Manifest,
    ledger: ConsentLedger,
    purpose: Purpose,
    now_utc_ns: int,
    wanted: dict[str, list[str]],
) -> bool:
    """Return whether the use of the streams is allowed once the grants are entered."""
    entered = [
        _hypothetical(index, subject, names, manifest, purpose, now_utc_ns)
        for index, (subject, names) in enumerate(wanted.items())
    ]
    given = [ConsentEvent(grant.id, EventKind.GIVEN, now_utc_ns, digest=grant.digest) for grant in entered]
    then = replace(ledger, grants=(*ledger.grants, *entered), events=(*ledger.events, *given))
    names = {name for found in wanted.values() for name in found}
    return bool(names) and not denials(LedgerRights(manifest, then), manifest, purpose, now_utc_ns, names)


def _hypothetical(
    index: int, subject: str, names: Sequence[str], manifest: Manifest, purpose: Purpose, now_utc_ns: int
) -> ConsentGrant:
    first_ns, end_ns = captured_utc_ns(manifest)
    return ConsentGrant(
        id=f"{_HYPOTHETICAL[:-3]}{index:03d}",
        subject=subject,
        controller="",
        lawful_basis=LawfulBasis.CONSENT,
        purposes=(purpose,),
        scope=Scope(tuple(names), captured_from=first_ns, captured_until=end_ns),
        valid_from=now_utc_ns - SECOND_NS,
        valid_until=now_utc_ns + _DAY_NS,
        evidence=Evidence("configuration"),
    )
