"""The commands that the documents show do what they say: each is run on one short episode, in the order of a day.

What wants hardware, a person, or a session of processes is named in ``ELSEWHERE``, with who runs it. A new command in a
document is run here, or is a failure here.
"""

import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from delivered_episode import Delivered, deliver
from test_docs import ROOT, command_lines
from typer.testing import CliRunner

from sensorium.agent.cli import app
from sensorium.errors import BusyError

ELSEWHERE = {
    r"demo$": "tests/agent/test_demo.py",
    r"record ": "a session of processes: tests/agent/test_record.py",
    r"replay ": "the same: tests/agent/test_replay.py",
    r"sync serve ": "runs until Ctrl-C: tests/sync/test_probe.py",
    r"sync report FILE.xdf": "wants a capture of others: tests/agent/test_sync_report.py",
    r"calibration solve ": "wants a board: tests/agent/test_calibration_solve.py",
    r"keys (enroll|trust) ": "wants another machine's key: tests/agent/test_keys.py",
    r"keys revoke ": "the same",
}
AGENT = r"(status|mark|stop|start|discard)\b"
"""Commands for a running agent: without one they say so."""
ORDER = ("calibration", "export", "consent grant", "", "keys rotate", "consent withdraw", "episodes delete")
"""What comes after what: a narrower grant ends an export, and after the last three there is nothing to work on."""
VERDICTS = ("sync clocks", "calibration check")
"""They judge this machine's clock, and images of another size than the calibration's: 1 is an answer."""
SECONDS = 1.0


def documented() -> list[str]:
    """Return what the documents show and can run here, in the order of :data:`ORDER`."""
    shown = {" ".join(text.split()) for _, text in command_lines()}
    here = [text for text in shown if not any(re.match(pattern, text) for pattern in ELSEWHERE)]
    return sorted(here, key=lambda text: (_rank(text), text))


def _rank(text: str) -> int:
    return next(
        (rank for rank, start in enumerate(ORDER) if start and text.startswith(start)), ORDER.index("")
    )


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Delivered]:
    """An episode of keys of its own, which a command may rotate, and where a user would be."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    made = deliver(tmp_path / "here", SECONDS)
    monkeypatch.setenv("SENSORIUM_SPOOL", str(made.spool))
    monkeypatch.chdir(tmp_path / "here")
    Path("rig.yaml").write_text(f"rig: bench\nspool: {made.spool}\ndevices:\n  imu: {{driver: sim_imu}}\n")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield made
    for number, handler in handlers.items():  # commands that run until Ctrl-C take them
        signal.signal(number, handler)


def words_of(text: str, there: Delivered, number: int) -> list[str]:
    """Return the arguments of a command, with this episode for what the document leaves open."""
    store = there.url.rpartition("/")[0]
    meant = {
        "EPISODE|FOLDER|RIG.yaml": str(there.folder),
        "EPISODE": str(there.folder),
        "FILE": str(there.folder / "calibration.yaml"),
        "DIR": f"exported-{number}",
        "TEXT": "a reason",
        "URL": store,
        "N": "1",
        "file:///var/lib/sensorium/central": store,
        "csv|parquet": "csv",
        "show|convert": "show",
        "wrist": "camera_left",
        "camera": "camera_left",
        "10": "0.1",
    }
    return [meant.get(word, word) for word in shlex.split(text)]


def run(text: str, words: list[str]) -> str:
    """Return what is wrong with a command's end; "" if nothing is."""
    done = CliRunner().invoke(app, words)
    if re.match(AGENT, text):
        is_told = isinstance(done.exception, BusyError) and "no agent records into" in str(done.exception)
        return "" if is_told else f"without an agent: {done.exception!r} {done.output}"
    good = (0, 1) if text.startswith(VERDICTS) else (0,)
    is_told = done.exit_code in good and (done.exception is None or isinstance(done.exception, SystemExit))
    return (
        ""
        if is_told and done.output.strip()
        else f"{done.exit_code}: {done.exception!r} {done.output[-300:]}"
    )


def test_each_command_in_the_documents_does_its_work_on_an_episode(there: Delivered) -> None:
    commands = documented()
    assert len(commands) > 30
    failed = {text: run(text, words_of(text, there, number)) for number, text in enumerate(commands)}
    assert {text: why for text, why in failed.items() if why} == {}
    assert len(list(Path.cwd().glob("exported-*/imu.csv"))) == 1
    assert len(list(Path.cwd().glob("exported-*/episode.mcap"))) == 1


def test_a_store_without_a_receipt_and_an_episode_without_a_calibration_are_named(there: Delivered) -> None:
    other = f"file://{there.spool.parent}/other"
    done = CliRunner().invoke(app, ["upload", "verify", "--store", other])
    assert f"has no episode with a receipt of {other} that counts" in done.output
    (there.folder / "calibration.yaml").unlink()
    done = CliRunner().invoke(app, ["calibration", "check", str(there.folder)])
    assert "carries no calibration; give one with --calibration FILE" in str(done.exception)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("consent show --spool typo", "nothing was granted or paused in"),
        ("consent log --spool typo", "nothing was granted or paused in"),
        ("pause --spool typo", "there was no such folder until now"),
        ("episodes recover --spool typo", "typo is not a spool"),
        ("consent grant site:b --purpose recrod", "there is no purpose 'recrod'; did you mean 'record'?"),
        ("record rig.yml", "did you mean rig.yaml?"),
    ],
)
def test_a_typo_in_a_spool_a_purpose_or_a_file_is_not_taken_for_a_new_one(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("rig.yaml").write_text("rig: bench\ndevices:\n  imu: {driver: sim_imu}\n")
    done = CliRunner().invoke(app, line.split())
    assert says in " ".join(f"{done.output} {done.exception}".split())


def test_what_is_run_elsewhere_is_still_in_a_document() -> None:
    shown = [" ".join(text.split()) for _, text in command_lines()]
    for pattern, where in ELSEWHERE.items():
        assert any(re.match(pattern, text) for text in shown), pattern
        for file in re.findall(r"tests/\S+\.py", where):
            assert (ROOT / file).is_file(), file


def test_the_first_lines_of_the_reading_page_open_an_episode(
    there: Delivered, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "reading.md").read_text(), re.DOTALL)
    assert found is not None
    assert "spool/sealed/01J..." in found[1]
    exec(found[1].replace("spool/sealed/01J...", str(there.folder)), {})
    assert "camera_left" in capsys.readouterr().out
