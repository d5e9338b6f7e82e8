"""What is personal by its kind, and what a replayed stream says of the consent of its source."""

from collections.abc import Mapping

from sensorium.drivers.driver import CAPTURE_ZONE
from sensorium.drivers.frame import Modality

PERSONAL_MODALITIES = frozenset(
    (
        Modality.CAMERA,
        Modality.DEPTH,
        Modality.AUDIO,
        Modality.GNSS,
        Modality.EVENT_CAMERA,
        Modality.TEXT,
    )
)
"""What is personal unless somebody whose word counts says otherwise."""

SOURCE_GRANTS = "source_grants"
"""Detail of a stream that is replayed: ids of the grants that it was recorded under, with spaces in between."""

PERSONAL_BECAUSE = "personal_because"
"""Detail of a stream that somebody else recorded: why it counts as personal."""

SAID_NOT_PERSONAL = "said_not_personal"
"""Detail of a stream that somebody else recorded: who said that it is not personal, against what reason."""


def zone_of(details: Mapping[str, str]) -> str:
    """Return the zone that a stream was captured in; "" if nothing says it."""
    return details.get(CAPTURE_ZONE, "")


def source_grants(details: Mapping[str, str]) -> tuple[str, ...]:
    """Return the grants that a replayed stream was recorded under; they go with it wherever it is copied to."""
    return tuple(details.get(SOURCE_GRANTS, "").split())
