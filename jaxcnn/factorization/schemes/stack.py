"""`stack`: a large kernel as small ones in a row, by alternating least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.blocks import grouped_kernel, merged_link
from jaxcnn.factorization.numerics.ranks import check_rank, check_tolerance, without_rounding
from jaxcnn.factorization.numerics.stack_als import EXACT, fit_links
from jaxcnn.geometry import axis_values
from jaxcnn.layout import Layout
from jaxcnn.options import frozen


def stack(
    kernel: Any,
    *,
    windows: Sequence[Any] = ((3, 3), (3, 3)),
    features: int | Sequence[int] | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
    seed: int = 0,
) -> KernelChain:
    r"""A kernel as several smaller ones in a row, such as 5x5 as 3x3 after 3x3.

    $K[w] \approx \sum_{u+v=w} A[u] B[v]$, matrix products over channels. Two 3x3 kernels of C channels take
    18 C^2 multiplications a pixel where a 5x5 takes 25 C^2, three take 27 C^2 where a 7x7 takes 49 C^2. The links are
    fitted by alternating least squares from several starts, and the best is returned: a local minimum, not always the
    global one.

    Args:
      kernel: `(*window, I / feature_group_count, O)`, or as `layout` says.
      windows: window of each link, first applied first; on each axis the sizes less one must add up to the kernel's
        size less one.
      features: channels between the links, of each group; one int for all gaps or one for each gap. The smaller of
        the kernel's input and output channels if neither features nor tolerance is given. Wider is never worse.
      tolerance: relative error allowed, norm(chain - kernel) / norm(kernel); the smallest width found that meets it is
        taken, the same in all gaps.
      feature_group_count: number of groups of the kernel; each is fitted by itself, all at the same width.
      layout: how `kernel` is to be read: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.
      seed: of the starts; the same seed gives the same chain.

    Returns:
      A `KernelChain` of the kernel's dtype and groups.

    Raises:
      ValueError: windows that do not make up the kernel's; a width below 1; both features and tolerance; a tolerance
        out of range, or that no width meets; NaN or infinity.
      TypeError: a kernel of integers or complex numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> small = jnp.array([1.0, 2.0, 1.0]).reshape(3, 1, 1, 1) * jnp.array([1.0, 2.0, 1.0]).reshape(1, 3, 1, 1)
      >>> from jaxcnn import compose
      >>> chain = stack(compose(small, small))      # a 5x5 that is two 3x3
      >>> [link.shape for link in chain.kernels], float(chain.relative_error(compose(small, small))) < 1e-4
      ([(3, 3, 1, 1), (3, 3, 1, 1)], True)

    References:
      Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015; Szegedy et
      al., "Rethinking the Inception architecture for computer vision", 2016.
    """
    operation = "stack"
    blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
    if np.iscomplexobj(blocks):
        raise TypeError(f"{operation}: kernel must be of real floats, got dtype {np.asarray(kernel).dtype}")
    *window, in_features, out_features = blocks.shape[1:]
    rank = len(window)
    with ErrorPrefix(operation):
        sizes = [axis_values("windows", size, rank) for size in frozen(tuple(windows))]
    if len(sizes) < 2:
        raise ValueError(f"{operation}: there must be at least two windows, got {windows!r}")
    made = [sum(axis) - len(axis) + 1 for axis in zip(*sizes, strict=True)]
    if made != list(window):
        raise ValueError(
            f"{operation}: windows {tuple(sizes)} in a row make a window {tuple(made)}, "
            f"but the kernel has {tuple(window)}"
        )
    if features is not None and tolerance is not None:
        raise ValueError(f"{operation}: give features or tolerance, not both, got {features!r} and {tolerance!r}")
    gaps = len(sizes) - 1

    def fit(widths: tuple[int, ...], narrower: Any = None) -> tuple[KernelChain, float, list[Any]]:
        given = narrower or [None] * len(blocks)
        fits = [
            fit_links(block, tuple(sizes), widths, seed=seed, initial=initial)
            for block, initial in zip(blocks, given, strict=True)
        ]
        norms = [np.linalg.norm(block) for block in blocks]
        error = math.hypot(*(error * norm for (_, error), norm in zip(fits, norms, strict=True)))
        links = (np.stack(group_links) for group_links in zip(*(links for links, _ in fits), strict=True))
        dtype = np.asarray(kernel).dtype
        chain = KernelChain(tuple(merged_link(link, dtype) for link in links), (len(blocks),) * len(sizes))
        return chain, error / (float(np.linalg.norm(norms)) or 1.0), [links for links, _ in fits]

    if tolerance is not None:
        wanted = without_rounding(check_tolerance(operation, tolerance), len(sizes), np.asarray(kernel).dtype)
        return _narrowest(fit, wanted, sizes, in_features, out_features)
    if features is None:
        features = min(in_features, out_features)
    widths = tuple(features) if isinstance(features, Sequence) else (features,) * gaps
    if len(widths) != gaps:
        raise ValueError(f"{operation}: there are {gaps} gaps between {gaps + 1} links, got {len(widths)} features")
    for width in widths:
        check_rank(operation, "features", width, None)
    return fit(widths)[0]


def _narrowest(fit: Any, tolerance: float, sizes: Sequence[Any], in_features: int, out_features: int) -> KernelChain:
    """The smallest width whose fit meets the tolerance, by doubling and then halving the bracket."""
    # With a channel for each tap and input of the first link, or each tap and output of the last, two links are exact.
    largest = max(
        math.prod(map(math.prod, sizes[:-1])) * in_features, math.prod(map(math.prod, sizes[1:])) * out_features
    )
    low, high, below = 0, 1, None
    gaps = len(sizes) - 1
    # A wider fit also starts from the narrower one, so that it is never worse.
    chain, error, narrower = fit((high,) * gaps)
    while error > tolerance:
        if high == largest and error <= EXACT:
            break  # of full width, which is exact but for rounding
        if high == largest:
            raise ValueError(
                f"stack: no width up to {largest} meets tolerance {tolerance}: the best relative error is {error:.3g}"
            )
        low, high, below = high, min(2 * high, largest), narrower
        chain, error, narrower = fit((high,) * gaps, narrower)
    while high - low > 1:
        middle = (low + high) // 2
        candidate, error, links = fit((middle,) * gaps, below)
        if error <= tolerance:
            chain, high = candidate, middle
        else:
            low, below = middle, links
    return chain
