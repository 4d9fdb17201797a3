"""`refit`: the links of a chain fitted to a layer's responses, behind its nonlinearity, rather than to its weights."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import dense_blocks, merged_kernel
from jaxcnn.factorization.responses.samples import Responses, Samples, chain_for
from jaxcnn.factorization.responses.square_error import SquareError
from jaxcnn.factorization.responses.start import RIDGE, with_last_link
from jaxcnn.factorization.responses.whitening import MAX_METRIC_SAMPLES, from_inner, link_metrics, to_inner

_MAX_PAIRS = 10
"""Largest number of pairs of steps and gradients that L-BFGS keeps."""
_STEPS_BETWEEN_CANDIDATES = 2
"""Steps of the method from one chain that may be the result to the next."""


def refit(
    chain: KernelChain,
    responses: Responses,
    *,
    kernel: Any = None,
    ridge: float = RIDGE,
    iterations: int = 6,
    held_out: float = 0.1,
) -> KernelChain:
    r"""Returns a chain of the same shapes with the least error of the responses.

    Minimises $\lVert c(X D) - c(T) \rVert^2 + \rho N \sigma^2 \lVert D - K \rVert^2$ over all links together, where D
    is the dense kernel of the chain, K a kernel to stay near to, c clips to [low, high], $\rho$ is the ridge and
    $\sigma^2$ the mean square of the patches. First the last link is solved for, then L-BFGS improves all links, each
    in coordinates that whiten what enters and what leaves it. Without whitening the fit takes many more
    iterations.

    The result depends on the arguments alone, and its `response_error` is at most that of `chain`.

    Args:
      chain: Chain of any scheme, at which the fit starts.
      responses: Samples.
      kernel: Kernel K, HWIO, that the chain stands for. None: the chain's own dense kernel.
      ridge: Weight of the distance to K. Choose a larger one where samples are few.
      iterations: Largest number of L-BFGS steps.
      held_out: Share of the pieces, evenly spread, that only choose the step at which to stop.

    Raises:
      ValueError: a chain or kernel that does not fit the samples; a share not in [0, 1).

    References:
      Zhang, Zou, He and Sun, "Accelerating very deep convolutional networks for classification and detection", 2015:
      responses rather than weights, of earlier layers already replaced, behind the ReLU. Martens and Grosse,
      "Optimizing neural networks with Kronecker-factored approximate curvature", 2015: the coordinates.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"refit: held_out must be at least 0 and less than 1, got {held_out!r}")
    chain_for(responses, "refit", chain)
    if kernel is not None and tuple(kernel.shape) != chain.shape:
        raise ValueError(f"refit: the chain stands for a kernel of shape {chain.shape}, got {tuple(kernel.shape)}")
    count = len(responses)
    # The pieces held out are evenly spread, because neighbours may be of one image that is unlike the others.
    is_held_out = np.zeros(count, bool)
    is_held_out[np.linspace(0, count, int(held_out * count), endpoint=False, dtype=int)] = True
    groups = chain.feature_group_count
    fit_samples = Samples(responses.select(~is_held_out), groups)
    choice_samples = Samples(responses.select(is_held_out), groups) if is_held_out.any() else fit_samples
    centre = merged_kernel(dense_blocks(chain)) if kernel is None else np.asarray(kernel)
    centre = centre.astype(np.float32)
    dtypes = [link.dtype for link in chain.kernels]
    wide = KernelChain(tuple(np.asarray(link, np.float32) for link in chain.kernels), chain.feature_group_counts)
    candidates = [wide, with_last_link(wide, fit_samples, ridge)[0]]
    start = min(candidates, key=fit_samples.error)
    candidates += _descend(start, fit_samples, centre, ridge, iterations)
    best = min(candidates, key=choice_samples.error)
    links = tuple(jax.device_put(link.astype(dtype)) for link, dtype in zip(best.kernels, dtypes, strict=True))
    fitted = KernelChain(links, chain.feature_group_counts)
    # The ridge, rounding to a narrow dtype and the choice by few samples may each have made the chain worse.
    parts = [fit_samples, choice_samples] if choice_samples is not fit_samples else [fit_samples]
    before, after = (sum(part.square_error(part.responses_of(c)) for part in parts) for c in (chain, fitted))
    return fitted if after <= before else chain


def _descend(chain: KernelChain, samples: Samples, centre: Any, ridge: float, iterations: int) -> list[KernelChain]:
    """Runs L-BFGS from a chain and returns the chains on its way: one every few steps, and the last."""
    from scipy import optimize

    if samples.scale == 0:
        return []
    counts = chain.feature_group_counts
    # In this unit the second derivative is near the identity, so the first steps have the right length.
    unit = np.sqrt(samples.scale / (2 * samples.count))
    few = samples.patches[..., :: max(1, samples.count // MAX_METRIC_SAMPLES), :]
    metrics = link_metrics(chain.kernels, counts, few, ridge)
    inner = [to_inner(link, *metric) / unit for link, metric in zip(chain.kernels, metrics, strict=True)]
    whiteners = [(left.astype(np.float32), right.astype(np.float32)) for left, right in metrics]
    ends = np.cumsum([link.size for link in inner])[:-1]
    objective = SquareError(samples, counts, centre, ridge * samples.power * samples.count)

    def links_at(point: np.ndarray) -> list[np.ndarray]:
        """Returns the links at a point of the search."""
        parts = np.split(unit * point, ends)
        return [
            from_inner(part.reshape(link.shape).astype(np.float32), *pair)
            for part, link, pair in zip(parts, inner, whiteners, strict=True)
        ]

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective.value_and_gradient(links_at(point))
        by_inner = [
            from_inner(part, left.swapaxes(1, 2), right.swapaxes(1, 2)).ravel()
            for part, (left, right) in zip(gradient, whiteners, strict=True)
        ]
        return value / samples.scale, np.concatenate(by_inner).astype(np.float64) * (unit / samples.scale)

    points: list[np.ndarray] = []
    result = optimize.minimize(
        value_and_gradient,
        np.concatenate([link.ravel() for link in inner]),
        jac=True,
        method="L-BFGS-B",
        callback=lambda point: points.append(point.copy()),
        # Pairs of steps beyond the number of iterations would never be used, and take most of the memory.
        options={"maxiter": iterations, "maxcor": max(1, min(iterations, _MAX_PAIRS)), "ftol": 1e-7, "gtol": 0.0},
    )
    step = _STEPS_BETWEEN_CANDIDATES
    candidates = [*points[step - 1 : -1 : step], result.x]
    return [KernelChain(tuple(links_at(point)), counts) for point in candidates if np.isfinite(point).all()]
