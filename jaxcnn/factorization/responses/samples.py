"""Samples of the inputs and the wanted outputs of a convolution, and the error of a kernel on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import dense_blocks
from jaxcnn.factorization.numerics.windows import features, merged_groups, product, rest_of, window_rows


@dataclasses.dataclass(frozen=True)
class Responses:
    r"""Holds samples of the inputs of a convolution, and of the outputs that it should have.

    With patches from a network whose earlier layers are replaced already, and targets from the network as it was, a
    layer makes up for the errors of the layers before it.

    Args:
      patches: N pieces of images, (N, \*extents, I), all input channels of all groups, kernel dilation taken out. A
        piece holds the inputs of the kernel's taps at one output position or, if it is larger than the kernel, at
        several side by side, which share most of their inputs.
      targets: Responses that the kernel should give at all positions of each piece, (N, \*places, O), before the bias.
        There are extent - window + 1 places on each axis.
      low, high: Limits (O,) of the responses, beyond which the layer's nonlinearity is constant: low is -bias before a
        ReLU. Of the shape of `targets` where they differ from sample to sample. None: no limit.

    Raises:
      ValueError: shapes that do not fit; no sample; NaN or infinite patches or targets.
    """

    patches: Any
    targets: Any
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        patches, targets = (np.asarray(array, np.float32) for array in (self.patches, self.targets))
        if patches.ndim < 3 or targets.ndim != patches.ndim or len(patches) != len(targets) or 0 in targets.shape[:-1]:
            raise ValueError(
                f"Responses: patches must be (N, *extents, I) and targets (N, *places, O), with the same N and at "
                f"least one place, got {patches.shape} and {targets.shape}"
            )
        object.__setattr__(self, "patches", patches)
        object.__setattr__(self, "targets", targets)
        for name in ("patches", "targets"):
            bad = int((~np.isfinite(getattr(self, name))).sum())
            if bad:
                raise ValueError(f"Responses: {name} have {bad} values that are NaN or infinite")
        for name, unlimited in (("low", -np.inf), ("high", np.inf)):
            value = getattr(self, name)
            limit = np.full(targets.shape[-1], unlimited) if value is None else value
            limit = np.asarray(limit, np.float32)
            if limit.shape not in (targets.shape[-1:], targets.shape):
                raise ValueError(
                    f"Responses: targets are {targets.shape}, so {name} must be {targets.shape[-1:]} or of the same "
                    f"shape, got {limit.shape}"
                )
            object.__setattr__(self, name, limit)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def window(self) -> tuple[int, ...]:
        """Window of the kernels that the samples are of."""
        return rest_of(self.patches.shape[1:-1], self.targets.shape[1:-1])

    @property
    def num_places(self) -> int:
        """Number of output positions of all pieces together."""
        return math.prod(self.targets.shape[:-1])

    def thinned(self, num_places: int) -> Responses:
        """Returns evenly spread pieces with about so many output positions."""
        return self.select(slice(None, None, max(1, self.num_places // num_places)))

    def select(self, pieces: Any) -> Responses:
        """Returns some of the pieces, by a mask (N,) or a slice."""
        low, high = (limit if limit.ndim == 1 else limit[pieces] for limit in (self.low, self.high))
        return Responses(self.patches[pieces], self.targets[pieces], low, high)


class Samples:
    """Holds `Responses` in the form that a fit reads: the spatial axes first, and a row of targets for each position.

    `scale` is the squared norm of the clipped targets less their mean, which a relative error is relative to, and
    `power` the mean square of the patches.

    Args:
      responses: Samples.
      groups: Number of groups of the kernels.
    """

    def __init__(self, responses: Responses, groups: int):
        self.is_depthwise = 1 < groups == responses.patches.shape[-1]
        # In (*extents, N, I), a link is one product for each tap, of rows that lie side by side in memory.
        self.patches = np.moveaxis(responses.patches, 0, -2)
        self.targets, self.low, self.high = map(_rows, (responses.targets, responses.low, responses.high))
        self.wanted = np.clip(self.targets, self.low, self.high)
        self.count = responses.num_places
        self.scale = float(np.square(self.wanted - self.wanted.mean(0), dtype=np.float64).sum())
        self.power = float(np.square(responses.patches).mean(dtype=np.float64))
        self._rows: dict[tuple[Any, int], np.ndarray] = {}

    def rows(self, window: Sequence[int], groups: int) -> np.ndarray:
        """Returns the inputs of a first link at all places, (G, n, taps * I / groups), kept for the next chain."""
        key = tuple(window), groups
        if key not in self._rows:
            self._rows = {key: np.ascontiguousarray(window_rows(self.patches, window, groups))}
        return self._rows[key]

    def responses_of(self, chain: KernelChain) -> np.ndarray:
        """Returns the responses (N, O) of a chain."""
        if self.is_depthwise:
            # One product with the dense kernel is faster than one for each link.
            dense = dense_blocks(chain).astype(np.float32)
            return merged_groups(
                self.rows(chain.shape[:-2], len(dense)) @ dense.reshape(len(dense), -1, dense.shape[-1])
            )
        first, *later = (np.asarray(link, np.float32) for link in chain.kernels)
        counts = chain.feature_group_counts
        x = product(self.rows(first.shape[:-2], counts[0]), first, counts[0], self.patches.shape[:-1])
        return features(later, counts[1:], x).reshape(self.targets.shape)

    def square_error(self, responses: np.ndarray) -> float:
        """Returns the squared error of responses (N, O), behind the nonlinearity."""
        return float(np.square(np.clip(responses, self.low, self.high) - self.wanted).sum(dtype=np.float64))

    def error(self, chain: KernelChain) -> float:
        """Returns the `response_error` of a chain."""
        return self.relative(self.square_error(self.responses_of(chain)))

    def relative(self, square: float) -> float:
        """Returns the `response_error` of a squared error."""
        if self.scale == 0:
            return 0.0 if square == 0 else float("inf")
        return float(np.sqrt(square / self.scale))


def _rows(array: np.ndarray) -> np.ndarray:
    """Returns (N, *places, O) as (n, O), in the order of `window_rows`, and (O,) as (1, O)."""
    return np.moveaxis(array, 0, -2).reshape(-1, array.shape[-1]) if array.ndim > 1 else array[None]


def response_error(kernel: Any, responses: Responses) -> float:
    r"""Returns the relative error of a kernel's responses, behind the layer's nonlinearity.

    $\lVert c(XK) - c(T) \rVert / \lVert c(T) - \bar c \rVert$ over all samples and channels, where X are the patches, T
    the targets, c clips to [low, high] and $\bar c$ is the mean of c(T) in each channel: the best constant has error 1.
    Where c(T) is constant, the error is 0 if the kernel gives the same, else infinity.

    Args:
      kernel: `KernelChain`, or one kernel, HWIO, whose input channels tell its number of groups.
      responses: Samples.

    Raises:
      ValueError: a kernel that does not fit the samples.
    """
    chain = chain_for(responses, "response_error", kernel)
    return Samples(responses, chain.feature_group_count).error(chain)


def chain_for(responses: Responses, operation: str, kernel: Any) -> KernelChain:
    """Returns a kernel or chain as a chain, and refuses one that does not fit the samples."""
    channels = responses.patches.shape[-1]
    if isinstance(kernel, KernelChain):
        chain = kernel
    elif channels % kernel.shape[-2]:
        raise ValueError(
            f"{operation}: patches have {channels} channels, kernel takes {kernel.shape[-2]} in each group"
        )
    else:
        chain = KernelChain((kernel,), (channels // kernel.shape[-2],))
    size = (*chain.shape[:-2], chain.shape[-2] * chain.feature_group_count, chain.shape[-1])
    expected = (*responses.window, channels, responses.targets.shape[-1])
    if size != expected:
        raise ValueError(f"{operation}: the samples are of (*window, I, O) = {expected}, the kernel of {size}")
    return chain
