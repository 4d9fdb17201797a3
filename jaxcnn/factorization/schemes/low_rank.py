"""`low_rank`: a kernel to fewer channels, then 1x1, by truncated singular value decomposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, grouped_kernel
from jaxcnn.factorization.numerics.ranks import chosen_tolerance
from jaxcnn.factorization.numerics.svd import truncate
from jaxcnn.factorization.schemes.scheme import Blocks, LayerSamples, Scheme, Shape, ranks_of_truncation, split_shape
from jaxcnn.layout import Layout


@ErrorPrefix("low_rank")
def low_rank(
    kernel: Any,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    r"""Returns a kernel as one of its window from I to R channels, followed by 1x1 from R to O.

    $K[w] \approx A[w] B$, matrix products over channels: the best of rank R in the Frobenius norm (Eckart and Young),
    exact at full rank $\min(k I, O)$ for k taps. It takes fewer multiplications than the kernel where
    $R < k I O / (k I + O)$. It suits windows of which no axis can be separated, and layers with more output channels
    than they need.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)` with one or more window axes, or as `layout` says.
      rank: Number of channels between the links, of each group. Full rank if neither rank nor tolerance is given.
      tolerance: Relative error allowed, norm(chain - kernel) / norm(kernel); the smallest rank that meets it is taken.
      feature_group_count: Number of groups of the kernel; each is decomposed by itself, all at the same rank.
      layout: Layout of `kernel`: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

    Returns:
      A `KernelChain` of the kernel's dtype and groups, of `(*window, I, R)` and `(1, ..., 1, R, O)` in each group,
      whose links share the norm evenly.

    Raises:
      ValueError: a rank or tolerance out of range; both rank and tolerance; NaN or infinity.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> shape = jnp.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).reshape(3, 3, 1, 1)
      >>> kernel = shape * jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4)          # one shape, four strengths
      >>> chain = low_rank(kernel, rank=1)
      >>> [link.shape for link in chain.kernels], float(chain.relative_error(kernel)) < 1e-6
      ([(3, 3, 1, 1), (1, 1, 1, 4)], True)

    References:
      Zhang, Zou, He and Sun, "Accelerating very deep convolutional networks for classification and detection", 2015,
      there for the responses. Denton et al., "Exploiting linear structure within convolutional networks", 2014.
    """
    operation = "low_rank"
    blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
    dtype = np.asarray(kernel).dtype
    _, window, in_features, _, ones = split_shape(blocks.shape)
    error = chosen_tolerance(operation, "rank", rank, tolerance, 2, dtype)
    (matrices,) = _matrices(blocks)
    left, right = truncate(operation, "rank", matrices, rank, error)
    first = left.reshape(-1, *window, in_features, left.shape[-1])
    last = right.reshape(-1, *ones, *right.shape[1:])
    return chain_of_blocks((first, last), dtype)


def _matrices(blocks: np.ndarray) -> list[np.ndarray]:
    """Returns the matrix of each group, taps and inputs by outputs, as one stack."""
    return [blocks.reshape(len(blocks), -1, blocks.shape[-1])]  # (G, k I, O)


def _shapes(shape: Shape, rank: int) -> KernelChain:
    groups, window, in_features, out_features, ones = split_shape(shape)
    return KernelChain.of_shapes(
        ((*window, in_features, groups * rank), groups), ((*ones, rank, groups * out_features), groups)
    )


def _start(samples: LayerSamples) -> Callable[[int], Blocks]:
    """Returns a function from a rank to links: the kernel projected on the leading directions of the responses."""
    groups, _, _, out_features, ones = split_shape(samples.kernel.shape)
    (matrices,) = _matrices(samples.kernel)

    def links(rank: int) -> Blocks:
        directions = samples.response_directions[..., :rank]  # (G, O, R)
        first = (matrices @ directions).reshape(*samples.kernel.shape[:-1], rank)
        return first, np.swapaxes(directions, 1, 2).reshape(groups, *ones, rank, out_features)

    return links


SCHEME = Scheme(
    name="low_rank",
    function=low_rank,
    rank_option="rank",
    shapes=_shapes,
    ranks=ranks_of_truncation(_matrices),
    matrices=_matrices,
    is_sliceable=lambda shape: True,
    start=_start,
)
