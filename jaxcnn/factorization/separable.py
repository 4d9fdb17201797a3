"""`separable`: a kernel as a chain of one-dimensional ones, by truncated singular value decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.kernels import grouped_kernel, merged_link
from jaxcnn.factorization.ranks import check_rank, check_tolerance, smallest_rank
from jaxcnn.layout import Layout

_LARGEST_SVD = 256
"""Short side up to which the full decomposition is computed. Beyond, the Gram matrix of the short side is diagonalised:
at 1536 x 1536 (512 channels, 3 x 3) 2.5 s against 14 s. Its singular values are exact to 1e-8 of the largest, its
vectors are orthonormal to rounding, and the chain is a projection by them: only the choice of a rank can feel the
difference."""


def separable(
    kernel: Any,
    *,
    rank: int | Sequence[int] | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    r"""A kernel as a vertical one followed by a horizontal one: (kh, 1) from I to R channels, then (1, kw) from R to O.

    $K[a, b] \approx V[a] H[b]$, matrix products over channels: the best of rank R in the Frobenius norm (Eckart and
    Young), exact at full rank $\min(k_h I, k_w O)$. It takes fewer multiplications than the kernel where
    $R < I O k_h k_w / (I k_h + O k_w)$. A kernel of more window axes becomes one link for each, axis after axis.

    Args:
      kernel: `(*window, I / feature_group_count, O)` with two or more window axes, or as `layout` says.
      rank: channels between the links, of each group; one for each gap if there are more than two window axes. Full
        rank if neither rank nor tolerance is given.
      tolerance: relative error allowed, norm(chain - kernel) / norm(kernel); the smallest rank that meets it is taken.
      feature_group_count: number of groups of the kernel; each is decomposed by itself, all at the same rank.
      layout: how `kernel` is to be read: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

    Returns:
      A `KernelChain` of the kernel's dtype and groups, whose links share the norm evenly.

    Raises:
      ValueError: fewer than two window axes; a rank out of range; both rank and tolerance; NaN or infinity.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.outer(jnp.array([1.0, 2.0, 1.0]), jnp.array([1.0, 0.0, -1.0])).reshape(3, 3, 1, 1)   # Sobel
      >>> chain = separable(kernel, rank=1)
      >>> [link.shape for link in chain.kernels], float(chain.relative_error(kernel)) < 1e-6
      ([(3, 1, 1, 1), (1, 3, 1, 1)], True)

    References:
      Jaderberg, Vedaldi and Zisserman, "Speeding up convolutional neural networks with low rank expansions", 2014
      (scheme 2). Oseledets, "Tensor-train decomposition", 2011, for more axes.
    """
    operation = "separable"
    blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
    groups, *window, in_features, out_features = blocks.shape
    if len(window) < 2:
        raise ValueError(f"{operation}: kernel must have two or more window axes, got a window {tuple(window)}")
    if rank is not None and tolerance is not None:
        raise ValueError(f"{operation}: give rank or tolerance, not both, got {rank!r} and {tolerance!r}")
    gaps = len(window) - 1
    ranks = (None,) * gaps if rank is None else tuple(rank) if isinstance(rank, Sequence) else (rank,) * gaps
    if len(ranks) != gaps:
        raise ValueError(f"{operation}: there are {gaps} gaps between {gaps + 1} links, got {len(ranks)} ranks")
    # The squared errors of the gaps add up at most.
    share = None if tolerance is None else check_tolerance(operation, tolerance) / np.sqrt(gaps)
    dtype = np.asarray(kernel).dtype
    links = []
    rest, width = np.moveaxis(blocks, -2, 1), in_features  # (G, width, *window left, O)
    for axis, wanted in enumerate(ranks):
        size = window[axis]
        matrix = rest.reshape(groups, width * size, -1)
        basis, values = _left_singular(matrix)
        if wanted is not None:
            count = check_rank(operation, "rank", wanted, min(matrix.shape[1:]))
        else:
            count = smallest_rank(values, share) if share is not None else min(matrix.shape[1:])
        basis = basis[..., :count]
        rest = np.swapaxes(basis.conj(), 1, 2) @ matrix  # (G, R, W I) @ (G, W I, ...)
        scale = np.sqrt(np.linalg.norm(rest, axis=2, keepdims=True))
        scale[scale == 0] = 1.0
        link = (basis * np.swapaxes(scale, 1, 2)).reshape(groups, width, size, count)
        shape = [1] * len(window)
        shape[axis] = size
        links.append(merged_link(np.swapaxes(link, 1, 2).reshape(groups, *shape, width, count), dtype))
        rest, width = rest / scale, count
    last = np.moveaxis(rest.reshape(groups, width, window[-1], out_features), 1, 2)
    links.append(merged_link(last.reshape(groups, *[1] * gaps, window[-1], width, out_features), dtype))
    return KernelChain(tuple(links), (groups,) * len(links))


def _left_singular(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
