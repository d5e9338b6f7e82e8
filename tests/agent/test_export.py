"""``sensorium export``: every number that was written comes back, with its time, and nothing without consent."""

import csv
import json
import math
import re
import resource
import shlex
import struct
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from numpy.typing import NDArray
from sessions import grant, sensorium
from upload_samples import grant_for

from sensorium.agent.exporting.exporter import Export, Progress, export_episode
from sensorium.drivers.frame import Column, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.drivers.payloads.choice import CodecChoice
from sensorium.drivers.payloads.table import packed_as
from sensorium.errors import ConfigError, ConsentError, EpisodeError, ExportError, UsageError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import Balance, Manifest, StreamRecord
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.timebase import SECOND_NS, Timeline, VirtualClock

TIMELINE = Timeline("bench", 1_700_000_000 * SECOND_NS)
NOBODY = ConsentLedger()
COUNT = 10
IMU = StreamInfo(
    "imu",
    Modality.IMU,
    Encoding.COLUMNS,
    1000.0,
    "imu",
    columns=(Column("wx", "rad/s", "<i2", 0.01), Column("t", "K"), Column("seq", "", "<u1")),
    is_sampled=True,
)
EDGES = StreamInfo(
    "edges", Modality.OTHER, Encoding.COLUMNS, 0.0, "pps", columns=(Column("edge_utc_ns", "ns", "<i8"),)
)
FORCE = StreamInfo(
    "force", Modality.FORCE, Encoding.COLUMNS, 500.0, "tcp", columns=(Column("fz", "N", "<f8", 2.0),)
)
GNSS = StreamInfo(
    "gnss",
    Modality.GNSS,
    Encoding.COLUMNS,
    1.0,
    "antenna",
    columns=(Column("lat", "deg", "<f8"),),
    is_personal=True,
)
CAMERA = StreamInfo("cam", Modality.CAMERA, Encoding.JPEG, 30.0, "cam", is_personal=True)
MIC = StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48000.0, "mic", shape=(1,))


@dataclass
class Sample:
    """A sealed episode and, per stream, what must stand in each row."""

    spool: Path
    folder: Path = Path()
    manifest: Manifest | None = None
    rows: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)

    def export(self, to: str, out: Path, *names: str, ledger: ConsentLedger = NOBODY) -> Export:
        return export_episode(self.folder, to, out, ledger, TIMELINE.utc_minus_host_ns, names)


def column_payload(info: StreamInfo, raw: NDArray[np.int64]) -> bytes:
    """Return (count, columns) raw numbers as they travel."""
    return b"".join(raw[:, i].astype(column.dtype).tobytes() for i, column in enumerate(info.columns))


def begin(folder: Path, *infos: StreamInfo) -> tuple[Sample, EpisodeWriter]:
    """Return a new spool and the writer of an episode in it."""
    spool = Spool(folder)
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE)
    for info in infos:
        writer.declare(info)
    return Sample(folder), writer


def finish(made: Sample, writer: EpisodeWriter, *infos: StreamInfo) -> None:
    """Close and seal the episode; its balances are what the writer says."""
    writer.close()
    counts = {name: found.samples for (name, _), found in writer.written().items()}
    records = tuple(StreamRecord(i, {7: Balance(counts[i.name], counts[i.name])}) for i in infos)
    start_ns = TIMELINE.utc_minus_host_ns
    made.manifest = Manifest(
        episode_id=writer.episode_id,
        agent_version="0",
        facts=SessionFacts(rig="bench"),
        start_utc_ns=start_ns,
        end_utc_ns=start_ns + 3 * SECOND_NS,
        timeline=TIMELINE,
        streams=records,
    )
    made.folder = seal(writer.folder, made.manifest)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    infos = (IMU, EDGES, FORCE, GNSS, CAMERA, MIC)
    made, writer = begin(tmp_path / "spool", *infos)
    for index in range(40):
        for info in infos:
            write_frame(writer, made, info, index)
    finish(made, writer, *infos)
    return made


