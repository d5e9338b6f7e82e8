"""The metadata that every file of an episode begins with: which episode, on whose clock."""

from collections.abc import Mapping

from sensorium.errors import EpisodeError
from sensorium.timebase import Timeline

EPISODE_METADATA = "sensorium.episode"
END_METADATA = "sensorium.end"


def pack_origin(episode_id: str, timeline: Timeline) -> dict[str, str]:
    """Return the values of the metadata record."""
    return {
        "episode_id": episode_id,
        "host_id": timeline.host_id,
        "utc_minus_host_ns": str(timeline.utc_minus_host_ns),
        "is_virtual": "true" if timeline.is_virtual else "false",
        "boot_id": timeline.boot_id,
    }


def parse_origin(values: Mapping[str, str]) -> tuple[str, Timeline]:
    """Return episode id and timeline.

    Raises:
        EpisodeError: If the record is damaged.
    """
    try:
        offset_ns = int(values["utc_minus_host_ns"])
        is_virtual = values["is_virtual"] == "true"
        timeline = Timeline(values["host_id"], offset_ns, is_virtual, values.get("boot_id", ""))
        return values["episode_id"], timeline
    except (KeyError, ValueError) as err:
        raise EpisodeError(f"metadata {EPISODE_METADATA} is damaged: {err!r}") from err
