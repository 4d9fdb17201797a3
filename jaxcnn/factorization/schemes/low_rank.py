"""`low_rank`: a kernel to fewer channels, then 1x1, by truncated singular value decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import grouped_kernel, merged_link
from jaxcnn.factorization.numerics.ranks import chosen_tolerance
from jaxcnn.factorization.numerics.svd import truncated
from jaxcnn.layout import Layout


def low_rank(
    kernel: Any,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    r"""A kernel as one of its window from I to R channels, followed by 1x1 from R to O.

    $K[w] \approx A[w] B$, matrix products over channels: the best of rank R in the Frobenius norm (Eckart and Young),
    exact at full rank $\min(k I, O)$ for k taps. It takes fewer multiplications than the kernel where
    $R < k I O / (k I + O)$. It suits windows that no axis of which can be separated, and layers with more output
    channels than they need.

    Args:
      kernel: `(*window, I / feature_group_count, O)` with one or more window axes, or as `layout` says.
      rank: channels between the links, of each group. Full rank if neither rank nor tolerance is given.
      tolerance: relative error allowed, norm(chain - kernel) / norm(kernel); the smallest rank that meets it is taken.
      feature_group_count: number of groups of the kernel; each is decomposed by itself, all at the same rank.
      layout: how `kernel` is to be read: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

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
    groups, *window, in_features, out_features = blocks.shape
    error = chosen_tolerance(operation, "rank", rank, tolerance, 2, dtype)
    left, right = truncated(operation, "rank", blocks.reshape(groups, -1, out_features), rank, error)
    first = left.reshape(groups, *window, in_features, -1)
    last = right.reshape(groups, *[1] * len(window), -1, out_features)
    return KernelChain((merged_link(first, dtype), merged_link(last, dtype)), (groups, groups))
