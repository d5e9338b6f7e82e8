"""What people say about a recording; it travels as one value from the rig file to the manifest."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class LossBounds:
    """How many seconds of an open episode a crash may cost, as its recorder was told; None where nobody promised.

    Attributes:
        flush_s: The death of a process.
        sync_s: A power cut.
    """

    flush_s: float | None = None
    sync_s: float | None = None


UNBOUNDED = LossBounds()


class SessionFacts(BaseModel):
    """Keys of a rig file that nothing acts on; a new one reaches the manifest by being added here.

    Attributes:
        rig: Name of the rig.
        operator: Who records.
        instruction: What the robot or its operator was told to do, in words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rig: str = ""
    operator: str = ""
    task: str = ""
    instruction: str = ""
