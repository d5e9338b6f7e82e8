"""``sensorium upload`` as its users run it: once, and until somebody stops it."""

import json
import signal
from pathlib import Path

import pytest
from sessions import Session, sensorium, until
from upload_samples import CAPTURED, begin_spool, grant_for, locked_by_another, seal_episode

from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.spool import Spool
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.uploader.receipt import State, upload_state

OLDEST, NEWEST = "01J00000000000000000000001", "01J00000000000000000000002"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool of two episodes that may be uploaded today."""
    found, _ = begin_spool(tmp_path / "spool")
    for name in (NEWEST, OLDEST):
        seal_episode(found, name)
    captured = (CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS)
    grant = grant_for(captured=captured, valid_around_ns=HostClock().utc_ns())
    ConsentStore(found.root / "consent").grant(grant)
    return found


def upload_words(spool: Path) -> list[object]:
    return ["upload", "--spool", spool, "--store", (spool.parent / "central").as_uri()]


def states(spool: Spool) -> list[State]:
    return [upload_state(folder) for folder in spool.sealed_folders()]


def test_once_delivers_every_episode_and_says_so(spool: Spool) -> None:
    done = sensorium(*upload_words(spool.root), "--once", "--json")
    assert done.code == 0, done.err
    found = done.document["verification"]
    assert (found["status"], found["episodes"], found["reasons"]) == ("verified", 2, [])
    assert found["store"] == (spool.root.parent / "central").as_uri()
    assert states(spool) == [State.VERIFIED, State.VERIFIED]
    again = sensorium(*upload_words(spool.root), "--once")
    assert again.code == 0, again.err
    assert "verified" in again.out


def test_once_delivers_the_other_when_the_oldest_is_locked_and_says_what_waits(spool: Spool) -> None:
    locked = spool.sealed_folder(OLDEST)
    with locked_by_another(locked):
        done = sensorium(*upload_words(spool.root), "--once", "--json")
    assert done.code == 3
    found = done.document["verification"]
    why = f"episode {locked} is being sent or changed by another process"
    assert (found["status"], found["waiting"]) == ("waiting", {OLDEST: why})
    assert found["reasons"] == [f"{OLDEST}: {why}"]
    assert states(spool) == [State.SEALED, State.VERIFIED]


def test_once_on_an_empty_spool_is_fine_and_writes_nothing(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    for words in (["--json"], []):
        done = sensorium(*upload_words(spool), "--once", *words)
        assert done.code == 0, done.err
        assert list(tmp_path.rglob("*")) == [spool]
    assert "no episode was sealed" in done.out


def test_once_exits_with_1_when_consent_forbids_it(spool: Spool, tmp_path: Path) -> None:
    done = sensorium(*upload_words(spool.root), "--consent", tmp_path / "nobody", "--once", "--json")
    assert done.code == 1
    found = done.document["verification"]
    assert (found["status"], found["waiting"]) == ("denied", {})
    assert any("no grant covers stream cam" in reason for reason in found["reasons"])


def test_once_with_a_store_out_of_reach_says_what_waits_and_why(spool: Spool, tmp_path: Path) -> None:
    words = ["upload", "--spool", spool.root, "--store", (tmp_path / "not mounted" / "central").as_uri()]
    done = sensorium(*words, "--once", "--json")
    assert done.code == 3
    waiting = done.document["verification"]["waiting"]
    assert sorted(waiting) == [OLDEST, NEWEST]
    assert all("is it mounted?" in why for why in waiting.values())


def test_until_it_is_stopped_it_prints_a_line_of_json_for_every_change(spool: Spool) -> None:
    with Session(*upload_words(spool.root), "--json", spool=spool.root) as session:
        until(lambda: states(spool) == [State.VERIFIED] * 2, "the end of the uploads")
        done = session.finish(signal.SIGTERM)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    said = [(line["episode"], line["state"]) for line in lines]
    assert said == [
        (OLDEST, "uploading"),
        (NEWEST, "sealed"),
        (OLDEST, "verified"),
        (NEWEST, "uploading"),
        (NEWEST, "verified"),
    ]
    assert all(line["utc"].endswith("Z") for line in lines)


def test_until_it_is_stopped_it_says_why_an_episode_does_not_go(spool: Spool, tmp_path: Path) -> None:
    words = [*upload_words(spool.root), "--consent", tmp_path / "nobody"]
    with Session(*words, spool=spool.root) as session:
        until(lambda: states(spool) == [State.DENIED] * 2, "the judgement")
        done = session.finish(signal.SIGINT)
    assert done.code == 0, done.err
    denials = [line for line in done.out.splitlines() if "denied" in line]
    assert [line.partition(":")[0] for line in denials] == [OLDEST, NEWEST]
    assert all("no grant covers stream cam" in line for line in denials)
