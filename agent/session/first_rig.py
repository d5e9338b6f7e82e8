"""A first rig file: what is plugged in here, else simulated sensors, and every other device as a comment."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from sensorium.drivers.driver import Seen
from sensorium.wording import plain_name

_EXAMPLES: Mapping[str, tuple[str, str]] = {
    "opencv": ("wrist", "device: /dev/v4l/by-id/usb-cam-0, rate_hz: 30, size: [640, 480]"),
    "ouster": ("lidar", "host: 192.0.2.10"),
    "xsens": ("imu", "port: /dev/serial/by-id/usb-mti, rate_hz: 400"),
    "ati_netft": ("force", "host: 192.0.2.20, rate_hz: 1000"),
    "sounddevice": ("mic", "device: default, rate_hz: 48000, channels: 1"),
}
_SIMULATED = (
    ("camera_left", "{driver: sim_camera, size: [320, 240], render: cached}"),
    ("imu", "{driver: sim_imu}"),
    ("force", "{driver: sim_force}"),
)


def first_rig(name: str, seen: Mapping[str, Iterable[Seen]]) -> str:
    """Return the text of a rig file that can be recorded as it is.

    Args:
        name: Of the rig.
        seen: What each driver found plugged in.
    """
    devices = list(_found(seen))
    about = "What was found plugged in. Names are yours to choose: small letters, digits and _."
    if not devices:
        devices = [f"  {device}: {entry}" for device, entry in _SIMULATED]
        about = "Nothing was found plugged in: these are simulated, so that you can record at once."
    others = [
        f"  # {device}: {{driver: {driver}, {options}}}" for driver, (device, options) in _EXAMPLES.items()
    ]
    lines = "\n".join(devices)
    return f"""\
# A rig: what is recorded, by which devices. `sensorium rig check` says what is wrong with it, `sensorium devices` lists
# drivers and what is plugged in, `sensorium rig schema` gives all keys to editors.
rig: {name}

# {about}
devices:
{lines}
  # Other devices, by stable paths and addresses:
{chr(10).join(others)}

# Where episodes are written; relative paths begin at this file.
spool: spool

episode:
  max_s: 60             # a new episode every minute
  # reference: wrist    # the stream whose frames the others are aligned on; else one is chosen
  # tolerance_ms: 10

# operator: required                # whoever records says --operator NAME
# calibration: calibration.yaml     # checked while recording
# store: file:///var/lib/sensorium/central    # where sealed episodes are uploaded to

# Cameras, microphones and positions are personal: they are stored only while a grant covers them, such as
#   sensorium consent grant site:{name} --purpose record --purpose upload
"""


def _found(seen: Mapping[str, Iterable[Seen]]) -> Iterable[str]:
    taken: set[str] = set()
    for driver, devices in seen.items():
        for device in devices:
            name = _free(_EXAMPLES.get(driver, (plain_name(device.name) or driver, ""))[0], taken)
            options = "".join(f", {key}: {_quoted(value)}" for key, value in device.options.items())
            yield f"  {name}: {{driver: {driver}{options}}}    # {' '.join(device.name.split())}"


def _free(name: str, taken: set[str]) -> str:
    found, number = name, 2
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    taken.add(found)
    return found


def _quoted(value: str) -> str:
    plain = value.replace("/", "").replace("-", "").replace("_", "").replace(".", "")
    return (
        value
        if plain.isalnum() and not plain.isdigit()
        else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )


def rig_name(path: Path) -> str:
    """Return a name for the rig of a file: its folder's."""
    return plain_name(path.absolute().parent.name) or "rig"
