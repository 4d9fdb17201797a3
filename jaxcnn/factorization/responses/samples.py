"""Samples of the inputs and the wanted outputs of a convolution, and the error of a kernel on them."""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.responses.whitening import features


@dataclasses.dataclass(frozen=True)
class Responses:
    r"""Holds samples of the inputs of a convolution, and of the outputs that it should have.

    With patches from a network whose earlier layers are replaced already, and targets from the network as it was, a
    layer makes up for the errors of the layers before it.

    Args:
      patches: Inputs of the kernel's taps at N output positions, (N, \*window, I), kernel dilation taken out; all input
        channels, of all groups.
      targets: Responses that the kernel should give at these positions, (N, O), before the bias.
      low, high: Limits (O,) of the responses, beyond which the layer's nonlinearity is constant: low is -bias before a
        ReLU. (N, O) where they differ from sample to sample. None: no limit.

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
        for name, unlimited in (("low", -np.inf), ("high", np.inf)):
            value = getattr(self, name)
            limit = np.full(targets.shape[1], unlimited) if value is None else value
            limit = np.asarray(limit, np.float32)
            if limit.shape not in (targets.shape[1:], targets.shape):
                raise ValueError(
                    f"Responses: targets are {targets.shape}, so {name} must be (O,) or (N, O), got {limit.shape}"
                )
            object.__setattr__(self, name, limit)

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, mask: np.ndarray) -> Responses:
        """Returns the samples at which a mask (N,) is true."""
        low, high = (limit if limit.ndim == 1 else limit[mask] for limit in (self.low, self.high))
        return Responses(self.patches[mask], self.targets[mask], low, high)


class Samples:
    """Holds `Responses` in the form that a fit reads: on the device, the window's axes first.

    `scale` is the squared norm of the clipped targets less their mean, which a relative error is relative to, and
    `power` the mean square of the patches.

    Args:
      responses: Samples on the host.
      groups: Number of groups of the kernels.
    """

    def __init__(self, responses: Responses, groups: int):
        self.is_depthwise = 1 < groups == responses.patches.shape[-1]
        # In (*window, N, I), a link is one product for each tap, of rows that lie side by side in memory.
        self.patches = jnp.asarray(np.ascontiguousarray(np.moveaxis(responses.patches, 0, -2)))
        targets = jnp.asarray(responses.targets)
        low, high = (jnp.asarray(np.atleast_2d(limit)) for limit in (responses.low, responses.high))
        self.targets_and_limits = targets, low, high
        clipped = np.clip(responses.targets, responses.low, responses.high)
        self.count = len(responses)
        self.scale = float(np.square(clipped - clipped.mean(0), dtype=np.float64).sum())
        self.power = float(np.square(responses.patches).mean(dtype=np.float64))

    @cached_property
    def error_patches(self) -> Any:
        """Returns the patches for `square_error`: (C, taps, N) for depthwise kernels, else (*window, N, I)."""
        if not self.is_depthwise:
            return self.patches
        return jnp.moveaxis(self.patches, -1, 0).reshape(self.patches.shape[-1], -1, self.count)

    def error(self, chain: KernelChain) -> float:
        """Returns the `response_error` of a chain."""
        arrays = self.error_patches, *self.targets_and_limits
        square = square_error(in_float32(chain), *arrays, is_depthwise=self.is_depthwise)
        return self.relative(float(square))

    def relative(self, square: float) -> float:
        """Returns the `response_error` of a squared error."""
        if self.scale == 0:
            return 0.0 if square == 0 else float("inf")
        return float(np.sqrt(square / self.scale))


def in_float32(chain: KernelChain) -> KernelChain:
    """Returns the chain with its links in float32."""
    return KernelChain(tuple(jnp.asarray(link, jnp.float32) for link in chain.kernels), chain.feature_group_counts)


@partial(jax.jit, static_argnames=("is_depthwise",))
def square_error(chain: KernelChain, patches: Any, targets: Any, low: Any, high: Any, *, is_depthwise: bool) -> Any:
    """Returns the squared error of a chain's responses to `Samples.error_patches`, behind the nonlinearity."""
    if is_depthwise:
        # One product with the dense kernel is faster than one for each link and tap.
        dense = chain.dense().reshape(patches.shape[1], patches.shape[0], -1)
        predicted = (dense.transpose(1, 2, 0) @ patches).reshape(-1, len(targets)).T  # (C, M, taps) @ (C, taps, N)
    else:
        predicted = features(chain.kernels, chain.feature_group_counts, patches).reshape(targets.shape)
    return jnp.sum(jnp.square(jnp.clip(predicted, low, high) - jnp.clip(targets, low, high)))


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
    with jax.default_matmul_precision("highest"):
        chain = chain_for(responses, "response_error", kernel)
        return Samples(responses, chain.feature_group_count).error(chain)


def chain_for(responses: Responses, operation: str, kernel: Any) -> KernelChain:
    """Returns a kernel or chain as a chain, and refuses one that does not fit the samples."""
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
    expected = (*window, channels, responses.targets.shape[1])
    if size != expected:
        raise ValueError(f"{operation}: the samples are of (*window, I, O) = {expected}, the kernel of {size}")
    return chain
