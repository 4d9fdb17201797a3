"""`stack`: a large kernel as small ones in a row, by alternating least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, grouped_kernel
from jaxcnn.factorization.numerics.link_products import Links
from jaxcnn.factorization.numerics.ranks import check_rank, check_seed, chosen_tolerance
from jaxcnn.factorization.numerics.stack_als import EXACT_ERROR, fit_links
from jaxcnn.factorization.schemes.scheme import RankTable, Scheme, Shape, all_up_to, split_shape
from jaxcnn.geometry import axis_values
from jaxcnn.layout import Layout
from jaxcnn.options import frozen


@ErrorPrefix("stack")
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
    r"""Returns a kernel as several smaller ones in a row, such as 5x5 as 3x3 after 3x3.

    $K[w] \approx \sum_{u+v=w} A[u] B[v]$, matrix products over channels. Two 3x3 kernels of C channels take
    18 C^2 multiplications a pixel where a 5x5 takes 25 C^2, three take 27 C^2 where a 7x7 takes 49 C^2. The links are
    fitted by alternating least squares from several starts, and the best is returned: a local minimum, not always the
    global one.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)`, or as `layout` says.
      windows: Window of each link, first applied first; on each axis the sizes less one must add up to the kernel's
        size less one.
      features: Number of channels between neighbouring links, of each group: one int for all gaps between links, or one
        int for each gap. If neither features nor tolerance is given, the smaller of the kernel's input and output
        channels. The best fit of a wider chain is never worse, but the search may miss this fit.
      tolerance: Relative error allowed, norm(chain - kernel) / norm(kernel). The width is the smallest one whose fit
        meets the error, the same in all gaps.
      feature_group_count: Number of groups of the kernel; each is fitted by itself, all at the same width.
      layout: Layout of `kernel`: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.
      seed: Seed for the starts; the same seed gives the same chain.

    Returns:
      A `KernelChain` of the kernel's dtype and groups.

    Raises:
      ValueError: windows that do not make up the kernel's; a width below 1, or above the one that holds every kernel;
        both features and tolerance; a tolerance out of range, or that no width meets; NaN or infinity.
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
    seed = check_seed(seed)
    blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
    dtype = np.asarray(kernel).dtype
    if np.iscomplexobj(blocks):
        raise TypeError(f"{operation}: kernel must be of real floats, got dtype {dtype}")
    *window, in_features, out_features = blocks.shape[1:]
    sizes = tuple(axis_values("windows", size, len(window)) for size in frozen(tuple(windows)))
    if len(sizes) < 2:
        raise ValueError(f"{operation}: there must be at least two windows, got {windows!r}")
    composed = [sum(axis) - len(axis) + 1 for axis in zip(*sizes, strict=True)]
    if composed != list(window):
        raise ValueError(
            f"{operation}: windows {sizes} in a row make a window {tuple(composed)}, but the kernel has {tuple(window)}"
        )
    gaps = len(sizes) - 1
    error = chosen_tolerance(operation, "features", features, tolerance, len(sizes), dtype)
    if error is not None:
        fits = _narrowest_within(blocks, sizes, error, seed)
    else:
        if features is None:
            features = min(in_features, out_features)
        widths = tuple(features) if isinstance(features, Sequence) else (features,) * gaps
        if len(widths) != gaps:
            raise ValueError(f"{operation}: there are {gaps} gaps between {gaps + 1} links, got {len(widths)} features")
        widest = _largest_width(blocks.shape, sizes)
        for width in widths:
            if check_rank(operation, "features", width, None) > widest:
                raise ValueError(f"{operation}: features must be at most {widest}, which holds the kernel, got {width}")
        fits, _ = _fitted_links(blocks, sizes, widths, seed)
    return chain_of_blocks(map(np.stack, zip(*fits, strict=True)), dtype)


def _fitted_links(
    blocks: np.ndarray,
    windows: tuple[Shape, ...],
    widths: tuple[int, ...],
    seed: int,
    initial: list[Links] | None = None,
) -> tuple[list[Links], float]:
    """Returns the links of each group at given widths, and the relative error of all groups together.

    Args:
      blocks: Kernel of each group, (G, *window, I, O).
      windows: Window of each link.
      widths: Width of each gap.
      seed: Seed for the starts.
      initial: Links of each group at smaller widths, from which the search starts too.
    """
    fits = [
        fit_links(block, windows, widths, seed=seed, initial=None if initial is None else initial[group])
        for group, block in enumerate(blocks)
    ]
    norms = [float(np.linalg.norm(block)) for block in blocks]
    error = math.hypot(*(error * norm for (_, error), norm in zip(fits, norms, strict=True)))
    return [links for links, _ in fits], error / (math.hypot(*norms) or 1.0)


def _narrowest_within(blocks: np.ndarray, windows: tuple[Shape, ...], tolerance: float, seed: int) -> list[Links]:
    """Returns the links of the smallest width whose fit meets the tolerance, by doubling and then bisection."""
    gaps, largest = len(windows) - 1, _largest_width(blocks.shape, windows)
    low, high, below = 0, 1, None
    # A wider fit also starts from the narrower one, so that it is never worse.
    links, error = _fitted_links(blocks, windows, (high,) * gaps, seed)
    while error > tolerance:
        if high == largest and error <= EXACT_ERROR:
            break  # full width is exact but for rounding
        if high == largest:
            raise ValueError(
                f"stack: no width up to {largest} meets tolerance {tolerance}: the best relative error is {error:.3g}"
            )
        low, high, below = high, min(2 * high, largest), links
        links, error = _fitted_links(blocks, windows, (high,) * gaps, seed, links)
    while high - low > 1:
        middle = (low + high) // 2
        candidate, error = _fitted_links(blocks, windows, (middle,) * gaps, seed, below)
        if error <= tolerance:
            links, high = candidate, middle
        else:
            low, below = middle, candidate
    return links


def _largest_width(shape: Shape, windows: Sequence[Shape]) -> int:
    """Returns the largest width worth a search, of a kernel by groups (G, *window, I, O).

    Two links are exact at a width of one channel for each tap and input of the first, or each tap and output of the
    last.
    """
    *_, in_features, out_features = shape
    return max(
        math.prod(map(math.prod, windows[:-1])) * in_features, math.prod(map(math.prod, windows[1:])) * out_features
    )


def _windows(window: Shape) -> tuple[Shape, ...]:
    """Returns 3x3 windows in a row that make up a window; the size is 1 on the axes that are complete."""
    return tuple(tuple(3 if 2 * link + 1 < size else 1 for size in window) for link in range(max(window) // 2))


def _refusal(shape: Shape) -> str | None:
    window = shape[1:-2]
    if max(window) < 5 or any(size % 2 == 0 for size in window):
        return f"it needs a window of odd sizes, one of them 5 or more, and the kernel's is {window}"
    return None


def _shapes(shape: Shape, width: int) -> KernelChain:
    groups, window, in_features, out_features, _ = split_shape(shape)
    windows = _windows(window)
    widths = (in_features, *(width,) * (len(windows) - 1), out_features)
    return KernelChain.of_shapes(
        *(((*size, a, groups * b), groups) for size, a, b in zip(windows, widths, widths[1:], strict=False))
    )


def _ranks(blocks: np.ndarray) -> RankTable:
    """Returns the widths from 1 to the number of the kernel's taps and inputs, without errors.

    At the largest width two links can hold all weights of the kernel. Useful widths are far smaller.
    """
    return all_up_to(math.prod(blocks.shape[1:-1])), None


SCHEME = Scheme(
    name="stack",
    function=stack,
    rank_option="features",
    shapes=_shapes,
    ranks=_ranks,
    refusal=_refusal,
    is_search=True,
    options=lambda shape: {"windows": _windows(shape[1:-2])},
)
