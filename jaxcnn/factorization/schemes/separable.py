"""`separable`: a kernel as a chain of one-dimensional ones, by truncated singular value decomposition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import grouped_kernel, merged_link
from jaxcnn.factorization.numerics.ranks import chosen_tolerance
from jaxcnn.factorization.numerics.svd import projected
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
      ValueError: fewer than two window axes; a rank or tolerance out of range; both rank and tolerance; NaN or
        infinity.
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
    dtype = np.asarray(kernel).dtype
    gaps = len(window) - 1
    error = chosen_tolerance(operation, "rank", rank, tolerance, gaps + 1, dtype)
    ranks = (None,) * gaps if rank is None else tuple(rank) if isinstance(rank, Sequence) else (rank,) * gaps
    if len(ranks) != gaps:
        raise ValueError(f"{operation}: there are {gaps} gaps between {gaps + 1} links, got {len(ranks)} ranks")
    total = float(np.linalg.norm(blocks))
    links = []
    rest, width = np.moveaxis(blocks, -2, 1), in_features  # (G, width, *window left, O)
    for axis, wanted in enumerate(ranks):
        size = window[axis]
        share = None
        if error is not None:
            # The squared errors of the gaps add up: each may take its share of what those before have left.
            norm = float(np.linalg.norm(rest))
            left = (error * total) ** 2 - (total**2 - norm**2)
            share = math.sqrt(max(left, 0.0) / (gaps - axis)) / (norm or 1.0)
        # The bases stay orthonormal, so that what is left out of the rest is left out of the kernel.
        link, rest = projected(operation, "rank", rest.reshape(groups, width * size, -1), wanted, share)
        links.append(_along(axis, np.swapaxes(link.reshape(groups, width, size, -1), 1, 2), len(window)))
        width = link.shape[-1]
    last = np.moveaxis(rest.reshape(groups, width, window[-1], out_features), 1, 2)
    links.append(_along(gaps, last, len(window)))
    return KernelChain(tuple(merged_link(link, dtype) for link in _evened(links)), (groups,) * len(links))


def _along(axis: int, link: np.ndarray, axes: int) -> np.ndarray:
    """(G, size, I, O) with its window along one of several axes."""
    groups, size, *features = link.shape
    return link.reshape(groups, *(size if axis == other else 1 for other in range(axes)), *features)


def _evened(links: list[np.ndarray]) -> list[np.ndarray]:
    """The same product, the norm of each channel between two links shared evenly, and the whole norm by all links."""
    links = list(links)
    for gap in range(len(links) - 2, -1, -1):
        first, second = links[gap], links[gap + 1]
        given = np.linalg.norm(first.reshape(len(first), -1, first.shape[-1]), axis=1)  # (G, R)
        taken = np.linalg.norm(np.moveaxis(second, -2, 1).reshape(len(second), second.shape[-2], -1), axis=2)
        used = (given > 0) & (taken > 0)
        scale = np.sqrt(np.where(used, taken, 1.0) / np.where(used, given, 1.0))
        scale = scale.reshape(len(scale), *[1] * (first.ndim - 2), -1)  # (G, 1, ..., 1, R)
        links[gap], links[gap + 1] = first * scale, second / np.swapaxes(scale, -1, -2)
    norms = [float(np.linalg.norm(link)) for link in links]
    if 0.0 in norms:
        return links
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [link * (mean / norm) for link, norm in zip(links, norms, strict=True)]
