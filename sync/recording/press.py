"""A switch for privacy: a file such as ``/sys/class/gpio/gpio17/value`` that says whether it is pressed."""

import contextlib
import os
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from sensorium.errors import SensoriumError

_MOST_BYTES = 64


class PauseSettings(BaseModel):
    """Where the switch is.

    Attributes:
        file: Read every 20 ms; one that cannot be read counts as pressed.
        pressed: What it holds while the switch is pressed, but for white space.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path
    pressed: str = Field(default="1", min_length=1, max_length=_MOST_BYTES)


class Pausing(Protocol):
    """What a switch acts on."""

    def pause(self, source: str) -> int: ...

    def release(self, source: str) -> int: ...


class PressFile:
    """Pauses while the switch is pressed, and ends that pause, and no other, once it is not."""

    def __init__(self, settings: PauseSettings) -> None:
        self._settings = settings
        self._source = f"switch {settings.file}"
        self._is_known_pressed: bool | None = None

    def step(self, consent: Pausing) -> None:
        """Read the switch, and pause or release where it has changed."""
        is_pressed = self._is_pressed()
        if is_pressed is self._is_known_pressed:
            return
        # A press that cannot be written down holds all the same, and is tried again in the next step.
        with contextlib.suppress(SensoriumError):
            if is_pressed:
                consent.pause(self._source)
            else:
                consent.release(self._source)
            self._is_known_pressed = is_pressed

    def _is_pressed(self) -> bool:
        try:
            descriptor = os.open(self._settings.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                found = os.read(descriptor, _MOST_BYTES + 1)
            finally:
                os.close(descriptor)
        except OSError:
            return True
        return not found or found.decode(errors="replace").strip() == self._settings.pressed
