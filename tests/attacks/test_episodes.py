"""Attacks on sealed episodes: re-signed, swapped, removed, edited, linked, flipped; each is found by `verify`."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bit_flips import check_flips
from episode_samples import begin_episode, manifest_of, sealed_episode, write_frames
from upload_samples import grant_for

from sensorium.agent.commands.verifying import spool_gaps, verify_episode, verify_spool
from sensorium.errors import TrustError
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.files import MANIFEST_FILE
from sensorium.sync.episode.manifest import dump_manifest, read_manifest
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.verify import examine
from sensorium.sync.trust.keys import KeyRing, Role, SigningKey
from sensorium.sync.trust.store import TrustStore
from sensorium.timebase import HostClock
from sensorium.verdict import Status


@pytest.fixture
def stranger(tmp_path: Path) -> SigningKey:
    return KeyRing(tmp_path / "stranger").signing_key(Role.DEVICE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrustStore:
    """Keys of this test alone: the chains of other tests end elsewhere."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    return TrustStore(tmp_path / "home")


def resign(folder: Path, key: SigningKey) -> None:
    """Sign an episode anew, as whoever changed something in it would."""
    manifest = replace(read_manifest(folder), device_public_key=key.public.hex())
    (folder / MANIFEST_FILE).write_bytes(key.sign(dump_manifest(manifest)))


def codes(episode: Path) -> tuple[int, int]:
    """Return the exit codes of verify, without and with --any-signer."""
    return (
        verify_episode(episode, any_signer=False, as_json=False),
        verify_episode(episode, any_signer=True, as_json=False),
    )


def test_an_episode_made_here_is_whole_and_trusted_without_a_flag(tmp_path: Path, home: TrustStore) -> None:
    folder = sealed_episode(tmp_path)
    found = examine(folder)
    assert found.is_proven
    assert (found.signer.name, found.reasons) == ("this machine", ())
    assert codes(folder) == (0, 0)


def test_an_episode_signed_anew_by_another_key_does_not_pass(
    tmp_path: Path, home: TrustStore, stranger: SigningKey
) -> None:
    folder = sealed_episode(tmp_path)
    resign(folder, stranger)
    found = examine(folder)
    assert found.intact.status is Status.OK  # all that signing anew can reach
    assert not found.is_proven
    assert stranger.key_id[:16] in found.signer.distrust
    assert codes(folder) == (1, 0)
    home.enroll(stranger.public, Role.DEVICE, "robot 7")
    assert codes(folder) == (0, 0)
    home.revoke(stranger.key_id[:16], "stolen")
    assert "revoked: stolen" in examine(folder).signer.distrust
    assert codes(folder) == (1, 0)


def test_an_operators_key_seals_no_episode(tmp_path: Path, home: TrustStore, stranger: SigningKey) -> None:
    folder = sealed_episode(tmp_path)
    resign(folder, stranger)
    home.enroll(stranger.public, Role.OPERATOR, "ada")
    assert "no device's" in examine(folder).signer.distrust


def test_what_was_signed_before_a_rotation_still_counts_and_after_it_not(
    tmp_path: Path, home: TrustStore
) -> None:
    old = home.ring.signing_key(Role.DEVICE)
    home.own(Role.DEVICE)
    folder = sealed_episode(tmp_path)
    home.rotate(Role.DEVICE)
    assert examine(folder).is_proven
    late = replace(
        read_manifest(folder), end_utc_ns=4_000_000_000_000_000_000, device_public_key=old.public.hex()
    )
    (folder / MANIFEST_FILE).write_bytes(old.sign(dump_manifest(late)))
    assert "had been replaced by then" in examine(folder).signer.distrust


def test_episodes_whose_folders_were_swapped_are_found(tmp_path: Path, home: TrustStore) -> None:
    first, second = (sealed_episode(tmp_path, serial=serial) for serial in range(2))
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    for folder in (first, second):
        assert "it was swapped or copied" in examine(folder).reasons[0]


