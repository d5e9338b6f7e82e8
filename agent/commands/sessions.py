"""What the commands do. The command line parses and exits; everything here returns an exit code."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.agent.commands import display
from sensorium.agent.reporting.episode import write_report
from sensorium.agent.session.control import AgentNote, ask_agent
from sensorium.agent.session.outcome import SessionResult, document, exit_code
from sensorium.agent.session.rig import Device, load_rig
from sensorium.agent.session.run import SessionRequest, request_for, run_session, upload_all
from sensorium.agent.session.supervisor import end_survivors
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.registry import driver_targets, load_driver
from sensorium.errors import BusyError, ConfigError, SensoriumError, UsageError, VerdictError
from sensorium.simulators.demo_rig import write_demo_rig
from sensorium.simulators.player import ReplayConfig, ReplayDriver
from sensorium.sync.consent.grants import (
    ConsentGrant,
    ConsentLedger,
    Evidence,
    LawfulBasis,
    Purpose,
    Scope,
    format_utc,
)
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import CALIBRATION_FILE, MANIFEST_FILE
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.verify import verify
from sensorium.sync.recording.orphans import recover_orphans
from sensorium.sync.recording.permit import Refusal
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.sources import open_source
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.uploader.receipt import upload_reasons, upload_state
from sensorium.uploader.service import main as upload_service
from sensorium.verdict import Status

DAY_NS = 86_400 * SECOND_NS
DEMO_SUBJECT = "site:demo"
REPLAY_SUBJECT = "site:replay"
REPLAY_MARGIN_NS = 60 * SECOND_NS
"""The uncertainty of a recording's first and last capture times must not reach out of its grant."""


# -- sessions


def run_demo(out: Path, seconds: float, is_granted: bool, seed: int, as_json: bool) -> int:
    """Record the simulated rig, upload it to ``out/central`` and report; return the exit code."""
    clock = HostClock()
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    spool = out / "spool"
    _grant_demo(ConsentStore(spool / "consent", clock), is_granted, clock)
    rig = load_rig(write_demo_rig(out, seed=seed, start_ns=None, seconds=seconds))
    start_ns = clock.now_ns() + display.START_UP_NS  # the simulated world begins when all sensors are up
    request = request_for(rig, spool, None)
    request = replace(request, devices=tuple(_starting_at(device, start_ns) for device in request.devices))
    with display.Progress("demo", as_json) as progress:
        result = run_session(request, clock, progress.show)
        progress.show({"phase": "uploading"})
        store = (out / "central").as_uri()
        result.verification = upload_all(
            result.episodes, spool, store, request.consent, clock, progress.show_upload
        )
        return _finish(result, progress, as_json)


def _starting_at(device: Device, start_ns: int) -> Device:
    options = {**device.options, "start_ns": start_ns}
    return replace(device, options=options, config=device.driver_type.config_type.model_validate(options))


def _grant_demo(store: ConsentStore, is_granted: bool, clock: HostClock) -> None:
    now_ns = clock.utc_ns()
    ledger = store.ledger()
    live = [
        grant
        for grant in ledger.grants
        if grant.subject == DEMO_SUBJECT and ledger.status(grant, now_ns).is_valid
    ]
    if not is_granted:
        for grant in live or [_give(store, DEMO_SUBJECT, clock, _DEMO_PURPOSES)]:
            store.withdraw(grant.id, by="sensorium demo --no-consent")
    elif not live:
        _give(store, DEMO_SUBJECT, clock, _DEMO_PURPOSES)


_DEMO_PURPOSES = (Purpose.RECORD, Purpose.LIVE, Purpose.UPLOAD, Purpose.AI_TRAIN)


def _give(
    store: ConsentStore,
    subject: str,
    clock: HostClock,
    purposes: Sequence[Purpose],
    streams: Sequence[str] = ("*",),
    days: float = 1.0,
    captured: tuple[int | None, int | None] = (None, None),
    controller: str = "",
    note: str = "",
) -> ConsentGrant:
    now_ns = clock.utc_ns()
    by = os.environ.get("USER", "")
    grant = ConsentGrant(
        id=new_ulid(now_ns),
        subject=subject,
        controller=controller or "the operator of this machine",
        lawful_basis=LawfulBasis.CONSENT,
        purposes=tuple(purposes),
        scope=Scope(tuple(streams), captured_from=captured[0], captured_until=captured[1]),
        valid_from=now_ns - SECOND_NS,
        valid_until=now_ns + int(days * DAY_NS),
        evidence=Evidence("configuration", by=by, note=note),
    )
    return store.grant(grant, by=by)


