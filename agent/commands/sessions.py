"""What `sensorium demo|record|replay` do; each function returns an exit code."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.agent.commands import display
from sensorium.agent.commands.consent import enter_grant
from sensorium.agent.commands.output import print_json, say_why
from sensorium.agent.commands.people import said_not_personal, tell_personal
from sensorium.agent.commands.running import press_key
from sensorium.agent.commands.terminal import tell
from sensorium.agent.commands.upload import WAITING, deliver, verification
from sensorium.agent.session.outcome import SessionResult, document, exit_code, why_not_good
from sensorium.agent.session.pause_keys import PauseKeys
from sensorium.agent.session.rig import REQUIRED, Device, Rig, load_rig
from sensorium.agent.session.rig_remarks import remarks
from sensorium.agent.session.run import SessionRequest, request_for, run_session
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import EpisodeError, UsageError, VerdictError
from sensorium.masking import masked_address
from sensorium.simulators.demo_rig import write_demo_rig
from sensorium.sync.consent.grants import (
    ConsentLedger,
    Purpose,
    Scope,
)
from sensorium.sync.consent.remedy import GrantFolder
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.files import CALIBRATION_FILE, MANIFEST_FILE
from sensorium.sync.episode.folder import file_in
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.reading.locate import folder_of
from sensorium.sync.reading.rights import rights_by
from sensorium.sync.recording.permit import Refusal
from sensorium.sync.recording.spec import SessionPlan
from sensorium.sync.sources import open_source
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.uploader.service import open_service
from sensorium.uploader.stores.serving import check_folder
from sensorium.wording import nearest

DEMO_SUBJECT = "site:demo"
REPLAY_SUBJECT = "site:replay"
REPLAY_MARGIN_NS = 60 * SECOND_NS
"""The uncertainty of a recording's first and last capture times must not reach out of its grant."""


def run_demo(out: Path, seconds: float, is_granted: bool, seed: int, as_json: bool) -> int:
    """Record the simulated rig, upload it to ``out/central`` and report; return the exit code."""
    clock = HostClock()
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    spool = out / "spool"
    _grant_demo(ConsentStore(spool / "consent", clock), is_granted, clock)
    request = request_for(load_rig(write_demo_rig(out, seed=seed, seconds=seconds)), spool, None)
    with display.Progress("demo", as_json) as progress:
        result = run_session(request, clock, progress.show)
        progress.show({"phase": "uploading"})
        store = (out / "central").as_uri()
        service = open_service(spool, store, request.consent, clock)
        deliver(service, clock, progress)
        result.verification = verification(service, store, {folder.name for folder in result.episodes})
        return finish(result, request.consent, progress, as_json)


def _grant_demo(store: ConsentStore, is_granted: bool, clock: HostClock) -> None:
    now_ns = clock.utc_ns()
    if store.poll().fault:  # such as a demo before this one, deleted with its spool
        store.restart(by="sensorium demo", is_paused=False)
    ledger = store.ledger()
    live = [
        grant
        for grant in ledger.grants
        if grant.subject == DEMO_SUBJECT and ledger.status(grant, now_ns).is_valid
    ]
    if not is_granted:
        for grant in live or [enter_grant(store, DEMO_SUBJECT, clock, _DEMO_PURPOSES)]:
            store.withdraw(grant.id, by="sensorium demo --no-consent")
    elif not live:
        enter_grant(store, DEMO_SUBJECT, clock, _DEMO_PURPOSES)


_DEMO_PURPOSES = (Purpose.RECORD, Purpose.LIVE, Purpose.UPLOAD, Purpose.AI_TRAIN)


