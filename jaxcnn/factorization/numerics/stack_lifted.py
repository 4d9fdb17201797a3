"""A start for the fit of links: least squares on the lifted problem, which is linear."""

from __future__ import annotations

from math import prod

import numpy as np

from jaxcnn.factorization.numerics.stack_links import ridged, shifted_by


def leading_link(
    kernel: np.ndarray, window: tuple[int, ...], features: int, generator: np.random.Generator | None
) -> np.ndarray:
    """A first link for the kernel, by lifting.

    K is linear in M[(u, i), (v, o)] = sum over f of first[u, i, f] second[v, f, o], as K[w] sums M over u + v = w, and
    M has rank ``features``. Iteratively reweighted least squares looks for the M of lowest rank that gives K exactly:
    each step minimises trace(M' inverse(weight) M), with weight = M M' + smoothing of the step before, and the
    smoothing follows the first eigenvalue that a matrix of the wanted rank would not have. The link is M's leading
    column space.
    """
    channels, outputs = kernel.shape[-2:]
    dense = kernel.shape[:-2]
    size = prod(window) * channels
    rest = tuple(full - own + 1 for full, own in zip(dense, window, strict=False))
    rows = np.arange(prod(dense) * channels).reshape(*dense, channels)
    # 30 steps leave 0.03 of the error to the sweeps; 10 above 800 rows, where a step is a solve of that size.
    iterations = 30 if rows.size <= 800 else 10
    placed = [rows[shifted_by(offset, window)].ravel() for offset in np.ndindex(*rest)]
    targets = kernel.reshape(-1, outputs)
    weight = np.eye(size)
    if generator is not None:
        iterations = int(generator.integers(3, iterations + 1))  # fewer steps vary the start more
        noise = generator.standard_normal((size, size))
        weight = noise @ noise.T / size
    smoothing = np.inf
    for _ in range(iterations):
        normal = np.zeros((rows.size, rows.size))
        for index in placed:
            normal[np.ix_(index, index)] += weight
        multipliers = np.linalg.solve(ridged(normal, 1e-14), targets)
        lifted = np.concatenate([weight @ multipliers[index] for index in placed], axis=1)
        gram = lifted @ lifted.T
        values, vectors = np.linalg.eigh(gram)
        tail = values[-features - 1] if features < size else 0.0
        if tail < 1e-14 * values[-1]:
            break
        smoothing = min(smoothing, tail)
        weight = gram + smoothing * np.eye(size)
        weight /= np.trace(weight)
    link = np.zeros((size, features))
    kept = min(size, features)
    link[:, :kept] = vectors[:, ::-1][:, :kept]
    return link.reshape(*window, channels, features)
