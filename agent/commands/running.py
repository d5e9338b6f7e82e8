"""Commands to an agent that is running: start, stop, discard, mark, status, pause, resume."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sensorium.agent.commands.output import print_json, say
from sensorium.agent.session.control import AgentNote, ask_agent
from sensorium.errors import BusyError
from sensorium.timebase import HostClock


def tell_agent(spool: Path, cmd: str, fields: Mapping[str, Any], as_json: bool) -> int:
    """Send a command to the agent of a spool and print its reply.

    Raises:
        SensoriumError: If no agent runs there, it does not answer, or it refuses.
    """
    reply = ask_agent(spool.resolve(), cmd, **fields)
    reply.pop("ok", None)
    if as_json:
        print_json(reply)
    elif cmd == "status":
        from sensorium.agent.commands import display

        display.print_status(reply)
    else:
        say(_told(cmd, reply))
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
    """Pause or resume; without a running agent the next one starts paused, or not.

    Raises:
        SensoriumError: If the consent folder does not take it, or a running agent cannot be told to resume.
    """
    was_there = spool.is_dir()
    reply = _press(spool.resolve(), cmd, "command line", HostClock().now_ns())
    reply.pop("ok", None)
    if as_json:
        print_json(reply)
    elif "paused" not in reply:
        say("done")
    else:
        unlike = "" if was_there else " (there was no such folder until now; name another with --spool)"
        state = "paused" if reply["paused"] else "resumed"
        say(f"{state}; no agent is running in {spool.resolve()}{unlike}")
    return 0


def press_key(spool: Path) -> Callable[[str, int], None]:
    """Return what a key does to the agent of a spool: told ``pause`` or ``resume``, and the host time of the key.

    It raises what :func:`run_pause` does.
    """

    def press(cmd: str, host_ns: int) -> None:
        _press(spool, cmd, "key", host_ns)

    return press


def _press(spool: Path, cmd: str, source: str, host_ns: int) -> dict[str, Any]:
    if AgentNote.load(spool) is not None:
        try:
            return ask_agent(spool, cmd, source=source, host_ns=host_ns)
        except BusyError:
            if cmd == "resume":
                raise
    from sensorium.sync.consent.store import ConsentStore  # costs more than all the rest of a press

    store = ConsentStore(spool / "consent")
    if cmd == "pause":
        store.pause(source=source, pressed_ns=host_ns)
    else:
        store.resume(source=source)
    return {"agent": None, "paused": store.ledger().is_paused}
