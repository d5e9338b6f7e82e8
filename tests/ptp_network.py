"""ptp4l in network namespaces: one master's namespace with a cable to each client's."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sensorium.sync.clocks.ptp_management import PtpClient
from sensorium.timebase import HostClock

DOMAIN = 42
ASYMMETRY_NS = 250_000
LATENCY_NS = 1_000_000
MASTER = ("--priority1=100", "--clockClass=6", "--clockAccuracy=0x21", "--timeSource=0x20")
SETTINGS = {
    "clockClass": 6,
    "clockAccuracy": 0x21,
    "offsetScaledLogVariance": 0xFFFF,
    "currentUtcOffset": 37,
    "leap61": 0,
    "leap59": 0,
    "currentUtcOffsetValid": 0,
    "ptpTimescale": 0,
    "timeTraceable": 0,
    "frequencyTraceable": 0,
    "timeSource": 0x20,
}
"""What :data:`MASTER` announces, as pmc sets it."""
_HEX = ("clockAccuracy", "offsetScaledLogVariance", "timeSource")
CLIENT = ("--slaveOnly=1", "--free_running=1")
COMMON = (
    *("-S", "-4", "-E", "-q", "-m", f"--domainNumber={DOMAIN}"),
    *("--logSyncInterval=-3", "--logAnnounceInterval=-3", "--logMinDelayReqInterval=-3"),
)
CLOCK = HostClock()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """A master's namespace with one cable to each client's namespace; ptp4l runs as told."""

    def __init__(self, folder: Path, clients: int) -> None:
        self.folder = folder
        self.names = [f"sn{os.getpid()}-{clients}-{n}" for n in range(clients + 1)]
        self._running: list[subprocess.Popen[str]] = []
        self._clients: list[PtpClient] = []
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for n in range(1, clients + 1):
            ip(
                "link",
                "add",
                f"m{n}",
                "netns",
                self.names[0],
                "type",
                "veth",
                "peer",
                f"c{n}",
                "netns",
                self.names[n],
            )
            for name, end, host in ((self.names[0], f"m{n}", 1), (self.names[n], f"c{n}", 2)):
                ip("-n", name, "address", "add", f"10.77.{n}.{host}/24", "dev", end)
                ip("-n", name, "link", "set", end, "up")

    def start(
        self, namespace: int, socket_name: str, ports: list[str], *options: str
    ) -> subprocess.Popen[str]:
        path = self.folder / socket_name
        command = [
            "ip",
            "netns",
            "exec",
            self.names[namespace],
            "ptp4l",
            *COMMON,
            f"--uds_address={path}",
            *options,
        ]
        for port in ports:
            command += ["-i", port]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
        self._running.append(process)
        return process

    def client(self, socket_name: str, domain: int = DOMAIN, transport_specific: int = 0) -> PtpClient:
        opened = PtpClient(CLOCK, self.folder / socket_name, domain, transport_specific)
        self._clients.append(opened)
        return opened

    def announce(self, socket_name: str, **changes: int) -> None:
        """Let a running grandmaster announce something else (linuxptp's GRANDMASTER_SETTINGS_NP)."""
        said = " ".join(
            f"{name} {value:#x}" if name in _HEX else f"{name} {value}"
            for name, value in (SETTINGS | changes).items()
        )
        self.manage(socket_name, f"SET GRANDMASTER_SETTINGS_NP {said}")

    def manage(self, socket_name: str, command: str) -> None:
        """Send one management command by ``pmc``."""
        ours = self.folder / f"pmc.{len(list(self.folder.glob('pmc.*')))}"
        options = ["-u", "-b", "0", "-d", str(DOMAIN), "-s", str(self.folder / socket_name), "-i", str(ours)]
        subprocess.run(["pmc", *options, command], check=True, capture_output=True, text=True, timeout=10)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(10)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def require_namespaces() -> None:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("ptp4l"):
        pytest.skip("needs root, ip and ptp4l (linuxptp)")
    probe = f"sn{os.getpid()}-probe"
    tried = subprocess.run(["ip", "netns", "add", probe], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"network namespaces are not allowed here: {tried.stderr.strip()}")
    ip("netns", "delete", probe)
