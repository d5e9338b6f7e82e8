"""What the supervisor tells the checker."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sensorium.agent.session.rig import CheckerOptions, CheckOptions


class CheckerSpec(BaseModel):
    """Where to ask and answer, and what to check.

    Attributes:
        checks: None = every pair that the calibration and the streams allow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sets_endpoint: str
    control_endpoint: str
    calibration: Path
    checks: tuple[CheckOptions, ...] | None
    checker: CheckerOptions = CheckerOptions()
