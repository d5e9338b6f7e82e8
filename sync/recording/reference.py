"""Which stream's frames are the ticks of alignment, when the rig file does not say."""

from collections.abc import Iterable

from sensorium.drivers.frame import REFERENCE_ORDER, StreamInfo

_FASTEST_HZ = 100.0


def reference_among(found: Iterable[StreamInfo]) -> str:
    """Return the first stream of the first modality that there is; "" without a stream."""
    originals = [info for info in found if not info.reference_of]
    for modality in REFERENCE_ORDER:
        for info in originals:
            if info.modality is modality:
                return info.name
    periodic = [info for info in originals if 0 < info.rate_hz <= _FASTEST_HZ]
    return max(periodic or originals, key=lambda info: info.rate_hz).name if originals else ""
