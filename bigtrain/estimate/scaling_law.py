"""The law of loss that small runs follow: L(N, D) = E + A / N^alpha + B / D^beta.

N are the parameters of a model, D the tokens that it is trained on, and L is its held-out loss in nats. The form and
the fit are approach 3 of Hoffmann et al. (2022, "Training Compute-Optimal Large Language Models", section 3.3)::

    minimise   the sum over runs of Huber(log L - log of the law)     Huber's threshold is 1e-3
    over       log E, log A, alpha, log B, beta                       from many starts; the best minimum counts

It is a sum, and not a mean, which stops an optimizer early: Besiroglu et al. (2024, "Chinchilla Scaling: A replication
attempt") found that this is what went wrong in the published fit.

How it is minimised: Huber's loss is at most the square with weight min(1, threshold / |residual|), so a damped
Gauss-Newton step on these weights goes down (iteratively reweighted least squares; Levenberg, 1944; Marquardt, 1963).
All starts are one batch of arrays, and all replicates of the bootstrap another. Five parameters need no library: scipy
is the oracle in the tests, and would be 100 MB more on each login node.

The bootstrap keeps the runs and draws their noise again, because a ladder is a design: a draw of its runs would leave
out whole sizes. It knows the noise of the runs. It cannot know that the law may be another one beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError

Array = npt.NDArray[np.float64]

HUBER = 1e-3
"""Threshold of Huber's loss, in log loss: errors above 0.1% count linearly."""
CONSTANTS = 5
FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Forward and backward pass (Kaplan et al., 2020)."""
_SEARCH_ROUNDS, _POLISH_ROUNDS, _POLISHED = 60, 600, 6
_DONE = 1e-12
"""A relative gain below which a minimisation is over."""
EXPONENTS = (0.02, 3.0)
"""Bounds of alpha and beta: beyond, a term is a constant or a step, and runs that lead there do not determine it."""
_LEAST = -25.0
"""Bound of the log of a term, in the middle of the runs: nothing, for any loss."""


@dataclass(frozen=True)
class TrainedPoint:
    """One run that is trained to the end of its schedule."""

    parameters: float
    """N."""
    tokens: float
    """D."""
    loss: float
    """L: held-out loss, in nats a token."""


@dataclass(frozen=True)
class Allocation:
    """A size of a model, and the tokens to train it on."""

    parameters: float
    tokens: float


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    irreducible_loss: float
    """E, in nats: what no size and no amount of data removes."""
    model_factor: float
    """A."""
    model_exponent: float
    """alpha."""
    data_factor: float
    """B."""
    data_exponent: float
    """beta."""

    def loss(self, parameters: float, tokens: float) -> float:
        """The expected held-out loss, in nats a token."""
        return (
            self.irreducible_loss
            + self.model_factor * parameters**-self.model_exponent
            + self.data_factor * tokens**-self.data_exponent
        )

    def optimal(self, flops: float) -> Allocation:
        """Size and tokens of the least loss for so many floating-point operations (Hoffmann et al., equation 4).

        The operations are counted as 6 N D, with the N of the law. There is at least one parameter and one token, even
        where a law that its runs do not determine puts the best size beyond.
        """
        alpha, beta = self.model_exponent, self.data_exponent
        most = math.log(flops / FLOPS_PER_PARAMETER_AND_TOKEN)
        ratio = math.log(alpha * self.model_factor) - math.log(beta * self.data_factor)
        parameters = min(max((ratio + beta * most) / (alpha + beta), 0.0), most)
        return Allocation(math.exp(parameters), math.exp(most - parameters))


@dataclass(frozen=True)
class Interval:
    """Where a number lies, by the bootstrap."""

    low: float
    high: float


def fit_law(points: Sequence[TrainedPoint]) -> ScalingLaw:
    """The law that fits some runs best.

    Raises:
        BigtrainError: there are too few runs, sizes or amounts of data for five constants.
    """
    _require_design(points)
    form = _Form.of(points)
    logs = np.log([point.loss for point in points])
    starts = form.starts(np.exp(logs))
    found, costs = _minimise(form, np.broadcast_to(logs, (len(starts), len(logs))), starts, _SEARCH_ROUNDS)
    best = found[np.argsort(costs)[:_POLISHED]]
    found, costs = _minimise(form, np.broadcast_to(logs, (len(best), len(logs))), best, _POLISH_ROUNDS)
    return form.law(found[int(np.argmin(costs))])


def bootstrap_laws(
    points: Sequence[TrainedPoint], law: ScalingLaw, *, replicates: int = 400, seed: int = 0
) -> list[ScalingLaw]:
    """Laws that would have been found with other noise: the losses of `law` with draws of it.

    The noise is normal, in log loss. Its size is what the residuals leave open: their mean square, over as many degrees
    of freedom as there are runs beyond the constants, and divided by a draw of that chi-square for each law. Draws of
    the residuals themselves would be too small, because Huber's loss puts the law through some of the runs.

    Args:
        points: the runs.
        law: what `fit_law` found for them.
        replicates: how many laws.
        seed: of the draws.
    """
    form = _Form.of(points)
    logs = np.log([point.loss for point in points])
    fitted = np.log([law.loss(point.parameters, point.tokens) for point in points])
    chance = np.random.default_rng(seed)
    size = np.sqrt(np.square(logs - fitted).sum() / chance.chisquare(len(points) - CONSTANTS, (replicates, 1)))
    drawn = chance.normal(0.0, size, (replicates, len(points)))
    starts = np.broadcast_to(form.unknowns(law), (replicates, CONSTANTS))
    found, _ = _minimise(form, fitted + drawn, starts, _POLISH_ROUNDS)
    return [form.law(each) for each in found]


def interval(laws: Sequence[ScalingLaw], of: Callable[[ScalingLaw], float], share: float = 0.9) -> Interval:
    """Where a number lies that follows from the law, in the middle `share` of the laws of a bootstrap."""
    low, high = np.quantile([of(law) for law in laws], [(1 - share) / 2, (1 + share) / 2])
    return Interval(float(low), float(high))


def _require_design(points: Sequence[TrainedPoint]) -> None:
    sizes, amounts = {point.parameters for point in points}, {point.tokens for point in points}
    enough = len(points) > CONSTANTS and len(sizes) >= 3 and len(amounts) >= 3
    if not enough:
        raise BigtrainError(
            "a law of loss cannot be fitted to these runs",
            found=f"{len(points)} runs of {len(sizes)} sizes and {len(amounts)} amounts of tokens",
            wanted=f"more than {CONSTANTS} runs, with 3 sizes and 3 amounts of tokens among them: it has {CONSTANTS} "
            "constants",
            fix="give the ladder a larger --budget",
        )


@dataclass(frozen=True)
class _Form:
    """The law over some runs, in unknowns that a minimisation moves well in.

    The unknowns are log E, log of the second term at the mean size, log alpha, log of the third term at the mean
    amount of data, and log beta. So all constants are positive, and a change of an exponent turns its term about the
    middle of the runs.
    """

    sizes: Array
    """log N without its mean, [runs]."""
    amounts: Array
    """log D without its mean, [runs]."""
    mean_size: float
    mean_amount: float

    @classmethod
    def of(cls, points: Sequence[TrainedPoint]) -> _Form:
        sizes = np.log([point.parameters for point in points])
        amounts = np.log([point.tokens for point in points])
        return cls(sizes - sizes.mean(), amounts - amounts.mean(), float(sizes.mean()), float(amounts.mean()))

    def starts(self, losses: Array) -> Array:
        """A grid over E, alpha and beta, with the other two constants by least squares: [starts, 5]."""
        starts = []
        exponents = np.geomspace(0.05, 1.6, 7)
        for share, alpha, beta in product((0.05, 0.3, 0.5, 0.7, 0.85, 0.95), exponents, exponents):
            floor = share * losses.min()
            terms = np.stack([np.exp(-alpha * self.sizes), np.exp(-beta * self.amounts)], axis=1)
            factors = np.linalg.lstsq(terms, losses - floor, rcond=None)[0]
            small, large = np.log(np.maximum(factors, 1e-3 * losses.min()))
            starts.append([math.log(floor), small, math.log(alpha), large, math.log(beta)])
        return np.array(starts)

    def unknowns(self, law: ScalingLaw) -> Array:
        return np.array([
            math.log(law.irreducible_loss),
            math.log(law.model_factor) - law.model_exponent * self.mean_size,
            math.log(law.model_exponent),
            math.log(law.data_factor) - law.data_exponent * self.mean_amount,
            math.log(law.data_exponent),
        ])  # fmt: skip

    def law(self, unknowns: Array) -> ScalingLaw:
        floor, small, alpha, large, beta = (float(each) for each in unknowns)
        alpha, beta = math.exp(alpha), math.exp(beta)
        return ScalingLaw(
            math.exp(floor),
            math.exp(small + alpha * self.mean_size),
            alpha,
            math.exp(large + beta * self.mean_amount),
            beta,
        )

    def terms(self, unknowns: Array) -> Array:
        """Logs of the three terms: [batch, 3, runs]."""
        floor, small, alpha, large, beta = unknowns.T[:, :, None]
        of_size = small - np.exp(alpha) * self.sizes
        of_data = large - np.exp(beta) * self.amounts
        return np.stack([np.broadcast_to(floor, of_size.shape), of_size, of_data], axis=1)

    def log_loss(self, unknowns: Array) -> Array:
        """log L of each run: [batch, runs]."""
        terms = self.terms(unknowns)
        return np.logaddexp(np.logaddexp(terms[:, 0], terms[:, 1]), terms[:, 2])

    def slopes(self, unknowns: Array, log_loss: Array) -> Array:
        """Derivatives of log L by the unknowns: [batch, runs, 5]."""
        floor, small, large = np.moveaxis(np.exp(self.terms(unknowns) - log_loss[:, None]), 1, 0)
        alpha, beta = np.exp(unknowns[:, 2, None]), np.exp(unknowns[:, 4, None])
        return np.stack([floor, small, -small * alpha * self.sizes, large, -large * beta * self.amounts], axis=2)


def _minimise(form: _Form, targets: Array, starts: Array, rounds: int) -> tuple[Array, Array]:
    """Minimise the sum of Huber losses for a batch of problems.

    Args:
        form: the law over the runs.
        targets: log losses, [batch, runs].
        starts: unknowns, [batch, 5].
        rounds: the most steps.

    Returns:
        The unknowns, [batch, 5], and the sums, [batch].
    """
    unknowns, damping = starts.copy(), np.full(len(starts), 1e-2)
    values = form.log_loss(unknowns)
    costs = _huber(targets - values)
    active = np.arange(len(starts))
    small_gains = np.zeros(len(starts), np.int64)
    for _ in range(rounds):
        residuals = targets[active] - values[active]
        slopes = form.slopes(unknowns[active], values[active])
        weighted = slopes * np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-300))[:, :, None]
        curvature = np.swapaxes(weighted, 1, 2) @ slopes
        downhill = np.swapaxes(weighted, 1, 2) @ residuals[:, :, None]
        diagonal = np.einsum("bii->bi", curvature)
        diagonal += damping[active, None] * diagonal + 1e-14
        steps = np.clip(np.linalg.solve(curvature, downhill)[:, :, 0], -1.0, 1.0)
        tried = np.clip(unknowns[active] + steps, _LOWEST, _HIGHEST)
        tried_values = form.log_loss(tried)
        tried_costs = _huber(targets[active] - tried_values)
        better = tried_costs < costs[active]
        gained = costs[active] - tried_costs <= _DONE * costs[active]
        improved = active[better]
        unknowns[improved], values[improved] = tried[better], tried_values[better]
        costs[improved] = tried_costs[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 4, 1e-9), damping[active] * 5)
        small_gains[active] = np.where(gained, small_gains[active] + 1, 0)
        active = active[(small_gains[active] < 4) & (damping[active] < 1e9)]
        if not len(active):
            break
    return unknowns, costs


_LOWEST = np.array([_LEAST, _LEAST, math.log(EXPONENTS[0]), _LEAST, math.log(EXPONENTS[0])])
_HIGHEST = np.array([np.inf, np.inf, math.log(EXPONENTS[1]), np.inf, math.log(EXPONENTS[1])])


def _huber(residuals: Array) -> Array:
    """The sum of Huber losses of each problem, [batch]."""
    size = np.abs(residuals)
    return np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum(axis=1)
