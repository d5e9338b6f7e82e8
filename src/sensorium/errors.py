"""The error tree. Each message says what failed, which one, what was found, and what to do next."""

from typing import ClassVar


class SensoriumError(Exception):
    """Base of every error that a user may see; ``exit_code`` is the command line's answer."""

    exit_code: ClassVar[int] = 3


class UsageError(SensoriumError):
    """The command was called wrongly."""

    exit_code = 2


class ConfigError(SensoriumError):
    """A rig file, driver option or document is wrong."""

    exit_code = 2


class DeviceError(SensoriumError):
    """A device is missing, silent, or does not accept its settings."""


class EndOfStreamError(DeviceError):
    """A finite source has no more frames; the normal end of a replay."""


class WireError(SensoriumError):
    """A message on the bus is malformed; it is counted and dropped, never trusted."""


class PayloadError(SensoriumError):
    """A payload is not what its stream declared, or of an encoding that is not read that way."""


class SourceError(SensoriumError):
    """A recording cannot be read, or not as what it claims to be."""


class EpisodeError(SensoriumError):
    """An episode folder is incomplete, torn, or does not match its manifest."""


class TrustError(SensoriumError):
    """A key is missing, damaged, or not one that is trusted; or a signed document is not what was signed."""


class ClockError(SensoriumError):
    """A clock claim is impossible or contradicted."""


class CalibrationError(SensoriumError):
    """A calibration document or computation is invalid."""

    exit_code = 2


class StoreError(SensoriumError):
    """A store did not take, keep or return bytes as it must."""


class ExportError(SensoriumError):
    """An export could not be written; the episode is as it was."""


class ConsentError(SensoriumError):
    """No live grant covers what was asked for."""

    exit_code = 1


class VerdictError(SensoriumError):
    """A check ended in a verdict against the user."""

    exit_code = 1


class BusyError(SensoriumError):
    """Another agent owns the spool."""
