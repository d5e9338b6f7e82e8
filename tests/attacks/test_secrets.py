"""A real session with logins in its addresses: no file, no output and no process list holds any part of one."""

import base64
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from camera_server import Gate, counted_parts, jpeg, mjpeg_server
from sessions import Session, grant, sensorium, until, write_rig

from sensorium.agent.session.rig import load_rig
from sensorium.errors import SensoriumError

PASSWORD = "Xq@7rT4uv/9Lm2"
SECRETS = ("7rT4uv", "9Lm2", "Zk8Wn3yb", "hV5cQ2", base64.b64encode(f"ada:{PASSWORD}".encode()).decode())


@contextmanager
def images(gate: Gate | None) -> Iterator[str]:
    """Serve images until the block ends; yield the address."""
    is_over = threading.Event()

    def chunks() -> Iterator[bytes]:
        while not is_over.wait(0.05):
            yield from counted_parts([jpeg(0)], b"--frame")

    with mjpeg_server(chunks, "multipart/x-mixed-replace; boundary=frame", gate=gate) as url:
        yield url
        is_over.set()


def told(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def files_that_tell(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "rig.yaml"]
    assert files
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)]


def command_lines(pids: dict[str, int]) -> str:
    return " ".join(
        Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
        for name, pid in pids.items()
        if name != "gone"  # it comes and goes
    )


def test_a_session_with_logins_in_its_addresses_tells_them_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("OPENCV_FFMPEG_DEBUG", "1")
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "48")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    gate = Gate("ada", PASSWORD, ('Digest realm="cam", nonce="n", qop="auth"', 'Basic realm="cam"'))
    with images(gate) as locked, images(None) as open_to_all:
        rig = write_rig(
            tmp_path,
            {
                "front": {"driver": "opencv", "device": locked.replace("//", f"//ada:{PASSWORD}@")},
                "back": {"driver": "opencv", "device": f"{open_to_all}?usr=ada&pwd=Zk8Wn3yb"},
                "gone": {
                    "driver": "opencv",
                    "device": open_to_all.replace("http://", "rtsp://ada:hV5cQ2@"),
                    "required": False,
                },
            },
        )
        spool = tmp_path / "spool"
        grant(spool)
        with Session("record", rig, "--json", spool=spool) as session:
            session.until_recorded(0.5, ["front", "back"])
            run_dir = session.run_dir
            until(lambda: (run_dir / "logs/gone.log").read_text().strip(), "FFmpeg's own words")
            status = sensorium("status", "--spool", spool, "--json")
            seen = command_lines(session.note_processes())
            done = session.finish(signal.SIGINT)
    assert done.code in (0, 1), done.err
    (episode,) = done.episodes
    assert told(seen + status.out + done.out + done.err) == []
    assert files_that_tell(tmp_path) == []
    assert (
        "***@" in (episode / "manifest.json").read_text()
        or "***@" in (run_dir / "front.spec.json").read_text()
    )


@pytest.mark.parametrize(
    "entry",
    [
        {"device": "http://ada:Xq@7rT4uv/9Lm2@cam/x", "size": "wide"},
        {"device": ["http://ada:Xq@7rT4uv/9Lm2@cam/x"]},
        {"device": "http://ada:Xq@7rT4uv/9Lm2@cam/x", "loop": True},
        {"device": "rtmp://ada:Xq@7rT4uv/9Lm2@cam/x"},
        {"device": 0, "password": "Zk8Wn3yb"},
        {"device": {"password": "Zk8Wn3yb"}},
    ],
)
def test_a_rig_that_is_refused_does_not_tell_its_passwords(tmp_path: Path, entry: dict[str, object]) -> None:
    rig = write_rig(tmp_path, {"front": {"driver": "opencv", **entry}})
    with pytest.raises(SensoriumError, match="front") as refused:
        load_rig(rig)
    assert told(str(refused.value)) == []


def test_an_address_in_the_place_of_a_name_is_not_made_a_name_with_its_password(tmp_path: Path) -> None:
    rig = write_rig(tmp_path, {"http://ada:hv5cq2@cam/x": {"driver": "opencv"}})
    with pytest.raises(SensoriumError, match="device name") as refused:
        load_rig(rig)
    assert "hv5cq2" not in str(refused.value)
