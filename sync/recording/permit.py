"""Whether a session may record: not after a failed check, until the operator or a new calibration says so."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sensorium.errors import VerdictError
from sensorium.sync.recording.spec import SyncSpec
from sensorium.wording import said

REFUSAL_FILE = "calibration-refused.json"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is recorded under a calibration until the operator says so or another one is given."""

    calibration: str
    reason: str
    utc_ns: int

    @classmethod
    def load(cls, spool: Path, calibration: str) -> "Refusal | None":
        """Return the refusal that holds for this calibration; None without, or if it is of another one."""
        try:
            found = _REFUSAL.validate_python(json.loads((spool / REFUSAL_FILE).read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as err:
            return cls(calibration, f"the note {REFUSAL_FILE} in the spool cannot be read ({said(err)})", 0)
        return found if found.calibration == calibration else None

    def save(self, spool: Path) -> None:
        """Write it down, so that it survives a restart."""
        partial = spool / f".{REFUSAL_FILE}"
        partial.write_bytes(_REFUSAL.dump_json(self))
        partial.replace(spool / REFUSAL_FILE)

    @property
    def sentence(self) -> str:
        return (
            f"refused: {self.reason}. Record with a new calibration, or say --despite-calibration with start "
            "or record"
        )


_REFUSAL: TypeAdapter[Refusal] = TypeAdapter(Refusal)


class Permit:
    """The refusal that holds under a calibration, and the operator's word against it.

    Attributes:
        is_despite: Failed checks of this session only warn.
        despite: What was found against recording and set aside; "" if nothing was.
    """

    def __init__(self, spec: SyncSpec, calibration_id: str) -> None:
        self._spool = spec.spool
        self._calibration_id = calibration_id
        self.is_despite = spec.despite_calibration
        self.despite = ""
        self.refusal = Refusal.load(self._spool, calibration_id)
        if spec.on_failed_check != "stop" or spec.despite_calibration or self.refusal is None:
            self._lift(is_said=spec.despite_calibration)

    def refuse(self, reason: str, utc_ns: int) -> None:
        """Refuse further episodes, also after a restart."""
        if self.refusal is None:
            self.refusal = Refusal(self._calibration_id, reason, utc_ns)
            with contextlib.suppress(OSError):  # the disk is full: it holds for this session all the same
                self.refusal.save(self._spool)

    def ask(self, despite_calibration: bool) -> None:
        """Let the operator begin an episode.

        Args:
            despite_calibration: Lift a refusal; failed checks of this session only warn from now on.

        Raises:
            VerdictError: If a calibration check refused further episodes.
        """
        if self.refusal is not None and not despite_calibration:
            raise VerdictError(self.refusal.sentence)
        if despite_calibration:
            self.is_despite = True
            self._lift(is_said=True)

    def _lift(self, is_said: bool) -> None:
        if self.refusal is not None and is_said:
            self.despite = self.refusal.reason
        self.refusal = None
        (self._spool / REFUSAL_FILE).unlink(missing_ok=True)
