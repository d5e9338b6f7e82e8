"""``sensorium keys``: made, shown, enrolled, replaced and revoked from the command line, as two machines would."""

from pathlib import Path

import pytest
from episode_samples import sealed_episode
from sessions import Done, sensorium


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "here", tmp_path / "there"


def at(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Done:
    monkeypatch.setenv("SENSORIUM_HOME", str(home))
    return sensorium(*arguments)


def test_an_episode_of_another_machine_passes_once_its_key_is_enrolled(
    tmp_path: Path, homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = homes
    monkeypatch.setenv("SENSORIUM_HOME", str(there))
    episode = sealed_episode(tmp_path)
    assert at(there, monkeypatch, "episodes", "verify", episode).code == 0
    foreign = at(here, monkeypatch, "episodes", "verify", episode)
    assert foreign.code == 1
    assert "sensorium keys enroll" in foreign.out
    assert at(here, monkeypatch, "episodes", "verify", episode, "--any-signer").code == 0
    shown = at(there, monkeypatch, "keys", "show", "--json").document["keys"]
    public = next(key["public"] for key in shown if key["role"] == "device")
    enrolled = at(here, monkeypatch, "keys", "enroll", public, "--name", "robot 7", "--json")
    assert enrolled.code == 0
    verified = at(here, monkeypatch, "episodes", "verify", episode, "--json").document
    assert (verified["status"], verified["trusted"], verified["signer"]["name"]) == ("ok", True, "robot 7")
    again = at(here, monkeypatch, "keys", "trust", episode, "--name", "again")
    assert again.code == 3
    assert "enrolled as robot 7" in again.err
    revoked = at(here, monkeypatch, "keys", "revoke", enrolled.document["key_id"][:12], "--reason", "stolen")
    assert revoked.code == 0
    assert "revoked: stolen" in at(here, monkeypatch, "episodes", "verify", episode).out


def test_keys_are_made_listed_and_replaced(homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = homes
    made = at(here, monkeypatch, "keys", "init", "--json").document["keys"]
    assert sorted(key["role"] for key in made) == ["authority", "device", "operator"]
    assert at(here, monkeypatch, "keys", "rotate", "--role", "device").code == 0
    shown = at(here, monkeypatch, "keys", "show", "--json").document["keys"]
    devices = [key for key in shown if key["role"] == "device"]
    assert [key["until"] is None for key in devices] == [False, True]
    assert "replaced at" in at(here, monkeypatch, "keys", "show").out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("enroll", "beef", "--name", "x"), 2, "is no public key"),
        (("enroll", "00" * 32, "--name", "x", "--role", "king"), 2, "one of device, operator, authority"),
        (("revoke", "ffff", "--reason", "x"), 3, "no key is 'ffff'"),
        (("trust", "nowhere", "--name", "x"), 3, "has no readable manifest.json"),
    ],
)
def test_what_cannot_be_done_is_a_line(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    homes: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = at(homes[0], monkeypatch, "keys", *arguments)
    assert done.code == code
    assert words in done.err
    assert len(done.err.splitlines()) == 1
