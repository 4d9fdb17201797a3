"""`separable`: a kernel as a chain of one-dimensional ones, by truncated singular value decomposition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, grouped_kernel
from jaxcnn.factorization.numerics.metric_svd import MetricSvd
from jaxcnn.factorization.numerics.ranks import chosen_tolerance
from jaxcnn.factorization.numerics.svd import project
from jaxcnn.factorization.numerics.windows import merged_groups, rest_of, window_rows
from jaxcnn.factorization.schemes.scheme import (
    Blocks,
    LayerSamples,
    RankTable,
    Scheme,
    Shape,
    ranks_of_truncation,
    split_shape,
    window_along,
)
from jaxcnn.layout import Layout


@ErrorPrefix("separable")
def separable(
    kernel: Any,
    *,
    rank: int | Sequence[int] | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    r"""Returns a kernel as a vertical one, (kh, 1) from I to R channels, followed by a horizontal one, (1, kw) to O.

    $K[a, b] \approx V[a] H[b]$, matrix products over channels: the best of rank R in the Frobenius norm (Eckart and
    Young), exact at full rank $\min(k_h I, k_w O)$. The chain takes fewer multiplications than the kernel where
    $R < I O k_h k_w / (I k_h + O k_w)$. A kernel of more window axes becomes one link for each, axis after axis.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)` with two or more window axes, or as `layout` says.
      rank: Number of channels between the links, of each group; a tuple with one for each gap if there are more than
        two window axes. Full rank if neither rank nor tolerance is given.
      tolerance: Relative error allowed, norm(chain - kernel) / norm(kernel); the smallest rank that meets it is taken.
      feature_group_count: Number of groups of the kernel; each is decomposed by itself, all at the same rank.
      layout: Layout of `kernel`: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

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
    SCHEME.require(operation, blocks.shape)
    groups, window, in_features, out_features, _ = split_shape(blocks.shape)
    dtype = np.asarray(kernel).dtype
    gaps = len(window) - 1
    error = chosen_tolerance(operation, "rank", rank, tolerance, gaps + 1, dtype)
    ranks = (None,) * gaps if rank is None else _rank_of_each_gap(rank, gaps)
    if len(ranks) != gaps:
        raise ValueError(f"{operation}: there are {gaps} gaps between {gaps + 1} links, got {len(ranks)} ranks")
    total = float(np.linalg.norm(blocks))
    links = []
    remainder, width = np.moveaxis(blocks, -2, 1), in_features  # (G, width, *window of the links to come, O)
    for axis, gap_rank in enumerate(ranks):
        size = window[axis]
        share = None
        if error is not None:
            # The squared errors of the gaps add up. Each gap may take an equal share of the squared error that remains.
            norm = float(np.linalg.norm(remainder))
            allowed = (error * total) ** 2 - (total**2 - norm**2)
            share = math.sqrt(max(allowed, 0.0) / (gaps - axis)) / (norm or 1.0)
        # The bases are orthonormal, so an error of the rest is an equally large error of the kernel.
        link, remainder = project(operation, "rank", remainder.reshape(groups, width * size, -1), gap_rank, share)
        links.append(_along(axis, np.swapaxes(link.reshape(groups, width, size, -1), 1, 2), len(window)))
        width = link.shape[-1]
    last = np.moveaxis(remainder.reshape(groups, width, window[-1], out_features), 1, 2)
    links.append(_along(gaps, last, len(window)))
    return chain_of_blocks(_even_links(links), dtype)


def _rank_of_each_gap(rank: int | Sequence[int], gaps: int) -> tuple[int, ...]:
    """Returns one rank for each gap; an int stands for all gaps."""
    return tuple(rank) if isinstance(rank, Sequence) else (rank,) * gaps


def _along(axis: int, link: np.ndarray, axes: int) -> np.ndarray:
    """Returns a link (G, size, I, O) as (G, *window, I, O) whose window has its extent along one of several axes."""
    groups, size, *features = link.shape
    return link.reshape(groups, *window_along(axis, size, axes), *features)


def _even_links(links: list[np.ndarray]) -> list[np.ndarray]:
    """Returns links of the same product and of one norm.

    Gap after gap, from the last to the first, each channel is scaled so that its norms before and after the gap are
    equal. Then all links are scaled to one norm.
    """
    links = list(links)
    for gap in range(len(links) - 2, -1, -1):
        first, second = links[gap], links[gap + 1]
        norms_before = np.linalg.norm(first.reshape(len(first), -1, first.shape[-1]), axis=1)  # (G, R)
        norms_after = np.linalg.norm(np.moveaxis(second, -2, 1).reshape(len(second), second.shape[-2], -1), axis=2)
        is_used = (norms_before > 0) & (norms_after > 0)
        scale = np.sqrt(np.where(is_used, norms_after, 1.0) / np.where(is_used, norms_before, 1.0))
        scale = scale.reshape(len(scale), *[1] * (first.ndim - 2), -1)  # (G, 1, ..., 1, R)
        links[gap], links[gap + 1] = first * scale, second / np.swapaxes(scale, -1, -2)
    norms = [float(np.linalg.norm(link)) for link in links]
    if 0.0 in norms:
        return links
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [link * (mean / norm) for link, norm in zip(links, norms, strict=True)]


def _refusal(shape: Shape) -> str | None:
    window = shape[1:-2]
    return None if len(window) > 1 else f"it needs two or more window axes, and the kernel's window is {window}"


def _matrices(blocks: np.ndarray) -> list[np.ndarray]:
    """Returns the matrices (G, m, n) of the cut at each gap: the rows are what lies before the gap, with the inputs."""
    inputs_first = np.moveaxis(blocks, -2, 1)  # (G, I, *window, O)
    sizes = np.cumprod(inputs_first.shape[1:-2])[1:]
    return [inputs_first.reshape(len(blocks), size, -1) for size in sizes]


def _shapes(shape: Shape, rank: int | Sequence[int]) -> KernelChain:
    groups, window, in_features, out_features, _ = split_shape(shape)
    widths = (in_features, *_rank_of_each_gap(rank, len(window) - 1), out_features)
    return KernelChain.of_shapes(
        *(
            ((*window_along(axis, size, len(window)), widths[axis], groups * widths[axis + 1]), groups)
            for axis, size in enumerate(window)
        )
    )


def _ranks(blocks: np.ndarray) -> RankTable:
    _, window, in_features, out_features, _ = split_shape(blocks.shape)
    if len(window) == 2:
        return ranks_of_truncation(_matrices)(blocks)

    def ranks_up_to(rank: int) -> tuple[int, ...]:
        """Returns the rank of each gap: the given one, or the gap's full rank where that is smaller."""
        ranks, width = [], in_features
        for axis in range(len(window) - 1):
            width = min(rank, width * window[axis], math.prod(window[axis + 1 :]) * out_features)
            ranks.append(width)
        return tuple(ranks)

    ranks = [ranks_up_to(1)]
    while (wider := ranks_up_to(max(ranks[-1]) + 1)) != ranks[-1]:
        ranks.append(wider)
    return np.array(ranks), None


def _start(samples: LayerSamples) -> Callable[[int | Sequence[int]], Blocks]:
    """Returns a function from a rank to the links of a truncation gap after gap.

    The metric of each truncation is that of the sampled inputs of the link before the gap.
    """
    groups, window, in_features, out_features, _ = split_shape(samples.kernel.shape)
    gaps = len(window) - 1

    def decomposition(remainder: np.ndarray, rows: np.ndarray) -> MetricSvd:
        """Returns the decomposition at the first gap of (G, width, *window, O), for inputs of the link before it."""
        height = remainder.shape[1] * remainder.shape[2]
        return samples.svd(rows, np.swapaxes(remainder, 1, 2).reshape(groups, height, -1))

    def windows(axis: int) -> Shape:
        return window_along(axis, window[axis], len(window))

    kernel = np.moveaxis(samples.kernel, -2, 1)  # (G, I, *window, O)
    first_rows = samples.rows(windows(0))
    first_svd = decomposition(kernel, first_rows)

    def links(rank: int | Sequence[int]) -> Blocks:
        blocks: list[np.ndarray] = []
        rest, rows, places, width = kernel, first_rows, samples.patches.shape[:-1], in_features
        for axis, gap_rank in enumerate(_rank_of_each_gap(rank, gaps)):
            size = window[axis]
            svd = decomposition(rest, rows) if axis else first_svd
            first, remainder = svd.truncate(gap_rank)
            blocks.append(_along(axis, first.reshape(groups, size, width, gap_rank), len(window)))
            rest = remainder.reshape(groups, gap_rank, *window[axis + 1 :], out_features)
            if axis + 1 < gaps:
                places = (*rest_of(places[:-1], windows(axis)), places[-1])
                x = merged_groups(rows @ first.astype(np.float32)).reshape(*places, -1)
                rows = window_rows(x, windows(axis + 1), groups)
            width = gap_rank
        blocks.append(_along(gaps, np.swapaxes(rest, 1, 2), len(window)))
        return blocks

    return links


SCHEME = Scheme(
    name="separable",
    function=separable,
    rank_option="rank",
    shapes=_shapes,
    ranks=_ranks,
    refusal=_refusal,
    several_ranks=True,
    matrices=_matrices,
    is_sliceable=lambda shape: len(shape[1:-2]) == 2,
    start=_start,
)
