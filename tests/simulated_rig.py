"""How the simulator's tests run a device: on a virtual clock, to the end."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.driver import Driver, DriverContext
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.drivers.registry import load_driver
from sensorium.errors import EndOfStreamError
from sensorium.simulators.demo_rig import demo_rig
from sensorium.timebase import VirtualClock

START_NS = 5_000_000_000


def device(name: str, run_dir: Path, clock: VirtualClock | None = None, **options: Any) -> Driver[Any]:
    """Return an unopened device of the demo's rig with some options replaced."""
    settings = demo_rig(start_ns=START_NS)["devices"][name] | options
    driver = load_driver(settings.pop("driver"))
    context = DriverContext(name, "bench", clock or VirtualClock(START_NS), run_dir)
    return driver(driver.config_type(**settings), context)


def run(name: str, run_dir: Path, **options: Any) -> tuple[dict[str, StreamInfo], dict[str, list[Frame]]]:
    """Open a device, read it to its end, and return its streams and frames by name."""
    driver = device(name, run_dir, **options)
    infos = {info.name: info for info in driver.open()}
    return infos, drain(driver, infos)


def drain(driver: Driver[Any], names: Any) -> dict[str, list[Frame]]:
    frames: dict[str, list[Frame]] = {name: [] for name in names}
    try:
        while True:
            for frame in driver.read(1.0):
                assert isinstance(frame, Frame)
                if driver.timeline is None:
                    assert int(frame.arrival_ns[-1]) <= driver.context.clock.now_ns()
                frames[frame.stream].append(frame)
    except EndOfStreamError:
        return frames
    finally:
        driver.close()


def columns(info: StreamInfo, frames: list[Frame]) -> NDArray[np.float64]:
    """Return (n, columns) physical values of a columnar stream whose columns share a dtype."""
    dtype, scales = info.columns[0].dtype, [column.scale for column in info.columns]
    blocks = [np.frombuffer(frame.payload, dtype).reshape(len(scales), frame.count).T for frame in frames]
    return np.asarray(np.vstack(blocks) * scales, np.float64)


def world_seconds(capture_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray((capture_ns - START_NS) * 1e-9, np.float64)


def read_for_ever(driver: Driver[Any]) -> None:
    """Read until the driver raises."""
    while True:
        driver.read(0.5)


def ticks_of(frames: list[Frame]) -> NDArray[np.int64]:
    """Return the raw device stamps of all frames."""
    return np.concatenate([frame.device_ticks for frame in frames if frame.device_ticks is not None])
