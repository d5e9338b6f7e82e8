"""PyAV, the optional library behind FLAC and video: imported where it is used, refused in words where it is not."""

from types import ModuleType

from sensorium.errors import ConfigError


def import_av(what: str) -> ModuleType:
    """Return the module ``av``.

    Args:
        what: What cannot be done without it; begins the error.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import av
    except ImportError as err:
        raise ConfigError(
            f"{what} needs PyAV ({err}); install it with: pip install 'sensorium[video]'"
        ) from err
    return av
