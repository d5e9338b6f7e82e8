"""``sensorium sync serve`` and ``sensorium sync clocks``: answer probes, and look at the clocks of a rig."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rich.live import Live
from rich.table import Table

from sensorium.agent.commands.display import coloured
from sensorium.agent.commands.output import print_json, print_json_line, say
from sensorium.agent.commands.terminal import table_console
from sensorium.agent.session.rig import load_rig
from sensorium.errors import ConfigError
from sensorium.sync.clocks.probe import ProbeServer, load_key
from sensorium.sync.clocks.watch import ClockWatch, WatchEvent
from sensorium.timebase import SECOND_NS, HostClock, read_bases
from sensorium.verdict import Status, Verdict, worst

_WAIT_S = 0.2
_STEP_NS = SECOND_NS // 50
_SHOWN_EVENTS = 8


class _Stop:
    """Notes Ctrl-C and SIGTERM."""

    def __init__(self) -> None:
        self.is_asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_asked = True


def serve_probes(bind: str, port: int, key: Path, *, as_json: bool) -> int:
    """Answer the clock probes of those who share the key, until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: If the key cannot be used.
        DeviceError: If the address cannot be bound.
    """
    server = ProbeServer(bind, port, load_key(key), HostClock())
    stop = _Stop()
    answered = 0
    try:
        _say(
            {"bind": bind, "port": server.port},
            f"answering clock probes on {bind}:{server.port}/udp",
            as_json,
        )
        while not stop.is_asked:
            if server.wait(_WAIT_S):
                answered += server.step()
    finally:
        server.close()
    refused = "; ".join(f"{count} refused: {reason}" for reason, count in server.rejected.items())
    found = {"answered": answered, "refused": dict(server.rejected)}
    _say(found, f"{answered} probes answered{'; ' + refused if refused else ''}", as_json)
    return 0


def _say(found: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        print_json_line(found)
    else:
        say(text)


def watch_clocks(rig: Path, seconds: float | None, *, as_json: bool) -> int:
    """Watch the host's clock, PTP, chrony and the nodes of a rig; exit code 1 if one is not good.

    Args:
        seconds: How long; None = until Ctrl-C.

    Raises:
        ConfigError: If the rig file is wrong, or a key cannot be used.
    """
    settings = load_rig(rig).document.clocks
    if as_json and seconds is None:
        raise ConfigError("--json prints one document at the end: say how long with --seconds")
    clock, stop = HostClock(), _Stop()
    watch = ClockWatch(os.uname().nodename, settings, clock)
    events: list[WatchEvent] = []
    try:
        if as_json:
            _run(watch, clock, seconds, stop, events, lambda: None)
        else:
            table = _table(watch.verdicts(), events)
            with Live(table, console=table_console(), auto_refresh=False) as live:
                _run(
                    watch,
                    clock,
                    seconds,
                    stop,
                    events,
                    lambda: live.update(_table(watch.verdicts(), events), refresh=True),
                )
        verdicts = watch.verdicts()
    finally:
        watch.close()
    status = worst(verdicts)
    if as_json:
        rows = [verdict.document() for verdict in verdicts]
        print_json({"status": status.value, "clocks": rows, "events": [asdict(event) for event in events]})
    return 0 if status is Status.OK else 1


def _run(
    watch: ClockWatch,
    clock: HostClock,
    seconds: float | None,
    stop: _Stop,
    events: list[WatchEvent],
    show: Callable[[], None],
) -> None:
    started_ns = clock.now_ns()
    next_ns = started_ns
    while not stop.is_asked:
        now_ns = clock.now_ns()
        if seconds is not None and now_ns - started_ns > seconds * SECOND_NS:
            return
        is_second = now_ns >= next_ns
        events += watch.step(read_bases() if is_second else None)
        if is_second:
            next_ns += SECOND_NS
            show()
        clock.sleep_until(now_ns + _STEP_NS)


def _table(verdicts: Sequence[Verdict], events: Sequence[WatchEvent]) -> Table:
    table = Table(title="clocks", title_justify="left", caption=_caption(events), caption_justify="left")
    for name in ("clock", "of", "verdict", "numbers", "why"):
        table.add_column(name)
    for verdict in verdicts:
        numbers = ", ".join(f"{q.name} {q.value:.4g} {q.unit}".strip() for q in verdict.quantities)
        table.add_row(
            verdict.check,
            verdict.subject,
            coloured(verdict.status.value),
            numbers,
            "; ".join(verdict.reasons),
        )
    return table


def _caption(events: Sequence[WatchEvent]) -> str:
    return "\n".join(f"{event.subject}: {event.detail}" for event in events[-_SHOWN_EVENTS:])
