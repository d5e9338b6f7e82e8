"""The lower envelope of one window of latency samples, as a Bayesian posterior.

Samples near the envelope are a Poisson process whose density grows as a power of the height above it:
exponent k = 1 is a hard latency floor (exponential latency), k = 2 one that two random delays add up to (USB
polling plus queueing), k = 3 softer still. For curves value + slope + curvature, the posterior has a closed
form but for the scale, which is integrated out. Its mean is the estimator of least variance among those that
move with the data (Pitman), where the classic convex-hull edge is only its mode; and it brings its own
uncertainty, whatever the shape of the floor.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

EXPONENTS = np.array([1.0, 1.5, 2.0, 3.0, 4.5, 7.0])
NEAR = 64
"""Samples nearest to the envelope that are looked at one by one."""
RULED_OUT = 40.0
FEW = 32
"""With fewer samples than this all of them are near the envelope, and a prior of the scale counts."""

YOUNG = 64
"""With fewer samples than this at a hard floor the posterior is one-sided: likeliest at the least sample itself."""
YOUNG_REACH = 0.048
"""Errors up to this share of the latency's scale count as none then. Of a thousand samples at an exponential floor, ten
are worse than 0.052 scales whatever is done: the sum of exp(-2 reach n / scale) over n is ten."""
NEARLY = 0.002
KNOWN_SCALE = 8.0
"""Samples that the prior of the scale must be worth for that: after a reset, not at the very start."""
MAX_REFERENCES = 6
SAME_REFERENCE = 0.5
_REACH = np.array([0.5, 1.0, 2.0 / 3.0])
"""How much middle, slope and bend can move the curve against the band (its level matters least)."""
MAX_PASSES = 12
WELL_INSIDE, AT_THE_RIM = 1.5, 2.2
"""How far (in spreads) the answer may lie from where it was looked for, of the 3.6 that were searched."""


def _disc(radius: float, step: float) -> FloatArray:
    axis = np.arange(-radius, radius + step / 2, step)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    disc: FloatArray = grid[(grid * grid).sum(axis=1) <= radius * radius]
    return disc


_DIRECTIONS = _disc(3.6, 0.75)
"""In spreads; steps below one sum a smooth mass well: 0.6 gave the same p99 and coverage at 1.6 times the cost."""
_DEPTHS = np.geomspace(0.03, 12.0, 11)
_DEPTHS_OF_FEW = np.geomspace(0.03, 60.0, 14)


def _log_widths(depths: FloatArray) -> FloatArray:
    edges = np.concatenate(([0.0], np.sqrt(depths[1:] * depths[:-1]), [1.25 * depths[-1]]))
    widths: FloatArray = np.log(np.diff(edges))
    return widths


_DEPTH_LOG_WIDTHS = _log_widths(_DEPTHS)
_DEPTH_LOG_WIDTHS_OF_FEW = _log_widths(_DEPTHS_OF_FEW)
# The mean over -1 ... 1 by five points (Gauss-Legendre). numpy.polynomial would cost each process 10 ms at its start.
_GAUSS_AT = (
    np.array([-1.0, -1.0, 0.0, 1.0, 1.0]) * np.sqrt(5 + np.sqrt(40 / 7) * np.array([1, -1, 0, -1, 1])) / 3
)
_GAUSS_WEIGHT = np.array([322, 322, 512, 322, 322]) + np.sqrt(11830) * np.array([-1.0, 1.0, 0.0, 1.0, -1.0])
_GAUSS_WEIGHT = _GAUSS_WEIGHT / 1800
_BEND_MEAN = 1.0 / 3.0
_CREST_POINTS = 9
_UNEVEN_POINTS = 8
EVEN = 0.1
FEW_AND_UNEVEN = 160
"""Across a pause the curve may run far above the band of what was before it; then up to so many are all looked at."""
DEEP, DEEPEST = 0.5, 2.0
"""How far under the least sample a floor may lie, in heights of the band: 0.3 under third powers, 1.2 under seventh."""
RARE_LEAST, RARE_ABOVE = 3, 8
"""A link that is quick now and then: so many quick samples at least, under so many others."""
RARE_NATS = 10.0
"""How much likelier two laws must be than one: at six, chance finds two now and then in thousands of windows of one."""
BEYOND_BAND = 1e4
"""Log penalty of a curve that leaves the band; more than all that it could gain there."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known before the window, in ns at its end: slope and bend (mean, spread), and the scale.

    Attributes:
        scale_ns: Latency scale of one sample, worth ``scale_weight`` samples while there are few.
        mean_ns: Mean latency above the floor, worth as much, for soft floors; None = ``scale_ns``.
    """

    slope_mean_ns: float
    slope_spread_ns: float
    bend_mean_ns: float
    bend_spread_ns: float
    scale_ns: float
    scale_weight: float
    mean_ns: float | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """Where to look: lower triangular spread (ns) of slope and bend; typical depth in spacings."""

    spread_ns: FloatArray
    depth: float


@dataclass(frozen=True, slots=True)
class Posterior:
    """The curve, relative to the reference: value(u) = middle + slope * u + bend * (u^2 - 1/3), -1 <= u <= 1.

    Attributes:
        end_ns: Estimate at ``answer_at``; within ``bound95_ns`` of it with 95 % probability, spread ``sigma_ns``.
        ceiling_ns: Height of the band above the reference whose samples were looked at one by one.
        centre_sigma_ns, slope_sigma_ns, bend_sigma_ns: Spreads of value(0), ``slope_ns`` and ``bend_ns``.
        evidence: (k,) log evidence of each exponent for this window alone.
        exponents: (k,) their probabilities with the evidence of earlier windows.
        scale_ns: Reciprocal of the density of samples at the floor: the mean latency, if it is exponential.
    """

    end_ns: float
    middle_ns: float
    slope_ns: float
    bend_ns: float
    ceiling_ns: float
    sigma_ns: float
    bound95_ns: float
    centre_sigma_ns: float
    slope_sigma_ns: float
    bend_sigma_ns: float
    evidence: FloatArray
    exponents: FloatArray
    scale_ns: float
    proposal: Proposal


def fit(
    at: FloatArray,
    excess_ns: FloatArray,
    prior: Prior,
    earlier_evidence: FloatArray,
    proposal: Proposal | None,
    answer_at: float = 1.0,
    wary: FloatArray | None = None,
) -> Posterior:
    """Return the posterior of the curve under the samples.

    Args:
        at: (n,) positions in the window, -1 ... 1, newest last.
        excess_ns: (n,) heights above a reference curve; the better it is, the sooner the answer is there.
        proposal: Of the window before; None = start from scratch.
        answer_at: Position that the answer is for: 1 = the newest sample, 0 = the middle.
        wary: (k,) log odds on top of ``earlier_evidence`` that the bound alone is to allow for.
    """
    bend_shape = at * at - _BEND_MEAN
    total = np.zeros(3)
    for _ in range(MAX_REFERENCES):
        found = _fit_near(at, excess_ns, prior, earlier_evidence, proposal, answer_at, wary)
        step = np.array([found.middle_ns, found.slope_ns, found.bend_ns])
        total += step
        if float(np.abs(step) @ _REACH) < SAME_REFERENCE * found.ceiling_ns:
            break
        # The samples near a reference that was far off are not those near the curve: choose them again.
        excess_ns = excess_ns - (step[0] + step[1] * at + step[2] * bend_shape)
        prior = replace(
            prior,
            slope_mean_ns=prior.slope_mean_ns - found.slope_ns,
            bend_mean_ns=prior.bend_mean_ns - found.bend_ns,
        )
        proposal = found.proposal
    before = total - step
    at_answer = before[0] + before[1] * answer_at + before[2] * (answer_at * answer_at - _BEND_MEAN)
    return replace(
        found,
        end_ns=float(found.end_ns + at_answer),
        middle_ns=float(total[0]),
        slope_ns=float(total[1]),
        bend_ns=float(total[2]),
    )


def _fit_near(
    at: FloatArray,
    excess_ns: FloatArray,
    prior: Prior,
    earlier_evidence: FloatArray,
    proposal: Proposal | None,
    answer_at: float,
    wary: FloatArray | None,
) -> Posterior:
    """Return the posterior from the samples nearest to the reference."""
    count = at.size
    # After a pause the samples do not lie evenly in the window.
    mean_at, mean_bend = float(at.mean()), float(at @ at) / count - _BEND_MEAN
    is_even = abs(mean_at) + abs(mean_bend) < EVEN
    has_few = count < FEW or (count < FEW_AND_UNEVEN and not is_even)
    near_count = count if has_few else min(NEAR, max(FEW // 2, count // 4))
    if count > near_count:
        chosen = np.argpartition(excess_ns, near_count)[: near_count + 1]
        top = int(excess_ns[chosen].argmax())
        ceiling_ns = float(excess_ns[chosen[top]])
        chosen = np.delete(chosen, top)
        near, near_at = excess_ns[chosen], at[chosen]
    else:
        near, near_at = excess_ns, at
        ceiling_ns = float(excess_ns.max())
    lowest_ns = float(near.min())
    near = near - lowest_ns
    ceiling_ns = max(ceiling_ns - lowest_ns, 1.0)
    if count > near_count:
        near_count, ceiling_ns = _without_denser_law(near, ceiling_ns)
        if near_count < near.size:
            is_below = near < ceiling_ns
            near, near_at = near[is_below], near_at[is_below]
            near_count = near.size
    if count <= 2:
        ceiling_ns = max(ceiling_ns, prior.scale_ns)
    spacing_ns = ceiling_ns / near_count
    near_bend = near_at * near_at - _BEND_MEAN
    used_ns = float(near.sum()) + (count - near_count) * ceiling_ns
    crest_at = at[np.linspace(0, count - 1, _CREST_POINTS).astype(np.intp)]
    if is_even:
        places, place_weight = _GAUSS_AT, _GAUSS_WEIGHT
    else:
        places = at[((np.arange(_UNEVEN_POINTS) + 0.5) * (count / _UNEVEN_POINTS)).astype(np.intp)]
        place_weight = np.full(_UNEVEN_POINTS, 1 / _UNEVEN_POINTS)
    weight = prior.scale_weight if has_few else 0.0
    if proposal is None:
        wide_ns = 6 * spacing_ns
        spread = np.diag([min(wide_ns, prior.slope_spread_ns), min(wide_ns, prior.bend_spread_ns)])
        depth_unit_ns = spacing_ns
        sure_after = 3
    else:
        spread = proposal.spread_ns
        depth_unit_ns = spacing_ns * proposal.depth
        sure_after = 1
    centre = np.zeros(2)
    floor_spread = np.array(
        [
            min(0.05 * spacing_ns, 0.5 * prior.slope_spread_ns),
            min(0.05 * spacing_ns, 0.5 * prior.bend_spread_ns),
        ]
    )
    depths = (_DEPTHS_OF_FEW if has_few else _DEPTHS) * depth_unit_ns
    log_widths = _DEPTH_LOG_WIDTHS_OF_FEW if has_few else _DEPTH_LOG_WIDTHS
    exponents = EXPONENTS[: _considered(earlier_evidence)]
    for attempt in range(MAX_PASSES):
        points = centre + _DIRECTIONS @ spread.T
        slopes, bends = points[:, :1], points[:, 1:]
        heights = near - slopes * near_at - bends * near_bend
        edge = heights.min(axis=1)
        heights -= edge[:, None]
        values = edge[:, None] - depths
        log_prior = -2 * np.log1p(
            ((slopes - prior.slope_mean_ns) / prior.slope_spread_ns) ** 2 / 3
        ) - 2 * np.log1p(((bends - prior.bend_mean_ns) / prior.bend_spread_ns) ** 2 / 3)
        base = log_prior + log_widths
        if count > near_count:
            # Samples above the band were not looked at: a curve that leaves the band may run through them.
            crest = (slopes * crest_at + bends * (crest_at * crest_at - _BEND_MEAN)).max(axis=1)
            beyond = np.maximum((values + crest[:, None]) / ceiling_ns - 1, 0.0)
            base = base - BEYOND_BAND * (beyond + (beyond > 0))
        if not has_few:
            base = np.where(depths > DEEPEST * ceiling_ns, base - BEYOND_BAND, base)
        if has_few:
            likelihood = _few_log_likelihood(base, heights, depths, exponents, weight, prior)
        else:
            likelihood = np.empty((exponents.size, *values.shape))
            lifted = count * (slopes * mean_at + bends * mean_bend)
            exposure = np.maximum(used_ns - count * values - lifted, 1e-3 * near_count * ceiling_ns)
            likelihood[0] = base - near_count * np.log(exposure * (1 / (count * ceiling_ns)))
            _add_soft_floors(
                likelihood,
                base,
                heights,
                depths,
                values,
                slopes,
                bends,
                ceiling_ns,
                near_count,
                count,
                places,
                place_weight,
            )
        top_log = likelihood.max(axis=(1, 2))
        masses = np.exp(likelihood - top_log[:, None, None])
        totals = masses.sum(axis=(1, 2))
        evidence = top_log + np.log(totals)
        posterior_log = evidence + earlier_evidence[: exponents.size]
        shares = np.exp(posterior_log - posterior_log.max())
        shares /= shares.sum()
        mass = np.tensordot(shares / totals, masses, axes=1)
        by_direction = mass.sum(axis=1)
        moved = by_direction @ points
        deviation = points - moved
        covariance = (deviation * by_direction[:, None]).T @ deviation
        covariance[0, 0] += floor_spread[0] ** 2
        covariance[1, 1] += floor_spread[1] ** 2
        # A coarse search cannot resolve much less than its own step.
        covariance += 0.04 * spread @ spread.T
        shift = float(np.linalg.norm(np.linalg.solve(spread, moved - centre)))
        centre = moved
        if shift < AT_THE_RIM:
            spread = np.linalg.cholesky(covariance)
            if attempt + 1 >= sure_after and shift < WELL_INSIDE:
                break
        else:
            # The mass lies at the rim of what was searched: move there and look wider.
            spread = 2 * spread
    depth_ns = float((mass.sum(axis=0) * depths).sum())
    ends = values + slopes * answer_at + bends * (answer_at * answer_at - _BEND_MEAN)
    if has_few:
        end_ns = _median(ends.ravel(), mass.ravel())
    else:
        end_ns = float((mass * ends).sum())
    if count < YOUNG and prior.scale_weight >= KNOWN_SCALE and earlier_evidence.argmax() == 0:
        end_ns = _densest(ends.ravel(), mass.ravel(), end_ns, YOUNG_REACH * prior.scale_ns)
    distance = np.abs(ends - end_ns).ravel()
    order = np.argsort(distance)
    believed = mass
    if wary is not None and exponents.size > 1:
        odds = posterior_log + wary[: exponents.size]
        odds = np.exp(odds - odds.max())
        believed = np.tensordot(odds / (odds.sum() * totals), masses, axes=1)
    reached = np.cumsum(believed.ravel()[order])
    bound_ns = float(distance[order[min(int(np.searchsorted(reached, 0.95)), order.size - 1)]])
    if not has_few:
        # Deeper than the band is high: so soft a law is extrapolated, not seen. The least sample stays possible.
        middle_ns = end_ns - centre[0] * answer_at - centre[1] * (answer_at * answer_at - _BEND_MEAN)
        under = near - centre[0] * near_at - centre[1] * near_bend - middle_ns
        least_ns = float(under.min())
        if least_ns > DEEP * ceiling_ns:
            bound_ns = max(bound_ns, least_ns)
    full_shares = np.zeros(EXPONENTS.size)
    full_shares[: shares.size] = shares
    # Exponents that were not looked at are taken to do as well as the softest that was: they come back.
    full_evidence = np.full(EXPONENTS.size, evidence[-1] - evidence.max())
    full_evidence[: evidence.size] = evidence - evidence.max()
    centres = values - bends * _BEND_MEAN
    centre_ns = float((mass * centres).sum())
    return Posterior(
        end_ns=lowest_ns + end_ns,
        middle_ns=lowest_ns + float((mass * values).sum()),
        ceiling_ns=ceiling_ns,
        slope_ns=float(centre[0]),
        bend_ns=float(centre[1]),
        sigma_ns=math.sqrt(float((mass * (ends - end_ns) ** 2).sum())),
        bound95_ns=bound_ns,
        centre_sigma_ns=math.sqrt(float((mass * (centres - centre_ns) ** 2).sum())),
        slope_sigma_ns=math.sqrt(float(covariance[0, 0])),
        bend_sigma_ns=math.sqrt(float(covariance[1, 1])),
        evidence=full_evidence,
        exponents=full_shares,
        scale_ns=(used_ns + weight * prior.scale_ns) / (near_count + weight),
        proposal=Proposal(1.1 * spread, min(max(depth_ns / spacing_ns, 0.3), 30.0)),
    )


def _without_denser_law(near: FloatArray, ceiling_ns: float) -> tuple[int, float]:
    """Return how many of (n,) heights, from the lowest, are of one law, and the height up to which they are.

    Where a link is quick now and then, few samples at an even density lie under many that crowd the band's top. Their
    floor is under the few; a power law through both would put it far below every sample. Two even densities are held
    against the best power law that there is.
    """
    heights = np.sort(near)
    count = heights.size
    if count < RARE_LEAST + RARE_ABOVE:
        return count, ceiling_ns
    few = np.arange(RARE_LEAST, count - RARE_ABOVE + 1)
    split = np.maximum(heights[few], 1e-9 * ceiling_ns)
    many, room = count - few, np.maximum(ceiling_ns - split, 1e-3 * ceiling_ns)
    two = few * np.log(few * ceiling_ns / (count * split)) + many * np.log(many * ceiling_ns / (count * room))
    two = np.where(many * split > few * room, two, 0.0)
    best = int(two.argmax())
    if two[best] < RARE_NATS:
        return count, ceiling_ns
    depths = np.array([0.03, 0.1, 0.2, 0.4, 0.7, 1.2, 2.0])
    logs = np.log((heights / ceiling_ns + depths[:, None]) / (1 + depths[:, None])).sum(axis=1)
    power = (
        count * np.log(EXPONENTS) + np.multiply.outer(logs, EXPONENTS - 1) - count * np.log1p(depths)[:, None]
    )
    if two[best] - float(power.max()) < RARE_NATS:
        return count, ceiling_ns
    # The band's top is a sample of the few: between them and the many there may be a gap.
    alone = min(int(few[best]) - 1, max(FEW // 2, int(few[best]) // 4))
    return alone, max(float(heights[alone]), 1.0)


def _median(at: FloatArray, mass: FloatArray) -> float:
    """Return where half of the mass is: the mean of few samples' posterior is at the mercy of its tail."""
    order = np.argsort(at)
    return float(at[order[int(np.searchsorted(np.cumsum(mass[order]), 0.5))]])


