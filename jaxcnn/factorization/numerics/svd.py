"""Truncated singular value decomposition of a stack of matrices, one for each group."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcnn.factorization.numerics.ranks import check_rank, smallest_rank

_MAX_SVD_ROWS = 256
"""Short side up to which a matrix itself is decomposed.

Beyond, the Gram matrix of the short side is diagonalised, which is faster. The singular values are then exact to 1e-8
of the largest, and the vectors are orthonormal to rounding, so only the choice of a rank can differ."""


_MAX_LEADING_SHARE = 0.25
"""Share of all eigenvectors up to which they are computed alone; a larger share takes longer than all of them."""


def left_singular(
    matrix: np.ndarray, max_svd_rows: int = _MAX_SVD_ROWS, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns left singular vectors (G, m, r) and singular values (G, r), descending, of (G, m, n).

    Args:
      matrix: Matrix of each group, (G, m, n).
      max_svd_rows: Short side up to which the matrix itself is decomposed.
      count: Number r of vectors. None: min(m, n).
    """
    _, rows, columns = matrix.shape
    if min(rows, columns) <= max_svd_rows:
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return left[..., :count], values[..., :count]
    adjoint = np.swapaxes(matrix.conj(), 1, 2)
    if rows <= columns:
        squares, vectors = _leading_eigenvectors(matrix @ adjoint, count)
        return vectors, np.sqrt(np.maximum(squares, 0))
    squares, vectors = _leading_eigenvectors(adjoint @ matrix, count)
    # QR restores the direction of vectors whose singular value is too small to hold it.
    left, _ = np.linalg.qr(matrix @ vectors)
    return left, np.sqrt(np.maximum(squares, 0))


def _leading_eigenvectors(gram: np.ndarray, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest eigenvalues (G, r), descending, and their vectors (G, n, r), of Gram matrices (G, n, n)."""
    size = gram.shape[-1]
    if count is None or count > _MAX_LEADING_SHARE * size:
        values, vectors = np.linalg.eigh(gram)
    else:
        from scipy import linalg

        subset = [size - count, size - 1]
        pairs = [linalg.eigh(block, subset_by_index=subset, check_finite=False) for block in gram]
        values, vectors = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return values[..., ::-1][..., :count], vectors[..., ::-1][..., :count]


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Returns all singular values (G, r), descending, of (G, m, n), as `left_singular` does; r = min(m, n)."""
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
    full = min(matrix.shape[1:])
    count = full if rank is None else check_rank(operation, name, rank, full)
    basis, values = left_singular(matrix, count=count)
    if rank is None and tolerance is not None:
        count = smallest_rank(values, tolerance)
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
