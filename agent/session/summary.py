"""What a session came to in one sentence: is the pipeline right, and was the machine fast enough for it?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.drivers.frame import Place
from sensorium.simulators.pace import load_pace
from sensorium.sync.quality.passport import CONSENT_REASON

_BEHIND_THE_DEVICES = (Place.BUS.value, Place.SYNCHRONIZER.value, Place.WRITER.value)

_UPLOADED = {
    "verified": "the store gave back every byte that was sent to it",
    "quarantined": "the upload is wrong: the store does not hold what was sent",
}
"""By the verification's status; of others the sentence says nothing."""


def machine_too_slow(run_dir: Path) -> dict[str, Any]:
    """Return who of a simulated rig fell behind real time, and the sentence about it; {} when all kept up.

    What the simulated sensors are late with is not lost: the machine could not make it as fast as sensors would.
    """
    behind_s = {name: round(late_s, 1) for name, late_s in load_pace(run_dir).items()}
    if not behind_s:
        return {}
    worst = max(behind_s, key=lambda name: behind_s[name])
    reason = (
        f"this machine is too slow for the simulated rig: {worst} ran up to {behind_s[worst]:g} s behind "
        f"real time"
    )
    return {"behind_s": behind_s, "reason": reason}


def summarize(
    streams: Mapping[str, Mapping[str, Any]],
    slow: Mapping[str, Any],
    *,
    simulated: bool,
    upload: str = "not uploaded",
) -> str:
    """Return the sentence.

    Args:
        streams: As in a session's document.
        slow: What :func:`machine_too_slow` said.
        simulated: Whether every stream is.
        upload: Status of the verification.
    """
    machine = slow["reason"] if slow else "this machine kept up with the simulated rig" if simulated else ""
    return "; ".join(filter(None, (_pipeline(streams, bool(slow)), _UPLOADED.get(upload, ""), machine)))


def _pipeline(streams: Mapping[str, Mapping[str, Any]], is_slow: bool) -> str:
    if not streams:
        return "nothing was recorded"
    open_balance = [
        name
        for name, row in streams.items()
        if row["produced"] != row["recorded"] + sum(row["dropped"].values())
    ]
    if open_balance:
        return f"the pipeline is wrong: samples of {', '.join(open_balance)} are unaccounted for"
    if early := [name for name, row in streams.items() if row.get("capture_after_arrival")]:
        return f"the pipeline is wrong: samples of {', '.join(early)} are stamped after their arrival"
    lost = {name: count for name, row in streams.items() if (count := _lost_on_the_way(row))}
    if not lost:
        return (
            "the pipeline is right: every sample is recorded or accounted for, and none was lost on its way"
        )
    who = ", ".join(f"{count} of {name}" for name, count in lost.items())
    blame = "" if is_slow else "the pipeline does not keep up: "
    return f"{blame}samples were lost on their way to the file ({who}), each of them counted"


def _lost_on_the_way(row: Mapping[str, Any]) -> int:
    """Return how many samples were lost between the device and the file, without what consent withheld."""
    return sum(
        count
        for place in _BEHIND_THE_DEVICES
        for reason, count in row["dropped_reasons"].get(place, {}).items()
        if not reason.startswith(CONSENT_REASON)
    )
