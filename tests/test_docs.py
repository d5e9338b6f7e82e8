"""The documents tell the truth: their commands exist, their messages are said, the reference is that of the code."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from sensorium.agent.cli import app
from sensorium.agent.session.rig_reference import rig_reference
from sensorium.drivers.registry import BUILT_IN, load_driver
from sensorium.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = typer.main.get_command(app)


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield (page, command) of every command line that a page shows; `a | b` are commands of one group."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            match = re.match(r" {4}(?:\./run|sensorium) (\w[^#]*)", line)
            if match and not line.strip().startswith("./run test"):
                yield from ((page.name, text) for text in _alternatives(match[1]))


def _alternatives(text: str) -> Iterator[str]:
    first, *others = re.sub(r"[\[\]]", " ", text).split(" | ")
    yield first
    words = first.split()
    group = words[0] if hasattr(COMMAND.commands.get(words[0]), "commands") else ""  # type: ignore[attr-defined]
    for other in others:
        yield f"{group} {other}".strip()


@pytest.mark.parametrize(("page", "text"), sorted(set(command_lines())))
def test_a_command_in_a_document_exists_with_its_options(page: str, text: str) -> None:
    words = shlex.split(text)
    found: Any = COMMAND
    while words and hasattr(found, "commands"):
        nested = found.commands.get(words[0].split("|")[0])
        if nested is None:
            break
        for other in words[0].split("|")[1:]:
            assert other in found.commands, f"{page}: {other}"
        found = nested
        del words[0]
    assert found is not COMMAND, f"{page}: sensorium {text}"
    known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{page}: sensorium {text}: {word}"


def test_the_documents_show_commands_at_all() -> None:
    assert len(set(command_lines())) > 40


def test_the_rig_reference_is_that_of_the_code() -> None:
    for name in BUILT_IN:
        try:
            load_driver(name)
        except ConfigError as err:
            pytest.skip(f"not every driver can be loaded here: {err}")
    assert (ROOT / "docs" / "rig.md").read_text() == rig_reference(), (
        "run: sensorium rig reference > docs/rig.md"
    )


def test_each_message_in_troubleshooting_is_one_that_we_say() -> None:
    said = " ".join(
        " ".join(path.read_text().split())
        for room in ("agent", "drivers", "sync", "uploader", "src/sensorium", "simulators")
        for path in (ROOT / room).rglob("*.py")
    )
    for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines():
        if line.startswith("| `"):
            for phrase in re.findall(r"`([^`]+)`", line.split("|")[1]):
                for part in filter(None, map(str.strip, phrase.split("..."))):
                    assert part.strip("; ") in said, part


def test_every_link_between_documents_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
