"""`refit`: the links of a chain fitted to a layer's responses, behind its nonlinearity, rather than to its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.responses.start import Starts, with_last_link
from jaxcnn.factorization.responses.whitening import coloured, features, link_metrics, whitened

_RIDGE = 1e-3  # relative to the mean square of the inputs
_MEMORY = 20  # pairs of the quasi-Newton method


@dataclasses.dataclass(frozen=True)
class Responses:
    r"""Samples of what enters a convolution, and of what should leave it.

    Patches from the network with its earlier layers replaced already, and targets from the one with none replaced, let
    a layer make up for the errors of those before it.

    Args:
      patches: (N, \*window, I), what the kernel's taps meet at N output positions, kernel dilation taken out; all input
        channels, of all groups.
      targets: (N, O), the wanted responses there, before the bias.
      low, high: (O,), the response below and above which what follows is constant: -bias before a ReLU. (N, O) where
        it differs from sample to sample. None: nowhere.

    Raises:
      ValueError: shapes that do not fit; no sample; NaN or infinite patches or targets.
    """

    patches: Any
    targets: Any
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        patches, targets = (np.asarray(array, np.float32) for array in (self.patches, self.targets))
        if patches.ndim < 3 or targets.ndim != 2 or len(patches) != len(targets) or len(patches) == 0:
            raise ValueError(
                f"Responses: patches must be (N, *window, I) and targets (N, O), with the same N, at least 1, "
                f"got {patches.shape} and {targets.shape}"
            )
        object.__setattr__(self, "patches", patches)
        object.__setattr__(self, "targets", targets)
        for name in ("patches", "targets"):
            bad = int((~np.isfinite(getattr(self, name))).sum())
            if bad:
                raise ValueError(f"Responses: {name} have {bad} values that are NaN or infinite")
        for name, nowhere in (("low", -np.inf), ("high", np.inf)):
            given = getattr(self, name)
            limit = np.full(targets.shape[1], nowhere, np.float32) if given is None else np.asarray(given, np.float32)
            if limit.shape not in (targets.shape[1:], targets.shape):
                raise ValueError(
                    f"Responses: targets are {targets.shape}, so {name} must be (O,) or (N, O), got {limit.shape}"
                )
            object.__setattr__(self, name, limit)

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, chosen: np.ndarray) -> Responses:
        """The samples chosen by a mask (N,)."""
        low, high = (limit if limit.ndim == 1 else limit[chosen] for limit in (self.low, self.high))
        return Responses(self.patches[chosen], self.targets[chosen], low, high)


class Samples:
    """Responses as a fit reads them: on the device, the axes of the window first.

    Args:
      responses: the samples.
      groups: number of groups of the kernels.
    """

    def __init__(self, responses: Responses, groups: int):
        self.is_depthwise = 1 < groups == responses.patches.shape[-1]
        # A link then is one matrix product for each of its taps, with rows in a row in memory.
        self.patches = jnp.asarray(np.ascontiguousarray(np.moveaxis(responses.patches, 0, -2)))
        self.targets = jnp.asarray(responses.targets)
        self.low, self.high = (jnp.asarray(np.atleast_2d(limit)) for limit in (responses.low, responses.high))
        seen = np.clip(responses.targets, responses.low, responses.high)
        self.scale = float(np.square(seen - seen.mean(0), dtype=np.float64).sum())
        self.power = float(np.square(responses.patches).mean(dtype=np.float64))

    @cached_property
    def seen(self) -> Any:
        """The patches as errors are taken of them: of depthwise kernels (C, taps, N)."""
        if not self.is_depthwise:
            return self.patches
        return jnp.moveaxis(self.patches, -1, 0).reshape(self.patches.shape[-1], -1, len(self.targets))

    @property
    def wanted(self) -> tuple[Any, Any, Any]:
        """Targets and limits."""
        return self.targets, self.low, self.high

    def error(self, chain: KernelChain) -> float:
        """`response_error` of a chain."""
        return self.relative(float(_square_error(_in_float32(chain), self.seen, *self.wanted, self.is_depthwise)))

    def relative(self, square: float) -> float:
        """`response_error` of a squared error."""
        if self.scale == 0:
            return 0.0 if square == 0 else float("inf")
        return float(np.sqrt(square / self.scale))


def _in_float32(chain: KernelChain) -> KernelChain:
    return KernelChain(tuple(jnp.asarray(link, jnp.float32) for link in chain.kernels), chain.feature_group_counts)


@partial(jax.jit, static_argnames=("is_depthwise",))
def _square_error(chain: KernelChain, seen: Any, targets: Any, low: Any, high: Any, is_depthwise: bool) -> Any:
    if is_depthwise:
        # By the dense kernel: 5x5 of 1152 channels and its gradient take 19 ms, link by link 350.
        dense = chain.dense().reshape(seen.shape[1], seen.shape[0], -1)
        predicted = (dense.transpose(1, 2, 0) @ seen).reshape(-1, len(targets)).T  # (C, M, taps) @ (C, taps, N)
    else:
        predicted = features(chain.kernels, chain.feature_group_counts, seen).reshape(targets.shape)
    return jnp.sum(jnp.square(jnp.clip(predicted, low, high) - jnp.clip(targets, low, high)))


def response_error(kernel: Any, responses: Responses) -> float:
    r"""The relative error of a kernel's responses, as what follows sees them.

    $\lVert c(XK) - c(T) \rVert / \lVert c(T) - \bar c \rVert$ over all samples and channels, where X are the patches, T
    the targets, c clips to [low, high] and $\bar c$ is the mean of c(T) in each channel: 1 is what a constant does at
    best. Where c(T) is constant, it is 0 if the kernel gives the same, else infinity.

    Args:
      kernel: a `KernelChain`, or one kernel, HWIO; its groups are read off its input channels.
      responses: the samples.

    Raises:
      ValueError: a kernel that does not fit the samples.
    """
    with jax.default_matmul_precision("highest"):
        chain = _checked("response_error", kernel, responses)
        return Samples(responses, chain.feature_group_count).error(chain)


def refit(
    chain: KernelChain,
    responses: Responses,
    *,
    kernel: Any = None,
    ridge: float = _RIDGE,
    iterations: int = 30,
    held_out: float = 0.1,
) -> KernelChain:
    r"""A chain of the same shapes with the least error of the responses.

    Minimises $\lVert c(X D) - c(T) \rVert^2 + \rho N \sigma^2 \lVert D - K \rVert^2$ over all links together, where D
    is the dense kernel of the chain, K the one to stay near to, c clips to [low, high], $\rho$ is the ridge and
    $\sigma^2$ the mean square of the patches. First the last link is solved for, then L-BFGS improves all links, each
    in coordinates that whiten what enters and what leaves it: 10 to 30 iterations, where plain ones take hundreds.

    The result depends on the arguments alone, and its `response_error` is at most the given chain's.

    Args:
      chain: where the fit starts; of any scheme.
      responses: the samples.
      kernel: K, HWIO, the dense kernel that the chain stands for. None: the chain's own.
      ridge: weight of the distance to K. More where samples are few.
      iterations: most steps of L-BFGS.
      held_out: share of the samples, evenly spread, that only choose the step at which to stop.

    Raises:
      ValueError: a chain or kernel that does not fit the samples; a share not in [0, 1).

    References:
      Zhang, Zou, He and Sun, "Accelerating very deep convolutional networks for classification and detection", 2015:
      responses rather than weights, of earlier layers already replaced, behind the ReLU. Martens and Grosse,
      "Optimizing neural networks with Kronecker-factored approximate curvature", 2015: the coordinates.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"refit: held_out must be at least 0 and less than 1, got {held_out!r}")
    _checked("refit", chain, responses)
    if kernel is not None and tuple(kernel.shape) != chain.shape:
        raise ValueError(f"refit: the chain stands for a kernel of shape {chain.shape}, got {tuple(kernel.shape)}")
    with jax.default_matmul_precision("highest"):
        return _refit(chain, responses, kernel, ridge, iterations, held_out)