def run_record(
    rig: Rig,
    spool: Path | None,
    seconds: float | None,
    operator: str,
    despite_calibration: bool,
    as_json: bool,
) -> int:
    """Record a rig file; return the exit code.

    Raises:
        VerdictError: If a failed calibration check refuses it and the operator did not say otherwise.
    """
    if rig.document.operator == REQUIRED and not operator:
        raise UsageError(f"rig {rig.document.rig} requires an operator: add --operator NAME")
    request = request_for(rig, spool, seconds)
    check_folder(request.spool, "spool")
    ConsentStore(request.consent).adopt(by=operator)
    plan = request.plan.model_copy(update={"despite_calibration": despite_calibration})
    if operator:
        plan = plan.model_copy(update={"facts": plan.facts.model_copy(update={"operator": operator})})
    if (
        not despite_calibration
        and rig.document.on_failed_check == "stop"
        and rig.document.calibration is not None
    ):
        calibration_id = RigCalibration.load(rig.document.calibration).calibration_id
        refusal = Refusal.load(request.spool, calibration_id)
        if refusal is not None:
            raise VerdictError(refusal.sentence)
    if rig.document.checks_at_start is not None:
        plan = _checked_at_start(rig, plan, as_json)
    request = replace(request, plan=plan)
    for sentence in (*remarks(rig), *_announced(rig, request)):
        tell(sentence)
    with display.Progress(rig.document.rig, as_json) as progress:
        with _pause_keys(request.spool, as_json):
            result = run_session(request, HostClock(), progress.show)
        if request.uploads_in_background:
            result.verification = {"status": "pending", "store": masked_address(request.store or "")}
        return finish(result, request.consent, progress, as_json)


def _announced(rig: Rig, request: SessionRequest) -> tuple[str, ...]:
    """Return what has to be known of consent before anything is recorded."""
    from sensorium.agent.session.withheld import announced

    if any(device.driver == "replay" for device in rig.devices):
        return ()  # whose streams are known when they are declared
    now_ns = HostClock().utc_ns()
    folder = GrantFolder(request.spool, request.consent)
    return announced(rig.devices, ConsentStore(request.consent).poll(), now_ns, folder, rig.document.rig)


def _checked_at_start(rig: Rig, plan: SessionPlan, as_json: bool) -> SessionPlan:
    """Return the plan with what the board showed before the session.

    Raises:
        VerdictError: If a check failed and the rig file says to stop then, unless the operator said otherwise.
    """
    from sensorium.agent.calibrating.at_start import board_at_start, why_refused

    assert rig.document.board is not None, "checked when the rig file was read"
    windows = board_at_start(rig, rig.document.board, HostClock(), tell, as_json)
    reason = why_refused(windows)
    if reason and plan.on_failed_check == "stop" and not plan.despite_calibration:
        raise VerdictError(f"not recorded, calibration {reason} (or add --despite-calibration)")
    return plan.model_copy(update={"checked_at_start": windows})


def run_replay(
    text: str | Path,
    rate: str,
    loop: bool,
    spool: Path,
    seconds: float | None,
    calibration: Path | None,
    reference: str | None,
    tolerance_ms: float,
    consent: Path | None,
    not_personal: Sequence[str],
    as_json: bool,
) -> int:
    """Replay a recording and record it; return the exit code.

    Args:
        text: The recording; an episode also by its id, or by the URL of a store and its id.
        consent: Folder of the log that governs it; None = that of the episode's spool, else that of ``spool``.
        not_personal: Names or topics of streams that hold nobody, whatever their kind says.
    """
    if consent is not None and not consent.is_dir():
        raise UsageError(f"--consent {consent} is no folder; name the one with the log that knows the grants")
    from sensorium.simulators.player import ReplayConfig, ReplayDriver, cleared

    source = folder_of(text)
    clock = HostClock()
    options: dict[str, Any] = {"source": str(source.resolve()), "rate": _rate(rate), "loop": loop}
    options["not_personal"] = list(not_personal)
    config = ReplayConfig.model_validate(options)
    ReplayDriver.check(config)
    spool = spool.resolve()
    own_calibration = file_in(source, CALIBRATION_FILE)
    if calibration is None and (source / MANIFEST_FILE).exists() and own_calibration.is_file():
        calibration = own_calibration
    with open_source(source.resolve()) as opened:
        _check_reference(reference, [info.name for info in opened.streams])
        streams = cleared(opened.streams, not_personal)
        problems = [problem.sentence for problem in opened.problems]
        offset_ns = opened.timeline.utc_minus_host_ns
        span_utc_ns = (opened.start_ns + offset_ns, opened.end_ns + offset_ns)
    request = SessionRequest(
        devices=(Device("replay", "replay", ReplayDriver, config, options),),
        spool=spool,
        consent=_replay_consent(source.resolve(), span_utc_ns, spool, clock, consent),
        plan=SessionPlan(
            facts=SessionFacts(rig="replay"),
            reference=reference,
            tolerance_ns=int(tolerance_ms * 1e6),
            calibration=calibration.resolve() if calibration else None,
        ),
        calibration=calibration.resolve() if calibration else None,
        seconds=seconds,
    )
    tell_personal(streams)
    with display.Progress(f"replay of {source.name}", as_json) as progress:
        result = run_session(request, clock, progress.show)
        result.warnings += said_not_personal(streams)
        result.problems += problems
        return finish(result, request.consent, progress, as_json)


