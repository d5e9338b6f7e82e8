"""The rig that ``sensorium demo`` records: every simulated sensor, each with a clock of its own kind."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from sensorium.calibration.edges import Edge
from sensorium.calibration.rig_document import RigCalibration
from sensorium.simulators.rig import BODY, CAMERA, MOUNTS, SPARE_MOUNTS

CALIBRATION_FILE = "calibration.yaml"

_WRAPPING_US = {"tick_ns": 1000, "modulus": 1 << 32}
_HOUR_US = {"tick_ns": 1000, "modulus": 3_600_000_000}


def demo_rig(seed: int = 1, start_ns: int | None = None, **common: Any) -> dict[str, Any]:
    """Return the demo's rig file as plain data.

    Clocks: two cameras on a common trigger with a 32-bit microsecond counter that wraps after 4 s, and one in
    nanoseconds; an IMU that counts microseconds for hours; a force sensor that wraps each hour (after 7 s);
    skews within +-50 ppm.

    Args:
        start_ns: Common host time of world time 0; None leaves it to whoever starts the processes (of the rig
            file, to the devices: they wait for each other).
        common: Further options for every device (``speed``, ``seconds``, ``drop_probability``, ...).
    """
    shared: dict[str, Any] = {"seed": seed, **common}
    if start_ns is not None:
        shared["start_ns"] = start_ns
    devices: dict[str, dict[str, Any]] = {
        "camera_left": {
            "driver": "sim_camera",
            "clock": {**_WRAPPING_US, "skew_ppm": 31.0, "wrap_after_s": 4.0},
        },
        "camera_right": {
            "driver": "sim_camera",
            "clock": {"tick_ns": 1, "skew_ppm": -44.0, "offset_s": 9132.0},
        },
        "lidar": {"driver": "sim_lidar", "clock": {"tick_ns": 1, "skew_ppm": 12.0, "offset_s": 26_400.5}},
        "imu": {"driver": "sim_imu", "clock": {**_WRAPPING_US, "skew_ppm": -18.0, "offset_s": 1861.0}},
        "microphone": {"driver": "sim_microphone", "clock": {"skew_ppm": 47.0}},
        "force": {"driver": "sim_force", "clock": {**_HOUR_US, "skew_ppm": -27.0, "wrap_after_s": 7.0}},
    }
    return {
        "rig": "simulated",
        "devices": {name: {**options, **deepcopy(shared)} for name, options in devices.items()},
        "episode": {"reference": "camera_left", "tolerance_ms": 20.0},
        "checks": [
            {"check": "stereo", "streams": ["camera_left", "camera_right"], "every_s": 3.0},
            {"check": "camera_lidar", "streams": ["camera_left", "lidar"], "every_s": 6.0},
        ],
        "calibration": CALIBRATION_FILE,
    }


def demo_calibration(seed: int = 1) -> RigCalibration:
    """Return the calibration of the demo's rig: the simulator's truth."""
    return rig_calibration(seed)


def write_demo_rig(folder: Path, seed: int = 1, start_ns: int | None = None, **common: Any) -> Path:
    """Write ``rig.yaml`` and ``calibration.yaml`` into an existing folder; return the rig file's path."""
    demo_calibration(seed).save(folder / CALIBRATION_FILE)
    path = folder / "rig.yaml"
    path.write_text(demo_rig_yaml(seed, start_ns, **common), encoding="utf-8")
    return path


def demo_rig_yaml(seed: int = 1, start_ns: int | None = None, **common: Any) -> str:
    """Return the rig file's text."""
    rig = demo_rig(seed, start_ns, **common)
    if start_ns is None:
        for options in rig["devices"].values():
            options["starts_with"] = list(rig["devices"])
    return yaml.safe_dump(rig, sort_keys=False, default_flow_style=None)


def rig_calibration(seed: int = 1, spare: Sequence[str] = ()) -> RigCalibration:
    """Return the truth as a calibration document: frame names are the device names of the demo rig.

    Args:
        spare: Names of ``SPARE_MOUNTS`` that the rig carries too.
    """
    mounts = MOUNTS | {name: SPARE_MOUNTS[name] for name in spare}
    edges = tuple(
        Edge(BODY, name, T_body_sensor, source="simulator truth") for name, T_body_sensor in mounts.items()
    )
    cameras = {name: CAMERA for name in MOUNTS if name.startswith("camera")}
    return RigCalibration(rig=f"simulated-{seed}", source="simulator truth", cameras=cameras, edges=edges)
