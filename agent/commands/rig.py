"""What `sensorium rig check|init|schema` do; each function returns an exit code."""

import os
from pathlib import Path

from sensorium.agent.commands.output import print_json, say, say_why
from sensorium.agent.session.rig import Rig, parse_rig, read_rig
from sensorium.errors import ConfigError, UsageError
from sensorium.sync.consent.remedy import GrantFolder
from sensorium.timebase import HostClock


def check_rig(path: Path, spool: Path | None, as_json: bool) -> int:
    """Say everything that is wrong with a rig file, and what would not be recorded for want of a grant.

    Raises:
        ConfigError: With one line per problem of the file.
        DeviceError: If the file is right and a required device is plainly missing.
    """
    rig = parse_rig(read_rig(path), path, everything=True)
    remarks = _remarks(rig, spool)
    if as_json:
        devices = {device.name: device.driver for device in rig.devices}
        print_json({"rig": rig.document.rig, "devices": devices, "problems": [], "remarks": remarks})
    else:
        devices_said = ", ".join(f"{device.name} ({device.driver})" for device in rig.devices)
        say(f"{path}: rig {rig.document.rig} can be recorded; devices: {devices_said}")
        for remark in remarks:
            say(remark)
    return 0


def _remarks(rig: Rig, spool: Path | None) -> list[str]:
    from sensorium.agent.session.rig_remarks import remarks
    from sensorium.agent.session.run import request_for
    from sensorium.agent.session.withheld import announced
    from sensorium.sync.consent.store import ConsentStore
    from sensorium.uploader.stores.serving import check_folder

    found = list(remarks(rig))
    request = request_for(rig, spool, None)
    check_folder(request.spool, "spool")
    if any(device.driver == "replay" for device in rig.devices):
        return found
    ledger = ConsentStore(request.consent).inspect()
    folder = GrantFolder(request.spool, request.consent)
    return [*found, *announced(rig.devices, ledger, HostClock().utc_ns(), folder, rig.document.rig)]


def init_rig(path: Path, as_json: bool) -> int:
    """Write a first rig file with what is plugged in, else with simulated sensors.

    Raises:
        UsageError: If there is a file of that name already.
        ConfigError: If it cannot be written.
    """
    from sensorium.agent.session.first_rig import first_rig, rig_name
    from sensorium.drivers.registry import BUILT_IN, load_driver

    if path.is_dir():
        path = path / "rig.yaml"
    if path.exists():
        raise UsageError(
            f"{path} is there already, and is not overwritten; name another file: sensorium rig init FILE"
        )
    seen = {}
    for name in BUILT_IN:
        try:
            found = load_driver(name).discover()
        except ConfigError as err:
            say_why([str(err)])
            continue
        if found:
            seen[name] = list(found)
    text = first_rig(rig_name(path), seen)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror}; choose another place") from err
    if as_json:
        print_json({"rig": str(path), "drivers_seen": list(seen)})
    else:
        say(f"wrote {path}; next: sensorium rig check {path}, then sensorium record {path} --seconds 10")
    return 0


def print_schema() -> int:
    """Print the JSON schema of rig files, for editors and for who writes such files with programs."""
    from sensorium.agent.session.rig_schema import rig_schema

    print_json(rig_schema())
    return 0


def print_reference() -> int:
    """Print the reference of rig files, for people."""
    from sensorium.agent.session.rig_reference import rig_reference

    say(rig_reference().rstrip())
    return 0
