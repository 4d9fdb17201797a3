"""`refit`: the links of a chain fitted to a layer's responses rather than to its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization._features import features, link_metrics


@dataclasses.dataclass(frozen=True)
class Responses:
    """Samples of what enters a convolution and of what should leave it.

    Args:
      patches: (N, *window, I), what the kernel's taps meet at N output positions; all input channels, of all groups.
      targets: (N, O), the wanted responses there, before the bias.
      low, high: (O,), the response below and above which what follows is constant: -bias before a ReLU. None: nowhere.
    """

    patches: Any
    targets: Any
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        patches, targets = (np.asarray(array, np.float32) for array in (self.patches, self.targets))
        if patches.ndim < 3 or targets.ndim != 2 or len(patches) != len(targets) or len(patches) == 0:
            raise ValueError(
                f"Responses: patches must be (N, *window, I) and targets (N, O) with the same N, at least 1, "
                f"got {patches.shape} and {targets.shape}"
            )
        count = targets.shape[1]
        limits = []
        for name, value, nowhere in (("low", self.low, -np.inf), ("high", self.high, np.inf)):
            limit = np.full(count, nowhere, np.float32) if value is None else np.asarray(value, np.float32)
            if limit.shape != (count,):
                raise ValueError(f"Responses: {name} must be ({count},) as targets are {targets.shape}, got {limit.shape}")
            limits.append(limit)
        for name, value in zip(("patches", "targets", "low", "high"), (patches, targets, *limits), strict=True):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, index: slice) -> Responses:
        """Some of the samples."""
        return Responses(self.patches[index], self.targets[index], self.low, self.high)


def as_chain(kernel: Any) -> KernelChain:
    return kernel if isinstance(kernel, KernelChain) else KernelChain((kernel,))


@jax.jit
def _square_error(chain: KernelChain, patches: Any, targets: Any, low: Any, high: Any) -> Any:
    """Sum of squares of the error behind the nonlinearity; the patches' axes are (*window, N, I)."""
    predicted = features(chain.kernels, chain.feature_group_counts, patches)
    predicted = predicted.reshape(targets.shape)
    return jnp.sum(jnp.square(jnp.clip(predicted, low, high) - jnp.clip(targets, low, high)))


class Samples:
    """The samples as the fit reads them: on the device, the window's axes first."""

    def __init__(self, responses: Responses):
        self.patches = jnp.asarray(np.ascontiguousarray(np.moveaxis(responses.patches, 0, -2)))
        self.targets = jnp.asarray(responses.targets)
        self.low, self.high = jnp.asarray(responses.low), jnp.asarray(responses.high)
        seen = np.clip(responses.targets, responses.low, responses.high)
        self.scale = float(np.square(seen - seen.mean(0), dtype=np.float64).sum())
        self.power = float(np.mean(np.square(responses.patches, dtype=np.float32), dtype=np.float64))

    @property
    def arrays(self) -> tuple[Any, ...]:
        return self.patches, self.targets, self.low, self.high

    def error(self, chain: KernelChain) -> float:
        square = float(_square_error(chain, *self.arrays))
        if self.scale == 0:
            return 0.0 if square == 0 else np.inf
        return float(np.sqrt(square / self.scale))


def response_error(kernel: Any, responses: Responses) -> float:
    return Samples(responses).error(as_chain(kernel))


@partial(jax.jit, static_argnames=("counts",))
def _objective(theta: Any, whiteners: Any, counts: Any, samples: Any, centre: Any, weight: Any, scale: Any) -> Any:
    def value(theta: Any) -> Any:
        kernels = [_coloured(t, *w) for t, w in zip(theta, whiteners, strict=True)]
        chain = KernelChain(tuple(kernels), counts)
        error = _square_error(chain, *samples)
        return (error + weight * jnp.sum(jnp.square(chain.dense() - centre))) / scale

    return jax.value_and_grad(value)(theta)