def write_frame(writer: EpisodeWriter, made: Sample, info: StreamInfo, index: int) -> None:
    arrival_ns = SECOND_NS + index * 10_000_000
    count = COUNT if info.columns and info is not EDGES else 1
    raw = np.full((count, len(info.columns)), 0)
    payload = b"\x01\x02"
    if info.columns:
        numbers = np.arange(count)
        raw = np.stack(
            [(index * count + numbers + shift) % 100 for shift in range(len(info.columns))], axis=1
        )
        if info is EDGES:
            raw[:] = 1_700_000_000_123_456_789 + index
        payload = column_payload(info, raw)
    capture_ns = arrival_ns - 5_000_000 + np.arange(count) * 333_333
    stated = capture_ns if info is not FORCE else capture_ns[:1]
    arrivals = np.full(len(stated), arrival_ns)
    uncertainty = Uncertainty(100.0 + index, 20.0, 7.0)
    frame = Frame(info.name, index * count, count, None, arrivals, payload)
    writer.write(frame, Stamped(stated, uncertainty, 0), 7)
    if info is FORCE:
        capture_ns = stated[0] + np.arange(count) * 2_000_000  # its first stamp, and on at 500 Hz
    physical = raw * np.array([column.scale for column in info.columns])
    for row in range(count):
        own = raw[row].tolist() if info is EDGES else physical[row].tolist()
        utc_ns = int(capture_ns[row]) + TIMELINE.utc_minus_host_ns
        made.rows.setdefault(info.name, []).append((utc_ns, 120.0 + index, 7.0, 7, index * count + row, *own))


def read_csv(path: Path) -> tuple[list[str], list[tuple[float, ...]]]:
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
    return header, [tuple(int(cell) if cell.isdigit() else float(cell) for cell in line) for line in lines]


def ledger_for(sample: Sample, *purposes: Purpose) -> ConsentLedger:
    """Return a ledger with one grant that reaches the episode, as it was valid then."""
    start_ns = TIMELINE.utc_minus_host_ns
    store = ConsentStore(sample.spool / "consent", VirtualClock(0, start_ns))
    store.grant(grant_for(purposes=purposes, valid_around_ns=start_ns))
    return store.ledger()


OURS = ["capture_utc_ns", "bound95_ns", "asymmetry_ns", "instance", "seq"]


class TestNumbers:
    @pytest.mark.parametrize(
        ("info", "header"),
        [
            (IMU, ["wx [rad/s]", "t [K]", "seq_2"]),
            (EDGES, ["edge_utc_ns"]),
            (FORCE, ["fz [N]"]),
        ],
    )
    def test_csv_holds_every_sample_with_unit_time_and_bound(
        self, sample: Sample, tmp_path: Path, info: StreamInfo, header: list[str]
    ) -> None:
        sample.export("csv", tmp_path / "out", info.name)
        names, rows = read_csv(tmp_path / "out" / f"{info.name}.csv")
        assert names == [*OURS, *header]
        assert rows == sample.rows[info.name]

    @pytest.mark.parametrize("info", [IMU, EDGES, FORCE])
    def test_parquet_holds_the_same_with_units_and_the_devices_own_types(
        self, sample: Sample, tmp_path: Path, info: StreamInfo
    ) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        sample.export("parquet", tmp_path / "out", info.name)
        table = parquet.read_table(tmp_path / "out" / f"{info.name}.parquet")
        rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        assert rows == sample.rows[info.name]
        units = {name: table.schema.field(name).metadata[b"unit"].decode() for name in table.column_names}
        assert units["capture_utc_ns"] == units["bound95_ns"] == "ns"
        assert [units[column.name] for column in info.columns if column.name != "seq"] == [
            column.unit for column in info.columns if column.name != "seq"
        ]
        if info is IMU:
            assert [str(kind) for kind in table.schema.types[-3:]] == ["double", "float", "uint8"]
        if info is EDGES:
            assert str(table.schema.types[-1]) == "int64"
        assert json.loads(table.schema.metadata[b"sensorium.stream"])["name"] == info.name

    def test_a_stream_that_a_codec_packed_is_exported_as_what_it_was(self, tmp_path: Path) -> None:
        codec = CodecChoice("columns").load()
        packed = packed_as(IMU, codec.encoding)
        made, writer = begin(tmp_path / "spool", packed)
        raw = np.arange(3 * COUNT).reshape(COUNT, 3)
        payload = codec.packer(IMU, 3)(column_payload(IMU, raw), COUNT)
        assert payload is not None
        stamped = Stamped(stamps(5), Uncertainty(1.0, 0.0, 0.0), 0)
        writer.write(Frame("imu", 0, COUNT, None, stamps(9), payload), stamped, 7)
        finish(made, writer, packed)
        made.export("csv", tmp_path / "out")
        names, rows = read_csv(tmp_path / "out" / "imu.csv")
        assert names == [*OURS, "wx [rad/s]", "t [K]", "seq_2"]
        assert [row[-3:] for row in rows] == [(w * 0.01, t, s) for w, t, s in raw.tolist()]

    def test_without_names_every_numeric_stream_goes_and_the_rest_is_named(
        self, sample: Sample, tmp_path: Path
    ) -> None:
        ledger = ledger_for(sample, Purpose.EXPORT)
        found = sample.export("csv", tmp_path / "out", ledger=ledger)
        assert found.streams == {"imu": 400, "edges": 40, "force": 400, "gnss": 400}
        assert found.left_out == ("cam", "mic")
        held = {path.name for path in (tmp_path / "out").iterdir()}
        assert held == {"imu.csv", "edges.csv", "force.csv", "gnss.csv", "export.json"}
        summary = json.loads((tmp_path / "out" / "export.json").read_text())
        assert summary["streams"] == found.streams
        assert {file["name"]: file["bytes"] for file in summary["files"]} == {
            path.name: path.stat().st_size
            for path in (tmp_path / "out").iterdir()
            if path.name != "export.json"
        }

    def test_progress_rises_to_the_total(self, sample: Sample, tmp_path: Path) -> None:
        seen: list[Progress] = []
        now_ns = TIMELINE.utc_minus_host_ns
        export_episode(sample.folder, "csv", tmp_path / "out", NOBODY, now_ns, ["imu", "edges"], seen.append)
        assert [found.done for found in seen] == sorted(found.done for found in seen)
        assert seen[-1] == Progress(440, 440)

    def test_a_number_that_is_none_stays_one(self, tmp_path: Path) -> None:
        info = replace(FORCE, columns=(Column("fz", "N", "<f4"),))
        made, writer = begin(tmp_path / "spool", info)
        payload = np.array([math.nan, math.inf, 0.1], "<f4").tobytes()
        stamped = Stamped(stamps(5), Uncertainty(1.0, 0.0, 0.0), 0)
        writer.write(Frame("force", 0, 3, None, stamps(9), payload), stamped, 7)
        finish(made, writer, info)
        made.export("csv", tmp_path / "out")
        _, rows = read_csv(tmp_path / "out" / "force.csv")
        assert math.isnan(rows[0][-1])
        assert rows[1][-1] == math.inf
        assert rows[2][-1] == float(np.float32(0.1))


