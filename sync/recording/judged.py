"""A verdict of the checker with the time that it judged; a session may begin with some (the checks at start)."""

from dataclasses import dataclass, replace
from math import isfinite

from sensorium.verdict import Verdict

MOUNTING = "mounting"
"""The check whose subject is the sensor that moved (or those that may have)."""
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class JudgedWindow:
    """A verdict with the span of the captures that it judged (host ns)."""

    verdict: Verdict
    start_ns: int
    end_ns: int

    @classmethod
    def of(cls, verdict: Verdict, start_ns: int, end_ns: int) -> "JudgedWindow":
        """Return a window without the numbers that are none (degrees that nothing pins have infinite sigmas)."""
        finite = tuple(
            replace(each, sigma=each.sigma if each.sigma is not None and isfinite(each.sigma) else None)
            for each in verdict.quantities
            if isfinite(each.value)
        )
        return cls(replace(verdict, quantities=finite), start_ns, end_ns)

    @property
    def key(self) -> Key:
        """Under which it is kept: an answer to who moved replaces the one before, whoever that named."""
        is_answer = self.verdict.check == MOUNTING
        return self.verdict.check, "" if is_answer else self.verdict.subject
