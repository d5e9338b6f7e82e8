"""What people see: live progress on standard error, tables at the end on standard output."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sensorium.agent.commands.terminal import PatientConsole, styled, table_console
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.verdict import Status, Verdict

if TYPE_CHECKING:
    from sensorium.uploader.transfer import Progress as UploadProgress

CHECKER_SILENT_S = 15.0
_PLAIN_EVERY_NS = 2 * SECOND_NS
_COLOUR = {
    "ok": "green",
    "verified": "green",
    "allow": "green",
    "suspect": "yellow",
    "insufficient": "yellow",
    "pending": "yellow",
    "not uploaded": "yellow",
    "waiting": "yellow",
    "failed": "red",
    "deny": "red",
    "denied": "red",
}


def coloured(status: str) -> str:
    """Return a status in the colour of how good it is."""
    return styled(status, _COLOUR.get(status, "white"))


class Progress:
    """Live progress: a table in a terminal, a line every two seconds elsewhere, nothing with ``--json``."""

    def __init__(self, title: str, as_json: bool) -> None:
        self._title = title
        self._is_silent = as_json
        self._console = PatientConsole(stderr=True, highlight=False)
        self._live: Live | None = None
        self._clock = HostClock()
        self._next_line_ns = 0
        self._phase = ""
        self._warned: set[str] = set()

    def __enter__(self) -> "Progress":
        if not self._is_silent and self._console.is_terminal:
            self._live = Live(Text(f"{self._title}: starting"), console=self._console, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None

    def show(self, status: Mapping[str, Any]) -> None:
        """Show the state of a session; ``phase`` names what is going on."""
        if not self._is_silent:
            try:
                self._show(status)
            except OSError:  # the terminal, or whoever read the lines, has left; what is shown is not the job
                self._is_silent, self._live = True, None

    def _show(self, status: Mapping[str, Any]) -> None:
        phase = str(status.get("phase", ""))
        self._warn(status.get("warnings") or ())
        if self._live is not None:
            self._live.update(_live_view(self._title, status))
        elif phase != self._phase or self._clock.now_ns() >= self._next_line_ns:
            self._next_line_ns = self._clock.now_ns() + _PLAIN_EVERY_NS
            self._console.print(_line(self._title, status), soft_wrap=True)
        self._phase = phase

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._console.print(f"{self._title}: {warning}", soft_wrap=True, markup=False)

    def show_upload(self, progress: "UploadProgress") -> None:
        """Show how far an upload is."""
        self.show_share(f"{progress.phase} {progress.episode_id}", progress.done_bytes, progress.total_bytes)

    def show_share(self, what: str, done: int, total: int) -> None:
        """Show on a terminal how much of something long is done."""
        if self._live is not None and total:
            self._live.update(Text(f"{self._title}: {what} {done / total:.0%}"))


def _line(title: str, status: Mapping[str, Any]) -> str:
    streams = status.get("streams") or {}
    if status.get("refused"):
        return f"{title}: {status['refused']}"
    if status.get("phase") != "recording" or not streams:
        return f"{title}: {status.get('phase', 'starting')}"
    dropped = sum(stream["dropped"] for stream in streams.values())
    rates = ", ".join(f"{name} {_pace(stream)}" for name, stream in streams.items())
    paused = ", PAUSED" if status.get("paused") else ""
    return (
        f"{title}: {status['recorded_s']:.1f} s, {_size(status['bytes'])}, {dropped} dropped{paused}"
        f"{_checked(status)}; {rates}"
    )


def _pace(stream: Mapping[str, Any]) -> str:
    return "WITHHELD" if stream.get("withheld") else f"{stream['rate_hz']:.0f} Hz"


def _checked(status: Mapping[str, Any]) -> str:
    """Return the pairs that are not ok, worst first, or that all are; "" while nothing was judged."""
    rows = status.get("checks", {}).get("pairs", ())
    off = [row for row in rows if row["status"] in ("failed", "suspect")]
    moved = [f"{row['subject']} moved" for row in off if row["check"] == "mounting"]
    if off:
        said = moved or sorted((f"{row['subject']} {row['status']}" for row in off), key=_suspects_last)
        return f", calibration: {', '.join(said)}"
    return ", calibration ok" if any(row["status"] == "ok" for row in rows) else ""


def _suspects_last(text: str) -> bool:
    return text.endswith("suspect")


def _live_view(title: str, status: Mapping[str, Any]) -> Any:
    head = Text(_line(title, {**status, "streams": {}}))
    streams = status.get("streams") or {}
    if status.get("phase") != "recording" or not streams:
        return head
    paused = "  PAUSED" if status.get("paused") else ""
    head = Text(
        f"{title}: {status['recorded_s']:.1f} s  {_size(status['bytes'])}{paused}{_checked(status)}",
        style="bold",
    )
    table = Table("stream", "produced", "recorded", "dropped", "rate Hz", "uncertainty us")
    for name, stream in streams.items():
        table.add_row(
            name,
            str(stream["produced"]),
            "WITHHELD" if stream.get("withheld") else str(stream["recorded"]),
            str(stream["dropped"]),
            f"{stream['rate_hz']:.1f}",
            f"{stream['uncertainty_p95_us']:.0f}",
        )
    return Group(head, table)


def print_session(found: Mapping[str, Any]) -> None:
    """Print the tables that end a session."""
    console = table_console()
    console.print(_stream_table(found["streams"]))
    if found["alignment"]:
        console.print(_alignment_table(found["alignment"]))
    _print_verdict(console, "calibration", found["calibration"]["status"], found["calibration"]["reasons"])
    clocks = found["clocks"]
    _print_verdict(console, "clocks", clocks["status"], clocks["reasons"] if clocks["status"] != "ok" else ())
    _print_verdict(console, "consent", found["consent"]["decision"], [found["consent"]["reason"]])
    _print_verdict(console, "quality", found["quality"]["status"], found["quality"]["reasons"])
    raw = sum(stream["bytes_raw"] for stream in found["streams"].values())
    stored = found.get("bytes_on_disk", 0)
    ratio = f", {raw / stored:.2f} times smaller" if stored and raw > stored else ""
    console.print(
        f"{styled('size', 'bold')}         {_size(raw)} from the sensors, {_size(stored)} on disk{ratio}"
    )
    print_verification(found["verification"], console)
    for label in ("problems", "limitations", "warnings"):
        for text in found.get(label, ()):
            console.print(f"{styled(label[:-1], 'bold yellow')}  {text}")
    console.print(f"{styled('summary', 'bold')}      {found['summary']}", soft_wrap=True)
    for episode in found["episodes"]:
        console.print(f"{styled('episode', 'bold')}      {episode}", soft_wrap=True)
    if found["report"]:
        console.print(f"{styled('report', 'bold')}       {found['report']}", soft_wrap=True)


def print_verification(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print where the episodes are proven to be."""
    where = [f"in {found['store']}"] if found.get("store") else []
    _print_verdict(
        console or table_console(),
        "verification",
        found["status"],
        [*where, *found.get("reasons", ()), *found.get("remarks", ())],
    )