def _refit(
    chain: KernelChain, responses: Responses, kernel: Any, ridge: float, iterations: int, held_out: float
) -> KernelChain:
    count = len(responses)
    # Spread evenly, for the last tenth may be all of one image that is unlike the others.
    chosen = np.zeros(count, bool)
    chosen[np.linspace(0, count, int(held_out * count), endpoint=False, dtype=int)] = True
    groups = chain.feature_group_count
    train = Samples(responses.part(~chosen), groups)
    judge = Samples(responses.part(chosen), groups) if chosen.any() else train
    centre = jnp.asarray(chain.dense() if kernel is None else kernel, jnp.float32)
    dtypes = [link.dtype for link in chain.kernels]
    wide = _in_float32(chain)
    candidates = [wide, with_last_link(wide, train, ridge=ridge, rounds=3)[0]]
    start = min(candidates, key=train.error)
    candidates += _descend(start, train, centre, ridge, iterations)
    best = min(candidates, key=judge.error)
    links = tuple(link.astype(dtype) for link, dtype in zip(best.kernels, dtypes, strict=True))
    fitted = KernelChain(links, chain.feature_group_counts)
    # The samples that were held out, the ridge and the rounding of narrow dtypes must not make it worse either.
    everything = Samples(responses, groups) if judge is not train else train
    return fitted if everything.error(fitted) <= everything.error(chain) else chain


