"""What every calibration check has in common: degrees of freedom, the rule of decision, two windows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sensorium.verdict import Quantity, Status, Verdict


@dataclass(frozen=True, slots=True)
class Degree:
    """One degree of freedom as a check sees it, in ``unit``.

    Attributes:
        estimate: How far the sensor is from where the calibration (or the reference) has it.
        sigma: One standard deviation, already inflated to what repetition shows.
        tolerance: What the user accepts.
        may_fail: False where only a drift against a reference would be proof; then ``suspect`` is the worst.
    """

    name: str
    unit: str
    estimate: float
    sigma: float
    tolerance: float
    may_fail: bool = True

    @property
    def status(self) -> Status:
        """Judge this degree alone, at two sigma on either side.

        A sigma above a quarter of the tolerance cannot call a good sensor ok, so what is then neither clearly
        inside nor clearly outside is insufficient evidence, not suspicion.
        """
        size = abs(self.estimate)
        if size - 2 * self.sigma > self.tolerance:
            return Status.FAILED if self.may_fail else Status.SUSPECT
        if size + 2 * self.sigma < self.tolerance:
            return Status.OK
        return Status.SUSPECT if self.sigma <= self.tolerance / 4 else Status.INSUFFICIENT

    def quantity(self) -> Quantity:
        return Quantity(self.name, self.estimate, self.unit, self.tolerance, self.sigma)

    def describe(self) -> str:
        value = f"{self.name} {self.estimate:+.3g} ± {self.sigma:.2g} {self.unit}"
        return f"{value} (tolerance {self.tolerance:.2g})"


def judge(
    check: str,
    subject: str,
    degrees: Sequence[Degree],
    gates: Sequence[str] = (),
    extra: Sequence[Quantity] = (),
    notes: Sequence[str] = (),
) -> Verdict:
    """Return the verdict of one window.

    Failed if any degree is beyond its tolerance by two sigma; ok if every observable degree is inside it by
    two sigma; suspect between the two; insufficient if a gate was not passed or no degree is observable.
    Degrees that could not be observed are named even in an ok verdict.

    Args:
        gates: Sentences, one for each demand on the scene that was not met.
        extra: Further numbers to report (matches, residuals).
        notes: Sentences to add whatever the outcome.
    """
    quantities = (*(degree.quantity() for degree in degrees), *extra)
    if gates:
        return Verdict(check, subject, Status.INSUFFICIENT, quantities, tuple(gates))
    observable = [degree for degree in degrees if degree.status is not Status.INSUFFICIENT]
    unseen = [degree.name for degree in degrees if degree.status is Status.INSUFFICIENT]
    named = (f"not observable in this scene: {', '.join(unseen)}",) if unseen else ()
    if not observable:
        reason = "the scene pins no degree of freedom to its tolerance"
        return Verdict(check, subject, Status.INSUFFICIENT, quantities, (reason, *notes))
    for status, text in ((Status.FAILED, "beyond"), (Status.SUSPECT, "not clearly inside")):
        if any(degree.status is status for degree in observable):
            reasons = [
                f"{degree.describe()}: {text} tolerance" for degree in observable if degree.status is status
            ]
            return Verdict(check, subject, status, quantities, (*reasons, *named, *notes))
    return Verdict(check, subject, Status.OK, quantities, (*named, *notes))


class ConsecutiveJudge:
    """Holds a ``failed`` back as ``suspect`` until a second, independent window says the same.

    Windows that could not judge are passed on and change nothing. Windows must share no frames.
    """

    def __init__(self) -> None:
        self._failed_before: set[tuple[str, str]] = set()

    def judge(self, verdict: Verdict) -> Verdict:
        """Return the verdict to act on."""
        key = (verdict.check, verdict.subject)
        if verdict.status is Status.FAILED:
            if key in self._failed_before:
                return verdict
            self._failed_before.add(key)
            reason = "first window beyond tolerance; a second independent one will decide"
            return replace(verdict, status=Status.SUSPECT, reasons=(*verdict.reasons, reason))
        if verdict.status is not Status.INSUFFICIENT:
            self._failed_before.discard(key)
        return verdict
