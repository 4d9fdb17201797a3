"""The coordinates in which the links of a chain are fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.factorization.numerics.metric_svd import regularize
from jaxcnn.factorization.numerics.windows import features, window_rows

_MAX_METRIC_INPUTS = 2048
"""Inputs of a link, taps times channels, up to which one metric holds for all of them.

Beyond, the taps share the metric of the channels, because a Cholesky factor of all inputs would take too long."""

MAX_METRIC_SAMPLES = 3000
"""Samples from which metrics are taken; more would not change the steps."""

Metric = tuple[np.ndarray, np.ndarray]
"""Matrices (G, m, m) and (G, n, n), left and right of a link's inner coordinates."""


def _grams(kernels: Sequence[np.ndarray], counts: tuple[int, ...], patches: np.ndarray) -> list[np.ndarray]:
    """Returns second moments of each link's inputs: (G, taps I, taps I), or (G, I, I) for all taps of a large link."""
    moments, x = [], patches
    for kernel, groups in zip(kernels, counts, strict=True):
        window, size = kernel.shape[:-2], kernel.shape[-2]
        is_large = math.prod(window) * size > _MAX_METRIC_INPUTS
        rows = window_rows(x, (1,) * len(window) if is_large else window, groups)
        moments.append(rows.swapaxes(1, 2) @ rows / rows.shape[1])
        x = features([kernel], [groups], x)
    return moments


def link_metrics(kernels: Sequence[Any], counts: tuple[int, ...], patches: Any, ridge: float) -> list[Metric]:
    """Returns matrices `left` and `right` for each link, to write it as `left @ inner @ right`.

    Patches are (*extents, N, I), of which `MAX_METRIC_SAMPLES` positions are enough.

    The second derivative of the squared error by a link is nearly a Kronecker product: second moments of its inputs
    times those of its outputs' effect on the responses. The second derivative by `inner` is near the identity.
    """
    links = [np.asarray(kernel, np.float32) for kernel in kernels]
    grams = _grams(links, counts, patches)
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


def from_inner(inner: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns a link from its inner coordinates: left @ inner @ right, group by group."""
    groups, rows, columns = left.shape[0], left.shape[1], right.shape[1]
    blocks = np.moveaxis(inner.reshape(-1, rows, groups, columns), 2, 0)  # (G, t, rows, columns)
    return np.moveaxis(left[:, None] @ blocks @ right[:, None], 0, 2).reshape(inner.shape)


def to_inner(link: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the inner coordinates of a link, in float64: the inverse of `from_inner`."""
    blocks = np.asarray(link, np.float64).reshape(-1, left.shape[1], left.shape[0], right.shape[1])
    inner = np.linalg.solve(left[:, None], np.moveaxis(blocks, 2, 0)) @ np.linalg.inv(right)[:, None]
    return np.moveaxis(inner, 0, 2).reshape(link.shape)
