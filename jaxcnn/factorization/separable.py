"""`separable`: a kernel as a chain of one-dimensional ones, by truncated singular value decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization._singular import truncated
from jaxcnn.factorization.kernels import grouped_kernel, merged_link
from jaxcnn.factorization.ranks import chosen_tolerance
from jaxcnn.layout import Layout


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
    error = chosen_tolerance(operation, "rank", rank, tolerance)
    gaps = len(window) - 1
    ranks = (None,) * gaps if rank is None else tuple(rank) if isinstance(rank, Sequence) else (rank,) * gaps
    if len(ranks) != gaps:
        raise ValueError(f"{operation}: there are {gaps} gaps between {gaps + 1} links, got {len(ranks)} ranks")
    # The squared errors of the gaps add up at most.
    share = None if error is None else error / np.sqrt(gaps)
    dtype = np.asarray(kernel).dtype
    links = []
    rest, width = np.moveaxis(blocks, -2, 1), in_features  # (G, width, *window left, O)
    for axis, wanted in enumerate(ranks):
        size = window[axis]
        link, rest = truncated(operation, "rank", rest.reshape(groups, width * size, -1), wanted, share)
        count = link.shape[-1]
        link = link.reshape(groups, width, size, count)
        shape = [1] * len(window)
        shape[axis] = size
        links.append(merged_link(np.swapaxes(link, 1, 2).reshape(groups, *shape, width, count), dtype))
        width = count
    last = np.moveaxis(rest.reshape(groups, width, window[-1], out_features), 1, 2)
    links.append(merged_link(last.reshape(groups, *[1] * gaps, window[-1], width, out_features), dtype))
    return KernelChain(tuple(links), (groups,) * len(links))
