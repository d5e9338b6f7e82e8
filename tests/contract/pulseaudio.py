"""A private PulseAudio daemon with null sinks that play a tone: a microphone without a sound card."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

from sensorium.timebase import SECOND_NS, HostClock

TONE_HZ = 1000
RATE_HZ = 48_000
_ALSA_BASE = Path("/usr/share/alsa/alsa.conf")


def why_not() -> str | None:
    """Return why no null sink can be had on this machine; None if one can."""
    if shutil.which("pulseaudio") is None:
        return "pulseaudio is not installed (apt-get install pulseaudio)"
    if find_library("portaudio") is None:
        return "PortAudio is not installed (apt-get install libportaudio2)"
    if not _ALSA_BASE.is_file() or not any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        return "ALSA's PulseAudio plug-in is not installed (apt-get install libasound2-plugins)"
    return None


@contextmanager
def null_sink(folder: Path) -> Iterator[dict[str, str]]:
    """Run a daemon whose input ``mic0`` hears a 1 kHz tone; yield the environment that leads to it.

    Args:
        folder: Home of the daemon; its path must be short, because a socket's name is at most 107 bytes.
    """
    run = folder / "run"
    run.mkdir(parents=True, mode=0o700)
    native = run / "native"
    environment = {
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(run),
        "PULSE_SERVER": f"unix:{native}",
        "ALSA_CONFIG_PATH": f"{_ALSA_BASE}:{folder / 'asound.conf'}",
    }
    pcm = "pcm.{} {{\n type pulse\n device mic0.monitor\n}}\n"
    (folder / "asound.conf").write_text(pcm.format("!default") + pcm.format("mic0"), "ascii")
    modules = (
        f"module-native-protocol-unix auth-anonymous=1 socket={native}",
        f"module-null-sink sink_name=mic0 rate={RATE_HZ} channels=2",
        f"module-sine sink=mic0 frequency={TONE_HZ} rate={RATE_HZ}",
    )
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
    command += [word for module in modules for word in ("-L", module)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log) as daemon,
    ):
        try:
            _wait_for(native, daemon)
            yield environment
        finally:
            daemon.kill()


def _wait_for(native: Path, daemon: "subprocess.Popen[bytes]") -> None:
    clock = HostClock()
    deadline_ns = clock.now_ns() + 10 * SECOND_NS
    while clock.now_ns() < deadline_ns and daemon.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(native)) == 0:
                return
        clock.sleep_until(clock.now_ns() + SECOND_NS // 50)
    raise RuntimeError(f"pulseaudio did not start; see {native.parent.parent / 'log'}")