def _print_verdict(console: Console, name: str, status: str, reasons: Sequence[str]) -> None:
    text = "; ".join(reason for reason in reasons if reason)
    console.print(f"{styled(f'{name:<12}', 'bold')} {coloured(status)}  {text}", soft_wrap=True)


def _stream_table(streams: Mapping[str, Mapping[str, Any]]) -> Table:
    has_truth = any("clock_error_p99_us" in stream for stream in streams.values())
    table = Table(title="streams: produced = recorded + dropped", title_justify="left")
    table.add_column("stream")
    for column in ("produced", "recorded", "dropped", "rate Hz", "skew ppm", "uncertainty us"):
        table.add_column(column, justify="right")
    if has_truth:
        table.add_column("error p99 us", justify="right")
    table.add_column("dropped where, why")
    for name, stream in streams.items():
        cells = [
            name,
            str(stream["produced"]),
            str(stream["recorded"]),
            str(sum(stream["dropped"].values())),
            _number(stream["rate_hz"], 2),
            _number(stream["clock_skew_ppm"], 1),
            _number(stream["clock_uncertainty_p95_us"], 0),
        ]
        if has_truth:
            cells.append(_number(stream.get("clock_error_p99_us"), 0))
        table.add_row(*cells, _where(stream["dropped_reasons"]))
    return table


def _where(reasons: Mapping[str, Mapping[str, int]]) -> str:
    parts = [
        f"{place}: {count} {reason}" for place, found in reasons.items() for reason, count in found.items()
    ]
    return "; ".join(parts)


def _alignment_table(pairs: Sequence[Mapping[str, Any]]) -> Table:
    reference = pairs[0]["reference"]
    table = Table(title=f"alignment on {reference}", title_justify="left")
    table.add_column("stream")
    table.add_column("method")
    for column in ("p50 us", "p95 us", "max us"):
        table.add_column(column, justify="right")
    for pair in pairs:
        values = [_number(pair[key], 0) for key in ("p50_us", "p95_us", "max_us")]
        table.add_row(pair["stream"], pair["method"], *values)
    return table


