"""What flows through a chain on sampled patches, and the metrics in which its links are fitted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST_METRIC = 2048
_MOST = 3000


def features(kernels: Any, counts: Any, patches: Any) -> Any:
    """(*window, N, I) through convolutions without padding: (*rest, N, F)."""
    x = patches
    for kernel, groups in zip(kernels, counts, strict=True):
        x = _link(x, kernel, groups)
    return x


def _link(x: Any, kernel: Any, groups: int) -> Any:
    window = kernel.shape[:-2]
    rest = tuple(full - own + 1 for full, own in zip(x.shape[:-2], window, strict=True))
    blocks = kernel.reshape(*kernel.shape[:-1], groups, -1)
    results = []
    for place in np.ndindex(*rest):
        total: Any = 0.0
        for tap in np.ndindex(*window):
            here = x[tuple(p + t for p, t in zip(place, tap, strict=True))]  # (N, I)
            if groups == 1:
                total = total + here @ kernel[tap]
            else:
                split = here.reshape(len(here), groups, -1)
                total = total + jnp.einsum("ngi,igo->ngo", split, blocks[tap]).reshape(len(here), -1)
        results.append(total)
    return jnp.stack(results).reshape(*rest, *results[0].shape)


@jax.jit
def _gram(x: Any) -> Any:
    if len(x) == 1:
        return (x[0].T @ x[0])[None]
    return jnp.einsum("gni,gnj->gij", x, x)


def link_metrics(kernels: Any, counts: Any, patches: Any, ridge: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each link (left, right): (g, w i, w i) or (g, i, i), and (g, o, o), that whiten it."""
    kernels = [np.asarray(kernel, np.float64) for kernel in kernels]
    x = patches[..., :: max(1, patches.shape[-2] // _MOST), :]
    found = []
    for index, (kernel, groups) in enumerate(zip(kernels, counts, strict=True)):
        window = kernel.shape[:-2]
        rest = tuple(full - own + 1 for full, own in zip(x.shape[:-2], window, strict=True))
        size = kernel.shape[-2]
        taps = int(np.prod(window))
        whole = taps * size <= _LARGEST_METRIC
        total: Any = 0.0
        places = 0
        for place in np.ndindex(*rest):
            here = x[tuple(slice(p, p + w) for p, w in zip(place, window, strict=True))]
            here = here.reshape(taps, here.shape[-2], groups, size)
            if whole:
                stacked = jnp.transpose(here, (2, 1, 0, 3)).reshape(groups, here.shape[1], taps * size)
                total = total + np.asarray(_gram(stacked), np.float64)
                places += here.shape[1]
            else:
                for tap in range(taps):
                    total = total + np.asarray(_gram(jnp.moveaxis(here[tap], 1, 0)), np.float64)
                    places += here.shape[1]
        left = total / places
        right = _downstream(kernels, counts, index)
        found.append((_inverse_root(left, ridge), np.swapaxes(_inverse_root(right, ridge), 1, 2)))
        x = features([jnp.asarray(kernel, jnp.float32)], [groups], x)
    return found


def _downstream(kernels: Any, counts: Any, index: int) -> np.ndarray:
    """(g, o, o): the correlation of what follows each output channel of a link."""
    groups = counts[index]
    width = kernels[index].shape[-1]
    matrix = np.eye(width)[None]  # (places, width, outputs)
    for kernel, count in zip(kernels[index + 1 :], counts[index + 1 :], strict=True):
        taps = kernel.reshape(-1, *kernel.shape[-2:])
        per_in, per_out = taps.shape[1], taps.shape[2] // count
        parts = matrix.reshape(len(matrix), width, count, per_in)
        out = np.einsum("pwgi,tigo->ptwgo", parts, taps.reshape(len(taps), per_in, count, per_out), optimize=True)
        # Tap by tap: offsets that fall together are kept apart, which is exact where they do not.
        matrix = out.reshape(-1, width, taps.shape[2])
    own = matrix.reshape(len(matrix), groups, width // groups, -1)
    return np.einsum("pgac,pgbc->gab", own, own, optimize=True)


def _inverse_root(gram: np.ndarray, ridge: float) -> np.ndarray:
    """(g, n, n): L^-T of the Cholesky factor of each, with a ridge."""
    size = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / size
    overall = mean.mean() or 1.0
    factor = np.linalg.cholesky(gram + (ridge * mean + 1e-6 * overall) * np.eye(size))
    return np.swapaxes(np.linalg.inv(factor), 1, 2)


def coloured(link: Any, left: Any, right: Any) -> Any:
    """A link from its whitened coordinates: left @ link @ right, group by group."""
    groups, rows, columns = left.shape[0], left.shape[1], right.shape[1]
    blocks = link.reshape(-1, rows, groups, columns)
    if groups == 1:
        return (left[0] @ blocks[:, :, 0] @ right[0]).reshape(link.shape)
    return jnp.einsum("gij,tjgo,gop->tigp", left, blocks, right).reshape(link.shape)


def whitened(link: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A link's whitened coordinates, float64: the inverse of `coloured`."""
    blocks = np.asarray(link, np.float64).reshape(-1, left.shape[1], left.shape[0], right.shape[1])
    inner = np.linalg.solve(left[:, None], np.moveaxis(blocks, 2, 0)) @ np.linalg.inv(right)[:, None]
    return np.moveaxis(inner, 0, 2).reshape(link.shape)
