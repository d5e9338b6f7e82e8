"""Attacks with keys: a former one that backdates, an old trust store put back, a revoked one that goes on signing."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from episode_samples import begin_episode, manifest_of, sealed_episode, write_frames
from sessions import IMU, sensorium, write_rig
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.agent.commands.verifying import neighbour_gaps, spool_gaps, verify_episode
from sensorium.errors import EpisodeError, TrustError
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.log_keys import LogKeys
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.files import MANIFEST_FILE, RECEIPT_FILE
from sensorium.sync.episode.manifest import dump_manifest, read_manifest
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.remapped import read_remap, write_remap
from sensorium.sync.episode.revisions import revise
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.verify import examine
from sensorium.sync.trust.documents import open_document, peek_document, sign_document
from sensorium.sync.trust.dsse import key_id
from sensorium.sync.trust.keys import KeyRing, Role, SigningKey
from sensorium.sync.trust.store import TrustStore, signing_key, trusted_keys
from sensorium.timebase import SECOND_NS, HostClock


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrustStore:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    store = TrustStore(tmp_path / "home")
    for role in (Role.DEVICE, Role.OPERATOR):
        store.own(role)
    return store


def resign(folder: Path, key: SigningKey, **changes: object) -> None:
    manifest = replace(read_manifest(folder), device_public_key=key.public.hex(), **changes)  # type: ignore[arg-type]
    (folder / MANIFEST_FILE).write_bytes(key.sign(dump_manifest(manifest)))


class TestReplacedKey:
    def test_it_cannot_backdate_an_episode(self, tmp_path: Path, home: TrustStore) -> None:
        stolen = home.ring.signing_key(Role.DEVICE)
        before = sealed_episode(tmp_path)
        home.rotate(Role.DEVICE)
        forged = sealed_episode(tmp_path, serial=1)
        resign(forged, stolen, end_utc_ns=CAPTURED[0], start_utc_ns=CAPTURED[0] - SECOND_NS)
        assert examine(before).is_proven
        assert "had been replaced by then: it is not among what" in examine(forged).signer.distrust

    def test_it_cannot_backdate_a_receipt_a_revision_or_a_re_map(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        stolen = home.ring.signing_key(Role.DEVICE)
        folder = sealed_episode(tmp_path)
        good = sign_document({"version": 1}, signing_key(Role.DEVICE), "receipt")
        home.rotate(Role.DEVICE)
        assert open_document(good, "receipt", trusted_keys(Role.DEVICE))[0] == {"version": 1}
        with pytest.raises(TrustError, match="replaced by then"):
            open_document(
                sign_document({"version": 2}, stolen, "receipt"), "receipt", trusted_keys(Role.DEVICE)
            )
        (folder / RECEIPT_FILE).write_bytes(sign_document({"version": 1, "a": 0}, stolen, "receipt"))
        assert any("receipt.json counts for nothing" in reason for reason in examine(folder).reasons)
        revise(folder, lambda found: found)
        revision = replace(read_manifest(folder), device_public_key=stolen.public.hex())
        (folder / "manifest-2.json").write_bytes(stolen.sign(dump_manifest(revision)))
        for trusted in (trusted_keys(Role.DEVICE), None):
            with pytest.raises(EpisodeError, match="replaced by then"):
                read_manifest(folder, trusted)

    def test_it_cannot_add_a_row_to_the_consent_log_whatever_its_date(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        stolen = home.ring.signing_key(Role.OPERATOR)
        store = ConsentStore(tmp_path / "consent")
        store.grant(grant_for(1), by="operator:ada")
        log_id, rows = store.poll().log_id, len(store.poll().heads)
        home.rotate(Role.OPERATOR)
        keys = LogKeys()
        signature = stolen.private.sign(b"row")
        assert keys.is_trusted(stolen.key_id, signature, b"row", log_id, rows)
        assert not keys.is_trusted(stolen.key_id, signature, b"row", log_id, rows + 1)
        assert not keys.is_trusted(stolen.key_id, signature, b"row", "01J00000000000000000000009", 1)
        again = ConsentStore(tmp_path / "consent")
        assert not again.poll().fault
        again.withdraw(grant_for(1).id, by="operator:ada")
        assert not ConsentStore(tmp_path / "consent").poll().fault

    def test_the_list_of_what_it_signed_cannot_be_edited(self, tmp_path: Path, home: TrustStore) -> None:
        stolen = home.ring.signing_key(Role.DEVICE)
        folder = sealed_episode(tmp_path)
        path = tmp_path / "home" / "signed" / stolen.key_id
        home.rotate(Role.DEVICE)
        path.write_bytes(path.read_bytes()[:-40])
        assert "is gone or changed" in examine(folder).signer.distrust
        path.unlink()
        assert "is gone or changed" in examine(folder).signer.distrust

    def test_a_process_that_still_has_it_cannot_sign_with_it(self, home: TrustStore) -> None:
        held = signing_key(Role.DEVICE)
        home.rotate(Role.DEVICE)
        with pytest.raises(TrustError, match="replaced meanwhile"):
            held.sign(b"late")


class TestTrustStoreSetBack:
    def test_an_older_store_is_not_the_store(self, tmp_path: Path, home: TrustStore) -> None:
        foreign = KeyRing(tmp_path / "other").signing_key(Role.DEVICE)
        home.enroll(foreign.public, Role.DEVICE, "robot 7")
        path = tmp_path / "home" / "trust.json"
        old = path.read_bytes()
        home.revoke(foreign.key_id, "stolen")
        path.write_bytes(old)
        with pytest.raises(TrustError, match="an older one was put back"):
            home.trusted(Role.DEVICE)
        path.unlink()
        with pytest.raises(TrustError, match="is gone"):
            home.trusted(Role.DEVICE)
        path.write_bytes(old)
        (tmp_path / "home" / "anchors" / "trust.json").unlink()
        with pytest.raises(TrustError, match="how new a trust store is"):
            home.trusted(Role.DEVICE)

    def test_with_its_anchor_it_is_found_by_what_was_sealed_since(
        self, tmp_path: Path, home: TrustStore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        foreign = KeyRing(tmp_path / "other").signing_key(Role.DEVICE)
        home.enroll(foreign.public, Role.DEVICE, "robot 7")
        before = sealed_episode(tmp_path, frames=1)
        paths = [tmp_path / "home" / name for name in ("trust.json", "anchors/trust.json")]
        old = [path.read_bytes() for path in paths]
        home.revoke(foreign.key_id, "stolen")
        since = sealed_episode(tmp_path, frames=1, serial=1)
        for path, data in zip(paths, old, strict=True):
            path.write_bytes(data)
        assert examine(before).is_proven
        assert "it was set back" in examine(since).signer.distrust
        # As many changes as were lost do not hide it.
        home.enroll(KeyRing(tmp_path / "third").signing_key(Role.DEVICE).public, Role.DEVICE, "robot 8")
        assert "it was set back" in examine(since).signer.distrust
        home.revoke(foreign.key_id, "stolen, said again")
        assert sensorium("keys", "trust", since, "--name", "this machine").code == 0
        assert examine(since).is_proven

    def test_a_crash_between_store_and_anchor_is_no_attack(self, tmp_path: Path, home: TrustStore) -> None:
        anchor = tmp_path / "home" / "anchors" / "trust.json"
        old = anchor.read_bytes()
        home.own(Role.AUTHORITY)
        anchor.write_bytes(old)
        assert len(home.entries()) == 3
        home.rotate(Role.OPERATOR)
        assert len(home.entries()) == 4


class TestRevokedOwnKey:
    def test_it_signs_no_more_and_the_message_names_the_way_out(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        own = key_id(home.own(Role.DEVICE))
        home.revoke(own, "laptop lost")
        writer = begin_episode(tmp_path)
        write_frames(writer, 2)
        writer.close()
        with pytest.raises(EpisodeError, match="sensorium keys rotate --role device"):
            seal(writer.folder, manifest_of(writer))
        assert writer.folder.is_dir()
        assert home.trusted(Role.DEVICE) == frozenset()
        home.rotate(Role.DEVICE)
        assert not home.rotation_path(home.entries()[0]).exists()  # a revoked key has no successor to name
        assert examine(seal(writer.folder, manifest_of(writer))).is_proven
        assert spool_gaps(Spool(tmp_path / "spool")) == []

    def test_no_recording_is_begun_that_could_not_be_sealed(self, tmp_path: Path, home: TrustStore) -> None:
        home.revoke(key_id(home.own(Role.DEVICE)), "laptop lost")
        done = sensorium("record", write_rig(tmp_path, {"imu": IMU}), "--seconds", 1)
        assert done.code == 3
        assert "sensorium keys rotate --role device" in done.err
        assert not Spool(tmp_path / "spool").open_folders()

    def test_a_chain_goes_on_after_its_key_was_revoked(self, tmp_path: Path, home: TrustStore) -> None:
        first = sealed_episode(tmp_path, frames=1)
        home.revoke(key_id(home.own(Role.DEVICE)), "stolen")
        home.rotate(Role.DEVICE)
        second = sealed_episode(tmp_path, frames=1, serial=1)
        assert spool_gaps(Spool(tmp_path / "spool")) == []
        assert "was revoked: stolen" in examine(first).signer.distrust
        assert examine(second).is_proven

    def test_a_revoked_operator_changes_no_trust_until_replaced(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        foreign = KeyRing(tmp_path / "other").signing_key(Role.DEVICE)
        home.revoke(key_id(home.own(Role.OPERATOR)), "stolen")
        with pytest.raises(TrustError, match="sensorium keys rotate --role operator"):
            home.enroll(foreign.public, Role.DEVICE, "robot 7")
        done = sensorium("consent", "pause", "--spool", tmp_path / "spool")
        assert done.code != 0
        home.rotate(Role.OPERATOR)
        home.enroll(foreign.public, Role.DEVICE, "robot 7")
        assert foreign.public in home.trusted(Role.DEVICE)


class TestRotation:
    def test_two_at_once_make_two_keys_one_after_the_other(self, home: TrustStore, tmp_path: Path) -> None:
        folder = sealed_episode(tmp_path)
        start = threading.Barrier(4)

        def rotate() -> None:
            start.wait()
            TrustStore(tmp_path / "home").rotate(Role.DEVICE)

        threads = [threading.Thread(target=rotate) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        devices = [key for key in home.entries() if key.role is Role.DEVICE]
        assert len(devices) == 5
        in_use = [key for key in devices if key.until_utc_ns is None]
        assert [key.raw for key in in_use] == [home.ring.signing_key(Role.DEVICE).public]
        assert examine(folder).is_proven

    def test_another_machine_takes_over_the_new_key_by_the_old_ones_word(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def at(name: str) -> TrustStore:
            monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / name))
            return TrustStore(tmp_path / name)

        robot = at("robot")
        stolen = robot.ring.signing_key(Role.DEVICE)
        first = sealed_episode(tmp_path, frames=1)
        said = sensorium("keys", "rotate", "--json").document["rotation"]
        second = sealed_episode(tmp_path, frames=1, serial=1)
        third = sealed_episode(tmp_path, frames=1, serial=2)
        centre = at("centre")
        assert sensorium("keys", "enroll", said).code == 3  # nobody here knows the old key
        assert sensorium("keys", "enroll", stolen.public.hex(), "--name", "robot 7").code == 0
        assert examine(first).is_proven
        assert not examine(second).is_proven
        assert sensorium("keys", "enroll", said).code == 0
        assert examine(first).is_proven
        assert examine(second).signer.name == "robot 7"
        resign(third, stolen)
        assert "replaced by then" in examine(third).signer.distrust
        assert sensorium("keys", "enroll", said).code == 3  # once
        assert len(centre.entries()) >= 3

    def test_a_successor_that_the_new_key_did_not_agree_to_is_refused(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        old, fresh, thief = (KeyRing(tmp_path / name).signing_key(Role.DEVICE) for name in "abc")
        home.enroll(old.public, Role.DEVICE, "robot 7")
        there = TrustStore(tmp_path / "a")
        there.rotate(Role.DEVICE)
        data = (tmp_path / "a" / "rotations" / f"{old.key_id}.json").read_bytes()
        claimed = {**peek_document(data), "new": fresh.public.hex()}
        with pytest.raises(TrustError, match="did not agree"):
            home.enroll_rotation(sign_document(claimed, old, "rotation"))
        with pytest.raises(TrustError, match="not trusted here"):
            home.enroll_rotation(sign_document(peek_document(data), thief, "rotation"))
        for garbage in (b"", b"{}", data[:-30], data.replace(b"a", b"b", 1)):
            with pytest.raises(TrustError):
                home.enroll_rotation(garbage)


class TestChain:
    def test_a_moved_spool_misses_the_episode_that_was_signed_last(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        sealed_episode(tmp_path, frames=1)
        early = (tmp_path / "spool" / "chain.json").read_bytes()
        last = sealed_episode(tmp_path, frames=1, serial=1)
        (tmp_path / "spool").rename(tmp_path / "moved")
        moved = Spool(tmp_path / "moved")
        assert spool_gaps(moved) == []
        shutil.rmtree(moved.sealed_dir / last.name)
        moved.chain_file.write_bytes(early)
        assert "signed last" in spool_gaps(moved)[0]

    def test_a_new_spool_where_another_was_does_not_inherit_its_end(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        sealed_episode(tmp_path, frames=1)
        (tmp_path / "spool").rename(tmp_path / "first")
        sealed_episode(tmp_path / "other", frames=1, serial=5)
        (tmp_path / "other" / "spool").rename(tmp_path / "spool")
        assert spool_gaps(Spool(tmp_path / "first")) == []

    def test_what_was_taken_out_is_still_missed_after_the_next_seal(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        sealed_episode(tmp_path, frames=1)
        spool = Spool(tmp_path / "spool")
        early = spool.chain_file.read_bytes()
        shutil.rmtree(sealed_episode(tmp_path, frames=1, serial=1))
        spool.chain_file.write_bytes(early)
        third = sealed_episode(tmp_path, frames=1, serial=2)
        assert any(third.name in gap for gap in spool_gaps(spool))
        spool.chain_file.unlink()
        fourth = sealed_episode(tmp_path, frames=1, serial=3)
        assert any(third.name in gap for gap in spool_gaps(spool))
        assert not any(fourth.name in gap for gap in spool_gaps(spool))

    def test_a_single_episode_misses_the_one_before_it(self, tmp_path: Path, home: TrustStore) -> None:
        first = sealed_episode(tmp_path, frames=1)
        second = sealed_episode(tmp_path, frames=1, serial=1)
        assert neighbour_gaps(second) == []
        assert verify_episode(second, any_signer=False, as_json=True) == 0
        shutil.rmtree(first)
        assert "the episode before" in neighbour_gaps(second)[0]
        assert verify_episode(second, any_signer=False, as_json=True) == 1
        copy = tmp_path / "carried" / second.name
        shutil.copytree(second, copy)
        assert verify_episode(copy, any_signer=False, as_json=True) == 0


class TestRecordsBesideTheSeal:
    def test_a_re_map_that_nobody_known_signed_counts_for_nothing(
        self, tmp_path: Path, home: TrustStore
    ) -> None:
        folder = sealed_episode(tmp_path)
        with Episode(folder) as episode:
            path = write_remap(episode)
            assert read_remap(episode, path)
            assert examine(folder).is_proven
            with np.load(path) as found:
                arrays = {name: found[name] for name in found.files}
            arrays["capture_ns"] = arrays["capture_ns"] + 1_000_000
            np.savez_compressed(path, **arrays)
            with pytest.raises(EpisodeError, match="changed after signing"):
                read_remap(episode, path)
            del arrays["seal"]
            np.savez_compressed(path, **arrays)
            with pytest.raises(EpisodeError, match="nobody signed it"):
                read_remap(episode, path)
            assert any("remap.npz counts for nothing" in reason for reason in examine(folder).reasons)

    def test_a_revision_that_is_a_link_is_called_one(self, tmp_path: Path, home: TrustStore) -> None:
        folder = sealed_episode(tmp_path)
        revise(folder, lambda found: found)
        (folder / "manifest-2.json").rename(tmp_path / "elsewhere.json")
        (folder / "manifest-2.json").symlink_to(tmp_path / "elsewhere.json")
        assert any("manifest-2.json is a link" in reason for reason in examine(folder).reasons)
        (tmp_path / "elsewhere.json").unlink()
        assert any("manifest-2.json is a link" in reason for reason in examine(folder).reasons)

    def test_a_hidden_file_is_named(self, tmp_path: Path, home: TrustStore) -> None:
        folder = sealed_episode(tmp_path)
        (folder / ".payload").write_bytes(b"x")
        assert any(".payload" in remark for remark in examine(folder).remarks)


def test_a_strangers_episode_is_delivered_once_its_signer_was_enrolled(
    tmp_path: Path, home: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "robot"))
    spool, (public,) = begin_spool(tmp_path / "spool")
    seal_episode(spool)
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    captured = (CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS)
    store = ConsentStore(spool.root / "consent")
    words = ["--once", "--spool", spool.root, "--store", (tmp_path / "central").as_uri(), "--json"]
    refused = sensorium("upload", *words)
    assert refused.document["verification"]["status"] == "quarantined"
    store.grant(
        grant_for(
            purposes=(Purpose.RECORD, Purpose.UPLOAD), captured=captured, valid_around_ns=HostClock().utc_ns()
        )
    )
    assert sensorium("keys", "enroll", public.hex(), "--name", "robot 7").code == 0
    done = sensorium("upload", *words)
    assert done.document["verification"]["status"] == "verified", done.out