def print_status(status: Mapping[str, Any]) -> None:
    """Print what a running agent records."""
    console = table_console()
    if status["episode"] is None:
        console.print("not recording")
    else:
        console.print(_live_view(str(status["episode"]), {"phase": "recording", **status}))
    for name, state in status["devices"].items():
        console.print(f"{name}: {state}")
    if status["disk"]["minutes_left"] is not None:
        console.print(f"disk: room for {status['disk']['minutes_left']:.0f} min at this rate")
    for name, stream in (status.get("streams") or {}).items():
        if stream.get("withheld"):
            console.print(f"{name}: {styled('WITHHELD', 'bold red')}, {stream['withheld']}", soft_wrap=True)
    for sentence in status.get("allowed_by", ()):
        console.print(sentence, soft_wrap=True)
    _print_checks(console, status["checks"])
    for why in filter(None, (status["fault"], status["refused"])):
        console.print(styled(why, "red"))


def _print_checks(console: Console, checks: Mapping[str, Any]) -> None:
    """Print what the checker said last of each pair, and what it costs."""
    if not checks["pairs"]:
        return
    table = Table(
        "check", "pair", "verdict", "age s", "cost", "why", title="calibration", title_justify="left"
    )
    for row in checks["pairs"]:
        cost_s, every_s = row["cost_s"], row["every_s"]
        cost = f"{_number(cost_s, 2)} s each {every_s:g} s" if cost_s is not None and every_s else ""
        why = row["note"] or next(iter(row["reasons"]), "")
        table.add_row(
            row["check"], row["subject"], coloured(row["status"]), _number(row["age_s"], 0), cost, why
        )
    console.print(table)
    silent = checks["silent_s"]
    late = f", {checks['postponed_s']:.0f} s behind" if checks["postponed_s"] > 1 else ""
    gone = f"; not heard for {silent:.0f} s" if silent is not None and silent > CHECKER_SILENT_S else ""
    console.print(
        f"checker: {checks['cpu_used']:.0%} of a core, {checks['cpu_share']:.0%} allowed{late}{gone}"
    )


def print_devices(rows: Sequence[Mapping[str, Any]], plugged: Sequence[str]) -> None:
    """Print drivers and devices."""
    console = table_console()
    table = Table("driver", "options", "seen")
    for row in rows:
        options = ", ".join(row["options"]) if row["available"] else row["reason"]
        table.add_row(row["driver"], options, "\n".join(_seen(found) for found in row.get("seen", ())))
    console.print(table)
    console.print("plugged in: " + (", ".join(plugged) or "no camera or serial device with a stable name"))


def _seen(found: Mapping[str, Any]) -> str:
    return f"{found['name']} ({', '.join(f'{key}: {value}' for key, value in found['options'].items())})"


def print_episodes(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the episodes of a spool."""
    table = Table("episode", "start", "seconds", "size", "quality", "state")
    for row in rows:
        quality = row.get("quality", "") + (" (truncated)" if row.get("truncated") else "")
        table.add_row(
            row["episode"],
            str(row.get("start", ""))[:19],
            _number(row.get("duration_s"), 1),
            _size(row["bytes"]) if "bytes" in row else "",
            row.get("error", quality),
            "; ".join([row["state"], *row.get("reasons", ())]),
        )
    table_console().print(table)


def print_consent(rows: Sequence[Mapping[str, Any]], is_paused: bool) -> None:
    """Print grants and the pause."""
    console = table_console()
    table = Table("grant", "subject", "status", "purposes", "streams", "valid until")
    for row in rows:
        table.add_row(
            row["grant"],
            row["subject"],
            row["status"],
            ", ".join(row["purposes"]),
            ", ".join(row["streams"]),
            row["valid_until"][:19],
        )
    console.print(table)
    if is_paused:
        console.print(styled("paused: nothing personal is stored", "red"))


def print_consent_log(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the consent log, a row each."""
    from sensorium.sync.consent.grants import format_utc

    known = ("v", "log", "seq", "prev", "key", "sig", "kind", "at", "host", "boot", "digest")
    table = Table("row", "time", "what", "details", "signed by")
    for row in rows:
        details = ", ".join(f"{key}: {row[key]}" for key in row if key not in known and row[key])
        at = format_utc(row["at"])[:19]
        table.add_row(str(row["seq"]), at, str(row["kind"]), details, str(row["key"])[:16])
    table_console().print(table)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def print_findings(console: Console, findings: Sequence[Verdict]) -> None:
    """Print what looks odd in a calibration."""
    for finding in findings:
        what = "note" if finding.status is Status.OK else coloured(finding.status.value)
        for reason in finding.reasons:
            console.print(f"{what}: {finding.subject}: {reason}", soft_wrap=True)
