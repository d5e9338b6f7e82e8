"""Two-way probes on loopback beside liblsl, both ends with a busy interpreter, in one run.

    python tests/bench/two_way_live.py [--seconds 60] [--idle] [--json]

Two processes, each with a thread that never rests, speak both protocols at once in a network namespace of
their own that has only the loopback device (needs root, for `unshare` and `ip`; and pylsl: `pip install
pylsl`). Both ends read the same clock, so every estimate other than zero is error.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sensorium.sync.clocks.probe import ProbeClient, ProbeServer
from sensorium.sync.clocks.two_way import TwoWayEstimator
from sensorium.timebase import SECOND_NS, HostClock

LOOPBACK = "127.0.0.1"
KEY = bytes(range(32))
SETTLE_S = 30.0
LSL_SETTINGS = "[multicast]\nResolveScope = machine\n[ports]\nIPv6 = disable\n"


def unavailable() -> str:
    """Return why the comparison cannot run here; "" if it can."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return "needs root, unshare and ip for a network namespace with only loopback"
    try:
        import_module("pylsl")
    except (ImportError, RuntimeError) as err:
        return f"pylsl is not there: {err}"
    return ""


def _keep_busy() -> None:
    """Hold the interpreter as a decoder in pure Python would."""

    def work() -> None:
        total = 0
        while True:
            for number in range(10_000):
                total += number * number

    threading.Thread(target=work, daemon=True).start()


def answer(is_busy: bool) -> None:
    """Be the remote node: answer probes and offer an LSL stream until standard input closes."""
    pylsl = import_module("pylsl")

    server = ProbeServer(LOOPBACK, 0, KEY, HostClock())
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo("clock", "EEG", 1, 10.0, "int32", "clock"))
    print(server.port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    if is_busy:
        _keep_busy()
    while True:
        server.wait(0.1)
        server.step()
        outlet.push_sample([0])


def ask(port: int, seconds: float, is_busy: bool) -> dict[str, list[float]]:
    """Be the local node; return the errors (us) of each method."""
    pylsl = import_module("pylsl")

    found = pylsl.resolve_byprop("name", "clock", 1, 20.0)
    if not found:
        raise SystemExit("the LSL stream was not found in the namespace")
    inlet = pylsl.StreamInlet(found[0])
    inlet.time_correction(20.0)
    clock = HostClock()
    client = ProbeClient(LOOPBACK, port, KEY, clock)
    estimator = TwoWayEstimator()
    errors: dict[str, list[float]] = {
        "liblsl": [],
        "sensorium": [],
        "best of 8, kernel stamps": [],
        "hard": [],
    }
    if is_busy:
        _keep_busy()
    start_ns = clock.now_ns()
    next_ns = start_ns + int(SETTLE_S * SECOND_NS)
    while clock.now_ns() < start_ns + int((SETTLE_S + seconds) * SECOND_NS):
        client.wait(0.05)
        burst = client.step()
        if burst:
            estimator.update(burst)
            best = min(burst, key=lambda exchange: exchange.round_trip_ns)
            middle = (best.remote_received_ns - best.sent_ns + best.remote_sent_ns - best.received_ns) / 2
            errors["best of 8, kernel stamps"].append(middle / 1e3)
        now_ns = clock.now_ns()
        if now_ns >= next_ns:
            next_ns += SECOND_NS // 2
            estimate = estimator.estimate(now_ns)
            if estimate is not None:
                errors["sensorium"].append(estimate.offset_ns / 1e3)
                errors["hard"].append(estimate.hard_ns / 1e3)
            errors["liblsl"].append(inlet.time_correction(1.0) * 1e6)
    return errors


def _run_nodes(seconds: float, is_busy: bool) -> dict[str, list[float]]:
    """Start the remote node, be the local one. Runs inside the namespace."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "multicast", "on"], check=True)
    command = [sys.executable, __file__, "--role", "answer", *([] if is_busy else ["--idle"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as remote:
        assert remote.stdout is not None
        try:
            return ask(int(remote.stdout.readline()), seconds, is_busy)
        finally:
            remote.kill()


def live_results(seconds: float = 60.0, is_busy: bool = True) -> dict[str, Any]:
    """Return per method bias, p50, p99 and max (us) of the error; or {"skipped": reason}."""
    reason = unavailable()
    if reason:
        return {"skipped": reason}
    with TemporaryDirectory() as folder:
        settings = Path(folder) / "lsl_api.cfg"
        settings.write_text(LSL_SETTINGS)
        command = [
            "unshare",
            "--net",
            sys.executable,
            __file__,
            "--role",
            "inside",
            "--seconds",
            str(seconds),
        ]
        done = subprocess.run(
            command + ([] if is_busy else ["--idle"]),
            env={**os.environ, "LSLAPICFG": str(settings)},
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=False,
        )
    if done.returncode:
        return {"skipped": f"the live run failed: {done.stderr.strip().splitlines()[-1:]}"}
    errors: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    hard = errors.pop("hard")
    results: dict[str, Any] = {name: _row(np.array(values)) for name, values in errors.items()}
    results["hard_p50_us"] = float(np.median(hard))
    results["is_busy"] = is_busy
    return results


def _row(errors_us: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    size = np.abs(errors_us)
    return {
        "bias_us": float(np.median(errors_us)),
        "p50_us": float(np.percentile(size, 50)),
        "p99_us": float(np.percentile(size, 99)),
        "max_us": float(size.max()),
        "n": int(size.size),
    }


def print_live(results: dict[str, Any]) -> None:
    """Print a line per method, or why there is none."""
    if "skipped" in results:
        print(f"  skipped: {results['skipped']}")
        return
    for name, row in results.items():
        if isinstance(row, dict):
            print(
                f"  {name:26} bias {row['bias_us']:8.1f}  p50 {row['p50_us']:8.1f}  p99 {row['p99_us']:8.1f}"
                f"  max {row['max_us']:8.1f} us  (n={row['n']})"
            )
    print(f"  hard interval, median half width {results['hard_p50_us']:.1f} us; busy: {results['is_busy']}")


def main(arguments: Sequence[str]) -> int:
    """Print the comparison; 0 = not worse than liblsl, or skipped with a reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("answer", "inside"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role == "answer":
        answer(not options.idle)
    if options.role == "inside":
        print(json.dumps(_run_nodes(options.seconds, not options.idle)))
        return 0
    results = live_results(options.seconds, not options.idle)
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print_live(results)
    if "skipped" in results:
        return 0
    return 0 if results["sensorium"]["p99_us"] <= results["liblsl"]["p99_us"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
