"""What a command costs before it does anything, in processor time, held against a bare interpreter's."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sensorium import __version__

pytestmark = pytest.mark.alone

ROUNDS = 2
BARE_S = 0.024
"""Of the machine that the limits were set on; limits in seconds become so many bare starts."""
MISTYPED = "rig: bench\ndevices:\n  cam: {driver: opencv, devic: /dev/video0}\n"


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "COLUMNS": "100"}


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sensorium.agent.cli", *arguments]
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=60)


def _cpu_s(command: list[str]) -> float:
    """Return the least processor time of a few runs; the first one writes bytecode and does not count."""
    found = []
    for _ in range(ROUNDS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=_environment(), capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found[1:])


def _bare_starts(*arguments: str) -> float:
    ours = _cpu_s([sys.executable, "-m", "sensorium.agent.cli", *arguments])
    return ours / _cpu_s([sys.executable, "-c", "pass"])


def test_help_costs_less_than_twelve_bare_interpreters() -> None:
    assert _bare_starts("--help") < 12


def test_a_mistyped_key_is_named_within_half_a_second_of_processor_time(tmp_path: Path) -> None:
    rig = tmp_path / "rig.yaml"
    rig.write_text(MISTYPED)
    assert "did you mean 'device'?" in _run("record", str(rig)).stderr
    assert _bare_starts("record", str(rig)) < 0.5 / BARE_S * 1.5, "1.5: two cores that others use, too"


def test_a_pause_counts_within_three_tenths_of_a_second_of_processor_time(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    assert "paused" in _run("pause", "--spool", str(spool)).stdout
    assert _bare_starts("pause", "--spool", str(spool)) < 0.3 / BARE_S * 1.5


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("sensorium.agent.cli", {"numpy", "cv2", "zmq", "pydantic", "rich", "yaml", "mcap"}),
        ("sensorium.agent.commands.running", {"numpy", "cv2", "pydantic", "rich", "yaml", "mcap"}),
        ("sensorium.sync.consent.store", {"numpy", "cv2", "zmq", "rich", "mcap"}),
        ("sensorium.agent.session.rig", {"cv2", "zmq", "rich", "mcap", "msgpack"}),
    ],
)
def test_a_module_on_the_way_to_an_early_word_loads_nothing_that_it_does_not_need(
    module: str, strangers: set[str]
) -> None:
    told = f"import sys, {module}; print(*(set({sorted(strangers)!r}) & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", told], env=_environment(), capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


def test_the_version_is_told() -> None:
    assert _run("--version").stdout == f"sensorium {__version__}\n"


@pytest.mark.parametrize("command", [(), ("record",)])
def test_a_flag_is_helped_with_without_a_word_for_its_type(command: tuple[str, ...]) -> None:
    told = _run(*command, "--help")
    assert told.returncode == 0
    assert "--help" in told.stdout
    assert "<bool>" not in told.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_us(shell: str) -> None:
    told = _run("completion", shell)
    assert told.returncode == 0
    assert f"_SENSORIUM_COMPLETE=complete_{shell}" in told.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash itself")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("re",), {"record", "replay", "resume"}),
        (("record", "--des"), {"--despite-calibration"}),
    ],
)
def test_bash_completes_commands_and_options(
    typed: tuple[str, ...], offered: set[str], tmp_path: Path
) -> None:
    ours = tmp_path / "sensorium"
    ours.write_text(f'#!/bin/sh\nexec {sys.executable} -m sensorium.agent.cli "$@"\n')
    ours.chmod(0o755)
    asked = f"""
        source <({ours} completion bash)
        COMP_WORDS=(sensorium {" ".join(typed)})
        COMP_CWORD={len(typed)}
        _sensorium_completion {ours}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    told = subprocess.run(
        ["bash", "--norc", "-c", asked], env=_environment(), capture_output=True, text=True, timeout=60
    )
    assert set(told.stdout.split()) == offered, told.stderr
