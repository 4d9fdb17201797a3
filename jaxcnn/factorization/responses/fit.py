"""`refit`: the links of a chain fitted to a layer's responses, behind its nonlinearity, rather than to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.responses.samples import Responses, Samples, chain_for, in_float32, square_error
from jaxcnn.factorization.responses.start import RIDGE, with_last_link
from jaxcnn.factorization.responses.whitening import from_inner, link_metrics, to_inner

_MEMORY_PAIRS = 20
"""Pairs of past steps and gradients that the quasi-Newton method remembers."""

_STEPS_BETWEEN_CANDIDATES = 5
"""Steps of the method from one chain that may be the result to the next."""


def refit(
    chain: KernelChain,
    responses: Responses,
    *,
    kernel: Any = None,
    ridge: float = RIDGE,
    iterations: int = 30,
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
      held_out: Share of the samples, evenly spread, that only choose the step at which to stop.

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
    with jax.default_matmul_precision("highest"):
        return _refit(chain, responses, kernel, ridge, iterations, held_out)


def _refit(
    chain: KernelChain, responses: Responses, kernel: Any, ridge: float, iterations: int, held_out: float
) -> KernelChain:
    """Computes `refit`."""
    count = len(responses)
    # The samples held out are evenly spread, because neighbours may be of one image that is unlike the others.
    is_held_out = np.zeros(count, bool)
    is_held_out[np.linspace(0, count, int(held_out * count), endpoint=False, dtype=int)] = True
    groups = chain.feature_group_count
    fit_samples = Samples(responses.select(~is_held_out), groups)
    choice_samples = Samples(responses.select(is_held_out), groups) if is_held_out.any() else fit_samples
    centre = jnp.asarray(chain.dense() if kernel is None else kernel, jnp.float32)
    dtypes = [link.dtype for link in chain.kernels]
    wide = in_float32(chain)
    candidates = [wide, with_last_link(wide, fit_samples, ridge)[0]]
    start = min(candidates, key=fit_samples.error)
    candidates += _descend(start, fit_samples, centre, ridge, iterations)
    best = min(candidates, key=choice_samples.error)
    links = tuple(link.astype(dtype) for link, dtype in zip(best.kernels, dtypes, strict=True))
    fitted = KernelChain(links, chain.feature_group_counts)
    # The ridge, rounding to a narrow dtype and the choice by few samples may each have made the chain worse.
    all_samples = Samples(responses, groups) if choice_samples is not fit_samples else fit_samples
    return fitted if all_samples.error(fitted) <= all_samples.error(chain) else chain


def _descend(chain: KernelChain, samples: Samples, centre: Any, ridge: float, iterations: int) -> list[KernelChain]:
    """Runs L-BFGS from a chain and returns the chains on its way: one every few steps, and the last."""
    from scipy import optimize

    if samples.scale == 0:
        return []
    counts = chain.feature_group_counts
    # In this unit the second derivative is near the identity, so the first steps have the right length.
    unit = np.sqrt(samples.scale / (2 * samples.count))
    metrics = link_metrics(chain.kernels, counts, samples.patches, ridge)
    inner = [to_inner(link, *metric) / unit for link, metric in zip(chain.kernels, metrics, strict=True)]
    whiteners = [tuple(jax.device_put(matrix.astype(np.float32)) for matrix in metric) for metric in metrics]
    ends = np.cumsum([link.size for link in inner])[:-1]
    weight = ridge * samples.power * samples.count

    def links_at(point: np.ndarray) -> list[Any]:
        """Returns the inner coordinates of each link at a point of the search."""
        parts = np.split(unit * point, ends)
        return [part.reshape(link.shape).astype(np.float32) for part, link in zip(parts, inner, strict=True)]

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        arrays = samples.error_patches, *samples.targets_and_limits
        value, gradient = _objective(
            links_at(point), whiteners, arrays, centre, weight, counts=counts, is_depthwise=samples.is_depthwise
        )
        flat = np.concatenate([np.asarray(part, np.float64).ravel() for part in gradient])
        return float(value) / samples.scale, flat * (unit / samples.scale)

    points: list[np.ndarray] = []
    result = optimize.minimize(
        value_and_gradient,
        np.concatenate([link.ravel() for link in inner]),
        jac=True,
        method="L-BFGS-B",
        callback=lambda point: points.append(point.copy()),
        options={"maxiter": iterations, "maxcor": _MEMORY_PAIRS, "ftol": 1e-7, "gtol": 0.0},
    )
    step = _STEPS_BETWEEN_CANDIDATES
    candidates = [*points[step - 1 : -1 : step], result.x]
    return [
        KernelChain(_links_of_inner(links_at(point), whiteners), counts)
        for point in candidates
        if np.isfinite(point).all()
    ]


@jax.jit
def _links_of_inner(links: Sequence[Any], whiteners: Any) -> tuple[Any, ...]:
    """Returns the links of inner coordinates, with the two matrices of `link_metrics` for each link."""
    return tuple(from_inner(link, *pair) for link, pair in zip(links, whiteners, strict=True))


@partial(jax.jit, static_argnames=("counts", "is_depthwise"))
def _objective(
    links: Any, whiteners: Any, arrays: Any, centre: Any, weight: Any, *, counts: Any, is_depthwise: bool
) -> Any:
    """Returns the sum that `refit` minimises, and its derivative by the inner coordinates of the links."""

    def value(links: Any) -> Any:
        chain = KernelChain(_links_of_inner(links, whiteners), counts)
        error = square_error(chain, *arrays, is_depthwise=is_depthwise)
        return error + weight * jnp.sum(jnp.square(chain.dense() - centre))

    return jax.value_and_grad(value)(links)
