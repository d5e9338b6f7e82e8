"""Attacks on the consent log: whatever is done to it, no grant comes back to life and no pause ends."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sessions import sensorium

from sensorium.drivers.frame import Encoding, Modality, StreamInfo
from sensorium.errors import ConfigError
from sensorium.sync.consent.decisions import decide
from sensorium.sync.consent.grants import (
    ConsentGrant,
    Evidence,
    LawfulBasis,
    Purpose,
    Scope,
    canonical_json,
    parse_utc,
)
from sensorium.sync.consent.log import ConsentLog
from sensorium.sync.consent.log_keys import LogKeys
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.consent.use import consent_reasons
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import ConsentAnchor, Manifest
from sensorium.sync.trust.keys import SigningKey
from sensorium.timebase import SECOND_NS, Timeline, VirtualClock

NOON = parse_utc("2026-03-01T12:00:00Z")
HOUR_NS = 3600 * SECOND_NS
CAMERA = StreamInfo("cam", Modality.CAMERA, Encoding.JPEG, 30.0, "cam", is_personal=True)


def grant_of(number: int, purposes: tuple[Purpose, ...] = (Purpose.RECORD, Purpose.UPLOAD)) -> ConsentGrant:
    return ConsentGrant(
        id=f"01J{number:023d}",
        subject=f"sub:{number}",
        controller="lab",
        lawful_basis=LawfulBasis.CONSENT,
        purposes=purposes,
        scope=Scope(("*",)),
        valid_from=NOON - HOUR_NS,
        valid_until=NOON + HOUR_NS,
        evidence=Evidence("button"),
    )


def store_in(folder: Path) -> ConsentStore:
    return ConsentStore(folder / "consent", VirtualClock(NOON))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A consent folder whose grant 1 is live, grant 2 withdrawn, and a pause on since the last row."""
    store = store_in(tmp_path)
    store.grant(grant_of(1))
    store.grant(grant_of(2))
    store.withdraw(grant_of(2).id)
    store.pause()
    return store.folder


def is_denied(folder: Path) -> bool:
    """Return whether nothing is permitted, by whoever reads the folder now, and `consent show` says why."""
    store = store_in(folder.parent)
    ledger = store.poll()
    assert store.inspect().fault == ledger.fault
    return bool(ledger.fault) and not any(
        decide(CAMERA, (NOON, NOON), purpose, NOON, ledger).is_allowed for purpose in Purpose
    )


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "events.jsonl").read_bytes().splitlines(keepends=True)


def put(folder: Path, lines: list[bytes]) -> None:
    (folder / "events.jsonl").write_bytes(b"".join(lines))


def test_an_untouched_log_is_trusted(folder: Path) -> None:
    ledger = store_in(folder.parent).poll()
    assert ledger.fault == ""
    assert ledger.is_paused
    assert len(ledger.heads) == 4


def cut_one_byte(folder: Path) -> None:
    path = folder / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-1])


def cut_last_row(folder: Path) -> None:
    put(folder, lines_of(folder)[:-1])


def cut_withdrawal(folder: Path) -> None:
    put(folder, lines_of(folder)[:2])


def remove_inner_row(folder: Path) -> None:
    lines = lines_of(folder)
    put(folder, [*lines[:2], lines[3]])


def swap_rows(folder: Path) -> None:
    lines = lines_of(folder)
    put(folder, [lines[1], lines[0], *lines[2:]])


def delete_log(folder: Path) -> None:
    (folder / "events.jsonl").unlink()


def empty_log(folder: Path) -> None:
    (folder / "events.jsonl").write_bytes(b"")


def delete_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def remove_grant_file(folder: Path) -> None:
    (folder / f"{grant_of(1).id}.yaml").unlink()


def widen_grant_file(folder: Path) -> None:
    path = folder / f"{grant_of(1).id}.yaml"
    path.write_text(path.read_text().replace("- upload", "- upload\n- export"))


def edit_kind(folder: Path) -> None:
    put(folder, [line.replace(b'"withdrawn"', b'"given"') for line in lines_of(folder)])


def log_of_another_folder(folder: Path) -> None:
    other = store_in(folder.parent / "other")
    other.grant(grant_of(1))
    other.grant(grant_of(2))
    shutil.copy(other.folder / "events.jsonl", folder / "events.jsonl")


def link_to_nothing(folder: Path) -> None:
    (folder / "events.jsonl").unlink()
    (folder / "events.jsonl").symlink_to(folder / "nowhere")


def append_forged_row(folder: Path) -> None:
    """Resume with a key that nobody knows here."""
    last = json.loads(lines_of(folder)[-1])
    key = SigningKey(Ed25519PrivateKey.generate())
    content = ConsentLog(folder, LogKeys()).read()
    body = {key_: last[key_] for key_ in ("v", "log", "host", "boot")} | {
        "kind": "resume",
        "ids": [last["id"]],
        "at": NOON,
        "source": "forged",
        "seq": len(content.rows) + 1,
        "prev": content.head,
        "key": key.key_id,
    }
    signature = base64.b64encode(key.private.sign(canonical_json(body))).decode()
    put(folder, [*lines_of(folder), canonical_json({**body, "sig": signature}) + b"\n"])


