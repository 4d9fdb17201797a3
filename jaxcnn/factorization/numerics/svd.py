"""Truncated singular value decomposition of a stack of matrices, one for each group."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcnn.factorization.numerics.ranks import check_rank, smallest_rank

_LARGEST_SVD = 256
"""Short side up to which the full decomposition is computed. Beyond, the Gram matrix of the short side is diagonalised:
at 1536 x 1536 (512 channels, 3 x 3) 2.5 s against 14 s. Its singular values are exact to 1e-8 of the largest, its
vectors are orthonormal to rounding, and the chain is a projection by them: only the choice of a rank can feel the
difference."""


def left_singular(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors (G, m, r) and singular values (G, r), descending, of (G, m, n), r = min(m, n)."""
    _, rows, columns = matrix.shape
    if min(rows, columns) <= _LARGEST_SVD:
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return left, values
    adjoint = np.swapaxes(matrix.conj(), 1, 2)
    if rows <= columns:
        squares, vectors = np.linalg.eigh(matrix @ adjoint)
        return vectors[..., ::-1], np.sqrt(np.maximum(squares[..., ::-1], 0))
    squares, vectors = np.linalg.eigh(adjoint @ matrix)
    values = np.sqrt(np.maximum(squares[..., ::-1], 0))
    # The images of the right singular vectors, made orthonormal again where a small one lost its direction.
    left, _ = np.linalg.qr(matrix @ vectors[..., ::-1])
    return left, values


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Singular values (G, r), descending, of (G, m, n), r = min(m, n): as `left_singular` has them, without vectors."""
    _, rows, columns = matrix.shape
    if min(rows, columns) <= _LARGEST_SVD:
        return np.linalg.svd(matrix, compute_uv=False)
    adjoint = np.swapaxes(matrix.conj(), 1, 2)
    squares = np.linalg.eigvalsh(matrix @ adjoint if rows <= columns else adjoint @ matrix)
    return np.sqrt(np.maximum(squares[..., ::-1], 0))


def projected(
    operation: str, name: str, matrix: np.ndarray, rank: Any, tolerance: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(G, m, n) as (G, m, R) @ (G, R, n): the best product of its rank, the first factor of orthonormal columns.

    Args:
      operation, name: what errors call the caller and the rank.
      matrix: (G, m, n).
      rank: R, or None.
      tolerance: relative error of all groups together that R must meet where it is not given; full rank if None.
    """
    basis, values = left_singular(matrix)
    full = min(matrix.shape[1:])
    if rank is not None:
        count = check_rank(operation, name, rank, full)
    else:
        count = full if tolerance is None else smallest_rank(values, tolerance)
    basis = basis[..., :count]
    return basis, np.swapaxes(basis.conj(), 1, 2) @ matrix  # (G, R, m) @ (G, m, n)


def truncated(
    operation: str, name: str, matrix: np.ndarray, rank: Any, tolerance: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """`projected`, each term's norm shared evenly by its factors."""
    basis, rest = projected(operation, name, matrix, rank, tolerance)
    scale = np.sqrt(np.linalg.norm(rest, axis=2, keepdims=True))
    scale[scale == 0] = 1.0
    return basis * np.swapaxes(scale, 1, 2), rest / scale
