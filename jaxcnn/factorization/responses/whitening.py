"""Values that flow through a chain on sampled patches, and the coordinates in which its links are fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.factorization.numerics.metric_svd import regularize

_MAX_METRIC_INPUTS = 2048
"""Inputs of a link, taps times channels, up to which one metric holds for all of them.

Beyond, the taps share the metric of the channels, because a Cholesky factor of all inputs would take too long."""

MAX_METRIC_SAMPLES = 3000
"""Samples from which metrics are taken; more would not change the steps."""

Metric = tuple[np.ndarray, np.ndarray]
"""Matrices (G, m, m) and (G, n, n), left and right of a link's inner coordinates."""


def features(kernels: Sequence[Any], counts: Sequence[int], patches: Any) -> Any:
    """Returns the results (*rest, N, F) of convolutions without padding in a row, of patches (*window, N, I)."""
    x = patches
    for kernel, groups in zip(kernels, counts, strict=True):
        window = kernel.shape[:-2]
        if x.shape[:-2] == window and math.prod(window) > 1:
            x = _whole_window(x, kernel, groups)
        else:
            # One product for each tap, of all places together, is few products of many rows.
            x = sum(_product(inputs, kernel[tap], groups) for tap, inputs in _taps(x, window))
    return x


def _whole_window(x: Any, kernel: Any, groups: int) -> Any:
    """Returns `features` for a kernel as large as its input, by a loop over taps, which compiles and runs faster."""

    def add(total: Any, tap: Any) -> tuple[Any, None]:
        inputs, matrix = tap
        return total + _product(inputs, matrix, groups), None

    window, rows = x.shape[:-2], x.shape[-2:]
    start = jnp.zeros((rows[0], kernel.shape[-1]), jnp.result_type(x, kernel))
    taps = x.reshape(-1, *rows), kernel.reshape(-1, *kernel.shape[-2:])
    return lax.scan(add, start, taps)[0].reshape(*[1] * len(window), *start.shape)


def _taps(x: Any, window: Sequence[int]) -> list[tuple[tuple[int, ...], Any]]:
    """Returns the taps of a window, each with its inputs (*rest, N, I) in (*window, N, I)."""
    rest = [full - extent + 1 for full, extent in zip(x.shape[:-2], window, strict=True)]
    return [
        (tap, x[tuple(slice(t, t + size) for t, size in zip(tap, rest, strict=True))]) for tap in np.ndindex(*window)
    ]


def _product(x: Any, matrix: Any, groups: int) -> Any:
    """Returns (..., I) times (I / groups, O), group by group."""
    if groups == 1:
        return x @ matrix
    split, blocks = x.reshape(*x.shape[:-1], groups, -1), matrix.reshape(len(matrix), groups, -1)
    return jnp.einsum("...gi,igo->...go", split, blocks).reshape(*x.shape[:-1], -1)


def window_rows(x: Any, window: Sequence[int], groups: int) -> Any:
    """Returns the inputs of a window at all places of (*window, N, I) as rows (G, n, taps * I / groups)."""
    rows = jnp.stack([inputs.reshape(-1, groups, x.shape[-1] // groups) for _, inputs in _taps(x, window)], axis=2)
    return jnp.moveaxis(rows, 1, 0).reshape(groups, rows.shape[0], -1)


@partial(jax.jit, static_argnames=("counts",))
def _grams(kernels: Any, counts: tuple[int, ...], patches: Any) -> list[Any]:
    """Returns second moments of each link's inputs: (G, taps I, taps I), or (G, I, I) for all taps of a large link."""
    moments, x = [], patches
    for kernel, groups in zip(kernels, counts, strict=True):
        window, size = kernel.shape[:-2], kernel.shape[-2]
        if math.prod(window) * size > _MAX_METRIC_INPUTS:
            window = (1,) * len(window)
        rows = window_rows(x, window, groups)
        moments.append(rows.swapaxes(1, 2) @ rows / rows.shape[1])
        x = features([kernel], [groups], x)
    return moments


def link_metrics(kernels: Sequence[Any], counts: tuple[int, ...], patches: Any, ridge: float) -> list[Metric]:
    """Returns matrices `left` and `right` for each link, to write it as `left @ inner @ right`.

    The second derivative of the squared error by a link is nearly a Kronecker product: second moments of its inputs
    times those of its outputs' effect on the responses. The second derivative by `inner` is near the identity.
    """
    grams = _grams(kernels, counts, patches[..., :: max(1, patches.shape[-2] // MAX_METRIC_SAMPLES), :])
    wide = [np.asarray(kernel, np.float64) for kernel in kernels]
    lefts = (_inverse_root(np.asarray(gram, np.float64), ridge) for gram in grams)
    rights = (_inverse_root(_downstream(wide, counts, index), ridge).swapaxes(1, 2) for index in range(len(wide)))
    return list(zip(lefts, rights, strict=True))


def _downstream(kernels: Sequence[np.ndarray], counts: Sequence[int], index: int) -> np.ndarray:
    """Returns second moments (G, O, O) of each output channel's effect on the responses, summed over later taps.

    Paths to the same tap of the dense kernel are not added up, but count as different taps.
    """
    groups, width = counts[index], kernels[index].shape[-1]
    if groups > 1 and all(count == groups for count in counts[index:]):
        # Group by group, because one matrix of all channels takes long.
        moments = np.eye(kernels[-1].shape[-1] // groups)[None]
        for kernel in kernels[:index:-1]:
            back = kernel.reshape(-1, kernel.shape[-2], groups, kernel.shape[-1] // groups).swapaxes(1, 2)
            moments = (back @ moments @ back.swapaxes(2, 3)).sum(0)
        return np.broadcast_to(moments, (groups, *moments.shape[1:]))
    moments = np.eye(kernels[-1].shape[-1])
    for kernel, count in zip(kernels[:index:-1], counts[:index:-1], strict=True):
        taps = kernel.reshape(-1, *kernel.shape[-2:])
        size, out = taps.shape[1], taps.shape[2] // count
        back = np.zeros((len(taps), count * size, count * out))
        for group in range(count):
            back[:, group * size :][:, :size, group * out :][..., :out] = taps[..., group * out :][..., :out]
        moments = (back @ moments @ back.swapaxes(1, 2)).sum(0)
    size = width // groups
    return np.stack([moments[start : start + size, start : start + size] for start in range(0, width, size)])


def _inverse_root(gram: np.ndarray, ridge: float) -> np.ndarray:
    """Returns the inverse transpose of the Cholesky factor of each Gram matrix (G, n, n), regularized by a ridge."""
    return np.swapaxes(np.linalg.inv(np.linalg.cholesky(regularize(gram, ridge))), 1, 2)


def from_inner(inner: Any, left: Any, right: Any) -> Any:
    """Returns a link from its inner coordinates: left @ inner @ right, group by group."""
    groups, rows, columns = left.shape[0], left.shape[1], right.shape[1]
    blocks = inner.reshape(-1, rows, groups, columns)
    if groups == 1:
        return (left[0] @ blocks[:, :, 0] @ right[0]).reshape(inner.shape)
    return jnp.einsum("gij,tjgo,gop->tigp", left, blocks, right).reshape(inner.shape)


def to_inner(link: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the inner coordinates of a link, in float64: the inverse of `from_inner`."""
    blocks = np.asarray(link, np.float64).reshape(-1, left.shape[1], left.shape[0], right.shape[1])
    inner = np.linalg.solve(left[:, None], np.moveaxis(blocks, 2, 0)) @ np.linalg.inv(right)[:, None]
    return np.moveaxis(inner, 0, 2).reshape(link.shape)
