import base64
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from episode_samples import STREAMS, begin_episode, manifest_of, sealed_episode, write_frames
from hypothesis import given
from hypothesis import strategies as st

from sensorium.errors import BusyError, EpisodeError
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.files import (
    CLOSING_FILE,
    DATA_FILE,
    JOURNAL_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    RESERVE_FILE,
    SYNC_FILE,
    stream_file,
)
from sensorium.sync.episode.manifest import (
    LEAF_BYTES,
    Balance,
    CalibrationRecord,
    ClockSummary,
    ConsentRecord,
    Gap,
    Manifest,
    Mark,
    PairRecord,
    QualityRecord,
    StreamRecord,
    dump_manifest,
    hash_file,
    load_manifest,
    manifest_digest,
    read_manifest,
)
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import ULID, new_ulid
from sensorium.sync.episode.verify import verify
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key
from sensorium.timebase import Timeline
from sensorium.verdict import Quantity, Status, Verdict


def full_manifest() -> Manifest:
    verdict = Verdict(
        "stereo", "a~b", Status.SUSPECT, (Quantity("pitch", 0.1, "deg", 0.2, None),), ("it moved",)
    )
    record = StreamRecord(
        STREAMS[9],
        {0: Balance(10, 7, {"bus": {"no credit": 2}, "device": {"gap": 1}}), 4: Balance(5, 5)},
        "device",
        399.2,
        (Gap(5, 6, 7),),
        {"late": 3},
        ClockSummary("envelope", -12.5, 80.0, 100.0, 2, {"reset": 1}),
        100,
        50,
        1,
        2,
        ConsentRecord("allow", "grant g1", ("g1",), ("training",)),
        {"noise": 0.5},
    )
    return Manifest(
        new_ulid(0),
        "0.1",
        SessionFacts(rig="bench", operator="operator", task="pick", instruction="the red one"),
        1,
        2,
        Timeline("h", 5, True),
        (record,),
        (PairRecord("cam", "imu", "interpolated", 1.0, 2.0, 3.0),),
        "cam",
        CalibrationRecord("abc", (verdict,)),
        (verdict,),
        QualityRecord(Status.OK),
        (verdict,),
        (Mark(5, "here"),),
        ("none known",),
        True,
        True,
    )


def test_a_manifest_reads_back_equal() -> None:
    manifest = full_manifest()
    assert load_manifest(dump_manifest(manifest)) == manifest


def test_totals_add_up_over_instances() -> None:
    total = full_manifest().streams[0].total
    assert total == Balance(15, 12, {"bus": {"no credit": 2}, "device": {"gap": 1}})
    assert total.is_exact


@given(
    st.integers(0, 10**9),
    st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers(0, 10**6))),
    st.integers(-3, 3),
)
def test_a_balance_is_exact_only_if_every_sample_has_its_place(
    recorded: int, dropped: dict[str, dict[str, int]], error: int
) -> None:
    lost = sum(count for reasons in dropped.values() for count in reasons.values())
    assert Balance(recorded + lost + error, recorded, dropped).is_exact == (error == 0)


def test_a_number_that_json_cannot_say_is_refused_before_signing() -> None:
    manifest = full_manifest()
    record = replace(manifest.streams[0], quality={"noise": math.inf})
    with pytest.raises(EpisodeError, match=manifest.episode_id):
        dump_manifest(replace(manifest, streams=(record,)))


def test_unknown_keys_versions_and_paths_are_refused() -> None:
    statement = json.loads(dump_manifest(full_manifest()))
    for change, words in (
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 99}, "version 99"),
        ({"quality": {"status": "ok", "reasons": [], "shine": 1}}, r"quality\.shine"),
        (
            {"files": [{"name": "../x", "bytes": 0, "sha256": "", "blake3_root": "", "blake3_leaves": []}]},
            "outside the episode",
        ),
    ):
        changed = statement | {"predicate": statement["predicate"] | change}
        with pytest.raises(EpisodeError, match=words):
            load_manifest(json.dumps(changed).encode())


def test_the_envelope_is_dsse_over_an_in_toto_statement(tmp_path: Path) -> None:
    folder = sealed_episode(tmp_path)
    envelope = json.loads((folder / MANIFEST_FILE).read_bytes())
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    encoded = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    public = signing_key(Role.DEVICE).public
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    Ed25519PublicKey.from_public_bytes(public).verify(signature, encoded)
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    files = {path.name for path in folder.iterdir()} - {MANIFEST_FILE}
    assert {subject["name"] for subject in statement["subject"]} == files


