"""Runs one emulated device by hand: ``python -m sensorium.simulators.emulators.command xsens|ati``.

Prints the rig-file entry that connects to it.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from sensorium.simulators.emulators.ati_netft import AtiNetFtEmulator
from sensorium.simulators.emulators.emulator import Emulator, WireFaults
from sensorium.simulators.emulators.xsens import XsensEmulator


def main(argv: Sequence[str] | None = None) -> int:
    """Run one emulator until Ctrl-C; prints the rig-file entry that connects to it."""
    parser = argparse.ArgumentParser(
        prog="python -m sensorium.simulators.emulators.command", description=__doc__
    )
    parser.add_argument("device", choices=["xsens", "ati"])
    parser.add_argument("--rate-hz", type=float, default=None)
    for name in ("drop-every", "garbage-every", "corrupt-every", "disconnect-after", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    options = parser.parse_args(argv)
    # A shell that starts it in the background has it ignore Ctrl-C, and then nothing but SIGKILL would end it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults = WireFaults(
        options.drop_every,
        options.garbage_every,
        options.corrupt_every,
        options.disconnect_after,
        options.seed,
    )
    emulator: Emulator
    if options.device == "xsens":
        emulator = imu = XsensEmulator(options.rate_hz or 100.0, faults=faults)
        entry = f"imu: {{driver: xsens, port: {imu.port}, rate_hz: {imu.rate_hz:g}}}"
    else:
        emulator = force = AtiNetFtEmulator(options.rate_hz or 1000.0, faults=faults)
        entry = (
            f"force: {{driver: ati_netft, host: 127.0.0.1, port: {force.port}, "
            f"http_port: {force.http_port}, rate_hz: {force.rate_hz:g}}}"
        )
    sys.stdout.write(entry + "\n")
    sys.stdout.flush()
    try:
        emulator.run()
    except KeyboardInterrupt:
        pass
    finally:
        emulator.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
