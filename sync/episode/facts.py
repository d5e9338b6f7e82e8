"""What people say about a recording; it travels as one value from the rig file to the manifest."""

from pydantic import BaseModel, ConfigDict


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
