"""Fits a sum of rank-one terms to a tensor: the numerical core of `cp`.

A tensor X with axes (window 1, ..., window n, I, O) is approximated by R terms, each the outer product of one unit
vector for each axis, times a weight:

    X[w1, ..., wn, i, o] = sum over r of weight[r] W1[w1, r] ... Wn[wn, r] A[i, r] B[o, r]

Alternating least squares, in NumPy and float64, minimises

    norm(X - terms)^2 + ridge * norm(weights)^2        for X of norm 1.

Each step solves for one axis exactly, while the vectors of the other axes have norm 1. So the sum never grows. The sum
is at most 1 from the first step on, so norm(weights) is at most 1 / sqrt(ridge): the ridge caps the norm of the terms.
A cap is needed because a tensor may have no best approximation: terms that grow without bound and cancel fit ever
better.
"""

from __future__ import annotations

from functools import reduce
from math import prod

import numpy as np

from jaxcnn.factorization.numerics.svd import left_singular

Factors = list[np.ndarray]
"""Vectors (n, R) of each axis, one column for each term."""

RIDGE = 1e-10
"""Weight of norm(weights)^2 at which a fit starts, for a tensor of norm 1."""

MAX_TERMS_NORM = 30.0
"""Norm of the weights, relative to the tensor's norm, beyond which the ridge grows."""

_SWEEP_MULTIPLICATIONS = 150_000_000_000
"""Multiplications that set the number of sweeps of one start, within its limits."""

_PATIENCE_SWEEPS = 20
"""Sweeps within which the error must fall by a thousandth."""

_EXACT_ERROR = 1e-7
"""Relative error below which the search ends."""


