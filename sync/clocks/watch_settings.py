"""What a rig file says about the clocks to watch: read by all that start, apart from what watches them."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat


class PtpSettings(BaseModel):
    """How to ask ptp4l, and when its clock counts as locked.

    Attributes:
        socket: Of the daemon; None = where linuxptp puts it.
        free_running: ptp4l only measures (its own ``free_running 1``).
        master: This host is the master that its devices follow.
        phc: The hardware clock that ptp4l stamps with (``/dev/ptp0``); None = software stamps on REALTIME.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    socket: Path | None = None
    domain: int = Field(default=0, ge=0, le=255)
    transport_specific: int = Field(default=0, ge=0, le=15)
    free_running: bool = False
    master: bool = False
    offset_limit_us: PositiveFloat = 100.0
    holdover_ppm: NonNegativeFloat = 10.0
    phc: Path | None = None


class ChronySettings(BaseModel):
    """How well chronyd must know the time: the fallback for UTC where there is no PTP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit_us: PositiveFloat = 10_000.0


class NodeSettings(BaseModel):
    """A remote node that answers probes, and the file of the key that both share.

    Attributes:
        devices: Of the rig, those whose device stamps count the node's CLOCK_MONOTONIC_RAW.
        limit_us: Half width, asymmetry included, that is good enough.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    host: str
    port: int = Field(ge=1, le=65535)
    key: Path
    devices: tuple[str, ...] = ()
    limit_us: PositiveFloat = 1000.0


class WatchSettings(BaseModel):
    """What to watch beside the host's own clocks; nothing by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ptp: PtpSettings | None = None
    chrony: ChronySettings | None = None
    nodes: tuple[NodeSettings, ...] = ()
