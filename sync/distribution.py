"""A distribution in constant memory: counts in logarithmic bins, two percent wide."""

import math
from collections import Counter

_BINS_PER_DECADE = 100


class Distribution:
    """Collects non-negative values; percentiles are right within one bin (2.3 %), the maximum is exact."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self.count = 0
        self.max = 0.0

    def add(self, value: float, weight: int = 1) -> None:
        bin_number = -(1 << 30) if value <= 0 else math.ceil(_BINS_PER_DECADE * math.log10(value))
        self._bins[bin_number] += weight
        self.count += weight
        self.max = max(self.max, value)

    def percentile(self, percent: float) -> float | None:
        """Return the value that ``percent`` of the collected ones do not exceed; None when there are none."""
        if not self.count:
            return None
        wanted = self.count * percent / 100
        seen = 0
        for bin_number in sorted(self._bins):
            seen += self._bins[bin_number]
            if seen >= wanted:
                upper = 0.0 if bin_number == -(1 << 30) else 10 ** (bin_number / _BINS_PER_DECADE)
                return min(upper, self.max)
        return self.max
