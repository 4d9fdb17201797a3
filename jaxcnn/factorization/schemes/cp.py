"""`cp`: a kernel as 1x1, one-dimensional depthwise kernels and 1x1, by a sum of rank-one terms."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, grouped_kernel
from jaxcnn.factorization.numerics.cp_als import Factors, fit_terms, full_rank
from jaxcnn.factorization.numerics.ranks import check_rank, check_seed, chosen_tolerance, smallest_rank
from jaxcnn.factorization.numerics.svd import singular_values
from jaxcnn.factorization.schemes.scheme import RankTable, Scheme, Shape, all_up_to, split_shape, window_along
from jaxcnn.layout import Layout

CANCELLING_TERMS_NORM = 10.0
"""Largest `terms_norm` of a chain whose terms do not count as cancelling. The norm of orthogonal terms is 1."""

_Fit = tuple[Factors, np.ndarray, float]
"""The fit of one group: unit vectors of each axis, weights, and the relative error."""


@ErrorPrefix("cp")
def cp(
    kernel: Any,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
    seed: int = 0,
) -> KernelChain:
    r"""Returns a kernel as 1x1 from I to R channels, depthwise (kh, 1) and (1, kw), and 1x1 from R to O.

    $K[a, b, i, o] \approx \sum_{r=1}^R A[i, r] V[a, r] H[b, r] B[r, o]$, and so on with one depthwise link for each
    window axis: the canonical polyadic decomposition. The terms are fitted by alternating least squares from several
    starts: a local minimum, not always the global one. The chain takes the fewest multiplications of all schemes,
    $R (I + k_h + k_w + O)$ against $k_h k_w I O$, and is the hardest to fit and to train afterwards.

    A kernel may have no best approximation: terms that grow and cancel fit ever better. The norm of all terms together,
    $(\sum_r \lVert t_r \rVert^2)^{1/2}$, is kept below some 30 times the kernel's, and from 10 times on
    a warning is given.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)` with one or more window axes, or as `layout` says.
      rank: Number of terms, R, of each group. Full rank, which is exact, if neither rank nor tolerance is given: the
        product of all axes of a group's kernel but the longest.
      tolerance: Relative error allowed, norm(chain - kernel) / norm(kernel). The fit at the chosen rank meets the
        tolerance, and the fit at the rank below does not. Where terms cancel, rounding links to 16 bits may leave a
        larger error. The search takes minutes for kernels of 512 x 512 channels.
      feature_group_count: Number of groups of the kernel; each is fitted by itself, all at the same rank.
      layout: Layout of `kernel`: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.
      seed: Seed for the random starts; the same seed gives the same chain.

    Returns:
      A `KernelChain` of the kernel's dtype and groups, of `(1, ..., 1, I, R)`, one depthwise kernel for each window
      axis and `(1, ..., 1, R, O)` in each group; all share the norm of each term evenly.

    Raises:
      ValueError: a rank or tolerance out of range; both rank and tolerance; NaN or infinity.
      TypeError: a kernel of integers or complex numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> sobel = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]).reshape(3, 3, 1, 1)
      >>> mixing = jnp.outer(jnp.arange(1.0, 5.0), jnp.arange(1.0, 4.0)).reshape(1, 1, 4, 3)     # 4 channels to 3
      >>> chain = cp(sobel * mixing, rank=1)
      >>> [link.shape for link in chain.kernels], float(chain.relative_error(sobel * mixing)) < 1e-6
      ([(1, 1, 4, 1), (3, 1, 1, 1), (1, 3, 1, 1), (1, 1, 1, 3)], True)

    References:
      Lebedev et al., "Speeding-up convolutional neural networks using fine-tuned CP-decomposition", 2015; Phan et al.,
      "Stable low-rank tensor decomposition for compression of convolutional neural network", 2020, on terms that
      cancel. `tensorly.decomposition.parafac`.
    """
    chain = _fitted_chain(kernel, rank, tolerance, feature_group_count, layout, seed)
    ratio = terms_norm(chain, float(np.linalg.norm(np.asarray(kernel, np.float64))))
    if ratio > CANCELLING_TERMS_NORM:
        warnings.warn(
            f"cp: the terms cancel, their norm is {ratio:.0f} times the kernel's: the chain loses digits and trains "
            "badly; try another rank",
            stacklevel=3,
        )
    return chain


def _fitted_chain(
    kernel: Any,
    rank: int | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
    seed: int = 0,
) -> KernelChain:
    """Returns the chain of `cp` without its warning, for callers that ask for `terms_norm` themselves."""
    operation = "cp"
    seed = check_seed(seed)
    blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
    dtype = np.asarray(kernel).dtype
    if np.iscomplexobj(blocks):
        raise TypeError(f"{operation}: kernel must be of real floats, got dtype {dtype}")
    error = chosen_tolerance(operation, "rank", rank, tolerance, blocks.ndim - 1, dtype)
    full = full_rank(blocks.shape[1:])
    if error is not None:
        fits = _smallest_within(blocks, error, seed)
    else:
        terms = full if rank is None else check_rank(operation, "rank", rank, full)
        fits = [fit_terms(block, terms, seed=seed) for block in blocks]
    return _chain([_even_vectors(factors, weights) for factors, weights, _ in fits], dtype)


def terms_norm(chain: KernelChain, kernel_norm: float) -> float:
    """Returns the norm of all terms of a chain of `cp`, relative to the kernel's norm; 0 for a kernel of zeros."""
    first, *depthwise, last = (np.asarray(link, np.float64) for link in chain.kernels)
    squares = np.square(first).sum(tuple(range(first.ndim - 1)))  # of each term, group after group
    for link in depthwise:
        squares = squares * np.square(link).sum(tuple(range(link.ndim - 1)))
    groups = chain.feature_group_counts[-1]
    outputs = np.square(last).reshape(-1, last.shape[-2], groups, last.shape[-1] // groups).sum((0, 3))  # (R, G)
    return float(np.sqrt((squares * outputs.T.ravel()).sum())) / kernel_norm if kernel_norm else 0.0


def _smallest_within(blocks: np.ndarray, tolerance: float, seed: int) -> list[_Fit]:
    """Returns the fit of each group at a rank that meets the tolerance, where the rank below does not."""
    norms = np.linalg.norm(blocks.reshape(len(blocks), -1), axis=1)
    limit = tolerance * float(np.linalg.norm(norms))

    def fit(rank: int) -> tuple[list[_Fit], bool]:
        """Returns the fit of each group at a rank, and whether the fits together meet the tolerance."""
        fits = [fit_terms(block, rank, seed=seed) for block in blocks]
        errors = [error for _, _, error in fits]
        return fits, bool(np.linalg.norm(errors * norms) <= limit)

    # The unfolding of R terms along any axis is a matrix of rank R at most, which bounds the rank from below.
    low, high = lowest_rank(blocks, tolerance) - 1, full_rank(blocks.shape[1:])
    rank = low + 1
    fits, is_within = fit(rank)
    while not is_within:
        low, rank = rank, min(rank + max(1, rank // 3), high)
        fits, is_within = fit(rank)
    high = rank
    while high - low > 1:
        middle = (low + high) // 2
        candidate, is_within = fit(middle)
        if is_within:
            fits, high = candidate, middle
        else:
            low = middle
    return fits


def lowest_rank(blocks: np.ndarray, tolerance: float) -> int:
    """Returns a lower bound of the ranks that meet a tolerance for (G, *window, I, O), from each axis' unfolding."""
    ranks = []
    for axis in range(1, blocks.ndim):
        matrix = np.moveaxis(blocks, axis, 1).reshape(len(blocks), blocks.shape[axis], -1)
        ranks.append(smallest_rank(singular_values(matrix), tolerance))
    return max(ranks)


def _even_vectors(factors: Factors, weights: np.ndarray) -> Factors:
    """Returns vectors (n, R) of each axis whose products are the terms; the vectors of one term have the same norm."""
    share = weights ** (1 / len(factors))
    return [factor * share for factor in factors]


def _chain(groups: list[Factors], dtype: Any) -> KernelChain:
    """Returns the chain of vectors (n, R) of each axis, given for each group: window axes, then inputs and outputs."""
    *window, inputs, outputs = (np.stack(vectors) for vectors in zip(*groups, strict=True))  # (G, n, R)
    count, axes, rank = len(groups), len(window), inputs.shape[-1]
    ones = (1,) * axes
    links = [inputs.reshape(count, *ones, -1, rank)]
    for axis, vectors in enumerate(window):
        extent = window_along(axis, vectors.shape[1], axes)
        links.append(np.swapaxes(vectors, 1, 2).reshape(count * rank, *extent, 1, 1))
    links.append(np.swapaxes(outputs, 1, 2).reshape(count, *ones, rank, -1))
    return chain_of_blocks(links, dtype)


def _shapes(shape: Shape, rank: int) -> KernelChain:
    groups, window, in_features, out_features, ones = split_shape(shape)
    terms = groups * rank
    return KernelChain.of_shapes(
        ((*ones, in_features, terms), groups),
        *(((*window_along(axis, size, len(window)), 1, terms), terms) for axis, size in enumerate(window)),
        ((*ones, rank, groups * out_features), groups),
    )


def _ranks(blocks: np.ndarray) -> RankTable:
    """Returns the ranks from 1 to the full rank, without errors, which only a fit can tell."""
    return all_up_to(full_rank(blocks.shape[1:])), None


def _cancels(chain: KernelChain, kernel_norm: float) -> bool:
    """Returns whether the terms of a chain are so large that they cancel."""
    return terms_norm(chain, kernel_norm) > CANCELLING_TERMS_NORM


SCHEME = Scheme(
    name="cp",
    function=_fitted_chain,
    rank_option="rank",
    shapes=_shapes,
    ranks=_ranks,
    is_search=True,
    is_worthless=_cancels,
)
