"""What a capture time may be, whatever a clock says: not after its arrival, not running backwards."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


class CaptureClamp:
    """Keeps the captures of one stream credible, frame by frame in order of arrival."""

    def __init__(self, max_ns: int) -> None:
        """``max_ns`` is the largest credible latency; captures before arrival - max are moved up to it."""
        self._max_ns = max_ns
        self._last_ns = -(1 << 62)

    def one(self, capture_ns: int, arrival_ns: int, *, is_late: bool = False) -> int:
        """Return the capture time of a single sample; ``is_late`` says that it is known to have waited."""
        if not is_late:
            capture_ns = max(capture_ns, arrival_ns - self._max_ns)
        capture_ns = min(max(capture_ns, self._last_ns), arrival_ns)
        self._last_ns = max(self._last_ns, capture_ns)
        return capture_ns

    def block(
        self,
        capture_ns: NDArray[np.int64],
        arrival_ns: NDArray[np.int64],
        elapsed_ns: FloatArray,
        *,
        is_late: bool = False,
    ) -> NDArray[np.int64]:
        """Return the (k,) capture times of a block.

        Args:
            arrival_ns: (k,) host stamps, or (1,) = that of the last sample.
            elapsed_ns: (k,) device time of the samples; only differences matter.
        """
        if not is_late:
            earliest_ns = arrival_ns - self._max_ns
            if arrival_ns.size < capture_ns.size:
                # One arrival for the block: its earlier samples have waited for the last one.
                earliest_ns = earliest_ns - np.rint(elapsed_ns[-1] - elapsed_ns).astype(np.int64)
            capture_ns = np.maximum(capture_ns, earliest_ns)
        if capture_ns[0] < self._last_ns:
            capture_ns = np.maximum(capture_ns, self._last_ns)
        if capture_ns.size > 1:
            capture_ns = np.maximum.accumulate(capture_ns)
        capture_ns = np.minimum(capture_ns, arrival_ns)
        self._last_ns = max(self._last_ns, int(capture_ns[-1]))
        return capture_ns
