"""What flows through a chain on sampled patches, and the coordinates in which its links are fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LARGEST_METRIC = 2048
"""Inputs of a link, its taps counted, up to which one metric holds for all of them: its Cholesky factor takes 1 s at
twice that. Beyond, the taps of a link share the metric of the channels."""

_MOST = 3000  # samples from which metrics are taken: they only shape the steps

Metric = tuple[np.ndarray, np.ndarray]


def features(kernels: Sequence[Any], counts: Sequence[int], patches: Any) -> Any:
    """Patches (*window, N, I) through convolutions without padding: (*rest, N, F)."""
    x = patches
    for kernel, groups in zip(kernels, counts, strict=True):
        window = kernel.shape[:-2]
        if x.shape[:-2] == window and math.prod(window) > 1:
            x = _whole_window(x, kernel, groups)
        else:
            # One product for each tap: 5x5 as two 3x3 is 18 products of many rows, not 90 of few.
            x = sum(_product(here, kernel[tap], groups) for tap, here in _taps(x, window))
    return x


def _whole_window(x: Any, kernel: Any, groups: int) -> Any:
    """`features` of a kernel as large as what it meets, tap by tap in a loop.

    Written out, 27 taps of 3x3x3 take 0.6 s to compile, of which a layer needs tens; 5x5 from 64 to 24 features takes
    17 ms written out and 7 ms in the loop.
    """

    def add(total: Any, tap: Any) -> tuple[Any, None]:
        here, matrix = tap
        return total + _product(here, matrix, groups), None

    window, rows = x.shape[:-2], x.shape[-2:]
    start = jnp.zeros((rows[0], kernel.shape[-1]), jnp.result_type(x, kernel))
    taps = x.reshape(-1, *rows), kernel.reshape(-1, *kernel.shape[-2:])
    return lax.scan(add, start, taps)[0].reshape(*[1] * len(window), *start.shape)


def _taps(x: Any, window: Sequence[int]) -> list[tuple[tuple[int, ...], Any]]:
    """What each tap of a window meets in (*window, N, I)."""
    rest = [full - own + 1 for full, own in zip(x.shape[:-2], window, strict=True)]
    return [
        (tap, x[tuple(slice(t, t + size) for t, size in zip(tap, rest, strict=True))]) for tap in np.ndindex(*window)
    ]


def _product(x: Any, matrix: Any, groups: int) -> Any:
    """(..., I) times (I / groups, O), group by group."""
    if groups == 1:
        return x @ matrix
    split, blocks = x.reshape(*x.shape[:-1], groups, -1), matrix.reshape(len(matrix), groups, -1)
    return jnp.einsum("...gi,igo->...go", split, blocks).reshape(*x.shape[:-1], -1)


def stacked(x: Any, window: Sequence[int], groups: int) -> Any:
    """What each place of a window meets in (*window, N, I), for each group a matrix of rows (n, taps * I / groups)."""
    rows = jnp.stack([here.reshape(-1, groups, x.shape[-1] // groups) for _, here in _taps(x, window)], axis=2)
    return jnp.moveaxis(rows, 1, 0).reshape(groups, rows.shape[0], -1)


@partial(jax.jit, static_argnames=("counts",))
def _grams(kernels: Any, counts: tuple[int, ...], patches: Any) -> list[Any]:
    """Second moments of what enters each link: (g, taps i, taps i), or (g, i, i) for all taps of a large link."""
    found, x = [], patches
    for kernel, groups in zip(kernels, counts, strict=True):
        window, size = kernel.shape[:-2], kernel.shape[-2]
        large = math.prod(window) * size > _LARGEST_METRIC
        if large:
            window = (1,) * len(window)
        rows = stacked(x, window, groups)
        found.append(rows.swapaxes(1, 2) @ rows / rows.shape[1])
        x = features([kernel], [groups], x)
    return found


def link_metrics(kernels: Sequence[Any], counts: tuple[int, ...], patches: Any, ridge: float) -> list[Metric]:
    """For each link, matrices `left` and `right` between which it is written as `left @ inner @ right`.

    The second derivative of the squared error by a link is nearly the Kronecker product of the second moments of what
    enters it and of what its outputs do to the responses; by `inner` it is near the identity.
    """
    grams = _grams(kernels, counts, patches[..., :: max(1, patches.shape[-2] // _MOST), :])
    wide = [np.asarray(kernel, np.float64) for kernel in kernels]
    lefts = (_inverse_root(np.asarray(gram, np.float64), ridge) for gram in grams)
    rights = (_inverse_root(_downstream(wide, counts, index), ridge).swapaxes(1, 2) for index in range(len(wide)))
    return list(zip(lefts, rights, strict=True))


def _downstream(kernels: Sequence[np.ndarray], counts: Sequence[int], index: int) -> np.ndarray:
    """(g, o, o): second moments of what each output channel of a link becomes, summed over the taps that follow.

    Paths to the same tap of the dense kernel are not added up, but kept as different taps.
    """
    groups, width = counts[index], kernels[index].shape[-1]
    if groups > 1 and all(count == groups for count in counts[index:]):
        # Group by group: of 1152 channels, one matrix for all takes 3 s.
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
    each = width // groups
    return np.stack([moments[start : start + each, start : start + each] for start in range(0, width, each)])


def _inverse_root(gram: np.ndarray, ridge: float) -> np.ndarray:
    """(g, n, n): the inverse transpose of the Cholesky factor of each, with a ridge."""
    size = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / size
    floor = 1e-6 * mean.mean() or 1.0  # a channel that is always 0 has a metric too
    factor = np.linalg.cholesky(gram + (ridge * mean + floor) * np.eye(size))
    return np.swapaxes(np.linalg.inv(factor), 1, 2)


def coloured(inner: Any, left: Any, right: Any) -> Any:
    """A link from its inner coordinates: left @ inner @ right, group by group."""
    groups, rows, columns = left.shape[0], left.shape[1], right.shape[1]
    blocks = inner.reshape(-1, rows, groups, columns)
    if groups == 1:
        return (left[0] @ blocks[:, :, 0] @ right[0]).reshape(inner.shape)
    return jnp.einsum("gij,tjgo,gop->tigp", left, blocks, right).reshape(inner.shape)


def whitened(link: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A link's inner coordinates, float64: the inverse of `coloured`."""
    blocks = np.asarray(link, np.float64).reshape(-1, left.shape[1], left.shape[0], right.shape[1])
    inner = np.linalg.solve(left[:, None], np.moveaxis(blocks, 2, 0)) @ np.linalg.inv(right)[:, None]
    return np.moveaxis(inner, 0, 2).reshape(link.shape)
