"""`tucker2`: a kernel as 1x1, a smaller one of its window, 1x1, by higher-order orthogonal iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, grouped_kernel
from jaxcnn.factorization.numerics.ranks import check_rank, chosen_tolerance
from jaxcnn.factorization.numerics.tucker_als import (
    Ranks,
    cheapest,
    decompose,
    even_norms,
    full_ranks,
    leading_bases,
    most_exact,
    start_errors,
    weight_counts,
)
from jaxcnn.factorization.schemes.scheme import Blocks, LayerSamples, RankTable, Scheme, Shape, split_shape
from jaxcnn.layout import Layout


@ErrorPrefix("tucker2")
def tucker2(
    kernel: Any,
    *,
    ranks: int | Sequence[int] | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    r"""Returns a kernel as 1x1 from I to R channels, one of its window from R to S, and 1x1 from S to O.

    $K[w] \approx U C[w] V$, matrix products over channels: Tucker's decomposition of the two channel axes. The
    iteration starts from the leading singular vectors of each unfolding and improves them in turn (HOOI): a local
    minimum, never worse than the start, whose error is at most $\sqrt 2$ times the best. The chain takes fewer
    multiplications than the kernel where $I R + k R S + S O < k I O$ for k taps.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)` with one or more window axes, or as `layout` says.
      ranks: Ranks (R, S) of each group, or one int for both. Full ranks, which are exact, if neither ranks nor
        tolerance is given: $\min(I, k O)$ and $\min(O, k I)$.
      tolerance: Relative error allowed, norm(chain - kernel) / norm(kernel). The pair of ranks with the fewest weights
        that meets it is taken. Up to 60 pairs are tried, the most promising first: all that may meet it for a dozen
        channels, and down to 4 pairs for kernels of more than 250,000 weights.
      feature_group_count: Number of groups of the kernel; each is decomposed by itself, all at the same ranks.
      layout: Layout of `kernel`: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

    Returns:
      A `KernelChain` of the kernel's dtype and groups, of `(1, ..., 1, I, R)`, `(*window, R, S)` and
      `(1, ..., 1, S, O)` in each group.

    Raises:
      ValueError: a rank or tolerance out of range; both ranks and tolerance; NaN or infinity.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> sobel = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]).reshape(3, 3, 1, 1)
      >>> mixing = jnp.outer(jnp.arange(1.0, 5.0), jnp.arange(1.0, 4.0)).reshape(1, 1, 4, 3)     # 4 channels to 3
      >>> chain = tucker2(sobel * mixing, ranks=1)
      >>> [link.shape for link in chain.kernels], float(chain.relative_error(sobel * mixing)) < 1e-6
      ([(1, 1, 4, 1), (3, 3, 1, 1), (1, 1, 1, 3)], True)

    References:
      Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile applications", 2016.
      De Lathauwer, De Moor and Vandewalle, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation of
      higher-order tensors", 2000. `tensorly.decomposition.partial_tucker` on the channel axes.
    """
    operation = "tucker2"
    blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
    dtype = np.asarray(kernel).dtype
    tensor = _tensor(blocks)
    error = chosen_tolerance(operation, "ranks", ranks, tolerance, 3, dtype)
    bases = leading_bases(tensor)
    full = full_ranks(tensor.shape)
    if error is not None:
        links = cheapest(tensor, bases, error, weight_counts(tensor.shape))
    elif ranks is None:
        links = decompose(tensor, bases, full)
    else:
        pair = _pair(ranks)
        if len(pair) != 2:
            raise ValueError(f"{operation}: ranks must be an int or a pair of ints, got {ranks!r}")
        checked = (
            check_rank(operation, "ranks[0]", pair[0], full[0]),
            check_rank(operation, "ranks[1]", pair[1], full[1]),
        )
        links = decompose(tensor, bases, checked)
    return chain_of_blocks(_links(blocks.shape, *even_norms(links)), dtype)


def _pair(ranks: Any) -> tuple[Any, ...]:
    """Returns ranks as a tuple; one int stands for both."""
    return tuple(ranks) if isinstance(ranks, Sequence) else (ranks, ranks)


def _tensor(blocks: np.ndarray) -> np.ndarray:
    return blocks.reshape(len(blocks), -1, *blocks.shape[-2:])  # (G, k, I, O)


def _links(shape: Shape, first: np.ndarray, core: np.ndarray, last: np.ndarray) -> Blocks:
    """Returns the links by groups of the factors (G, I, R), (G, k, R, S) and (G, S, O)."""
    groups, window, _, _, ones = split_shape(shape)
    return (
        first.reshape(groups, *ones, *first.shape[1:]),
        core.reshape(groups, *window, *core.shape[2:]),
        last.reshape(groups, *ones, *last.shape[1:]),
    )


def _matrices(blocks: np.ndarray) -> list[np.ndarray]:
    """Returns the unfoldings (G, n, ...) along the input channels and along the output channels."""
    tensor = _tensor(blocks)
    return [np.moveaxis(tensor, axis, 1).reshape(len(tensor), tensor.shape[axis], -1) for axis in (2, 3)]


def _shapes(shape: Shape, ranks: int | Sequence[int]) -> KernelChain:
    groups, window, in_features, out_features, ones = split_shape(shape)
    first, second = _pair(ranks)
    return KernelChain.of_shapes(
        ((*ones, in_features, groups * first), groups),
        ((*window, first, groups * second), groups),
        ((*ones, second, groups * out_features), groups),
    )


def _ranks(blocks: np.ndarray) -> RankTable:
    tensor = _tensor(blocks)
    full = full_ranks(tensor.shape)
    squares = start_errors(tensor, leading_bases(tensor))[: full[0], : full[1]]
    return np.indices(full).reshape(2, -1).T + 1, np.sqrt(squares.ravel())


def _cheapest_pair(blocks: np.ndarray, tolerance: float, costs: np.ndarray) -> Ranks:
    tensor = _tensor(blocks)
    _, core, _ = cheapest(tensor, leading_bases(tensor), tolerance, costs)
    return core.shape[2], core.shape[3]


def _most_exact_pair(blocks: np.ndarray, cost: float, costs: np.ndarray) -> Ranks:
    tensor = _tensor(blocks)
    _, core, _ = most_exact(tensor, leading_bases(tensor), cost, costs)
    return core.shape[2], core.shape[3]


def _start(samples: LayerSamples) -> Callable[[int | Sequence[int]], Blocks]:
    """Returns a function from ranks to links.

    The kernel is truncated in the metric of the inputs, and projected on the leading directions of the responses.
    """
    inputs, _ = _matrices(samples.kernel)  # (G, I, k O)
    groups, _, _, out_features, ones = split_shape(samples.kernel.shape)
    svd = samples.svd(samples.rows(ones), inputs)

    def links(ranks: int | Sequence[int]) -> Blocks:
        first_rank, last_rank = _pair(ranks)
        first, remainder = svd.truncate(first_rank)
        directions = samples.response_directions[..., :last_rank]
        core = np.swapaxes(remainder.reshape(groups, first_rank, -1, out_features), 1, 2) @ directions[:, None]
        return _links(samples.kernel.shape, first, core, np.swapaxes(directions, 1, 2))

    return links


SCHEME = Scheme(
    name="tucker2",
    function=tucker2,
    rank_option="ranks",
    shapes=_shapes,
    ranks=_ranks,
    several_ranks=True,
    matrices=_matrices,
    cheapest_pair=_cheapest_pair,
    most_exact_pair=_most_exact_pair,
    start=_start,
)
