"""Truncated singular value decomposition of a stack of matrices, one for each group."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcnn.factorization.numerics.ranks import check_rank, smallest_rank

_MAX_SVD_ROWS = 256
"""Short side up to which a matrix itself is decomposed.

Beyond, the Gram matrix of the short side is diagonalised, which is faster. The singular values are then exact to 1e-8
of the largest, and the vectors are orthonormal to rounding, so only the choice of a rank can differ."""


def left_singular(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns left singular vectors (G, m, r) and singular values (G, r), descending, of (G, m, n); r = min(m, n)."""
    _, rows, columns = matrix.shape
    if min(rows, columns) <= _MAX_SVD_ROWS:
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return left, values
    adjoint = np.swapaxes(matrix.conj(), 1, 2)
    if rows <= columns:
        squares, vectors = np.linalg.eigh(matrix @ adjoint)
        return vectors[..., ::-1], np.sqrt(np.maximum(squares[..., ::-1], 0))
    squares, vectors = np.linalg.eigh(adjoint @ matrix)
    values = np.sqrt(np.maximum(squares[..., ::-1], 0))
    # QR restores the direction of vectors whose singular value is too small to hold it.
    left, _ = np.linalg.qr(matrix @ vectors[..., ::-1])
    return left, values


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Returns singular values (G, r), descending, of (G, m, n), as `left_singular` does; r = min(m, n)."""
    _, rows, columns = matrix.shape
    if min(rows, columns) <= _MAX_SVD_ROWS:
        return np.linalg.svd(matrix, compute_uv=False)
    adjoint = np.swapaxes(matrix.conj(), 1, 2)
    squares = np.linalg.eigvalsh(matrix @ adjoint if rows <= columns else adjoint @ matrix)
    return np.sqrt(np.maximum(squares[..., ::-1], 0))


def project(
    operation: str, name: str, matrix: np.ndarray, rank: Any, tolerance: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factors (G, m, R) and (G, R, n) of the best product of rank R; the first has orthonormal columns.

    Args:
      operation, name: Names of the caller and of its rank option in error texts.
      matrix: Matrix of each group, (G, m, n).
      rank: Rank R. None: the smallest rank within the tolerance.
      tolerance: Relative error allowed, of all groups together. None: full rank.
    """
    basis, values = left_singular(matrix)
    full = min(matrix.shape[1:])
    if rank is not None:
        count = check_rank(operation, name, rank, full)
    else:
        count = full if tolerance is None else smallest_rank(values, tolerance)
    basis = basis[..., :count]
    return basis, np.swapaxes(basis.conj(), 1, 2) @ matrix  # (G, R, m) @ (G, m, n)


def truncate(
    operation: str, name: str, matrix: np.ndarray, rank: Any, tolerance: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factors of `project`, with the norm of each of the R terms shared evenly between them."""
    basis, coefficients = project(operation, name, matrix, rank, tolerance)
    scale = np.sqrt(np.linalg.norm(coefficients, axis=2, keepdims=True))
    scale[scale == 0] = 1.0
    return basis * np.swapaxes(scale, 1, 2), coefficients / scale
