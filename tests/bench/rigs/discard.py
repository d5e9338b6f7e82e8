"""The same driver on a bus that discards: what generating the load costs, to be taken off.

Run as ``python -m rigs.discard SPEC.json`` with the name, options and run folder of a driver host.
"""

import json
import sys
from pathlib import Path

from rigs.driver import LoadConfig, LoadDriver
from sensorium.drivers.driver import DriverContext
from sensorium.errors import EndOfStreamError
from sensorium.timebase import HostClock


def main() -> None:
    """Fetch every frame of one driver as its host would, and forget it."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    context = DriverContext(spec["name"], "local", HostClock(), Path(spec["run_dir"]))
    driver = LoadDriver(LoadConfig.model_validate(spec["options"]), context)
    driver.open()
    try:
        while True:
            driver.read(0.02)
    except EndOfStreamError:
        driver.close()


if __name__ == "__main__":
    main()
