"""Values that flow through links on pieces of images: the inputs of a window as rows, and products with kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def features(kernels: Sequence[Any], counts: Sequence[int], patches: Any) -> np.ndarray:
    """Returns the results (*rest, N, F) of convolutions without padding in a row, of patches (*window, N, I)."""
    x = np.asarray(patches)
    for kernel, groups in zip(kernels, counts, strict=True):
        x = product(window_rows(x, kernel.shape[:-2], groups), np.asarray(kernel), groups, x.shape[:-1])
    return x


def product(rows: np.ndarray, kernel: np.ndarray, groups: int, places: Sequence[int]) -> np.ndarray:
    """Returns the results (*rest, N, F) of a kernel for its stacked inputs, of an image (*window, N, I).

    Args:
      rows: Inputs of the kernel, as `window_rows` returns them.
      kernel: Kernel, HWIO.
      groups: Number of its groups.
      places: Sizes of the image's axes but the last, (*window, N).
    """
    results = merged_groups(rows @ grouped(kernel, groups))
    return results.reshape(*rest_of(places[:-1], kernel.shape[:-2]), places[-1], -1)


def grouped(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Returns a kernel, HWIO, as the matrix of each group, (G, taps * I, O / G)."""
    return kernel.reshape(-1, groups, kernel.shape[-1] // groups).swapaxes(0, 1)


def merged_groups(results: np.ndarray) -> np.ndarray:
    """Returns (G, n, F) as (n, G * F)."""
    return results[0] if len(results) == 1 else results.swapaxes(0, 1).reshape(results.shape[1], -1)


def rest_of(window: Sequence[int], kernel_window: Sequence[int]) -> tuple[int, ...]:
    """Returns the sizes that a kernel without padding leaves of a window."""
    return tuple(full - extent + 1 for full, extent in zip(window, kernel_window, strict=True))


def window_rows(x: np.ndarray, window: Sequence[int], groups: int) -> np.ndarray:
    """Returns the inputs of a window at all places of (*window, N, I) as rows (G, n, taps * I / groups)."""
    if math.prod(window) == 1:
        rows = x.reshape(-1, groups, x.shape[-1] // groups)
        return rows.swapaxes(0, 1)
    taps = [x[place].reshape(-1, groups, x.shape[-1] // groups) for place in tap_places(x.shape[:-2], window)]
    rows = np.stack(taps, axis=2)  # (n, G, taps, I / G)
    return np.moveaxis(rows, 1, 0).reshape(groups, rows.shape[0], -1)


def tap_places(full: Sequence[int], window: Sequence[int]) -> list[tuple[slice, ...]]:
    """Returns the part of a full window that each tap of a smaller one meets."""
    rest = rest_of(full, window)
    return [tuple(slice(t, t + size) for t, size in zip(tap, rest, strict=True)) for tap in np.ndindex(*window)]