def _descend(chain: KernelChain, samples: Samples, centre: Any, ridge: float, iterations: int) -> list[KernelChain]:
    """Chains along the way of L-BFGS: every fifth step, and the last."""
    from scipy import optimize

    if samples.scale == 0:
        return []
    counts = chain.feature_group_counts
    # In these units the second derivative is near the identity: the first steps have the right length.
    unit = np.sqrt(samples.scale / (2 * len(samples.targets)))
    metrics = link_metrics(chain.kernels, counts, samples.patches, ridge)
    inner = [whitened(link, *metric) / unit for link, metric in zip(chain.kernels, metrics, strict=True)]
    whiteners = [tuple(jax.device_put(matrix.astype(np.float32)) for matrix in metric) for metric in metrics]
    ends = np.cumsum([link.size for link in inner])[:-1]
    weight = ridge * samples.power * len(samples.targets)

    def links_at(point: np.ndarray) -> list[Any]:
        parts = np.split(unit * point, ends)
        return [part.reshape(link.shape).astype(np.float32) for part, link in zip(parts, inner, strict=True)]

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        arrays = samples.seen, *samples.wanted
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
        options={"maxiter": iterations, "maxcor": _MEMORY, "ftol": 1e-7, "gtol": 0.0},
    )
    kept = [*points[4:-1:5], result.x]
    return [KernelChain(_colour(links_at(point), whiteners), counts) for point in kept if np.isfinite(point).all()]


@jax.jit
def _colour(links: Sequence[Any], whiteners: Any) -> tuple[Any, ...]:
    return tuple(coloured(link, *pair) for link, pair in zip(links, whiteners, strict=True))


@partial(jax.jit, static_argnames=("counts", "is_depthwise"))
def _objective(
    links: Any, whiteners: Any, arrays: Any, centre: Any, weight: Any, *, counts: Any, is_depthwise: bool
) -> Any:
    def value(links: Any) -> Any:
        chain = KernelChain(_colour(links, whiteners), counts)
        return _square_error(chain, *arrays, is_depthwise) + weight * jnp.sum(jnp.square(chain.dense() - centre))

    return jax.value_and_grad(value)(links)


class ResponseFits:
    """Chains of one kernel at which a fit to responses would start, the last link of each the best one.

    Args:
      kernel: HWIO.
      responses: the samples, of which a few thousand do.
      feature_group_count: number of groups of the kernel.
      ridge: as in `refit`.
    """

    def __init__(self, kernel: Any, responses: Responses, *, feature_group_count: int = 1, ridge: float = _RIDGE):
        self._samples = Samples(responses, feature_group_count)
        # The metric of the inputs, which the chains of a scheme have in common, takes 1.5 s at 3x3x512.
        self._starts = cache(lambda scheme: Starts(kernel, scheme, responses, feature_group_count, ridge))
        self._ridge = ridge

    def at(self, scheme: str, rank: Any) -> tuple[KernelChain, float]:
        """The chain of a scheme as in `curve` at a rank as its function takes it, and its error: somewhat too high."""
        with jax.default_matmul_precision("highest"):
            start = self._starts(scheme).chain(rank)
            chain, square = with_last_link(start, self._samples, ridge=self._ridge, rounds=3)
        return chain, self._samples.relative(square)


def response_start(
    kernel: Any,
    scheme: str,
    rank: Any,
    responses: Responses,
    *,
    feature_group_count: int = 1,
    ridge: float = _RIDGE,
) -> KernelChain:
    """The chain of a scheme and rank at which a fit starts: the scheme's truncation in the metric of the inputs.

    Args:
      kernel, responses, feature_group_count, ridge: as in `ResponseFits`.
      scheme: as in `curve`.
      rank: as the scheme's function takes it.
    """
    return Starts(kernel, scheme, responses, feature_group_count, ridge).chain(rank)


def last_link_solved(chain: KernelChain, responses: Responses, ridge: float = _RIDGE) -> KernelChain:
    """The chain with its last link the best one for the responses: most of what a fit gains, cheap.

    Args:
      chain, responses, ridge: as in `refit`.
    """
    with jax.default_matmul_precision("highest"):
        return with_last_link(chain, Samples(responses, chain.feature_group_count), ridge=ridge, rounds=3)[0]


def _checked(operation: str, kernel: Any, responses: Responses) -> KernelChain:
    """The kernel as a chain, which fits the samples."""
    *window, channels = responses.patches.shape[1:]
    if isinstance(kernel, KernelChain):
        chain = kernel
    elif channels % kernel.shape[-2]:
        raise ValueError(
            f"{operation}: patches have {channels} channels, kernel takes {kernel.shape[-2]} in each group"
        )
    else:
        chain = KernelChain((kernel,), (channels // kernel.shape[-2],))
    size = (*chain.shape[:-2], chain.shape[-2] * chain.feature_group_count, chain.shape[-1])
    wanted = (*window, channels, responses.targets.shape[1])
    if size != wanted:
        raise ValueError(f"{operation}: the samples are of (*window, I, O) = {wanted}, the kernel of {size}")
    return chain
