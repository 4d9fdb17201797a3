"""Chains at which a fit to responses starts: truncations in the metric of the inputs, with the best last link."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, grouped_kernel
from jaxcnn.factorization.numerics.metric_svd import regularize
from jaxcnn.factorization.responses.samples import Responses, Samples
from jaxcnn.factorization.responses.whitening import MAX_METRIC_SAMPLES, features, window_rows
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.schemes.scheme import LayerSamples

RIDGE = 1e-3
"""Weight of the distance to the kernel beside the error of the responses, relative to the mean square of the inputs."""

_LAST_LINK_ROUNDS = 3
"""Rounds of least squares for the last link."""


class ResponseFits:
    """Makes chains of one kernel at which a fit to responses would start, each with the best last link.

    Args:
      kernel: Kernel, HWIO.
      responses: Samples, of which a few thousand are enough.
      feature_group_count: Number of groups of the kernel.
      ridge: Weight of the distance to the kernel, as in `refit`.
    """

    def __init__(self, kernel: Any, responses: Responses, *, feature_group_count: int = 1, ridge: float = RIDGE):
        self._samples = Samples(responses, feature_group_count)
        # All ranks of a scheme share its metric, the slowest part of a start.
        self._starts = cache(lambda scheme: _start_of(kernel, scheme, responses, feature_group_count, ridge))
        self._ridge = ridge

    def at(self, scheme: str, rank: Any) -> tuple[KernelChain, float]:
        """Returns the chain of a scheme at a rank, as its function takes it, and its error, which `refit` lowers."""
        with jax.default_matmul_precision("highest"):
            start = self._starts(scheme)(rank)
            chain, square = with_last_link(start, self._samples, self._ridge)
        return chain, self._samples.relative(square)


def response_start(
    kernel: Any,
    scheme: str,
    rank: Any,
    responses: Responses,
    *,
    feature_group_count: int = 1,
    ridge: float = RIDGE,
) -> KernelChain:
    """Returns the chain of a scheme and a rank at which a fit starts: the truncation in the metric of the inputs.

    Args:
      kernel, responses, feature_group_count, ridge: Arguments of `ResponseFits`.
      scheme: Name of the scheme.
      rank: Rank as the scheme's function takes it.
    """
    return _start_of(kernel, scheme, responses, feature_group_count, ridge)(rank)


def _start_of(
    kernel: Any, scheme: str, responses: Responses, groups: int, ridge: float
) -> Callable[[Any], KernelChain]:
    """Returns a function from a rank to the chain at which a scheme's fit starts."""
    record = SCHEMES[scheme]
    blocks = grouped_kernel("refit", kernel, groups, None)
    if record.start is None:
        return lambda rank: record.fit(kernel, blocks.shape, rank=rank, feature_group_count=groups)
    step = max(1, len(responses) // MAX_METRIC_SAMPLES)
    in_features, out_features = blocks.shape[-2:]
    patches, targets = responses.patches[::step], responses.targets[::step]
    links = record.start(
        LayerSamples(
            blocks,
            np.moveaxis(patches.reshape(*patches.shape[:-1], groups, in_features), -2, 0),
            np.moveaxis(targets.reshape(-1, groups, out_features), 1, 0),
            ridge,
        )
    )
    return lambda rank: chain_of_blocks(links(rank), np.asarray(kernel).dtype)


def solve_last_link(chain: KernelChain, responses: Responses, ridge: float = RIDGE) -> KernelChain:
    """Returns the chain with the best last link for the responses: a fast step that makes most of the gain of `refit`.

    Args:
      chain, responses, ridge: Arguments of `refit`.
    """
    with jax.default_matmul_precision("highest"):
        return with_last_link(chain, Samples(responses, chain.feature_group_count), ridge)[0]


def with_last_link(chain: KernelChain, samples: Samples, ridge: float) -> tuple[KernelChain, float]:
    """Returns the chain with the best last link for the samples, limits included, and its squared error.

    The method is majorisation. Each round is a least-squares problem whose targets are the samples' own, except where
    both they and the chain's present responses are beyond a limit: there the present responses are the targets. So no
    round can raise the error.
    """
    from scipy import linalg

    *head, last = chain.kernels
    groups = chain.feature_group_counts[-1]
    design, gram = _design(head, last.shape[:-2], chain.feature_group_counts, samples.patches)
    normal = regularize(np.asarray(gram, np.float64), ridge)
    size = normal.shape[-1]
    factors = [linalg.cho_factor(block) for block in normal]
    blocks = np.asarray(last, np.float64).reshape(size, groups, -1).swapaxes(0, 1)  # (G, taps I, O)
    for _ in range(_LAST_LINK_ROUNDS):
        moments, _ = _moments(design, blocks.astype(np.float32), *samples.targets_and_limits)
        moments = np.asarray(moments, np.float64)
        # Each round is a step from the present link, so the ridge holds it there and not at zero.
        blocks = blocks + np.stack([linalg.cho_solve(f, m) for f, m in zip(factors, moments, strict=True)])
    solved = blocks.swapaxes(0, 1).reshape(last.shape).astype(last.dtype)
    rounded = solved.astype(np.float32).reshape(size, groups, -1).swapaxes(0, 1)
    # The program of the rounds computes this error too, so no other one is compiled.
    _, square = _moments(design, rounded, *samples.targets_and_limits)
    return KernelChain((*head, jax.device_put(solved)), chain.feature_group_counts), float(square)


@partial(jax.jit, static_argnames=("window", "counts"))
def _design(head: Any, window: Any, counts: Any, patches: Any) -> Any:
    """Returns the inputs of the last link, (G, N, taps I), and their second moments."""
    rows = window_rows(features(head, counts[:-1], patches), window, counts[-1])
    return rows, rows.swapaxes(1, 2) @ rows


@jax.jit
def _moments(design: Any, link: Any, targets: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Returns design' (targets - responses) by groups, and the squared error behind the nonlinearity.

    A target beyond a limit is replaced by a response that is beyond the limit too.
    """
    groups, count, _ = design.shape
    responses = (design @ link).swapaxes(0, 1).reshape(count, -1)
    goals = jnp.where(targets <= low, jnp.minimum(responses, low), targets)
    goals = jnp.where(targets >= high, jnp.maximum(responses, high), goals)
    residuals = (goals - responses).reshape(count, groups, -1).swapaxes(0, 1)
    square = jnp.sum(jnp.square(jnp.clip(responses, low, high) - jnp.clip(targets, low, high)))
    return design.swapaxes(1, 2) @ residuals, square
