"""What a solver is given, what it gives back, and how that enters the rig document."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.edges import Edge
from sensorium.calibration.rig_document import Intrinsics, RigCalibration
from sensorium.calibration.targets import Target
from sensorium.verdict import Status, Verdict

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SolveRequest:
    """A recording to be solved or checked; solvers open it as they need.

    Attributes:
        kind: ``episode``, ``video`` (EuRoC folder, bag, MCAP, capture) or ``images`` (a folder of them).
        board: None where no board was named.
        source, date: What solved transforms carry; the date is ISO.
        model: Lens model of solved cameras; "" keeps that of the calibration before, else ``radtan``.
        show: Told what is being looked at.
    """

    path: Path
    kind: str
    board: Target | None = None
    source: str = ""
    date: str = ""
    model: str = ""
    show: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True, eq=False)
class SolvedPart:
    """What one solver found about one sensor or pair.

    Attributes:
        solver: Its name.
        verdict: ``ok`` enters the document, all else stays out, with reasons that say what is missing. Its
            quantities are the rows of the table: value, unit, sigma, and the limit where there is one.
        cameras, edges: What the document gains; edges with covariance, source and date.
        apply: Puts into the document what is neither a camera nor a transform; None if there is no such thing.
        pictures: By caption, for ``--picture``.
        is_opportune: Found in passing: insufficient says nothing against a recording made for something else,
            such as a board.
    """

    solver: str
    verdict: Verdict
    cameras: Mapping[str, Intrinsics] = field(default_factory=dict)
    edges: tuple[Edge, ...] = ()
    apply: Callable[[RigCalibration], RigCalibration] | None = None
    pictures: Mapping[str, Image] = field(default_factory=dict)
    is_opportune: bool = False

    @property
    def counts(self) -> bool:
        return not self.is_opportune or self.verdict.status is not Status.INSUFFICIENT

    @property
    def is_solved(self) -> bool:
        return self.verdict.status is Status.OK


class Solver(Protocol):
    """One kind of calibration. Solvers run in order; each sees what those before it solved.

    Attributes:
        name: Of ``--only``.
        needs: What a recording must hold for it, in words: "images of a board".
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> str: ...

    def solve(self, request: SolveRequest, base: RigCalibration) -> Sequence[SolvedPart]:
        """Return a part for each sensor or pair that the recording allows; none if it holds no such data.

        What the data does not pin is a part with an ``insufficient`` verdict, never an exception.

        Args:
            base: The calibration before, with what other solvers found just now; may be empty.
        """

    def check(self, request: SolveRequest, calibration: RigCalibration) -> Sequence[Verdict]:
        """Return a verdict on the calibration in force for each sensor or pair; none without such data."""


def merged(base: RigCalibration, parts: Sequence[SolvedPart]) -> RigCalibration:
    """Return the calibration with what was solved in place of what it said before.

    A pair that was joined over other frames is now joined directly, and the last transform on the way to the
    child gives way: what hangs on the child moves with it. Transforms solved in the same run never give way to
    each other; they close a loop, which can be checked.

    Raises:
        CalibrationError: If what was solved joins a frame with itself or makes no document.
    """
    solved = [part for part in parts if part.is_solved]
    fresh = {frozenset((edge.parent, edge.child)) for part in solved for edge in part.edges}
    found = base
    for part in solved:
        found = replace(found, cameras={**found.cameras, **part.cameras})
        for edge in part.edges:
            found = _with_edge(found, edge, fresh)
        if part.apply is not None:
            found = part.apply(found)
    return found


def _with_edge(base: RigCalibration, edge: Edge, fresh: set[frozenset[str]]) -> RigCalibration:
    given_way = {frozenset((edge.parent, edge.child))}
    without = _without(base, given_way)
    if without.has_transform(edge.parent, edge.child):
        last = frozenset(without.path(edge.parent, edge.child)[-2:])
        if last not in fresh:
            given_way.add(last)
    return replace(base, edges=(*_without(base, given_way).edges, edge))


def _without(base: RigCalibration, pairs: set[frozenset[str]]) -> RigCalibration:
    return replace(base, edges=tuple(e for e in base.edges if frozenset((e.parent, e.child)) not in pairs))
