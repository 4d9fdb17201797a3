"""Chains at which a fit to responses starts: truncations in the metric of the inputs, with the best last link."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, grouped_kernel
from jaxcnn.factorization.numerics.metric_svd import regularize
from jaxcnn.factorization.numerics.windows import features, grouped, merged_groups, product, window_rows
from jaxcnn.factorization.responses.samples import Responses, Samples
from jaxcnn.factorization.responses.whitening import MAX_METRIC_SAMPLES
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.schemes.scheme import LayerSamples

RIDGE = 1e-3
"""Weight of the distance to the kernel beside the error of the responses, relative to the mean square of the inputs."""

_LAST_LINK_ROUNDS, _ROUNDS_OF_A_JUDGEMENT = 3, 1
"""Rounds of least squares for the last link, before a fit and for an error alone."""


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
        self._widest: dict[str, tuple[int, KernelChain, _Design]] = {}

    def at(self, scheme: str, rank: Any) -> tuple[KernelChain, float]:
        """Returns the chain of a scheme at a rank with the best last link, and the `response_error` of this chain.

        `refit` would lower the error further. For a scheme of one rank and two links with a `start` of its own, a rank
        takes little time after a larger one.

        Args:
          scheme: Name of the scheme.
          rank: Rank as the scheme's function takes it.
        """
        start, design = self._start_and_design(scheme, rank)
        chain, square = with_last_link(start, self._samples, self._ridge, design, _ROUNDS_OF_A_JUDGEMENT)
        return chain, self._samples.relative(square)

    def _start_and_design(self, scheme: str, rank: Any) -> tuple[KernelChain, _Design]:
        """Returns the chain at which a fit starts, and its last link's inputs: cut from a larger rank's if possible."""
        if scheme in self._widest and isinstance(rank, int) and rank <= self._widest[scheme][0]:
            widest, chain, design = self._widest[scheme]
            is_between = np.tile(np.arange(widest) < rank, chain.kernels[0].shape[-1] // widest)
            first, last = (np.asarray(link) for link in chain.kernels)
            is_input = is_between.reshape(chain.feature_group_counts[1], -1)[0]
            links = first[..., is_between], last[..., is_input, :]
            return KernelChain(links, chain.feature_group_counts), design.with_inputs(is_input)
        chain = self._starts(scheme)(rank)
        design = _Design.of(chain, self._samples)
        if SCHEMES[scheme].start is not None and isinstance(rank, int) and len(chain.kernels) == 2:
            # The first link at a smaller rank is the beginning of this one, and so are the inputs of the last link.
            self._widest[scheme] = rank, chain, design
        return chain, design


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

    A scheme without a `start` of its own, such as `cp`, gives the chain that its function fits to the weights.

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
    few = responses.thinned(MAX_METRIC_SAMPLES)
    targets = np.moveaxis(few.targets.reshape(-1, groups, blocks.shape[-1]), 1, 0)
    links = record.start(LayerSamples(blocks, np.moveaxis(few.patches, 0, -2), targets, ridge))
    return lambda rank: chain_of_blocks(links(rank), np.asarray(kernel).dtype)


def solve_last_link(chain: KernelChain, responses: Responses, ridge: float = RIDGE) -> tuple[KernelChain, float]:
    """Returns the chain with the best last link for the responses, and the `response_error` of this chain.

    This one step makes most of the gain of `refit`, and takes much less time.

    Args:
      chain, responses, ridge: Arguments of `refit`.
    """
    samples = Samples(responses, chain.feature_group_count)
    solved, square = with_last_link(chain, samples, ridge)
    return solved, samples.relative(square)


@dataclasses.dataclass(frozen=True)
class _Design:
    """Inputs of a chain's last link.

    Args:
      rows: Inputs at all samples, (G, N, taps * I).
      gram: Second moments of the rows, (G, taps * I, taps * I).
    """

    rows: np.ndarray
    gram: np.ndarray

    @classmethod
    def of(cls, chain: KernelChain, samples: Samples) -> _Design:
        """Returns the inputs of a chain's last link at the samples."""
        *head, last = (np.asarray(link, np.float32) for link in chain.kernels)
        counts = chain.feature_group_counts
        if not head:
            rows = samples.rows(last.shape[:-2], counts[0])
        else:
            places = samples.patches.shape[:-1]
            x = product(samples.rows(head[0].shape[:-2], counts[0]), head[0], counts[0], places)
            rows = window_rows(features(head[1:], counts[1:-1], x), last.shape[:-2], counts[-1])
        return cls(rows, rows.swapaxes(1, 2) @ rows)

    def with_inputs(self, mask: np.ndarray) -> _Design:
        """Returns the rows with some of the link's inputs alone, of all taps."""
        columns = np.flatnonzero(np.tile(mask, self.rows.shape[-1] // len(mask)))
        return _Design(self.rows[..., columns], self.gram[:, columns[:, None], columns])


def with_last_link(
    chain: KernelChain,
    samples: Samples,
    ridge: float,
    design: _Design | None = None,
    rounds: int = _LAST_LINK_ROUNDS,
) -> tuple[KernelChain, float]:
    """Returns the chain with its last link fitted to the samples, limits included, and its squared error.

    The method is majorisation. Each round is a least-squares problem. Its targets are the samples' targets, clipped to
    the limits; where the chain's present response is beyond the same limit, the present response is the target. So no
    round can raise the error.

    Args:
      chain: Chain to start from.
      samples: Samples.
      ridge: Weight of the distance to the last link as it is before the round.
      design: Inputs of the last link; None computes them.
      rounds: Number of rounds.
    """
    from scipy import linalg

    design = design or _Design.of(chain, samples)
    *head, last = chain.kernels
    groups = chain.feature_group_counts[-1]
    rows = design.rows
    # Each round corrects what rounding to 32 bits leaves of the round before.
    factors = [linalg.cho_factor(block, check_finite=False) for block in regularize(design.gram, ridge)]
    link = grouped(np.asarray(last, np.float64), groups)  # (G, taps I, O)
    responses = merged_groups(rows @ link.astype(np.float32))
    dtype = jax.dtypes.canonicalize_dtype(last.dtype)
    for _ in range(rounds):
        goals = np.where(samples.targets <= samples.low, np.minimum(responses, samples.low), samples.targets)
        goals = np.where(samples.targets >= samples.high, np.maximum(responses, samples.high), goals)
        missing = (goals - responses).reshape(len(goals), groups, -1).swapaxes(0, 1)
        moments = rows.swapaxes(1, 2) @ missing
        # Each round is a step from the present link, so the ridge holds it there and not at zero.
        steps = [linalg.cho_solve(f, m, check_finite=False) for f, m in zip(factors, moments, strict=True)]
        link = (link + np.stack(steps)).astype(dtype).astype(np.float64)
        responses = merged_groups(rows @ link.astype(np.float32))
    solved = link.swapaxes(0, 1).reshape(last.shape).astype(dtype)
    links = *(jax.device_put(np.asarray(kernel)) for kernel in head), jax.device_put(solved)
    return KernelChain(links, chain.feature_group_counts), samples.square_error(responses)
