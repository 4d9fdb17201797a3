"""`depthwise_separable`: a kernel as a depthwise one, then 1x1, by a decomposition of each input channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, grouped_kernel
from jaxcnn.factorization.numerics.ranks import chosen_tolerance
from jaxcnn.factorization.numerics.svd import truncate
from jaxcnn.factorization.numerics.windows import window_rows
from jaxcnn.factorization.schemes.scheme import Blocks, LayerSamples, Scheme, Shape, ranks_of_truncation, split_shape
from jaxcnn.layout import Layout


@ErrorPrefix("depthwise_separable")
def depthwise_separable(
    kernel: Any,
    *,
    multiplier: int | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    r"""Returns a kernel as a depthwise one, of M filters for each input channel, followed by 1x1 that mixes them.

    $K[w, i, o] \approx \sum_m D[w, i, m] P[i, m, o]$: for each input channel the best of rank M in the Frobenius norm
    (Eckart and Young), exact at the full multiplier $\min(k, O)$ for k taps. The chain takes fewer multiplications than
    the kernel where $M < k O / (k + O)$.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)` with one or more window axes, or as `layout` says.
      multiplier: Number of filters of each input channel, M. The full multiplier if neither multiplier nor tolerance is
        given.
      tolerance: Relative error allowed, norm(chain - kernel) / norm(kernel); the smallest multiplier that meets it is
        taken, the same for all channels.
      feature_group_count: Number of groups of the kernel.
      layout: Layout of `kernel`: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

    Returns:
      A `KernelChain` of the kernel's dtype, of `(*window, 1, C M)` in C groups, C the number of input channels of all
      groups together, and `(1, ..., 1, C M / feature_group_count, O)` in the kernel's groups; output channel c M + m of
      the first is filter m of channel c, and both share the norm of each filter evenly.

    Raises:
      ValueError: a multiplier or tolerance out of range; both multiplier and tolerance; NaN or infinity.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> shapes = jnp.array([[1.0, 2.0, 1.0], [1.0, 0.0, -1.0]]).T.reshape(3, 2, 1)     # a window of 3 for 2 channels
      >>> kernel = shapes * jnp.arange(1.0, 9.0).reshape(1, 2, 4)
      >>> chain = depthwise_separable(kernel, multiplier=1)
      >>> [link.shape for link in chain.kernels], chain.feature_group_counts
      ([(3, 1, 2), (1, 2, 4)], (2, 1))
      >>> float(chain.relative_error(kernel)) < 1e-6
      True

    References:
      Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications", 2017, for
      the layers. Guo, Li, Lin and Chen, "Network decoupling: from regular to depthwise separable convolutions", 2018,
      for the decomposition.
    """
    operation = "depthwise_separable"
    blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
    dtype = np.asarray(kernel).dtype
    error = chosen_tolerance(operation, "multiplier", multiplier, tolerance, 2, dtype)
    (matrices,) = _matrices(blocks)
    left, right = truncate(operation, "multiplier", matrices, multiplier, error)
    return chain_of_blocks(_links(blocks.shape, left, right), dtype)


def _matrices(blocks: np.ndarray) -> list[np.ndarray]:
    """Returns the matrix of each input channel, taps by outputs, as one stack."""
    groups, *_, in_features, out_features = blocks.shape
    return [np.moveaxis(blocks, -2, 1).reshape(groups * in_features, -1, out_features)]  # (C, k, O)


def _links(shape: Shape, left: np.ndarray, right: np.ndarray) -> Blocks:
    """Returns the links by groups of factors (C, k, M) and (C, M, O) of each input channel's matrix."""
    groups, window, in_features, out_features, ones = split_shape(shape)
    channels, _, multiplier = left.shape
    return (
        left.reshape(channels, *window, 1, multiplier),
        right.reshape(groups, *ones, in_features * multiplier, out_features),
    )


def _shapes(shape: Shape, multiplier: int) -> KernelChain:
    groups, window, in_features, out_features, ones = split_shape(shape)
    channels = groups * in_features
    return KernelChain.of_shapes(
        ((*window, 1, channels * multiplier), channels),
        ((*ones, in_features * multiplier, groups * out_features), groups),
    )


def _start(samples: LayerSamples) -> Callable[[int], Blocks]:
    """Returns a function from a multiplier to links: each input channel's matrix truncated in its patches' metric."""
    (matrices,) = _matrices(samples.kernel)
    _, window, *_ = split_shape(samples.kernel.shape)
    svd = samples.svd(window_rows(samples.patches, window, len(matrices)), matrices)
    return lambda multiplier: _links(samples.kernel.shape, *svd.truncate(multiplier))


SCHEME = Scheme(
    name="depthwise_separable",
    function=depthwise_separable,
    rank_option="multiplier",
    shapes=_shapes,
    ranks=ranks_of_truncation(_matrices),
    matrices=_matrices,
    start=_start,
)
