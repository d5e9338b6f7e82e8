"""Keys of this machine and the trust in others: made once, private, and never quietly another."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.errors import TrustError
from sensorium.sync.trust.documents import open_document, sign_document
from sensorium.sync.trust.dsse import key_id, open_envelope
from sensorium.sync.trust.home import key_home
from sensorium.sync.trust.keys import KeyRing, Role
from sensorium.sync.trust.store import TrustStore

OLD_NS, NEW_NS = 1_000, 4_000_000_000_000_000_000


def test_the_home_is_where_the_environment_says_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "mine"))
    assert key_home() == tmp_path / "mine"
    assert key_home().stat().st_mode & 0o777 == 0o700
    key_home().chmod(0o777)
    with pytest.raises(TrustError, match="others may write to it"):
        key_home()
    monkeypatch.delenv("SENSORIUM_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert key_home() == tmp_path / "config" / "sensorium"


def test_a_key_is_private_and_stays_the_same(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    assert ring.known(Role.DEVICE) is None
    key = ring.signing_key(Role.DEVICE)
    path = ring.path(Role.DEVICE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ring.signing_key(Role.DEVICE).public == key.public
    assert ring.signing_key(Role.OPERATOR).public != key.public
    path.chmod(0o644)
    with pytest.raises(TrustError, match="readable by others"):
        ring.signing_key(Role.DEVICE)


def test_many_who_make_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[bytes] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        found.append(TrustStore(tmp_path).own(Role.DEVICE))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "keys").iterdir() if path.name.startswith(".")] == []


def test_own_keys_count_without_a_word_and_foreign_ones_once_enrolled(tmp_path: Path) -> None:
    here, there = TrustStore(tmp_path / "a"), TrustStore(tmp_path / "b")
    foreign = there.own(Role.DEVICE)
    assert here.trusted(Role.DEVICE) == {here.own(Role.DEVICE)}
    here.enroll(foreign, Role.DEVICE, "robot 7")
    assert foreign in here.trusted(Role.DEVICE)
    assert foreign not in here.trusted(Role.OPERATOR)
    with pytest.raises(TrustError, match="enrolled as robot 7"):
        here.enroll(foreign, Role.DEVICE, "again")
    here.revoke(key_id(foreign)[:12], "stolen")
    assert foreign not in here.trusted(Role.DEVICE)
    with pytest.raises(TrustError, match="revoked: stolen"):
        here.enroll(foreign, Role.DEVICE, "back again")


@pytest.mark.parametrize("role", [Role.DEVICE, Role.OPERATOR])
def test_what_a_key_signed_before_it_was_replaced_still_counts(role: Role, tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    old = store.own(role)
    fresh = store.rotate(role)
    assert store.own(role) == fresh.raw != old
    assert store.trusted(role) == {old, fresh.raw}
    assert store.trusted(role, OLD_NS) == {old}
    assert store.trusted(role, NEW_NS) == {fresh.raw}


@pytest.mark.parametrize("role", [Role.DEVICE, Role.OPERATOR])
def test_a_rotation_that_a_crash_cut_off_is_ended_by_whoever_comes_next(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TrustStore(tmp_path)
    old = store.own(role)
    with monkeypatch.context() as patch:
        patch.setattr(KeyRing, "adopt", _die)
        with pytest.raises(KeyboardInterrupt):
            store.rotate(role)
    after = TrustStore(tmp_path)
    assert after.own(role) != old
    assert after.trusted(role) == {old, after.own(role)}


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_flipped_bit_of_keys_or_trust_is_found(tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    for role in (Role.DEVICE, Role.OPERATOR):
        store.own(role)
    for path in (tmp_path / "trust.json", *(tmp_path / "keys").iterdir()):
        good = path.read_bytes()
        for bit in range(0, 8 * len(good), 37):
            changed = bytearray(good)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            with pytest.raises(TrustError):
                store.entries()
        path.write_bytes(good)
    assert len(store.entries()) == 2


def test_a_document_opens_only_as_what_it_is_and_for_who_trusts_its_signer(tmp_path: Path) -> None:
    key, other = (KeyRing(tmp_path / name).signing_key(Role.DEVICE) for name in "ab")
    data = sign_document({"a": 1}, key, "receipt")
    assert open_document(data, "receipt", [other.public, key.public]) == ({"a": 1}, key.public)
    with pytest.raises(TrustError, match="not trusted here"):
        open_document(data, "receipt", [other.public])
    with pytest.raises(TrustError, match="changed after signing"):
        open_document(data, "tombstone", [key.public])


def test_an_envelope_opens_only_with_its_own_key(tmp_path: Path) -> None:
    key, other = (KeyRing(tmp_path / name).signing_key(Role.DEVICE) for name in "ab")
    data = key.sign(b"payload")
    assert open_envelope(data, key.public) == b"payload"
    with pytest.raises(TrustError, match="signed by key"):
        open_envelope(data, other.public)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_garbage_is_no_envelope(data: bytes) -> None:
    with pytest.raises(TrustError):
        open_envelope(data, bytes(32))
