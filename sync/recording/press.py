"""A switch for privacy: a file that says whether it is pressed, by its words (a GPIO pin) or by being there."""

import contextlib
import os
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sensorium.errors import SensoriumError

_MOST_BYTES = 64


class PauseSettings(BaseModel):
    """Where the switch is.

    Attributes:
        file: Read every 20 ms; one that cannot be read counts as pressed.
        when: ``content``: the file's words say whether it is pressed. ``exists``: it is while the file is there.
        pressed: What it holds while the switch is pressed, but for white space.
        released: What it holds while it is not; anything else counts as pressed. None: the other of ``0`` and ``1``
            where ``pressed`` is one of them, else whatever is not ``pressed``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path
    when: Literal["content", "exists"] = "content"
    pressed: str = Field(default="1", min_length=1, max_length=_MOST_BYTES)
    released: str | None = Field(default=None, min_length=1, max_length=_MOST_BYTES)

    @model_validator(mode="after")
    def _check_words(self) -> "PauseSettings":
        if self.pressed == self.released:
            raise ValueError(f"pressed and released are both {self.pressed!r}; they must differ")
        if self.when == "exists" and self.model_fields_set & {"pressed", "released"}:
            raise ValueError("pressed and released are words of a file; leave them out with `when: exists`")
        return self

    def is_pressed_by(self, words: str) -> bool:
        """Return whether the content of the file says that the switch is pressed."""
        released = self.released or {"1": "0", "0": "1"}.get(self.pressed)
        return words == self.pressed if released is None else words != released


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
        self._device: int | None = None

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
        """Return whether it is pressed: also where it cannot be known, as once its disk or device is gone."""
        try:
            return self._is_there() if self._settings.when == "exists" else self._says_pressed()
        except OSError:
            return True

    def _is_there(self) -> bool:
        if self._is_elsewhere(self._settings.file.parent.stat().st_dev):
            return True
        return os.path.lexists(self._settings.file)

    def _says_pressed(self) -> bool:
        descriptor = os.open(self._settings.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if self._is_elsewhere(os.fstat(descriptor).st_dev):
                return True
            found = os.read(descriptor, _MOST_BYTES + 1)
        finally:
            os.close(descriptor)
        return not found or self._settings.is_pressed_by(found.decode(errors="replace").strip())

    def _is_elsewhere(self, device: int) -> bool:
        """Return whether another disk is now where the switch was: a mount went, or came over it."""
        self._device = device if self._device is None else self._device
        return device != self._device