def _coloured(theta: Any, left: Any, right: Any) -> Any:
    """(*window, i, g o) from whitened (g, w i, o) coordinates... see link_metrics."""
    groups, rows, columns = left.shape[0], left.shape[1], right.shape[1]
    *window, size, _ = theta.shape
    blocks = theta.reshape(*window, size, groups, columns)
    if rows == size:  # one metric for all taps
        blocks = jnp.einsum("gij,...jgo->...igo", left, blocks)
    else:
        flat = blocks.reshape(rows, groups, columns)
        blocks = jnp.einsum("gij,jgo->igo", left, flat).reshape(blocks.shape)
    blocks = jnp.einsum("...igo,gop->...igp", blocks, right)
    return blocks.reshape(theta.shape)


def _whitened(kernel: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    groups, rows, columns = left.shape[0], left.shape[1], right.shape[1]
    *window, size, _ = kernel.shape
    blocks = np.asarray(kernel, np.float64).reshape(-1, rows, groups, columns)
    moved = np.moveaxis(blocks, 2, 0)  # (g, t, rows, o)
    solved = np.linalg.solve(left[:, None].astype(np.float64), moved)
    solved = solved @ np.linalg.inv(right.astype(np.float64))[:, None]
    return np.moveaxis(solved, 0, 2).reshape(kernel.shape)


def refit(
    chain: KernelChain,
    responses: Responses,
    *,
    kernel: Any = None,
    ridge: float = 1e-2,
    iterations: int = 30,
    held_out: float = 0.0,
    verbose: Callable[[str], None] | None = None,
) -> KernelChain:
    from scipy import optimize

    count = len(responses)
    kept = count - int(held_out * count)
    train = Samples(responses.part(slice(0, kept)))
    check = Samples(responses.part(slice(kept, None))) if kept < count else None
    counts = chain.feature_group_counts
    centre = jnp.asarray(chain.dense() if kernel is None else kernel)
    kernels = [np.asarray(link, np.float64) for link in chain.kernels]
    metrics = link_metrics(kernels, counts, train, ridge)
    unit = np.sqrt((train.scale or 1.0) / (2 * kept))
    whiteners = [(jnp.asarray(unit * a, jnp.float32), jnp.asarray(b, jnp.float32)) for a, b in metrics]
    start = [_whitened(link, np.asarray(a), np.asarray(b)) for link, (a, b) in zip(kernels, whiteners, strict=True)]
    shapes = [t.shape for t in start]
    ends = np.cumsum([t.size for t in start])[:-1]
    weight = ridge * train.power * kept
    scale = train.scale or 1.0

    def split(flat: np.ndarray) -> list[Any]:
        parts = np.split(flat, ends)
        return [jnp.asarray(p.reshape(s), jnp.float32) for p, s in zip(parts, shapes, strict=True)]

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _objective(split(flat), whiteners, counts, train.arrays, centre, weight, scale)
        return float(value), np.concatenate([np.asarray(g, np.float64).ravel() for g in gradient])

    def chain_at(flat: np.ndarray) -> KernelChain:
        links = [_coloured(t, *w) for t, w in zip(split(flat), whiteners, strict=True)]
        return KernelChain(tuple(links), counts)

    best = [chain, np.inf if check is None else check.error(chain)]
    step = [0]

    def callback(flat: np.ndarray) -> None:
        step[0] += 1
        if check is not None and step[0] % 5 == 0:
            candidate = chain_at(flat)
            error = check.error(candidate)
            if verbose:
                verbose(f"  {step[0]}: train {train.error(candidate):.4f} held out {error:.4f}")
            if error < best[1]:
                best[:] = [candidate, error]
        elif verbose and step[0] % 5 == 0:
            verbose(f"  {step[0]}: train {train.error(chain_at(flat)):.4f}")

    flat = np.concatenate([t.ravel() for t in start])
    result = optimize.minimize(
        function, flat, jac=True, method="L-BFGS-B", callback=callback, options={"maxiter": iterations, "maxcor": 20, "gtol": 0, "ftol": 0}
    )
    if check is None:
        best[0] = chain_at(result.x)
    return best[0]