class TestGates:
    def test_a_personal_stream_needs_a_grant_for_export(self, sample: Sample, tmp_path: Path) -> None:
        with pytest.raises(ConsentError, match=r"stream gnss: no grant covers.*--purpose export"):
            sample.export("csv", tmp_path / "out")
        with pytest.raises(ConsentError, match="does not include the purpose export"):
            sample.export("csv", tmp_path / "out", "gnss", ledger=ledger_for(sample, Purpose.UPLOAD))
        assert [path.name for path in tmp_path.iterdir()] == ["spool"]

    def test_what_is_not_asked_for_needs_none(self, sample: Sample, tmp_path: Path) -> None:
        assert sample.export("csv", tmp_path / "out", "imu").streams == {"imu": 400}

    def test_with_a_grant_it_goes(self, sample: Sample, tmp_path: Path) -> None:
        sample.export("csv", tmp_path / "out", "gnss", ledger=ledger_for(sample, Purpose.EXPORT))
        assert read_csv(tmp_path / "out" / "gnss.csv")[1] == sample.rows["gnss"]

    def test_nothing_is_overwritten(self, sample: Sample, tmp_path: Path) -> None:
        sample.export("csv", tmp_path / "out", "imu")
        before = (tmp_path / "out" / "imu.csv").read_bytes()
        with pytest.raises(UsageError, match="overwrites nothing"):
            sample.export("csv", tmp_path / "out", "force")
        assert (tmp_path / "out" / "imu.csv").read_bytes() == before
        file = tmp_path / "a file"
        file.write_text("mine")
        with pytest.raises(UsageError, match="overwrites nothing"):
            sample.export("csv", file, "imu")
        assert file.read_text() == "mine"

    def test_an_empty_folder_is_taken(self, sample: Sample, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert sample.export("csv", tmp_path / "out", "imu").streams == {"imu": 400}

    @pytest.mark.parametrize(
        ("to", "names", "said"),
        [
            ("cvs", (), "did you mean csv"),
            ("mp3", (), "known: csv, parquet"),
            ("csv", ("wrist",), "has no stream wrist; it has: "),
            ("csv", ("cam",), "no place for stream cam; it has one for: imu, edges, force"),
            ("csv", ("mic",), "no place for stream mic"),
        ],
    )
    def test_wrong_use_names_what_there_is(
        self, sample: Sample, tmp_path: Path, to: str, names: tuple[str, ...], said: str
    ) -> None:
        with pytest.raises(UsageError, match=said):
            sample.export(to, tmp_path / "out", *names)
        assert not (tmp_path / "out").exists()

    def test_an_episode_that_is_not_sealed_is_refused(self, sample: Sample, tmp_path: Path) -> None:
        (sample.folder / "manifest.json").unlink()
        with pytest.raises(EpisodeError, match="is not sealed"):
            sample.export("csv", tmp_path / "out")

    def test_a_file_with_other_samples_than_its_manifest_says_leaves_no_export(
        self, sample: Sample, tmp_path: Path
    ) -> None:
        spool = Spool(tmp_path / "second")
        spool.create()
        folder = spool.open_folder(sample.folder.name)
        folder.mkdir()
        for path in sample.folder.iterdir():
            if path.suffix == ".mcap":
                (folder / path.name).write_bytes(path.read_bytes())
        assert sample.manifest is not None
        streams = tuple(
            replace(record, balances={7: Balance(401, 401)}) if record.info.name == "imu" else record
            for record in sample.manifest.streams
        )
        sample.folder = seal(folder, replace(sample.manifest, streams=streams))
        with pytest.raises(EpisodeError, match="imu has 400 samples in its file, 401 in its manifest"):
            sample.export("csv", tmp_path / "out", "imu")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["second", "spool"]

    def test_a_disk_that_takes_no_more_is_said_and_nothing_is_left(
        self, sample: Sample, tmp_path: Path
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(ExportError, match=r"out cannot be written: File too large"):
                sample.export("csv", tmp_path / "out", "imu")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in tmp_path.iterdir()] == ["spool"]

    def test_a_file_in_the_folders_way_is_said(self, sample: Sample, tmp_path: Path) -> None:
        (tmp_path / "wall").write_text("a file")
        with pytest.raises(ExportError, match="wall/out cannot be written"):
            sample.export("csv", tmp_path / "wall" / "out", "imu")

    def test_without_pyarrow_the_extra_is_named(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ConfigError, match=r"pip install 'sensorium\[catalog\]'"):
            sample.export("parquet", tmp_path / "out")
        assert sample.export("csv", tmp_path / "out", "imu").streams == {"imu": 400}


def test_the_command_prints_one_document(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sensorium("export", sample.folder, "--to", "csv", "-o", out, "--stream", "imu", "--json")
    assert done.code == 0, done.err
    found = done.document
    assert (found["folder"], found["to"], found["streams"]) == (str(out), "csv", {"imu": 400})
    assert [file["name"] for file in found["files"]] == ["imu.csv"]
    again = sensorium("export", sample.folder, "--to", "csv", "-o", out)
    assert again.code == 2
    assert "overwrites nothing" in again.err


def test_the_command_asks_the_spools_own_grants(sample: Sample, tmp_path: Path) -> None:
    words = ("export", sample.folder, "--to", "csv", "-o", tmp_path / "out", "--stream", "gnss")
    grant(sample.spool)  # of today: the captures are of 2023
    refused = sensorium(*words, "--json")
    assert refused.code == 1
    assert "no grant covers stream gnss" in refused.document["error"]
    assert not (tmp_path / "out").exists()
    (command,) = re.findall(r"`sensorium (consent grant [^`]*)`", refused.document["error"])
    assert sensorium(*shlex.split(command)).code == 0
    assert sensorium(*words).code == 0


def test_a_viewer_gets_one_file_with_what_it_can_show_and_nothing_else(
    sample: Sample, tmp_path: Path
) -> None:
    made = sample.export("mcap", tmp_path / "out", ledger=ledger_for(sample, Purpose.EXPORT))
    assert made.left_out == ()
    seen: dict[str, list[bytes]] = {}
    with (tmp_path / "out" / "episode.mcap").open("rb") as file:
        for _, channel, message in make_reader(file, validate_crcs=True).iter_messages():
            seen.setdefault(channel.topic, []).append(message.data)
            assert message.log_time == message.publish_time
    assert set(seen) == {"/cam", "/mic", "/imu/plot", "/edges/plot", "/force/plot", "/gnss/plot"}
    assert len(seen["/cam"]) == 40
    (value,) = struct.unpack_from("<d", seen["/force/plot"][1], len(seen["/force/plot"][1]) - 16)
    utc_ns = [row[0] for row in sample.rows["force"]]
    kept = [index for index, at in enumerate(utc_ns) if at // 10_000_000 != utc_ns[index - 1] // 10_000_000]
    assert value == sample.rows["force"][kept[1]][5]


def test_a_viewers_file_holds_nothing_that_consent_withholds(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(ConsentError, match="cam"):
        sample.export("mcap", tmp_path / "out")
    sample.export("mcap", tmp_path / "out", "imu")
    with (tmp_path / "out" / "episode.mcap").open("rb") as file:
        assert {channel.topic for _, channel, _ in make_reader(file).iter_messages()} == {"/imu/plot"}
