"""Names and reasons of others in pages and terminals: shown as they are, never obeyed."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from sensorium.agent.commands.display import coloured, print_episodes
from sensorium.agent.commands.output import plain_text, say_why
from sensorium.agent.commands.terminal import PatientConsole, styled

ESCAPES = "\x1b]0;owned\x07\x1b[2Jname\x9b31m\u202egnp.exe"
MARKUP = "[link=file:///etc/passwd]click[/link][/] [green]ok"


def shown(*things: object) -> str:
    file = io.StringIO()
    console = PatientConsole(file=file, highlight=False, force_terminal=True, width=200)
    for thing in things:
        console.print(thing, soft_wrap=True)
    return file.getvalue()


def test_what_would_command_the_terminal_is_shown_as_a_sign() -> None:
    table = Table("stream", ESCAPES)
    table.add_row(ESCAPES, coloured("failed"))
    found = shown(ESCAPES, table)
    assert "\x1b]" not in found
    assert "\x1b[2J" not in found
    assert not {"\x07", "\x9b", "\u202e"} & set(found)
    assert found.count("name") == 3


def test_markup_from_elsewhere_stays_text_and_ours_is_a_colour() -> None:
    table = Table("reason", "verdict")
    table.add_row(MARKUP, styled("bad", "red"))
    found = shown(MARKUP, table)
    assert found.count("[link=file:///etc/passwd]click[/link][/] [green]ok") == 2
    assert "\x1b]8" not in found
    assert "\x1b[31mbad\x1b[0m" in found


def test_a_manifest_error_with_escapes_reaches_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say_why([f"no such stream: {ESCAPES}"])
    print_episodes([{"episode": ESCAPES, "error": MARKUP, "state": "open"}])
    found = capsys.readouterr()
    assert "\x1b" not in found.err + found.out
    assert "[link=" in found.out


def test_an_error_of_the_command_line_sends_no_escapes(tmp_path: Path) -> None:
    missing = tmp_path / f"a{ESCAPES}"
    done = subprocess.run(
        [sys.executable, "-m", "sensorium.agent.cli", "episodes", "verify", str(missing)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "\x1b" not in done.stderr + done.stdout
    assert "internal error" not in done.stderr


def test_plain_text_keeps_lines_tabs_and_other_scripts() -> None:
    text = "première\tligne\nвторая 行"
    assert plain_text(text) == text
    assert json.loads(json.dumps(plain_text("\x1b[m"))) == "\ufffd[m"