def test_file_hashes_are_a_tree_of_8_mib_leaves(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(1 << 16) * ((LEAF_BYTES + 5000) // (1 << 16) + 1)
    path = tmp_path / "file"
    path.write_bytes(data)
    record = hash_file(path)
    assert record.bytes == len(data)
    leaves = (blake3(data[:LEAF_BYTES]).hexdigest(), blake3(data[LEAF_BYTES:]).hexdigest())
    assert record.blake3_leaves == leaves
    assert record.blake3_root not in leaves


def test_a_seal_covers_the_sync_file_and_removes_what_only_an_open_episode_needs(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    writer.close()
    for name in (SYNC_FILE, CLOSING_FILE, JOURNAL_FILE, RESERVE_FILE, REPORT_FILE):
        (writer.folder / name).write_bytes(b"x")
    folder = seal(writer.folder, manifest_of(writer))
    signed = {file.name for file in read_manifest(folder).files}
    personal = {stream_file(info.name) for info in STREAMS if info.is_personal}
    assert signed == {DATA_FILE, SYNC_FILE} | personal
    assert {path.name for path in folder.iterdir()} == signed | {MANIFEST_FILE, REPORT_FILE}
    assert verify(folder, full=False).status is Status.OK


def test_a_sealed_episode_verifies_and_reads(tmp_path: Path) -> None:
    folder = sealed_episode(tmp_path)
    verdict = verify(folder)
    assert verdict.status is Status.OK, verdict.reasons
    with Episode(folder) as episode:
        assert episode.manifest is not None
        assert episode.manifest.episode_id == episode.episode_id == folder.name
    assert folder.parent.name == "sealed"
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = sealed_episode(tmp_path, frames=2)
    rng = random.Random(3)
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        places = {0, len(original) - 1, *(rng.randrange(len(original)) for _ in range(40))}
        for at in places:
            data = bytearray(original)
            data[at] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            verdict = verify(folder)
            assert verdict.status is Status.FAILED, (path.name, at)
            assert path.name in " ".join(verdict.reasons)
        path.write_bytes(original)
    assert verify(folder).status is Status.OK


def test_missing_added_and_shortened_files_are_found_without_reading_them(tmp_path: Path) -> None:
    folder = sealed_episode(tmp_path)
    extra = folder / "extra.mcap"
    extra.write_bytes(b"x")
    assert "extra.mcap is in the folder" in verify(folder, full=False).reasons[0]
    extra.unlink()
    os.truncate(folder / "cam.mcap", 100)
    assert "cam.mcap has 100 bytes" in verify(folder, full=False).reasons[0]
    (folder / "cam.mcap").unlink()
    assert verify(folder, full=False).reasons == ("cam.mcap is missing",)


def test_a_manifest_that_counts_wrongly_is_found_although_it_is_signed(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, 3)
    writer.close()
    manifest = manifest_of(writer)
    first = manifest.streams[0]
    wrong = replace(first, balances={3: Balance(7, 5, {"bus": {"no credit": 2}})})
    folder = seal(writer.folder, replace(manifest, streams=(wrong, *manifest.streams[1:])))
    (reason,) = verify(folder).reasons
    assert reason == "stream cam instance 3: 3 samples in the files, 5 in the manifest"


def test_an_inexact_balance_is_found(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    writer.close()
    record = StreamRecord(STREAMS[0], {0: Balance(7, 0, {"bus": {"no credit": 2}})})
    folder = seal(writer.folder, replace(manifest_of(writer), streams=(record,)))
    assert "produced 7 is not recorded 0 + dropped 2" in verify(folder).reasons[0]


def test_a_manifest_signed_by_a_stranger_is_refused_where_devices_are_known(tmp_path: Path) -> None:
    folder = sealed_episode(tmp_path)
    public = signing_key(Role.DEVICE).public
    assert read_manifest(folder, trusted=[public]).device_public_key == public.hex()
    with pytest.raises(EpisodeError, match="not one of the 1 trusted"):
        read_manifest(folder, trusted=[bytes(32)])


def test_each_manifest_names_the_one_before(tmp_path: Path) -> None:
    folders = [sealed_episode(tmp_path, frames=1, serial=serial) for serial in range(3)]
    links = [read_manifest(folder).prev_manifest for folder in folders]
    assert links == ["", manifest_digest(folders[0]), manifest_digest(folders[1])]


def test_sealing_again_after_a_crash_before_the_move_does_not_break_the_chain(tmp_path: Path) -> None:
    first = sealed_episode(tmp_path, frames=1)
    writer = begin_episode(tmp_path, serial=1)
    writer.close()
    manifest = manifest_of(writer)
    sealed = seal(writer.folder, manifest)
    sealed.rename(writer.folder)
    assert read_manifest(seal(writer.folder, manifest)).prev_manifest == manifest_digest(first)


def test_a_second_agent_on_a_spool_is_refused_by_pid(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sensorium.sync.episode.spool import Spool\n"
        "with Spool(Path(sys.argv[1])).lock(): print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BusyError, match=f"process {other.pid}"), Spool(tmp_path).lock():
            pass
        other.kill()
    with Spool(tmp_path).lock():
        assert (tmp_path / "lock").read_text().strip() == str(os.getpid())


def test_spool_folders_are_private_and_ids_cannot_leave_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.create()
    assert {path.stat().st_mode & 0o777 for path in (spool.root, spool.open_dir, spool.sealed_dir)} == {0o700}
    with pytest.raises(EpisodeError, match="not an episode id"):
        spool.sealed_folder("../../etc")


def ulid_time_ms(ulid: str) -> int:
    """Return the UTC milliseconds in the first ten letters of an id (the ULID specification's encoding)."""
    return reduce(
        lambda value, letter: value * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(letter), ulid[:10], 0
    )


@given(st.lists(st.integers(0, 2**60), min_size=2, max_size=20))
def test_ids_carry_their_time_and_always_grow(instants: list[int]) -> None:
    ids = [new_ulid(utc_ns) for utc_ns in sorted(instants)]
    assert ids == sorted(set(ids))
    assert all(ULID.fullmatch(found) for found in ids)
    assert all(
        ulid_time_ms(found) >= utc_ns // 10**6 for found, utc_ns in zip(ids, sorted(instants), strict=True)
    )
