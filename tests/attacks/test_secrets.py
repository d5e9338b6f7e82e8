"""A real session with logins in its addresses: no file, no output and no process list holds any part of one."""

import base64
import http.server
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from sessions import Session, grant, sensorium, until, write_rig

from sensorium.agent.session.rig import load_rig
from sensorium.errors import SensoriumError

PASSWORD = "Xq@7rT4uv/9Lm2"
SECRETS = ("7rT4uv", "9Lm2", "Zk8Wn3yb", "hV5cQ2", base64.b64encode(f"ada:{PASSWORD}".encode()).decode())


@contextmanager
def camera() -> Iterator[int]:
    """Serve images to who knows the password, or says it in the query; yield the port."""
    image = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    right = "Basic " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
    is_over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            may = self.headers.get("Authorization") == right or "pwd=Zk8Wn3yb" in self.path
            self.send_response(200 if may else 401)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(image)
            try:
                while may and not is_over.wait(0.05):
                    self.wfile.write(head + image + b"\r\n")
            except OSError:
                return  # the client left

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def told(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def files_that_tell(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "rig.yaml"]
    assert files
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)]


def command_lines(pids: dict[str, int]) -> str:
    return " ".join(
        Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ") for pid in pids.values()
    )


def test_a_session_with_logins_in_its_addresses_tells_them_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("OPENCV_FFMPEG_DEBUG", "1")
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "48")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with camera() as port:
        here = f"127.0.0.1:{port}"
        rig = write_rig(
            tmp_path,
            {
                "front": {"driver": "opencv", "device": f"http://ada:{PASSWORD}@{here}/video"},
                "back": {"driver": "opencv", "device": f"http://{here}/video.cgi?usr=ada&pwd=Zk8Wn3yb"},
                "gone": {"driver": "opencv", "device": f"rtsp://ada:hV5cQ2@{here}/x", "required": False},
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