def fit_terms(tensor: np.ndarray, rank: int, *, seed: int = 0) -> tuple[Factors, np.ndarray, float]:
    """Returns unit vectors (n, R) of each axis, weights (R,) and the relative error of the best of several starts.

    The first start is made of singular vectors of the tensor as a matrix, the others are random. All of them run for a
    tenth of the sweeps, and the best one goes on.

    Args:
      tensor: Tensor (*window, I, O), float64.
      rank: Number of terms, R.
      seed: Seed for the random starts.
    """
    norm = np.linalg.norm(tensor)
    if norm == 0:
        return [np.zeros((size, rank)) for size in tensor.shape], np.zeros(rank), 0.0
    if rank >= full_rank(tensor.shape):
        return *_exact(tensor, rank), 0.0
    # Small tensors have many local minima and are fast, so they get more starts and more sweeps.
    work = tensor.size * rank
    sweeps = int(np.clip(_SWEEP_MULTIPLICATIONS // work, 50, 500))
    starts = 10 if work <= 10**6 else 3
    problem = _Problem(tensor / norm)
    generator = np.random.default_rng(seed)
    runs = []
    for number in range(starts):
        runs.append(problem.sweep(problem.start(rank, generator, number), sweeps // 10))
        if runs[-1][2] < _EXACT_ERROR:
            break
    best = min(runs, key=lambda run: run[2])
    if best[2] > _EXACT_ERROR:
        best = problem.sweep(best[0], sweeps)
    factors, weights, _ = best
    return factors, weights * norm, problem.error(factors, weights)


def full_rank(shape: tuple[int, ...]) -> int:
    """Returns the number of terms at which every tensor of a shape is exact: one for each fibre of the longest axis."""
    return prod(shape) // max(shape)


def _exact(tensor: np.ndarray, rank: int) -> tuple[Factors, np.ndarray]:
    """Returns vectors and weights of an exact sum: one term for each fibre along the longest axis."""
    longest = int(np.argmax(tensor.shape))
    short_axes = [axis for axis in range(tensor.ndim) if axis != longest]
    places = np.indices([tensor.shape[axis] for axis in short_axes]).reshape(len(short_axes), -1)
    factors = [np.zeros((size, rank)) for size in tensor.shape]
    for axis, place in zip(short_axes, places, strict=True):
        factors[axis][place, np.arange(places.shape[1])] = 1.0
    fibres = np.moveaxis(tensor, longest, 0).reshape(tensor.shape[longest], -1)
    weights = np.zeros(rank)
    weights[: fibres.shape[1]] = np.linalg.norm(fibres, axis=0)
    factors[longest][:, : fibres.shape[1]] = _unit(fibres)[0]
    return factors, weights


def _unit(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns of a matrix scaled to norm 1, and their norms; columns of zeros stay."""
    norms = np.linalg.norm(factor, axis=0)
    return factor / np.where(norms > 0, norms, 1.0), norms


class _Problem:
    """Holds a tensor of norm 1, and takes the steps of its fit."""

    def __init__(self, tensor: np.ndarray):
        self.tensor = tensor
        *self.window, self.inputs, self.outputs = tensor.shape
        # These matrices are factors of the only two large products of a sweep.
        self.by_output = np.ascontiguousarray(tensor.reshape(-1, self.outputs))
        self.by_input = np.ascontiguousarray(np.swapaxes(tensor, -1, -2).reshape(-1, self.inputs))

    def error(self, factors: Factors, weights: np.ndarray) -> float:
        """Returns the norm of the difference between the tensor and the terms."""
        terms = factors[0] * weights
        for factor in factors[1:-1]:
            terms = (terms[:, None] * factor).reshape(-1, len(weights))
        return float(np.linalg.norm(self.by_output - terms @ factors[-1].T))

    def start(self, rank: int, generator: np.random.Generator, number: int) -> Factors:
        """Returns unit vectors of each axis: from singular vectors for start 0, random for the others."""
        random = [_unit(generator.standard_normal((size, rank)))[0] for size in self.tensor.shape]
        if number:
            return random
        # As for `separable`, the rows of the matrix are the first half of the window with the inputs. Each of its
        # singular vectors is replaced by a nearly best product of one vector for each axis.
        half = len(self.window) // 2
        row_axes = [*range(half), len(self.window)]
        column_axes = [*range(half, len(self.window)), len(self.window) + 1]
        rows = prod(self.tensor.shape[axis] for axis in row_axes)
        matrix = self.tensor.transpose(*row_axes, *column_axes).reshape(1, rows, -1)
        left, _ = left_singular(matrix)
        left = left[0, :, :rank]
        right = matrix[0].T @ left
        factors = random
        for axes, vectors in ((row_axes, left), (column_axes, right)):
            sizes = [self.tensor.shape[axis] for axis in axes]
            for axis, factor in zip(axes, _products(vectors, sizes), strict=True):
                factors[axis][:, : left.shape[1]] = factor
        return factors

    def sweep(self, factors: Factors, sweeps: int) -> tuple[Factors, np.ndarray, float]:
        """Runs up to `sweeps` sweeps of alternating least squares; returns unit vectors, weights and the error."""
        factors = list(factors)
        grams = [factor.T @ factor for factor in factors]
        count, rank = len(self.window), factors[0].shape[1]
        ridge = RIDGE
        history: list[float] = []
        weights = np.zeros(rank)
        square = 1.0

        def update(axis: int, products: np.ndarray) -> None:
            """Solves for the vectors of an axis; `products`, (n, R), is the tensor times those of the other axes."""
            nonlocal weights, square
            gram = reduce(np.multiply, (grams[other] for other in range(len(factors)) if other != axis))
            solved = np.linalg.solve(gram + ridge * np.eye(rank), products.T).T
            square = 1.0 - 2 * np.vdot(solved, products) + np.vdot(solved @ gram, solved)
            factors[axis], weights = _unit(solved)
            grams[axis] = factors[axis].T @ factors[axis]

        for _ in range(sweeps):
            for last, matrix in ((count, self.by_output), (count + 1, self.by_input)):
                other = 2 * count + 1 - last
                partial = (matrix @ factors[other]).reshape(*self.window, -1, rank)
                axes = [*range(count), last]
                for axis in axes:
                    other_factors = [factors[a] if a != axis else None for a in axes]
                    update(axis, _contraction(partial, other_factors))
            if np.linalg.norm(weights) > MAX_TERMS_NORM:
                ridge = min(100 * ridge, MAX_TERMS_NORM**-2)
            history.append(float(np.sqrt(max(square, 0.0))))
            if history[-1] < _EXACT_ERROR or (
                len(history) > _PATIENCE_SWEEPS and history[-1] > 0.999 * history[-1 - _PATIENCE_SWEEPS]
            ):
                break
        return factors, weights, history[-1]


def _contraction(partial: np.ndarray, factors: list[np.ndarray | None]) -> np.ndarray:
    """Returns (n1, ..., nm, R) times the vectors (n, R) of all axes but the one that is None, summed up: (n, R)."""
    # The last axis goes first, so that the axes before it keep their places.
    for axis in range(len(factors) - 1, -1, -1):
        factor = factors[axis]
        if factor is not None:
            shape = [1] * partial.ndim
            shape[axis], shape[-1] = factor.shape
            partial = (partial * factor.reshape(shape)).sum(axis)
    return partial


def _products(vectors: np.ndarray, sizes: list[int]) -> Factors:
    """Returns unit vectors (n, R) of each axis whose outer products are near the columns of (prod(sizes), R)."""
    factors = []
    remainder = vectors.T  # (R, n1 n2 ...)
    for size in sizes[:-1]:
        matrix = remainder.reshape(len(remainder), size, -1)
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        factors.append(left[:, :, 0].T)
        remainder = right[:, 0]
    return [*factors, _unit(remainder.T)[0]]