def _densest(at: FloatArray, mass: FloatArray, mean: float, reach: float) -> float:
    """Return the point with the most mass within ``reach``; the mean where it holds nearly all of it.

    The mass is densest at its upper end, where the least sample is, so windows end at a point of it.
    """
    order = np.argsort(at)
    at, total = at[order], np.concatenate(([0.0], np.cumsum(mass[order])))
    within = total[1:] - total[np.searchsorted(at, at - 2 * reach)]
    around = total[np.searchsorted(at, mean + reach, side="right")] - total[np.searchsorted(at, mean - reach)]
    if around >= within.max() - NEARLY:
        return mean
    return float(at[int(within.argmax())] - reach)


def _considered(evidence: FloatArray) -> int:
    """Return how many exponents, from the hardest, earlier windows have not ruled out (e^-40); at least 2."""
    return max(2, int(np.flatnonzero(evidence > -RULED_OUT)[-1]) + 1)


def _few_log_likelihood(
    base: FloatArray,
    heights: FloatArray,
    depths: FloatArray,
    exponents: FloatArray,
    weight: float,
    prior: Prior,
) -> FloatArray:
    """Return the log likelihood of each exponent where each sample is looked at: gamma laws of that order.

    Beyond the power law at the floor each has an exponential tail, as sums of delays have. The scale is integrated
    out, with a prior of it worth ``weight`` samples of mean s:
    L_k = (w s)^(wk) / G(wk) * G(nk + wk) / G(k)^n * prod height^(k-1) / (sum of heights + w s)^(nk + wk).
    """
    count = heights.shape[1]
    unit_ns = prior.scale_ns if prior.mean_ns is None else prior.mean_ns
    above = (heights[:, None, :] + depths[:, None]) * (1 / unit_ns)
    log_product = np.log(np.maximum(np.multiply.reduce(above, axis=2), 1e-300))
    total = above.sum(axis=2)
    log_total = np.log(total + weight)
    found = np.empty((exponents.size, *base.shape))
    for index, exponent in enumerate(exponents.tolist()):
        known, order = weight * exponent, (count + weight) * exponent
        if index == 0 and unit_ns != prior.scale_ns:
            # Of an exponential the scale at the floor is known, whatever the rest of the latency is.
            expected = weight * prior.scale_ns / unit_ns
            found[0] = base + weight * math.log(expected) - math.lgamma(weight) + math.lgamma(order)
            found[0] -= order * np.log(total + expected)
            continue
        constant = known * math.log(weight) - math.lgamma(known)
        constant += math.lgamma(order) - count * math.lgamma(exponent)
        found[index] = base + constant + (exponent - 1) * log_product - order * log_total
    return found


