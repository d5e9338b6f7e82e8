"""How the devices of a simulated rig agree on the instant at which their world begins.

Each leaves a mark in the run's folder when it has been opened; the last one adds the instant, a little later than
now. So the world waits for the slowest start-up and not a fixed time, and a device that is restarted finds it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS, Clock

LEAD_NS = SECOND_NS
"""From the last device's opening to the beginning: the bus is to welcome everybody, and images are made ahead."""

PATIENCE_NS = 60 * SECOND_NS
_FOLDER = "start"
_POLL_NS = SECOND_NS // 50


def agree_on_start(run_dir: Path, device: str, rig: Sequence[str], clock: Clock) -> int:
    """Return the host time of world time 0, the same for every device of ``rig`` in this run.

    Raises:
        DeviceError: If one of them was not opened within a minute.
    """
    folder = run_dir / _FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / f"{device}.open").touch()
    found = folder / "world.ns"
    deadline_ns = clock.now_ns() + PATIENCE_NS
    while not found.exists():
        missing = [name for name in rig if name != device and not (folder / f"{name}.open").exists()]
        if not missing:
            _propose(found, device, clock.now_ns() + LEAD_NS)
        elif clock.now_ns() > deadline_ns:
            raise DeviceError(
                f"simulated device {device} waited {PATIENCE_NS // SECOND_NS} s for {', '.join(missing)} to be "
                f"opened too; starts_with in the rig file names the devices that begin together"
            )
        else:
            clock.sleep_until(clock.now_ns() + _POLL_NS)
    return int(found.read_text(encoding="ascii"))


def _propose(found: Path, device: str, start_ns: int) -> None:
    """Write the instant unless somebody else was first."""
    draft = found.with_name(f"{found.name}.{device}")
    draft.write_text(str(start_ns), encoding="ascii")
    try:
        os.link(draft, found)  # appears whole or not at all, and only once
    except FileExistsError:
        pass
    finally:
        draft.unlink()
