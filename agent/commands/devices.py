"""What `sensorium devices` does."""

from pathlib import Path

from sensorium.agent.commands import display
from sensorium.agent.commands.output import print_json
from sensorium.drivers.registry import driver_targets, load_driver
from sensorium.errors import ConfigError


def list_devices(as_json: bool) -> int:
    """List every driver with its options and what it can see plugged in."""
    rows = []
    for name, target in driver_targets().items():
        try:
            driver = load_driver(name)
        except ConfigError as err:
            rows.append({"driver": name, "class": target, "available": False, "reason": str(err)})
            continue
        fields = [field for field in driver.config_type.model_fields if field not in ("personal", "required")]
        seen = [{"name": found.name, "options": dict(found.options)} for found in driver.discover()]
        rows.append({"driver": name, "class": target, "available": True, "options": fields, "seen": seen})
    plugged = [
        str(path) for folder in ("v4l", "serial") for path in sorted(Path(f"/dev/{folder}/by-id").glob("*"))
    ]
    if as_json:
        print_json({"drivers": rows, "plugged_in": plugged})
    else:
        display.print_devices(rows, plugged)
    return 0
