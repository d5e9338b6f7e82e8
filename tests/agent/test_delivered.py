"""Every command that takes an episode takes it by its id, as a stored copy, and by a store's URL."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from delivered_episode import DEVICES, PURPOSES, Delivered, deliver
from sessions import sensorium

from sensorium.agent.calibrating.opening import open_recording
from sensorium.agent.commands.check import check_calibration
from sensorium.agent.commands.episodes import report_episode, show_episode
from sensorium.agent.commands.export import run_export
from sensorium.agent.commands.sync import remap_sync, report_sync
from sensorium.agent.commands.verifying import verify_episode
from sensorium.errors import ConsentError
from sensorium.sync.reading.locate import folder_of
from sensorium.sync.sources import open_source

FORMS = ("id", "copy", "url")
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return deliver(tmp_path_factory.mktemp("delivered"))


@pytest.fixture
def run(
    there: Delivered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a command in an empty folder; the delivered copy must be the same afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sensorium.sync.reading.locate.DEFAULT_SPOOL", there.spool)
    before = contents(there.copy)

    def ran(
        command: Callable[..., int], *arguments: Any, codes: Collection[int] = (0,), **options: Any
    ) -> dict[str, Any]:
        found = command(*arguments, **options, as_json=True)
        text = capsys.readouterr().out
        assert found in codes, text
        document: dict[str, Any] = json.loads(text)
        return document

    yield ran
    assert contents(there.copy) == before


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("form", FORMS)
def test_an_episode_is_shown(there: Delivered, run: Run, form: str) -> None:
    found = run(show_episode, there.forms[form], there.spool)
    assert found["verification"]["status"] == ("delivered" if form in ("copy", "url") else "verified")
    assert found["streams"]["imu"]["recorded"] == 400


@pytest.mark.parametrize("form", FORMS)
def test_an_episode_is_verified(there: Delivered, run: Run, form: str) -> None:
    found = run(verify_episode, there.forms[form], any_signer=False, spool=there.spool)
    assert (found["status"], found["subject"], found["trusted"]) == ("ok", there.folder.name, True)


@pytest.mark.parametrize("form", FORMS)
def test_the_clocks_of_an_episode_are_reported(there: Delivered, run: Run, form: str) -> None:
    found = run(report_sync, there.forms[form], None, inputs=None, codes=[0, 1])
    assert found["streams"]["imu"]["samples"] == 400
    assert Path(found["html"]).exists()
    assert Path(found["html"]).name.endswith("sync-report.html")


@pytest.mark.parametrize("form", FORMS)
def test_an_episode_is_mapped_anew(there: Delivered, run: Run, form: str) -> None:
    found = run(remap_sync, there.forms[form])
    assert set(found["streams"]) == {"camera_left", "lidar", "lidar_imu", "imu", "microphone", "force"}


@pytest.mark.parametrize("form", FORMS)
def test_the_page_of_an_episode_is_written(there: Delivered, run: Run, form: str) -> None:
    path = Path(run(report_episode, there.forms[form], there.spool)["report"])
    assert "the episode has no calibration" not in path.read_text()
    assert path.resolve().parent == (Path.cwd() if form in ("copy", "url") else there.folder)


@pytest.mark.parametrize("form", FORMS)
def test_the_calibration_of_an_episode_is_checked(there: Delivered, run: Run, form: str) -> None:
    found = run(check_calibration, there.forms[form], None, None, ["imu"], None, codes=[1])
    assert found["kind"] == "episode"
    assert found["calibration"]["id"]
    judged = [(check["subject"], check["reasons"]) for check in found["checks"]]
    assert judged == [("imu", ["2 s of data, 10 s at rest are needed"])]


@pytest.mark.parametrize("form", FORMS)
def test_an_episode_is_exported(there: Delivered, run: Run, form: str) -> None:
    found = run(run_export, there.forms[form], "csv", Path("out"), ["imu"], None)
    assert found["streams"] == {"imu": 400}


@pytest.mark.parametrize("form", FORMS)
def test_an_episode_is_a_source_to_replay(there: Delivered, run: Run, form: str) -> None:
    with open_source(folder_of(there.forms[form], there.spool)) as source:
        assert {"imu", "camera_left"} <= {info.name for info in source.streams}
        assert not source.problems
        assert sum(frame.count for frame in source.frames() if frame.stream == "imu") == 400


def test_the_calibration_of_a_copy_is_its_own(there: Delivered) -> None:
    here, copied = open_recording(there.folder), open_recording(there.copy)
    assert here.calibration.calibration.calibration_id == copied.calibration.calibration.calibration_id
    assert [task.subject for task in here.tasks] == [task.subject for task in copied.tasks]


def test_a_replay_under_a_consent_log_that_is_not_there_is_refused(there: Delivered, tmp_path: Path) -> None:
    done = sensorium("replay", there.url, "--consent", tmp_path / "none", "--spool", tmp_path / "again")
    assert done.code == 2
    assert "is no folder" in done.err
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_copy_is_replayed_from_the_address_of_its_store(there: Delivered, tmp_path: Path) -> None:
    done = sensorium(
        *("replay", there.url, "--rate", "max", "--spool", tmp_path / "again", "--json"), timeout_s=60
    )
    recorded = {name: row["recorded"] for name, row in done.document["streams"].items()}
    assert recorded["imu"] == 400
    assert recorded["camera_left"] == 0  # its grant is in a log that is not here
    consent = ("--consent", there.spool / "consent")
    done = sensorium(
        *("replay", there.url, "--rate", "max", "--spool", tmp_path / "2", "--json", *consent), timeout_s=60
    )
    assert done.document["streams"]["camera_left"]["recorded"] == 60


def test_what_a_copy_is_not_for_stays_unexported(tmp_path: Path) -> None:
    devices = {"imu": dict(DEVICES["imu"]) | {"personal": True}}
    purposes = [purpose for purpose in PURPOSES if purpose.value != "export"]
    there = deliver(tmp_path, 1.0, purposes, devices)
    with pytest.raises(ConsentError, match="export"):
        run_export(there.url, "csv", tmp_path / "out", [], None, as_json=True)
    (there.copy / "consent.json").unlink()
    with pytest.raises(ConsentError, match="no consent state lies beside this copy"):
        run_export(there.url, "csv", tmp_path / "out", [], None, as_json=True)
