"""One small document from a device's own web server."""

import urllib.error
import urllib.request

from sensorium.errors import DeviceError
from sensorium.masking import masked, masked_address, secrets_of

_MAX_BYTES = 4 << 20


def fetch(label: str, what: str, url: str, timeout_s: float, otherwise: str) -> bytes:
    """Return what a device answers to GET ``url``, at most 4 MiB; proxies are left aside, no sensor is behind one.

    Args:
        label, what: Begin the error: ``<label>: no <what> from <url>``.
        otherwise: Ends it: what the user can give instead.

    Raises:
        DeviceError: If there is no answer, a wrong one, or too long a one.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=timeout_s) as answer:
            document: bytes = answer.read(_MAX_BYTES + 1)
    except (OSError, ValueError, urllib.error.URLError) as err:
        why = masked(str(err), secrets_of(url))
        raise DeviceError(
            f"{label}: no {what} from {masked_address(url)}: {why}; check the address, or {otherwise}"
        ) from err
    if len(document) > _MAX_BYTES:
        raise DeviceError(
            f"{label}: {masked_address(url)} answers with more than {_MAX_BYTES} bytes, that is no {what}; "
            f"check the address, or {otherwise}"
        )
    return document