def _add_soft_floors(
    likelihood: FloatArray,
    base: FloatArray,
    heights: FloatArray,
    depths: FloatArray,
    values: FloatArray,
    slopes: FloatArray,
    bends: FloatArray,
    ceiling_ns: float,
    near_count: int,
    count: int,
    places: FloatArray,
    place_weight: FloatArray,
) -> None:
    """Fill in the log likelihood of the soft floors' exponents.

    L_k = k^r * prod (height^(k-1)) / (sum of all heights^k, censored at the ceiling)^r, with the sum over the
    near samples replaced by its expectation (half of the ceiling's).
    """
    above = (heights[:, None, :] + depths[:, None]) * (1 / ceiling_ns)
    log_product = np.log(np.maximum(np.multiply.reduce(above, axis=2), 1e-300))
    room = slopes * places + bends * (places * places - _BEND_MEAN)
    room = np.maximum(1 - (values[:, :, None] + room[:, None, :]) / ceiling_ns, 1e-3)
    root, square = np.sqrt(room), room * room
    rooms = [room * root, square]
    if likelihood.shape[0] > len(rooms) + 1:
        rooms += [cube := square * room, cube * room * root, cube * cube * room]
    share = 1 - near_count / (2 * count)
    for index, powered in enumerate(rooms[: likelihood.shape[0] - 1], start=1):
        exponent = float(EXPONENTS[index])
        likelihood[index] = (
            base
            + near_count * math.log(exponent)
            + (exponent - 1) * log_product
            - near_count * np.log(share * (powered @ place_weight))
        )
