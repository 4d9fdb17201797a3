"""Where the fit to responses starts: the schemes' truncations in the metric of the inputs, the last link exact."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import grouped_kernel, merged_link
from jaxcnn.factorization.numerics.svd import left_singular
from jaxcnn.factorization.responses.whitening import features, stacked
from jaxcnn.factorization.schemes.registry import SCHEMES

_MOST = 3000  # samples from which metrics are taken


class Starts:
    """The starts of one scheme for one kernel, rank by rank; what they have in common is computed once.

    Args:
      kernel: HWIO.
      scheme: its name.
      responses: the samples.
      groups: number of groups of the kernel.
      ridge: added to every metric, relative to its mean diagonal: 0 trusts the samples, infinity the weights.
    """

    def __init__(self, kernel: Any, scheme: str, responses: Any, groups: int, ridge: float):
        self.kernel, self.scheme, self.groups, self.ridge = kernel, scheme, groups, ridge
        self.blocks = grouped_kernel("refit", kernel, groups, None)
        self.dtype = np.asarray(kernel).dtype
        step = max(1, len(responses) // _MOST)
        taken = responses.patches[::step]
        _, *self.window, self.inputs, self.outputs = self.blocks.shape
        self.taps = int(np.prod(self.window))
        # (G, N, *window, I)
        self.patches = np.moveaxis(taken.reshape(*taken.shape[:-1], groups, self.inputs), -2, 0)
        self.targets = np.moveaxis(responses.targets[::step].reshape(-1, groups, self.outputs), 1, 0)
        self.split: Any = None
        self.right: Any = None
        self.channels: Any = None

    def chain(self, rank: Any) -> KernelChain:
        """The chain at a rank, as the scheme's own function takes it."""
        method = getattr(self, f"_{self.scheme}", None)
        if method is None:
            scheme = SCHEMES[self.scheme]
            settings = scheme.settings(self.blocks.shape)
            return scheme.fit(self.kernel, feature_group_count=self.groups, **{scheme.option: rank}, **settings)
        links, counts = method(rank)
        return KernelChain(tuple(merged_link(link, self.dtype) for link in links), counts)

    def _separable(self, rank: Any) -> Any:
        gaps = len(self.window) - 1
        ranks = tuple(rank) if isinstance(rank, Sequence) else (rank,) * gaps
        links: list[np.ndarray] = []
        rest, x, width = np.moveaxis(self.blocks, -2, 1), self.patches, self.inputs  # (G, width, *window left, O)
        for axis, wanted in enumerate(ranks):
            size = self.window[axis]
            if axis or self.split is None:
                split = self._whiten(
                    _gram(np.moveaxis(x, 2, -2).reshape(self.groups, -1, size * width)),
                    np.swapaxes(rest, 1, 2).reshape(self.groups, size * width, -1),
                )
                self.split = self.split or split
            else:
                split = self.split
            first, remaining = _truncated(split, wanted)
            shape = [1] * len(self.window)
            shape[axis] = size
            links.append(first.reshape(self.groups, *shape, width, wanted))
            rest = remaining.reshape(self.groups, wanted, *self.window[axis + 1 :], self.outputs)
            if axis + 1 < gaps:
                flat = np.moveaxis(x, 2, -2).reshape(*x.shape[:2], *x.shape[3:-1], size * width)
                x = np.stack([f @ v for f, v in zip(flat, first.astype(np.float32), strict=True)])
            width = wanted
        last = np.moveaxis(rest, 1, -2)
        links.append(last.reshape(self.groups, *[1] * gaps, *last.shape[1:]))
        return links, (self.groups,) * len(links)

    def _low_rank(self, rank: int) -> Any:
        basis = self._response_basis()[..., :rank]
        last = np.swapaxes(basis, 1, 2).reshape(self.groups, *[1] * len(self.window), rank, self.outputs)
        first = self.blocks.reshape(self.groups, -1, self.outputs) @ basis
        return (first.reshape(*self.blocks.shape[:-1], rank), last), (self.groups,) * 2

    def _tucker2(self, ranks: Any) -> Any:
        first_rank, last_rank = tuple(ranks) if isinstance(ranks, Sequence) else (ranks, ranks)
        if self.split is None:
            tensor = self.blocks.reshape(self.groups, self.taps, self.inputs, self.outputs)
            unfolded = np.swapaxes(tensor, 1, 2).reshape(self.groups, self.inputs, -1)
            self.split = self._whiten(_gram(self.patches.reshape(self.groups, -1, self.inputs)), unfolded)
        first, rest = _truncated(self.split, first_rank)
        basis = self._response_basis()[..., :last_rank]
        core = np.swapaxes(rest.reshape(self.groups, first_rank, self.taps, self.outputs), 1, 2) @ basis[:, None]
        ones = [1] * len(self.window)
        links = (
            first.reshape(self.groups, *ones, self.inputs, first_rank),
            core.reshape(self.groups, *self.window, first_rank, last_rank),
            np.swapaxes(basis, 1, 2).reshape(self.groups, *ones, last_rank, self.outputs),
        )
        return links, (self.groups,) * 3

    def _depthwise_separable(self, multiplier: int) -> Any:
        count = self.groups * self.inputs
        if self.split is None:
            x = np.moveaxis(self.patches.reshape(*self.patches.shape[:2], self.taps, self.inputs), -1, 1)
            matrix = np.moveaxis(self.blocks.reshape(self.groups, self.taps, self.inputs, self.outputs), 2, 1)
            self.split = self._whiten(_gram(x.reshape(count, -1, self.taps)), matrix.reshape(count, self.taps, -1))
        first, rest = _truncated(self.split, multiplier)
        last = rest.reshape(self.groups, *[1] * len(self.window), self.inputs * multiplier, self.outputs)
        return (first.reshape(count, *self.window, 1, multiplier), last), (count, self.groups)

    def _response_basis(self) -> np.ndarray:
        """(G, O, O): the principal directions of the responses, leading ones first."""
        if self.right is None:
            _, vectors = np.linalg.eigh(_gram(self.targets))
            self.right = vectors[..., ::-1]
        return self.right

    def _whiten(self, gram: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cholesky factor of the metric, left singular vectors of the matrix in it, and the matrix in it."""
        size = gram.shape[-1]
        mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / size
        floor = 1e-6 * mean.mean() or 1.0  # a channel that is always 0 still has a metric
        factor = np.linalg.cholesky(gram + (self.ridge * mean + floor) * np.eye(size))
        weighted = np.swapaxes(factor, 1, 2) @ matrix
        return factor, left_singular(weighted)[0], weighted


def _truncated(split: tuple[np.ndarray, np.ndarray, np.ndarray], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(G, m, R) and (G, R, n) whose product is nearest to the matrix in the metric."""
    factor, basis, weighted = split
    basis = basis[..., :rank]
    first = np.linalg.solve(np.swapaxes(factor, 1, 2), basis)
    rest = np.swapaxes(basis, 1, 2) @ weighted
    scale = np.linalg.norm(first, axis=1, keepdims=True)
    scale[scale == 0] = 1.0
    return first / scale, rest * np.swapaxes(scale, 1, 2)


def _gram(x: np.ndarray) -> np.ndarray:
    """(G, n, m) -> (G, m, m), float64, the mean over n."""
    return np.asarray(np.swapaxes(x, 1, 2) @ x, np.float64) / x.shape[1]


@partial(jax.jit, static_argnames=("window", "counts"))
def _design(head: Any, window: Any, counts: Any, patches: Any) -> Any:
    """What the last link meets, (g, N, taps i), and its second moments."""
    rows = stacked(features(head, counts[:-1], patches), window, counts[-1])
    return rows, rows.swapaxes(1, 2) @ rows


@jax.jit
def _moments(design: Any, link: Any, targets: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """design' (wanted - given) by groups, where the nonlinearity hides from a target what the link may give.

    And the squared error of what is given, as the nonlinearity shows it.
    """
    groups, count, _ = design.shape
    given = (design @ link).swapaxes(0, 1).reshape(count, -1)
    wanted = jnp.where(targets <= low, jnp.minimum(given, low), targets)
    wanted = jnp.where(targets >= high, jnp.maximum(given, high), wanted)
    missing = (wanted - given).reshape(count, groups, -1).swapaxes(0, 1)
    square = jnp.sum(jnp.square(jnp.clip(given, low, high) - jnp.clip(targets, low, high)))
    return design.swapaxes(1, 2) @ missing, square


def with_last_link(chain: KernelChain, samples: Any, *, ridge: float, rounds: int) -> tuple[KernelChain, float]:
    """The chain with its last link the best one for the samples, ReLU included, by majorisation; its squared error.

    Each round is a least-squares problem, whose targets are the wanted responses where the nonlinearity shows them and
    elsewhere whatever the chain gives now, if the nonlinearity hides that as well: no round can raise the error.
    """
    from scipy import linalg

    *head, last = chain.kernels
    groups = chain.feature_group_counts[-1]
    design, gram = _design(head, last.shape[:-2], chain.feature_group_counts, samples.patches)
    normal = np.asarray(gram, np.float64)
    size = normal.shape[-1]
    mean = np.trace(normal, axis1=1, axis2=2)[:, None, None] / size
    factors = [
        linalg.cho_factor(block) for block in normal + (ridge * mean + (1e-6 * mean.mean() or 1.0)) * np.eye(size)
    ]
    blocks = np.asarray(last, np.float64).reshape(size, groups, -1).swapaxes(0, 1)  # (g, taps i, o)
    for _ in range(rounds):
        moments, _ = _moments(design, blocks.astype(np.float32), *samples.wanted)
        moments = np.asarray(moments, np.float64)
        # A step from the link that is there: the ridge holds it there, not at zero.
        blocks = blocks + np.stack([linalg.cho_solve(f, m) for f, m in zip(factors, moments, strict=True)])
    solved = blocks.swapaxes(0, 1).reshape(last.shape).astype(last.dtype)
    # Of the same program: that of the chain's own error would take as long to compile as the design's.
    rounded = solved.astype(np.float32).reshape(size, groups, -1).swapaxes(0, 1)
    _, square = _moments(design, rounded, *samples.wanted)
    return KernelChain((*head, jax.device_put(solved)), chain.feature_group_counts), float(square)
