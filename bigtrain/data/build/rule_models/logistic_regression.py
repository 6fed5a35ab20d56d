"""Logistic regression on sparse rows, by Newton's method with conjugate gradients (Nocedal and Wright 2006, chapter 7).

    minimise over w, b:   mean_i log(1 + exp(-y_i (x_i . w + b))) + l2 / 2 |w|^2        y_i in {-1, 1}

The problem is strictly convex in w, so the fit has one result, whatever the start. Sums are made in one thread and in
a fixed order: the same rows give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

TOLERANCE = 1e-7
"""The gradient's norm at the end, relative to that at the start."""
NEWTON_STEPS, GRADIENT_STEPS = 100, 200


@dataclass(frozen=True)
class SparseRows:
    """A matrix of which no row is empty, row by row."""

    starts: I64
    """[rows], where each row starts in the two arrays below."""
    columns: I64
    """[entries]"""
    values: F64
    """[entries]"""
    width: int

    def times(self, vector: F64) -> F64:
        """[rows], the matrix times a vector of `width`."""
        return np.add.reduceat(self.values * vector[self.columns], self.starts)

    def transposed_times(self, vector: F64) -> F64:
        """[width], the transposed matrix times a vector of `rows`."""
        lengths = np.diff(self.starts, append=len(self.columns))
        return np.bincount(self.columns, self.values * np.repeat(vector, lengths), self.width).astype(np.float64)


@dataclass(frozen=True)
class Fit:
    """Weights of a logistic regression: the log odds of a row x are x . weights + bias."""

    weights: F64
    bias: float


def sigmoid(values: F64) -> F64:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))


def fit(rows: SparseRows, positive: npt.NDArray[np.bool_], l2: float) -> Fit:
    """The weights with the least loss.

    Args:
        rows: the features of the examples.
        positive: [rows], the class of each.
        l2: the strength of the penalty on weights, above 0. The bias has none.
    """
    target = positive.astype(np.float64)
    point = np.zeros(rows.width + 1)
    odds = np.zeros(len(target))
    loss = _loss(odds, target, point, l2)
    first = None
    for _ in range(NEWTON_STEPS):
        share = sigmoid(odds)
        gradient = _gradient(rows, (share - target) / len(target), point, l2)
        norm = _norm(gradient)
        first = first or norm
        if norm <= TOLERANCE * first:
            break
        step = _newton_step(rows, share * (1 - share) / len(target), gradient, l2, min(0.1, (norm / first) ** 0.5))
        along = rows.times(step[:-1]) + step[-1]
        slope, size = float((gradient * step).sum()), 1.0
        while True:
            new_loss = _loss(odds + size * along, target, point + size * step, l2)
            if new_loss <= loss + 1e-4 * size * slope or size < 1e-10:
                break
            size /= 2
        point, odds = point + size * step, odds + size * along
        if loss - new_loss <= 0:  # no number of this precision is better
            break
        loss = new_loss
    return Fit(point[:-1], float(point[-1]))


def _loss(odds: F64, target: F64, point: F64, l2: float) -> float:
    return float((np.logaddexp(0, odds) - target * odds).mean() + 0.5 * l2 * (point[:-1] ** 2).sum())


def _gradient(rows: SparseRows, residual: F64, point: F64, l2: float) -> F64:
    return np.append(rows.transposed_times(residual) + l2 * point[:-1], residual.sum())


def _norm(vector: F64) -> float:
    return float((vector * vector).sum()) ** 0.5


def _newton_step(rows: SparseRows, curvature: F64, gradient: F64, l2: float, tolerance: float) -> F64:
    """The step that conjugate gradients find for Hessian * step = -gradient, to a relative residual."""
    step = np.zeros_like(gradient)
    residual = -gradient
    direction = residual
    square = float((residual * residual).sum())
    stop = tolerance**2 * square
    for _ in range(GRADIENT_STEPS):
        if square <= stop:
            break
        along = curvature * (rows.times(direction[:-1]) + direction[-1])
        image = np.append(rows.transposed_times(along) + l2 * direction[:-1], along.sum())
        size = square / float((direction * image).sum())
        step = step + size * direction
        residual = residual - size * image
        new_square = float((residual * residual).sum())
        direction = residual + (new_square / square) * direction
        square = new_square
    return step