ATTACKS: tuple[Callable[[Path], None], ...] = (
    cut_one_byte,
    cut_last_row,
    cut_withdrawal,
    remove_inner_row,
    swap_rows,
    delete_log,
    empty_log,
    delete_folder,
    remove_grant_file,
    widen_grant_file,
    edit_kind,
    log_of_another_folder,
    link_to_nothing,
    append_forged_row,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_what_is_done_to_the_log_is_found_and_denies_everything(
    folder: Path, attack: Callable[[Path], None]
) -> None:
    attack(folder)
    assert is_denied(folder)


@pytest.mark.parametrize("attack", [cut_last_row, cut_withdrawal, delete_log], ids=lambda a: a.__name__)
def test_a_store_that_was_running_finds_it_too(folder: Path, attack: Callable[[Path], None]) -> None:
    running = store_in(folder.parent)
    assert running.poll().fault == ""
    attack(folder)
    assert running.poll().fault


@pytest.mark.parametrize("attack", [cut_withdrawal, delete_log], ids=lambda a: a.__name__)
def test_nothing_is_added_to_a_log_that_does_not_hold_together(
    folder: Path, attack: Callable[[Path], None]
) -> None:
    attack(folder)
    with pytest.raises(ConfigError, match="consent restart"):
        store_in(folder.parent).pause()
    assert is_denied(folder)


def test_an_old_log_put_back_is_found(folder: Path) -> None:
    old = folder.with_name("old")
    shutil.copytree(folder, old)
    store_in(folder.parent).withdraw(grant_of(1).id)
    shutil.rmtree(folder)
    old.rename(folder)
    assert is_denied(folder)


def anchor_of(folder: Path) -> Path:
    return LogKeys().home / "anchors" / f"{store_in(folder.parent).poll().log_id}.json"


def test_a_fork_is_found_though_both_branches_are_signed(folder: Path) -> None:
    fork = folder.parent / "fork" / "consent"
    shutil.copytree(folder, fork)
    anchor = anchor_of(folder)
    before = anchor.read_bytes()
    store_in(folder.parent).withdraw(grant_of(1).id)
    assert is_denied(fork)  # it lacks what was written here since
    anchor.write_bytes(before)
    store_in(fork.parent).resume()
    assert is_denied(folder)


def test_bit_flips_anywhere_in_the_log_are_found(folder: Path) -> None:
    path = folder / "events.jsonl"
    whole = path.read_bytes()
    store = store_in(folder.parent)
    missed = []
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        if not ConsentStore(folder, VirtualClock(NOON)).poll().fault:
            missed.append(place)
    assert missed == []
    path.write_bytes(whole)
    assert store.poll().fault == ""


def test_a_new_log_begins_paused_and_revives_nothing(folder: Path) -> None:
    delete_log(folder)
    store = store_in(folder.parent)
    store.restart(by="operator:7")
    ledger = store_in(folder.parent).poll()
    assert (ledger.fault, ledger.is_paused) == ("", True)
    store.resume()
    ledger = store_in(folder.parent).poll()
    assert not any(decide(CAMERA, (NOON, NOON), p, NOON, ledger).is_allowed for p in Purpose)
    store.grant(grant_of(3))
    assert not decide(CAMERA, (NOON, NOON), Purpose.UPLOAD, NOON, store.poll()).is_allowed
    assert store.adopt() == (grant_of(1).id, grant_of(2).id)  # the operator's own word, for each file anew


def test_the_log_before_a_restart_cannot_be_put_back(folder: Path) -> None:
    old = (folder / "events.jsonl").read_bytes()
    for _ in range(2):  # so that the log before begins with a restart, too
        store_in(folder.parent).restart()
        before, old = old, (folder / "events.jsonl").read_bytes()
    store_in(folder.parent).restart()
    for log in (before, old):
        (folder / "events.jsonl").write_bytes(log)
        assert is_denied(folder)


def test_a_row_that_was_not_anchored_before_a_crash_counts(folder: Path) -> None:
    anchor = anchor_of(folder)
    before = anchor.read_bytes()
    store_in(folder.parent).withdraw(grant_of(1).id)
    anchor.write_bytes(before)
    ledger = store_in(folder.parent).poll()
    assert ledger.fault == ""
    assert decide(CAMERA, (NOON, NOON), Purpose.UPLOAD, NOON, ledger).rule == "withdrawn"


def test_an_episode_knows_how_far_the_log_had_come(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.grant(grant_of(1))
    ledger = store.poll()
    manifest = Manifest(
        episode_id=f"01J{0:023d}",
        agent_version="0",
        facts=SessionFacts(),
        start_utc_ns=NOON,
        end_utc_ns=NOON + 1,
        timeline=Timeline("here", 0),
        consent_log=ConsentAnchor(ledger.log_id, 1, ledger.head),
    )
    assert consent_reasons(manifest, ledger, Purpose.UPLOAD, NOON) == ()
    later = replace(manifest, consent_log=ConsentAnchor(ledger.log_id, 2, "ab"))
    (reason,) = consent_reasons(later, ledger, Purpose.UPLOAD, NOON)
    assert "old log was put back" in reason


def test_show_exits_1_and_names_what_is_wrong(folder: Path) -> None:
    cut_last_row(folder)
    shown = sensorium("consent", "show", "--consent", folder, "--json")
    assert shown.code == 1
    found = json.loads(shown.out)
    assert "consent restart" in found["fault"]
    assert {row["status"] for row in found["grants"]} <= {"ConsentUnknown"}
    assert sensorium("consent", "log", "--consent", folder, "--json").code == 1
    restarted = sensorium("consent", "restart", "--consent", folder, "--json")
    assert (restarted.code, json.loads(restarted.out)["paused"]) == (0, True)
    assert sensorium("consent", "show", "--consent", folder).code == 0
