"""Truncated singular value decomposition in a metric, in which an error counts as its effect on sampled inputs."""

from __future__ import annotations

import numpy as np

from jaxcnn.factorization.numerics.svd import left_singular

_MAX_SVD_ROWS = 16
"""Short side up to which a weighted matrix itself is decomposed, and not its Gram matrix.

Directions of nearly no effect on samples need no digits."""


def second_moments(rows: np.ndarray) -> np.ndarray:
    """Returns the mean of x x' over the rows x of each group, (G, n, m) -> (G, m, m)."""
    return np.swapaxes(rows, 1, 2) @ rows / rows.shape[1]


def regularize(gram: np.ndarray, ridge: float) -> np.ndarray:
    """Returns positive definite (G, n, n): each Gram matrix plus `ridge` times its mean diagonal."""
    size = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / size
    floor = 1e-6 * mean.mean() or 1.0  # for channels and groups that are always 0
    return gram + (ridge * mean + floor).astype(gram.dtype) * np.eye(size, dtype=gram.dtype)


class MetricSvd:
    """Decomposes matrices A (G, m, n) so that the error of x' A is least for rows x of known second moments.

    Args:
      gram: Second moments of the rows, (G, m, m).
      matrix: Matrix of each group, (G, m, n).
      ridge: Weight of the plain Frobenius norm beside the metric, relative to the metric's mean diagonal.
    """

    def __init__(self, gram: np.ndarray, matrix: np.ndarray, ridge: float):
        self._root = np.swapaxes(np.linalg.cholesky(regularize(gram, ridge)), 1, 2)
        self._weighted = self._root @ matrix.astype(gram.dtype)
        self._basis = self._weighted[..., :0]

    def truncate(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the factors (G, m, R), whose columns have norm 1, and (G, R, n) of the nearest matrices of rank R."""
        if self._basis.shape[-1] < rank:
            self._basis, _ = left_singular(self._weighted, _MAX_SVD_ROWS, rank)
        basis = self._basis[..., :rank]
        first = np.linalg.solve(self._root, basis)
        second = np.swapaxes(basis, 1, 2) @ self._weighted
        scale = np.linalg.norm(first, axis=1, keepdims=True)
        scale[scale == 0] = 1.0
        return first / scale, second * np.swapaxes(scale, 1, 2)
