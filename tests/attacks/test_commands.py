"""Commands that let more be recorded, or less be kept, by whoever has no operator's key, or kept a signed one."""

import signal
from pathlib import Path
from typing import Any

import pytest
import zmq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sessions import SMALL_RIG, Session, grant, sensorium, write_rig

from sensorium.agent.session.control import AgentNote, ControlClient
from sensorium.errors import ConfigError, ConsentError, UsageError
from sensorium.sync.trust.commands import FRESH_NS, CommandGuard, sign_command, widens
from sensorium.sync.trust.keys import Role, SigningKey
from sensorium.sync.trust.store import signing_key, trusted_keys
from sensorium.timebase import SECOND_NS, HostClock, VirtualClock

SESSION = "a1b2c3d4"
RESUME: dict[str, Any] = {"cmd": "resume", "source": "command line"}
WIDENING = [RESUME, {"cmd": "discard"}, {"cmd": "start", "despite_calibration": True}]
STRANGER = SigningKey(Ed25519PrivateKey.generate())


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1_790_000_000 * SECOND_NS)


def guard(folder: Path, clock: VirtualClock, session: str = SESSION) -> CommandGuard:
    run_dir = folder / session
    run_dir.mkdir(exist_ok=True)
    return CommandGuard(run_dir, lambda: trusted_keys(Role.OPERATOR), clock)


@pytest.mark.parametrize("ask", WIDENING, ids=lambda ask: ask["cmd"])
def test_what_widens_passes_with_the_operators_signature_and_only_once(
    tmp_path: Path, clock: VirtualClock, ask: dict[str, Any]
) -> None:
    found = guard(tmp_path, clock)
    with pytest.raises(ConsentError, match="not signed by an operator"):
        found.admit(ask)
    signed = sign_command(ask, SESSION, signing_key(Role.OPERATOR), clock)
    found.admit(signed)
    with pytest.raises(ConsentError, match="used before"):
        found.admit(signed)
    with pytest.raises(ConsentError, match="used before"):  # the recorder was killed and started again
        guard(tmp_path, clock).admit(signed)


def test_what_narrows_needs_no_signature(tmp_path: Path, clock: VirtualClock) -> None:
    found = guard(tmp_path, clock)
    for ask in ({"cmd": "pause"}, {"cmd": "stop"}, {"cmd": "start"}, {"cmd": "status"}, {"cmd": "mark"}):
        assert not widens(ask)
        found.admit(ask)


@pytest.mark.parametrize("key", [STRANGER, signing_key(Role.DEVICE)], ids=["stranger", "device"])
def test_a_signature_by_anybody_but_an_operator_counts_for_nothing(
    tmp_path: Path, clock: VirtualClock, key: SigningKey
) -> None:
    with pytest.raises(ConsentError, match="not trusted here"):
        guard(tmp_path, clock).admit(sign_command(RESUME, SESSION, key, clock))


def test_a_signature_is_for_its_own_words_and_session(tmp_path: Path, clock: VirtualClock) -> None:
    signed = sign_command(RESUME, SESSION, signing_key(Role.OPERATOR), clock)
    with pytest.raises(ConsentError, match="not what was signed"):
        guard(tmp_path, clock).admit({**signed, "cmd": "discard"})
    with pytest.raises(ConsentError, match="not what was signed"):
        guard(tmp_path, clock).admit({**signed, "source": "somebody else"})
    with pytest.raises(ConsentError, match="session a1b2c3d4"):
        guard(tmp_path, clock, "00000000").admit(signed)


@pytest.mark.parametrize("signed", ["", "{}", "[]", "x" * 1000, None, 7, {"payload": ""}, "[" * 5000])
def test_what_is_no_signature_is_refused_with_a_sentence(
    tmp_path: Path, clock: VirtualClock, signed: object
) -> None:
    with pytest.raises(ConsentError, match="resume is refused"):
        guard(tmp_path, clock).admit({**RESUME, "signed": signed})


@pytest.mark.parametrize("step_ns", [FRESH_NS + 1, -1])
def test_a_signed_command_that_was_kept_back_or_is_of_the_future_is_refused(
    tmp_path: Path, clock: VirtualClock, step_ns: int
) -> None:
    signed = sign_command(RESUME, SESSION, signing_key(Role.OPERATOR), VirtualClock(clock.now_ns() - step_ns))
    with pytest.raises(ConsentError, match="good for 30 s"):
        guard(tmp_path, clock).admit(signed)


def test_without_the_memory_of_what_was_used_nothing_is_let_through(
    tmp_path: Path, clock: VirtualClock
) -> None:
    found = guard(tmp_path, clock)
    (tmp_path / SESSION / "used-commands.json").write_text("{")
    with pytest.raises(ConfigError, match="used twice"):
        found.admit(sign_command(RESUME, SESSION, signing_key(Role.OPERATOR), clock))


def test_a_process_without_the_key_neither_ends_a_pause_nor_discards(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    grant(spool)
    with (
        Session("record", write_rig(tmp_path), "--json", spool=spool) as session,
        zmq.Context() as context,
    ):
        session.until_recorded(0.3, tuple(SMALL_RIG))
        note = AgentNote.load(spool)
        assert note is not None
        stranger = ControlClient(note.control_endpoint, context)
        stranger.ask("pause")
        for ask in (RESUME, {"cmd": "discard"}):
            with pytest.raises(UsageError, match="not signed by an operator"):
                stranger.ask(**ask)
            forged = sign_command(ask, note.session, STRANGER, HostClock())
            with pytest.raises(UsageError, match="not trusted here"):
                stranger.ask(**forged)
        heard = sign_command(RESUME, note.session, signing_key(Role.OPERATOR), HostClock())
        reply = stranger.ask(**heard)
        assert reply is not None
        assert reply["ended"] == 1
        stranger.ask("pause")
        with pytest.raises(UsageError, match="used before"):
            stranger.ask(**heard)
        status = session.status()
        assert status is not None
        assert status["paused"] is True
        assert sensorium("resume", "--spool", spool).code == 0
        stranger.close()
        session.finish(signal.SIGINT)
