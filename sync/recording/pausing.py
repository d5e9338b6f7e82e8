"""What happens in the recorder where a privacy pause begins and ends, whoever pressed."""

from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.sync.recording.consents import SessionConsent
from sensorium.sync.recording.press import PauseSettings, PressFile


class PauseWatch:
    """Sees that a pause has begun or ended, and has the memory that drivers share zeroed while it lasts."""

    def __init__(
        self, consent: SessionConsent, receiver: BusReceiver, settings: PauseSettings | None
    ) -> None:
        self._consent = consent
        self._receiver = receiver
        self._press = PressFile(settings) if settings is not None else None
        self._was_paused = False

    def step(self) -> None:
        """Read the switch, if there is one; call every 20 ms."""
        if self._press is not None:
            self._press.step(self._consent)

    def change(self) -> str:
        """Return ``pause`` or ``resume`` where one has just begun; "" if nothing changed."""
        is_paused = self._consent.is_paused
        if is_paused is self._was_paused:
            return ""
        self._was_paused = is_paused
        self._receiver.wipe(is_paused)
        return "pause" if is_paused else "resume"