@pytest.mark.parametrize("removed", range(3))
def test_an_episode_that_was_taken_out_of_the_chain_is_missed(
    removed: int, tmp_path: Path, home: TrustStore
) -> None:
    folders = [sealed_episode(tmp_path, frames=1, serial=serial) for serial in range(3)]
    spool = Spool(tmp_path / "spool")
    assert spool_gaps(spool) == []
    assert verify_spool(spool.root, any_signer=False, as_json=True) == 0
    shutil.rmtree(folders[removed])
    (gap,) = spool_gaps(spool)
    assert ("signed last" if removed == 2 else folders[removed + 1].name) in gap
    assert verify_spool(spool.root, any_signer=False, as_json=True) == 1


def test_the_end_of_the_chain_cannot_be_set_back_with_the_spool_alone(
    tmp_path: Path, home: TrustStore
) -> None:
    spool = Spool(tmp_path / "spool")
    sealed_episode(tmp_path, frames=1)
    before = spool.chain_file.read_bytes()
    shutil.rmtree(sealed_episode(tmp_path, frames=1, serial=1))
    spool.chain_file.write_bytes(before)
    assert "signed last" in spool_gaps(spool)[0]


def test_a_stream_called_not_personal_in_the_manifest_alone_is_found(
    tmp_path: Path, home: TrustStore
) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, 2)
    writer.close()
    manifest = manifest_of(writer)
    edited = tuple(
        replace(record, info=replace(record.info, is_personal=False)) if record.info.name == "cam" else record
        for record in manifest.streams
    )
    reasons = examine(seal(writer.folder, replace(manifest, streams=edited))).reasons
    assert any("stream cam was recorded as personal" in reason for reason in reasons)


def _symlink(path: Path) -> None:
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def _hard_link(path: Path) -> None:
    os.link(path, path.parent.parent / "outside")


@pytest.mark.parametrize("link", [_symlink, _hard_link])
def test_a_file_that_somebody_else_can_change_is_found(
    link: Callable[[Path], None], tmp_path: Path, home: TrustStore
) -> None:
    folder = sealed_episode(tmp_path)
    link(folder / "cam.mcap")
    assert "cam.mcap is a link" in examine(folder).reasons[0]


def test_litter_is_a_remark_and_any_other_file_a_finding(tmp_path: Path, home: TrustStore) -> None:
    folder = sealed_episode(tmp_path)
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    found = examine(folder)
    assert found.is_proven
    assert any("Thumbs.db" in remark for remark in found.remarks)
    (folder / "notes.txt").write_bytes(b"x")
    assert examine(folder).reasons == ("notes.txt is in the folder but not in the manifest",)


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_any_file_of_an_episode_is_found(
    count: int, tmp_path: Path, home: TrustStore
) -> None:
    folder = sealed_episode(tmp_path, frames=3)
    assert check_flips(folder, count, lambda: not examine(folder).is_proven) >= count


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_the_consent_log_is_found(count: int, tmp_path: Path, home: TrustStore) -> None:
    store = ConsentStore(tmp_path / "consent")
    for number in (1, 2):  # a changed file of a grant that has ended says nothing
        store.grant(grant_for(number, valid_around_ns=HostClock().utc_ns()), by="operator:ada")
    store.pause()
    store.resume()
    assert check_flips(store.folder, count, lambda: bool(ConsentStore(store.folder).poll().fault)) >= count


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_keys_trust_and_anchors_is_found(
    count: int, tmp_path: Path, home: TrustStore
) -> None:
    store = ConsentStore(tmp_path / "consent")
    store.grant(grant_for(1), by="operator:ada")
    sealed_episode(tmp_path, frames=1)
    spool = Spool(tmp_path / "spool")

    def is_found() -> bool:
        try:
            home.entries()
        except TrustError:
            return True
        return bool(ConsentStore(store.folder).poll().fault) or bool(spool_gaps(spool))

    assert check_flips(tmp_path / "home", count, is_found) >= count