def _check_reference(reference: str | None, streams: Sequence[str]) -> None:
    if reference is not None and streams and reference not in streams:
        raise UsageError(
            f"--reference {reference}: the recording has no such stream; {nearest(reference, streams)}"
        )


def _pause_keys(spool: Path, as_json: bool) -> PauseKeys:
    keys = PauseKeys(press_key(spool.resolve()), HostClock(), tell)
    if keys.is_usable and not as_json:
        tell("keys: p = privacy pause, r = resume")
    return keys


def _rate(text: str) -> float | str:
    if text == "max":
        return text
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e6:
        raise UsageError(f"--rate {text}: give a number above 0, such as 2 or 0.5, or max")
    return rate


def _replay_consent(
    source: Path, span_utc_ns: tuple[int, int], spool: Path, clock: HostClock, given: Path | None
) -> Path:
    """Return the consent folder that governs a replay: the one that was given; else:

    An episode's own grants go on to govern its replay as they are now, in the log beside it or else in that of
    the spool; what its manifest says that they once permitted counts for nothing. A recording of somebody else
    has none: recording it again and looking at it on this machine is what the user asks for by calling
    replay, uploading it still needs a grant.
    """
    if (source / MANIFEST_FILE).exists():
        beside = source.parent.parent / "consent"
        if given is not None:
            return given.resolve()
        return beside if beside.is_dir() else spool / "consent"
    store = ConsentStore(given.resolve() if given is not None else spool / "consent", clock)
    purposes = [Purpose.RECORD, Purpose.LIVE]
    captured = (span_utc_ns[0] - REPLAY_MARGIN_NS, span_utc_ns[1] + REPLAY_MARGIN_NS)
    if not _has_replay_grant(store.ledger(), clock.utc_ns(), purposes, captured):
        note = f"replay of {source.name}"
        enter_grant(store, REPLAY_SUBJECT, clock, purposes, Scope(("*",), (), *captured), note=note)
    return store.folder


def _has_replay_grant(
    ledger: ConsentLedger, now_ns: int, purposes: Sequence[Purpose], captured: tuple[int, int]
) -> bool:
    return any(
        grant.subject == REPLAY_SUBJECT
        and (grant.scope.captured_from, grant.scope.captured_until) == captured
        and set(grant.purposes) == set(purposes)
        and ledger.status(grant, now_ns).is_valid
        for grant in ledger.grants
    )


def finish(result: SessionResult, consent: Path, progress: display.Progress, as_json: bool) -> int:
    """Write the report, print the document or the tables, and return the exit code."""
    from sensorium.agent.reporting.episode import write_report  # heavy: not before the devices start

    progress.show({"phase": "reporting"})
    found = document(result)
    if found["episodes"]:
        try:
            folder = Path(found["episodes"][-1])
            rights = rights_by(read_manifest(folder), ConsentStore(consent).inspect())
            result.report = write_report(folder, found, result.run_dir, rights=rights)
            found["report"] = str(result.report)
        except EpisodeError as err:  # a full disk: what it stopped before is the news, not the report
            found["problems"] = [*found["problems"], str(err)]
    progress.close()
    code = 3 if result.fault or found["verification"]["status"] == WAITING else exit_code(found)
    if as_json:
        if code and not found["problems"]:
            found["problems"] = why_not_good(found)
        print_json(found)
        say_why(found["problems"] if code else ())
        return code
    display.print_session({**found, "problems": ()} if code else found)  # else each would be read twice
    if code:
        say_why(found["problems"] or [_see_above(found)])
    return code


def _see_above(found: Mapping[str, Any]) -> str:
    """Return which verdicts stand against a session whose table has just said why."""
    return (
        "not good: " + ", ".join(said.split(":")[0] for said in why_not_good(found)) + "; why is said above"
    )
