"""Every refusal names the command that would allow it, and that command does."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from foreign_cases import generate
from sessions import Done, sensorium
from typer.testing import CliRunner
from upload_samples import CAPTURED, EPISODE_ID, begin_spool, grant_for, seal_episode

from sensorium.agent.cli import app
from sensorium.errors import UsageError
from sensorium.sync.consent.grants import ConsentGrant, Purpose
from sensorium.sync.consent.remedy import GrantFolder, grant_command, how_to_allow
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.consent.use import consent_reasons
from sensorium.sync.episode.manifest import read_manifest
from sensorium.timebase import SECOND_NS, HostClock

DAY_NS = 86_400 * SECOND_NS


def commands_in(text: str) -> list[list[str]]:
    """Return the commands between back quotes, as a shell splits them."""
    return [shlex.split(found)[1:] for found in re.findall(r"`(sensorium consent grant [^`]*)`", text)]


def run(arguments: list[str]) -> str:
    """Run a command in this process; return what it said."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def place(tmp_path: Path) -> GrantFolder:
    spool, _ = begin_spool(tmp_path / "the spool")
    seal_episode(spool)
    return GrantFolder(spool.root)


def enter(place: GrantFolder, grant: ConsentGrant) -> None:
    ConsentStore(place.spool / "consent").grant(grant)


def asked(
    place: GrantFolder, purpose: Purpose, streams: tuple[str, ...] | None = None
) -> tuple[list[str], list[str]]:
    """Return why the episode may not be used, and the sentences that would change it."""
    manifest = read_manifest(place.spool / "sealed" / EPISODE_ID)
    ledger = ConsentStore(place.spool / "consent").ledger()
    now_ns = HostClock().utc_ns()
    reasons = consent_reasons(manifest, ledger, purpose, now_ns, streams)
    return list(reasons), list(how_to_allow(manifest, ledger, purpose, now_ns, place, streams))


def captured_then(number: int, purposes: tuple[Purpose, ...], **changed: object) -> ConsentGrant:
    """Return a grant for what the sample captured, valid now."""
    span = (CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS)
    grant = grant_for(number, purposes, captured=span, valid_around_ns=HostClock().utc_ns())
    return replace(grant, **changed)  # type: ignore[arg-type]


def test_a_replayed_recording_is_uploaded_with_the_command_that_the_refusal_names(tmp_path: Path) -> None:
    generate("replay_then_upload", tmp_path)
    spool, store = tmp_path / "spool", (tmp_path / "central").as_uri()
    upload = ("upload", "--once", "--spool", spool, "--store", store)
    assert sensorium("replay", tmp_path / "drive.mcap", "--rate", "max", "--spool", spool).code == 0
    refused: Done = sensorium(*upload)
    assert refused.code == 1
    (command,) = commands_in(refused.out)
    run(command)
    uploaded = sensorium(*upload)
    assert (uploaded.code, "verified" in uploaded.out) == (0, True), uploaded.out + uploaded.err


@pytest.mark.parametrize("purpose", [Purpose.UPLOAD, Purpose.EXPORT, Purpose.AI_TRAIN])
@pytest.mark.parametrize(
    "given",
    [
        (),
        (captured_then(1, (Purpose.RECORD,)),),
        (captured_then(1, (Purpose.RECORD,)), captured_then(2, (Purpose.RECORD,), subject="sub:b")),
        (grant_for(1, valid_around_ns=CAPTURED[0]),),
    ],
    ids=["nobody", "one who let record", "two who let record", "one whose grant has expired"],
)
def test_the_commands_named_allow_the_use(
    place: GrantFolder, given: tuple[ConsentGrant, ...], purpose: Purpose
) -> None:
    for grant in given:
        enter(place, grant)
    reasons, sentences = asked(place, purpose)
    assert reasons
    subjects = {grant.subject for grant in given} or {"site:test"}
    assert {sentence.split()[1] for sentence in sentences} == subjects
    for sentence in sentences:
        (command,) = commands_in(sentence)
        run(command)
    assert asked(place, purpose) == ([], [])


def test_only_the_streams_that_are_refused_are_named(place: GrantFolder) -> None:
    whole = captured_then(1, (Purpose.RECORD, Purpose.UPLOAD))
    enter(place, replace(whole, scope=replace(whole.scope, streams=("cam",))))
    _, (sentence,) = asked(place, Purpose.UPLOAD)
    assert "--stream mic" in sentence
    assert "--stream cam" not in sentence


def test_no_command_speaks_for_one_who_withdrew(place: GrantFolder) -> None:
    enter(place, captured_then(1, (Purpose.RECORD, Purpose.UPLOAD)))
    ConsentStore(place.spool / "consent").withdraw(captured_then(1, (Purpose.RECORD,)).id, by="")
    reasons, sentences = asked(place, Purpose.UPLOAD)
    assert "withdrawn" in reasons[0]
    assert sentences == []


def test_another_consent_folder_is_named(place: GrantFolder, tmp_path: Path) -> None:
    other = tmp_path / "our grants"
    assert "--consent" not in GrantFolder(place.spool, place.spool / "consent").arguments
    words = shlex.split(grant_command("site:x", [Purpose.LIVE], GrantFolder(place.spool, other)))
    assert words[-2:] == ["--consent", str(other)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--for", "01J00000000000000000000002"], f"did you mean {EPISODE_ID}?"),
        (["--for", "yesterday"], "episodes list"),
        (["--for", EPISODE_ID, "--captured-from", "2026-03-01T12:00:00Z"], "leave out --captured-from"),
        (["--captured-from", "noon"], "--captured-from 'noon' is not a time such as"),
        (
            ["--captured-from", "2026-03-01T12:00:00Z", "--captured-until", "2026-03-01T11:00:00Z"],
            "is not before --captured-until",
        ),
        (["--for", EPISODE_ID, "--stream", "camra"], "did you mean 'cam'?"),
        (["--stream", "mik"], "did you mean 'mic'?"),
        (["--purpose", "uplaod"], "did you mean 'upload'?"),
    ],
)
def test_a_grant_that_would_reach_nothing_is_refused(
    place: GrantFolder, arguments: list[str], says: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        run(["consent", "grant", "site:test", *arguments, "--spool", str(place.spool)])
    assert ConsentStore(place.spool / "consent").ledger().grants == ()


def test_a_grant_for_a_time_reaches_what_was_captured_then(place: GrantFolder) -> None:
    span = ["--captured-from", "2026-03-01T11:59:00Z", "--captured-until", "2026-03-01T12:02:00Z"]
    run(["consent", "grant", "site:test", *span, "--spool", str(place.spool)])
    assert asked(place, Purpose.UPLOAD) == ([], [])


def test_a_stream_that_nothing_was_recorded_of_yet_is_named_unchecked(tmp_path: Path) -> None:
    said = run(["consent", "grant", "site:test", "--stream", "camra", "--spool", str(tmp_path / "new")])
    assert "the name was not checked" in said
