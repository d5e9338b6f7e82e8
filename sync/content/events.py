"""The offset between two sensors from events that both noticed: claps heard, felt and seen."""

import numpy as np

from sensorium.sync.content.offset import NO_DELAY, ContentOffset, Delay, Floats
from sensorium.verdict import Quantity


def event_offset(
    first_ns: Floats,
    second_ns: Floats,
    *,
    first_sigma_ns: float = 0.0,
    second_sigma_ns: float = 0.0,
    first_delay: Delay = NO_DELAY,
    second_delay: Delay = NO_DELAY,
    max_offset_ns: float = 150e6,
    window_ns: float = 2e6,
    method: str = "clap",
) -> ContentOffset:
    """Return the offset between two sensors from the onsets of common events.

    Pairs of events vote: the offset at which most pairs agree within ``window_ns`` wins, and the answer is the
    median of those pairs. It refuses when there is no event, or when another offset has as many pairs (regular
    claps). Sigma is the larger of the declared one of a pair and the scatter, over the root of the pairs.

    Args:
        first_ns: (n,) onsets in the first sensor's stamps (nanoseconds, floats relative to any common origin).
        second_ns: (m,) onsets in the second sensor's stamps.
        window_ns: How far pairs of one offset may scatter.
    """
    bound_ns = first_delay.bound_ns + second_delay.bound_ns
    differences = (second_ns - second_delay.delay_ns)[None, :] - (first_ns - first_delay.delay_ns)[:, None]
    candidates = np.sort(differences[np.abs(differences) <= max_offset_ns])
    if not len(candidates):
        reason = (
            f"{len(first_ns)} and {len(second_ns)} events, none of them within "
            f"{max_offset_ns / 1e6:.0f} ms of each other"
        )
        return ContentOffset(method, np.nan, np.inf, bound_ns, reasons=(reason,))
    votes = np.searchsorted(candidates, candidates + window_ns, side="right") - np.arange(len(candidates))
    best = int(np.argmax(votes))
    pairs = candidates[best : best + votes[best]]
    offset_ns = float(np.median(pairs))
    declared_ns = float(np.hypot(first_sigma_ns, second_sigma_ns))
    scatter_ns = 1.4826 * float(np.median(np.abs(pairs - offset_ns))) if len(pairs) > 2 else 0.0
    # The median of n Gaussian values has pi/2 times the variance of their mean.
    sigma_ns = max(declared_ns, scatter_ns) * np.sqrt((np.pi / 2 if len(pairs) > 2 else 1.0) / len(pairs))
    apart = np.abs(candidates - candidates[best]) > window_ns
    rival = int(votes[apart].max(initial=0))
    reasons = []
    if rival and rival >= 0.7 * len(pairs):
        reasons.append(
            f"{len(pairs)} pairs of events agree on this offset, but {rival} agree on another: "
            "the events are too regular"
        )
    if sigma_ns == 0:
        reasons.append("one pair of events without a declared sigma says nothing about its error")
    quantities = (Quantity("pairs", len(pairs), "1"), Quantity("scatter", scatter_ns / 1e3, "us"))
    return ContentOffset(method, offset_ns, sigma_ns, bound_ns, len(pairs), quantities, tuple(reasons))