def run_record(
    rig_path: Path,
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
    rig = load_rig(rig_path)
    if rig.document.operator == "required" and not operator:
        raise UsageError(f"rig {rig.document.rig} requires an operator: add --operator NAME")
    request = request_for(rig, spool, seconds)
    ConsentStore(request.consent).adopt(by=operator)
    said: dict[str, Any] = {"operator": operator} if operator else {}
    if despite_calibration:
        said["despite_calibration"] = True
    elif rig.document.on_failed_check == "stop" and rig.document.calibration is not None:
        calibration_id = RigCalibration.load(rig.document.calibration).calibration_id
        refusal = Refusal.load(request.spool, calibration_id)
        if refusal is not None:
            raise VerdictError(refusal.sentence)
    request = replace(request, fields={**request.fields, **said})
    with display.Progress(rig.document.rig, as_json) as progress:
        result = run_session(request, HostClock(), progress.show)
        if request.uploads_in_background:
            result.verification = {"status": "pending", "store": request.store}
        return _finish(result, progress, as_json)


def run_replay(
    source: Path,
    rate: str,
    loop: bool,
    spool: Path,
    seconds: float | None,
    calibration: Path | None,
    reference: str | None,
    tolerance_ms: float,
    as_json: bool,
) -> int:
    """Replay a recording and record it; return the exit code."""
    clock = HostClock()
    options = {"source": str(source.resolve()), "rate": _rate(rate), "loop": loop}
    config = ReplayConfig.model_validate(options)
    ReplayDriver.check(config)
    spool = spool.resolve()
    own_calibration = source / CALIBRATION_FILE
    if calibration is None and (source / MANIFEST_FILE).exists() and own_calibration.is_file():
        calibration = own_calibration
    with open_source(source.resolve()) as opened:
        problems = [problem.sentence for problem in opened.problems]
        offset_ns = opened.timeline.utc_minus_host_ns
        span_utc_ns = (opened.start_ns + offset_ns, opened.end_ns + offset_ns)
    request = SessionRequest(
        devices=(Device("replay", "replay", ReplayDriver, config, options),),
        spool=spool,
        consent=_replay_consent(source.resolve(), span_utc_ns, spool, clock),
        rig="replay",
        fields={
            "reference": reference,
            "tolerance_ns": int(tolerance_ms * 1e6),
            "calibration": str(calibration.resolve()) if calibration else None,
        },
        calibration=calibration.resolve() if calibration else None,
        seconds=seconds,
    )
    with display.Progress(f"replay of {source.name}", as_json) as progress:
        result = run_session(request, clock, progress.show)
        result.problems += problems
        return _finish(result, progress, as_json)


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


def _replay_consent(source: Path, span_utc_ns: tuple[int, int], spool: Path, clock: HostClock) -> Path:
    """Return the consent folder that governs a replay.

    An episode's own grants go on to govern its replay. A recording of somebody else has none: recording it
    again on this machine is what the user asks for by calling replay, uploading it still needs a grant.
    """
    inherited = source.parent.parent / "consent"
    if (source / MANIFEST_FILE).exists() and inherited.is_dir():
        return inherited
    store = ConsentStore(spool / "consent", clock)
    purposes = [Purpose.RECORD]
    if (source / MANIFEST_FILE).exists():
        purposes = _carried_purposes(read_manifest(source))
    captured = (span_utc_ns[0] - REPLAY_MARGIN_NS, span_utc_ns[1] + REPLAY_MARGIN_NS)
    if purposes and not _has_replay_grant(store.ledger(), clock.utc_ns(), purposes, captured):
        note = f"replay of {source.name}"
        _give(store, REPLAY_SUBJECT, clock, purposes, captured=captured, note=note)
    return store.folder


def _carried_purposes(manifest: Manifest) -> list[Purpose]:
    personal = [record for record in manifest.streams if record.info.is_personal and record.total.recorded]
    sets = [set(record.consent.purposes) for record in personal]
    common = set.intersection(*sets) if sets else set()
    return [purpose for purpose in Purpose if purpose.value in common]


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


def _finish(result: SessionResult, progress: display.Progress, as_json: bool) -> int:
    """Write the report, print the document or the tables, and return the exit code."""
    progress.show({"phase": "reporting"})
    found = document(result)
    if result.episodes:
        last = result.episodes[-1]
        result.report = write_report(last, found, result.run_dir)
        found["report"] = str(result.report)
    progress.close()
    if as_json:
        _print_json(found)
    else:
        display.print_session(found)
    if result.fault:
        return 3
    return exit_code(found)


# -- talking to a running agent


def tell_agent(spool: Path, cmd: str, fields: Mapping[str, Any], as_json: bool) -> int:
    """Send a command to the agent of a spool and print its reply."""
    reply = ask_agent(spool.resolve(), cmd, **fields)
    reply.pop("ok", None)
    if as_json:
        _print_json(reply)
    elif cmd == "status":
        display.print_status(reply)
    else:
        display.say(_told(cmd, reply))
    return 0


def _told(cmd: str, reply: Mapping[str, Any]) -> str:
    if cmd in ("start", "stop", "discard"):
        episode = reply["episode"]
        if episode is None:
            return "nothing was being recorded"
        return {
            "start": f"recording {episode}",
            "stop": f"sealing {episode}",
            "discard": f"deleted {episode}",
        }[cmd]
    return "marked" if cmd == "mark" else "done"


def run_pause(spool: Path, cmd: str, as_json: bool) -> int:
    """Pause or resume; without a running agent the next one starts paused, or not."""
    spool = spool.resolve()
    if AgentNote.load(spool) is not None:
        try:
            return tell_agent(spool, cmd, {"source": "command line"}, as_json)
        except BusyError:
            if cmd == "resume":
                raise
    store = ConsentStore(spool / "consent")
    if cmd == "pause":
        store.pause(source="command line")
    else:
        store.resume(source="command line")
    reply = {"agent": None, "paused": store.ledger().is_paused}
    if as_json:
        _print_json(reply)
    else:
        display.say("paused; no agent is running" if reply["paused"] else "resumed; no agent is running")
    return 0


# -- devices


def list_devices(as_json: bool) -> int:
    """List every driver with its options and what it can see plugged in."""
    rows = []
    for name, target in driver_targets().items():
        try:
            driver = load_driver(name)
        except ConfigError as err:
            rows.append({"driver": name, "class": target, "available": False, "reason": str(err)})
            continue
        fields = [field for field in driver.config_type.model_fields if field not in ("personal", "required")]
        rows.append({"driver": name, "class": target, "available": True, "options": fields})
    plugged = [
        str(path) for folder in ("v4l", "serial") for path in sorted(Path(f"/dev/{folder}/by-id").glob("*"))
    ]
    if as_json:
        _print_json({"drivers": rows, "plugged_in": plugged})
    else:
        display.print_devices(rows, plugged)
    return 0


# -- episodes


def list_episodes(spool: Path, as_json: bool) -> int:
    """List the episodes of a spool with their upload state."""
    found = Spool(spool)
    if not spool.is_dir():
        raise UsageError(f"{spool} is not a spool; name one with --spool")
    rows: list[dict[str, Any]] = [
        {"episode": folder.name, "state": "open", "path": str(folder)} for folder in found.open_folders()
    ]
    for folder in found.sealed_folders():
        row: dict[str, Any] = {
            "episode": folder.name,
            "state": upload_state(folder).value,
            "path": str(folder),
        }
        reasons = upload_reasons(folder)
        if reasons:
            row["reasons"] = list(reasons)
        try:
            manifest = read_manifest(folder)
        except SensoriumError as err:
            row["error"] = str(err)
        else:
            row["duration_s"] = (manifest.end_utc_ns - manifest.start_utc_ns) / 1e9
            row["bytes"] = sum(file.bytes for file in manifest.files)
            row["start"] = format_utc(manifest.start_utc_ns)
            row["quality"] = manifest.quality.status.value
            row["truncated"] = manifest.truncated
        rows.append(row)
    if as_json:
        _print_json({"episodes": rows})
    else:
        display.print_episodes(rows)
    return 0


def _session_of(episode: Path) -> SessionResult:
    """Return a finished episode as if its session had just ended; truth is only there for simulations."""
    runs = sorted((episode.resolve().parent.parent / "run").glob("*/truth"))
    read_manifest(episode)
    return SessionResult([episode], runs[-1].parent if len(runs) == 1 else episode)


def show_episode(episode: Path, as_json: bool) -> int:
    """Print what an episode says about itself."""
    found = document(_session_of(episode))
    found["verification"] = {"status": upload_state(episode).value}
    if as_json:
        _print_json(found)
    else:
        display.print_session(found)
    return 0


def verify_episode(episode: Path, as_json: bool) -> int:
    """Check an episode against its manifest; exit code 1 if anything differs."""
    verdict = verify(episode)
    if as_json:
        _print_json({"status": verdict.status.value, "reasons": list(verdict.reasons)})
    else:
        display.say(f"{episode.name}: {verdict.status.value}")
        for reason in verdict.reasons:
            display.say(f"  {reason}")
    return 0 if verdict.status is Status.OK else 1


def recover_episodes(spool: Path, as_json: bool) -> int:
    """Recover and seal what a crash left open; exit code 3 if something could not be."""
    found = Spool(spool.resolve())
    with found.lock():
        end_survivors(found.root, HostClock())  # they may still write what looks like an orphan
        spec = SyncSpec(
            spool=found.root,
            run_dir=found.root / "run",
            bus_endpoint="",
            control_endpoint="",
            sets_endpoint="",
            live_endpoint="",
            host_id=os.uname().nodename,
            devices=(),
            consent=found.root / "consent",
        )
        recovered = recover_orphans(spec)
    rows = [
        {"episode": each.episode_id, "path": str(each.path or ""), "error": each.error} for each in recovered
    ]
    if as_json:
        _print_json({"recovered": rows})
    else:
        for row in rows:
            display.say(f"{row['episode']}: {row['error'] or 'recovered and sealed as ' + row['path']}")
        if not rows:
            display.say("nothing to recover")
    return 3 if any(row["error"] for row in rows) else 0


def report_episode(episode: Path, as_json: bool) -> int:
    """Write the report of an episode anew."""
    result = _session_of(episode)
    path = write_report(episode, document(result), result.run_dir)
    if as_json:
        _print_json({"report": str(path)})
    else:
        display.say(str(path))
    return 0


# -- consent


def give_consent(
    folder: Path,
    subject: str,
    streams: Sequence[str],
    purposes: Sequence[str],
    days: float,
    controller: str,
    as_json: bool,
) -> int:
    """Enter a grant and print its id."""
    try:
        wanted = [Purpose(purpose) for purpose in purposes]
    except ValueError as err:
        known = ", ".join(purpose.value for purpose in Purpose)
        raise UsageError(f"--purpose: {err}; known: {known}") from err
    try:
        grant = _give(
            ConsentStore(folder), subject, HostClock(), wanted, streams, days=days, controller=controller
        )
    except ValueError as err:
        raise UsageError(str(err)) from err
    if as_json:
        _print_json({"grant": grant.id, "valid_until": format_utc(grant.valid_until)})
    else:
        display.say(f"granted {grant.id}, valid until {format_utc(grant.valid_until)}")
    return 0


def withdraw_consent(folder: Path, grant: str, as_json: bool) -> int:
    """End one grant, or all grants of a subject."""
    store = ConsentStore(folder)
    if ":" in grant:
        ended: Sequence[str] = store.withdraw_subject(grant, by=os.environ.get("USER", ""))
    else:
        store.withdraw(grant, by=os.environ.get("USER", ""))
        ended = (grant,)
    if as_json:
        _print_json({"withdrawn": list(ended)})
    else:
        display.say(f"withdrawn: {', '.join(ended) or 'nothing, no grant of that subject was live'}")
    return 0


def show_consent(folder: Path, as_json: bool) -> int:
    """List grants with what they are worth now."""
    ledger = ConsentStore(folder).ledger()
    now_ns = HostClock().utc_ns()
    rows = [
        {
            "grant": grant.id,
            "subject": grant.subject,
            "status": ledger.status(grant, now_ns).value,
            "purposes": [purpose.value for purpose in grant.purposes],
            "streams": list(grant.scope.streams),
            "valid_until": format_utc(grant.valid_until),
        }
        for grant in ledger.grants
    ]
    if as_json:
        _print_json({"grants": rows, "paused": ledger.is_paused, "fault": ledger.fault})
    else:
        display.print_consent(rows, ledger.is_paused)
    return 0


# -- upload


def upload_spool(spool: Path, store: str, consent: Path, once: bool, as_json: bool) -> int:
    """Upload every sealed episode of a spool; exit code 1 if one was refused."""
    if not store:
        raise UsageError("name the store: sensorium upload --store file:///path/to/store")
    if not spool.is_dir():
        raise UsageError(f"{spool} is not a spool; name one with --spool")
    spool = spool.resolve()
    if not once:
        return upload_service(["--spool", str(spool), "--store", store, "--consent", str(consent)])
    with display.Progress("upload", as_json) as progress:
        found = upload_all(
            Spool(spool).sealed_folders(), spool, store, consent, HostClock(), progress.show_upload
        )
    if as_json:
        _print_json({"verification": found})
    else:
        display.print_verification(found)
    return 0 if found["status"] == "verified" else 1


def _print_json(found: Mapping[str, Any]) -> None:
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")
