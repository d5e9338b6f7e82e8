"""Clocks beside the streams, in real recordings: PTP by a real ptp4l, a node's probe server as a process of its own.

All clocks of one machine are one clock, so the truth is known: a simulated device that keeps UTC or the host's
raw clock has no error but what its options add.
"""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptp_network import CLIENT, DOMAIN, MASTER, Network, require_namespaces
from sessions import Session, command_line, pass_time, sensorium, until, write_rig

from sensorium.sync.clocks.model import ONE_WAY
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.remapped import read_remap
from sensorium.verdict import Status, Verdict

pytestmark = pytest.mark.alone

IMU: dict[str, Any] = {"driver": "sim_imu", "mount": "imu", "latency": {"min_ms": 1.0, "jitter_ms": 1.0}}


def claimed(manifest: Manifest, stream: str) -> Verdict:
    (found,) = (v for v in manifest.clocks if v.check == "clock_claim" and v.subject == stream)
    return found


def clock_verdict(manifest: Manifest, check: str) -> Verdict:
    (found,) = (verdict for verdict in manifest.clocks if verdict.check == check)
    return found


def errors_us(episode: Path, run_dir: Path, stream: str, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return |capture - truth| and the stated half width of samples stamped by ``method``, in microseconds."""
    truth = np.fromfile(run_dir / "truth" / f"{stream}.i64", "<i8").reshape(-1, 2)
    known = dict(zip(truth[:, 0].tolist(), truth[:, 1].tolist(), strict=True))
    with Episode(episode) as opened:
        models = [m.model for m in opened.models() if m.stream == stream and m.model.method == method]
        epochs = {model.epoch for model in models}
        found = [
            (abs(int(capture) - known[row.seq + at]), row.stamped.uncertainty)
            for name, row in opened.stamps()
            if name == stream and row.stamped.epoch in epochs
            for at, capture in enumerate(row.stamped.capture_ns.tolist())
        ]
    stated = [known.bound95_ns + known.asymmetry_ns for _, known in found]
    return np.array([error for error, _ in found]) / 1e3, np.array(stated) / 1e3


def captures(episode: Path) -> dict[str, list[tuple[int, list[int], float]]]:
    found: dict[str, list[tuple[int, list[int], float]]] = {}
    with Episode(episode) as opened:
        for name, row in opened.stamps():
            stamped = row.stamped
            found.setdefault(name, []).append(
                (row.seq, stamped.capture_ns.tolist(), stamped.uncertainty.bound95_ns)
            )
    return found


def test_a_host_that_nobody_vouches_for_only_suspects_a_device_that_claims_utc(tmp_path: Path) -> None:
    devices = {
        "right": {**IMU, "clock": {"keeps": "utc", "tick_ns": 1000}},
        "tai": {**IMU, "clock": {"keeps": "utc", "tick_ns": 1000, "offset_s": 37.0}},
    }
    done = sensorium("record", write_rig(tmp_path, devices), "--seconds", "7", "--json")
    assert done.code == 0, done.out + done.err
    (manifest,) = (read_manifest(episode) for episode in done.episodes)
    assert clock_verdict(manifest, "host_clock").status in (Status.OK, Status.SUSPECT)
    assert claimed(manifest, "right").status is Status.OK
    wrong = claimed(manifest, "tai")
    assert wrong.status is Status.SUSPECT
    assert "TAI is taken for UTC (37 s)" in wrong.reasons[0]
    assert "vouched for by nobody" in wrong.reasons[1]
    rows = {row["subject"]: row["status"] for row in done.document["clocks"]["checks"]}
    assert (rows["right"], rows["tai"]) == ("ok", "suspect")


def test_under_a_ptp_lock_true_claims_stamp_and_false_ones_fail(tmp_path: Path) -> None:
    require_namespaces()
    (tmp_path / "ptp").mkdir()
    network = Network(tmp_path / "ptp", 1)
    try:
        master = network.start(0, "master", ["m1"], *MASTER)
        network.start(1, "client", ["c1"], *CLIENT)
        devices = {
            "right": {**IMU, "clock": {"keeps": "utc", "tick_ns": 1000}},
            "free": {**IMU, "clock": {"keeps": "utc", "tick_ns": 1000, "offset_s": 0.05}},
        }
        ptp = {"socket": str(tmp_path / "ptp" / "client"), "domain": DOMAIN, "free_running": True}
        rig = write_rig(tmp_path, devices, clocks={"ptp": ptp})
        with Session("record", rig, "--json", spool=tmp_path / "spool") as session:
            session.until_recorded(9.0, ("right", "free"))
            run_dir = session.run_dir
            master.kill()
            pass_time(6.0)
            done = session.finish(signal.SIGINT)
    finally:
        network.close()
    assert done.code == 1, "a claim is plainly wrong"
    (episode,) = done.episodes
    manifest = read_manifest(episode)
    assert claimed(manifest, "right").status is Status.OK
    assert claimed(manifest, "free").status is Status.FAILED
    assert "not synchronised" in claimed(manifest, "free").reasons[0]
    lost = clock_verdict(manifest, "ptp_lock")
    assert lost.status is Status.SUSPECT, "the master was killed"
    assert any("in holdover" in reason for reason in lost.reasons)
    with Episode(episode) as opened:
        said = [f"{event.stream}: {event.detail}" for event in opened.events() if event.kind == "clock"]
    assert any(text.startswith("ptp: locked") or "at the start: ptp_lock ok" in text for text in said), said
    assert any(text.startswith("ptp: lost") for text in said)
    assert any(text.startswith("right: follow: stamped by ptp") for text in said)
    assert not any(text.startswith("free: follow: stamped by ptp") for text in said)
    errors, stated = errors_us(episode, run_dir, "right", "ptp")
    assert np.mean(errors <= stated) > 0.95
    (right,) = (record for record in manifest.streams if record.info.name == "right")
    assert right.clock.uncertainty_p95_us is not None
    assert right.clock.events["follow"] >= 1
    assert sensorium("sync", "remap", episode, "--json").code == 0
    with Episode(episode) as opened:
        better = read_remap(opened)
        ptp_epochs = {entry.model.epoch for entry in opened.models() if entry.model.method == "ptp"}
        rows = list(opened.stamps())
    by_ptp = [row for name, row in rows if name == "right" and row.stamped.epoch in ptp_epochs]
    assert len(by_ptp) > 50
    for row in by_ptp:
        stamped = better["right", row.instance, row.seq]
        assert stamped.capture_ns.tolist() == row.stamped.capture_ns.tolist(), "PTP is known from both sides"
    own = [row for name, row in rows if name == "free"]
    moved = [better["free", r.instance, r.seq].capture_ns[0] != r.stamped.capture_ns[0] for r in own]
    assert np.mean(moved) > 0.9
    again = sensorium("replay", episode, "--spool", tmp_path / "again", "--rate", "max", "--json")
    assert captures(episode) == captures(again.episodes[0]), "no PTP is heard in a replay, yet no stamp moves"


@contextmanager
def probe_server(key: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Run ``sensorium sync serve`` and yield its process and port."""
    command = command_line("sync", "serve", "--key", key, "--bind", "127.0.0.1", "--port", "0", "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, int(json.loads(process.stdout.readline())["port"])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def probe_key(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "probe.key"
    path.write_text(bytes(range(32)).hex())
    path.chmod(0o600)
    return path


def test_a_device_on_a_nodes_clock_is_stamped_by_it_until_the_node_falls_silent(tmp_path: Path) -> None:
    key = probe_key(tmp_path)
    # So few samples behind so much jitter, that the probes know the node's clock better than its arrivals do.
    slow = {**IMU, "rate_hz": 50, "block": 1, "latency": {"min_ms": 1.0, "jitter_ms": 40.0}}
    devices = {"arm_imu": {**slow, "clock": {"keeps": "host", "tick_ns": 1}}, "own": slow}
    with probe_server(key) as (server, port):
        node = {"name": "arm", "host": "127.0.0.1", "port": port, "key": "probe.key", "devices": ["arm_imu"]}
        rig = write_rig(tmp_path, devices, clocks={"nodes": [node]})
        with Session("record", rig, "--json", spool=tmp_path / "spool") as session:
            session.until_recorded(10.0, ("arm_imu", "own"))
            run_dir = session.run_dir
            server.kill()
            until(lambda: server.poll() is not None, "the end of the probe server")
            pass_time(8.0)
            done = session.finish(signal.SIGINT)
    assert done.code == 0, done.out + done.err
    (episode,) = done.episodes
    manifest = read_manifest(episode)
    assert claimed(manifest, "arm_imu").status is Status.OK
    node_verdict = clock_verdict(manifest, "remote_clock")
    assert node_verdict.subject == "arm"
    assert node_verdict.status is Status.SUSPECT
    assert any("in holdover" in reason for reason in node_verdict.reasons)
    by_node, stated = errors_us(episode, run_dir, "arm_imu", "node arm")
    own, _ = errors_us(episode, run_dir, "own", ONE_WAY)
    assert np.percentile(by_node, 99) < np.percentile(own, 50), "one machine: the node's clock is ours"
    assert np.mean(by_node <= stated) > 0.95
    with Episode(episode) as opened:
        stalls = [
            event
            for event in opened.events()
            if event.stream == "arm" and "without a new answer" in event.detail
        ]
    assert stalls


def test_the_clocks_of_a_rig_can_be_looked_at_without_recording(tmp_path: Path) -> None:
    key = probe_key(tmp_path)
    with probe_server(key) as (server, port):
        node = {"name": "arm", "host": "127.0.0.1", "port": port, "key": "probe.key"}
        rig = write_rig(tmp_path, {"imu": IMU}, clocks={"nodes": [node]})
        done = sensorium("sync", "clocks", rig, "--seconds", "6", "--json")
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate(timeout=10)
    assert {row["check"] for row in done.document["clocks"]} == {"host_clock", "remote_clock"}
    (remote,) = (row for row in done.document["clocks"] if row["check"] == "remote_clock")
    assert remote["status"] == "ok", remote
    assert json.loads(out.splitlines()[-1])["answered"] >= 8


def test_a_node_that_names_an_unknown_device_or_a_bad_key_is_refused_before_the_start(tmp_path: Path) -> None:
    key = probe_key(tmp_path)
    key.chmod(0o644)
    node = {"name": "arm", "host": "127.0.0.1", "port": 5005, "key": "probe.key", "devices": ["imo"]}
    done = sensorium("record", write_rig(tmp_path, {"imu": IMU}, clocks={"nodes": [node]}), "--seconds", "1")
    assert done.code == 2
    assert "did you mean 'imu'?" in done.err
    assert "chmod 600" in done.err
