"""`KernelChain`: a kernel given as a chain of smaller kernels, and the dense kernel that such a chain equals."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from jaxcnn.checkpoints import register_state
from jaxcnn.dtypes import floating_at_least_float32, integer_at_least_int32
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import Ints, Pair


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class KernelChain:
    r"""Holds the kernels of convolutions in a row, which stand for the one dense kernel that the row equals.

    Two links equal the dense kernel $K[w] = \sum_{u+v=w} A[u] B[v]$, where the products are matrix products over
    channels. A chain can stand in the place of a kernel: `jaxcnn.conv(x, chain)`, `jaxcnn.conv_transpose(x, chain)`. A
    chain is a pytree whose leaves are the kernels, so it can be differentiated, trained, jitted over and saved.

    Args:
      kernels: links, first applied first, each `(*window, I / groups, O)` (HWIO, whatever the layout of images).
      feature_group_counts: number of groups of each link; all 1 if left out.

    Raises:
      ValueError: There is no link; the links have different spatial ranks; their channels do not fit.
      TypeError: A link is no array; the group counts are no ints.

    Example:
      >>> import jax.numpy as jnp
      >>> column, row = jnp.ones((3, 1, 1, 1)), jnp.ones((1, 3, 1, 1))
      >>> chain = KernelChain((column, row))
      >>> chain.shape, chain.num_params
      ((3, 3, 1, 1), 6)
      >>> bool((chain.dense() == 1).all())
      True

    References:
      Jaderberg, Vedaldi and Zisserman, "Speeding up convolutional neural networks with low rank expansions", 2014.
    """

    kernels: tuple[Any, ...]
    feature_group_counts: Ints = ()

    def __post_init__(self) -> None:
        try:
            kernels = tuple(self.kernels)
        except TypeError:
            raise TypeError(f"KernelChain: kernels must be a tuple, got {type(self.kernels).__name__}") from None
        for index, kernel in enumerate(kernels):
            if isinstance(kernel, KernelChain) or not hasattr(kernel, "shape"):
                raise TypeError(f"KernelChain: kernel {index} must be an array, got {type(kernel).__name__}")
        try:
            counts = tuple(map(operator.index, self.feature_group_counts)) or (1,) * len(kernels)
        except TypeError:
            raise TypeError(
                "KernelChain: feature_group_counts must be ints, one for each kernel, and all kernels in one tuple "
                f"before, got {type(self.feature_group_counts).__name__}"
            ) from None
        object.__setattr__(self, "kernels", kernels)
        object.__setattr__(self, "feature_group_counts", counts)
        _check_links([tuple(kernel.shape) for kernel in kernels], counts)

    def tree_flatten_with_keys(self) -> tuple[Any, Ints]:
        """Returns the kernels as leaves, and the group counts as static structure."""
        keys = (jax.tree_util.SequenceKey(index) for index in range(len(self.kernels)))
        return tuple(zip(keys, self.kernels, strict=True)), self.feature_group_counts

    @classmethod
    def tree_unflatten(cls, feature_group_counts: Ints, kernels: Sequence[Any]) -> KernelChain:
        """Returns a chain of any leaves, unchecked: transformations put other objects in the place of arrays."""
        chain = object.__new__(cls)
        object.__setattr__(chain, "kernels", tuple(kernels))
        object.__setattr__(chain, "feature_group_counts", feature_group_counts)
        return chain

    @classmethod
    def of_shapes(cls, *links: tuple[Ints, int], dtype: Any = np.float32) -> KernelChain:
        """Returns a chain without numbers, whose links are `jax.ShapeDtypeStruct`s: for shapes and costs alone.

        Args:
          *links: Shape and group count of each link.
          dtype: Dtype of all links.
        """
        kernels = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, _ in links)
        return cls(kernels, tuple(count for _, count in links))

    @property
    def windows(self) -> tuple[Ints, ...]:
        """Returns the window of each link."""
        return tuple(tuple(kernel.shape[:-2]) for kernel in self.kernels)

    @property
    def feature_group_count(self) -> int:
        """Returns the number of groups of the dense kernel, the greatest common divisor of the links' numbers."""
        return math.gcd(*self.feature_group_counts)

    @property
    def shape(self) -> Ints:
        """Returns the shape `(*window, I / groups, O)` of the dense kernel."""
        window = tuple(sum(sizes) - len(sizes) + 1 for sizes in zip(*self.windows, strict=True))
        in_features = self.kernels[0].shape[-2] * self.feature_group_counts[0]
        return (*window, in_features // self.feature_group_count, self.kernels[-1].shape[-1])

    @property
    def ndim(self) -> int:
        """Returns the number of axes of the dense kernel."""
        return len(self.kernels[0].shape)

    @property
    def dtype(self) -> Any:
        """Returns the dtype to which the links promote."""
        return jnp.result_type(*self.kernels)

    @property
    def num_params(self) -> int:
        """Returns the number of weights in all links."""
        return sum(math.prod(kernel.shape) for kernel in self.kernels)

    def dense(self) -> jax.Array:
        """Computes the dense kernel, `(*window, I / groups, O)`, that the chain equals.

        It is computed in float32 at least and returned in the chain's dtype, or in int32 for narrower integers.
        """
        with ErrorPrefix("dense"):
            return _dense(self)

    def relative_error(self, kernel: Any) -> jax.Array:
        r"""Computes the relative error of the chain's dense kernel D against `kernel`, HWIO, as a scalar.

        It is $\lVert D - K \rVert / \lVert K \rVert$ for the kernel K.
        A zero kernel has relative error 0 if the chain is zero too, else infinity.
        """
        if isinstance(kernel, KernelChain) or not hasattr(kernel, "shape"):
            raise TypeError(f"relative_error: kernel must be an array, got {type(kernel).__name__}")
        if tuple(kernel.shape) != self.shape:
            raise ValueError(
                f"relative_error: the chain stands for a kernel of shape {self.shape}, got {tuple(kernel.shape)}"
            )
        with ErrorPrefix("relative_error"):
            return _relative_error(self, kernel)


def _check_links(shapes: Sequence[Ints], counts: Sequence[int]) -> None:
    """Refuses links of different ranks, of groups that do not divide, or whose channels do not follow on each other."""
    if not shapes:
        raise ValueError("KernelChain: there must be at least one kernel")
    if len(counts) != len(shapes):
        raise ValueError(f"KernelChain: {len(shapes)} kernels need as many feature_group_counts, got {tuple(counts)}")
    if len({len(shape) for shape in shapes}) > 1 or len(shapes[0]) < 3:
        raise ValueError(
            f"KernelChain: all kernels must have the same number of axes, at least one window axis and two feature "
            f"axes, got {list(shapes)}"
        )
    for index, (shape, count) in enumerate(zip(shapes, counts, strict=True)):
        if count < 1 or shape[-1] % count:
            raise ValueError(
                f"KernelChain: kernel {index} has {shape[-1]} output channels, which do not divide into {count} groups"
            )
        if index and shape[-2] * count != shapes[index - 1][-1]:
            raise ValueError(
                f"KernelChain: kernel {index - 1} gives {shapes[index - 1][-1]} channels, but kernel {index} takes "
                f"{shape[-2]} * {count} groups = {shape[-2] * count} ({list(shapes)})"
            )


def plan_links(
    windows: Sequence[Ints], strides: Ints, padding: Sequence[Pair], input_dilation: Ints
) -> list[dict[str, Any]]:
    """Returns strides, padding and input dilation of each link, with which a chain equals its dense kernel.

    On each axis the first link with an extent above 1 takes the padding and the input dilation, and the last one takes
    the stride. Links of extent 1 could take them with the same result, but this choice computes the fewest pixels.
    """
    rank = len(strides)
    first, last = [0] * rank, [0] * rank
    for axis in range(rank):
        extended = [index for index, window in enumerate(windows) if window[axis] > 1] or [0]
        first[axis], last[axis] = extended[0], extended[-1]
    return [
        {
            "strides": tuple(strides[a] if last[a] == index else 1 for a in range(rank)),
            "padding": tuple(tuple(padding[a]) if first[a] == index else (0, 0) for a in range(rank)),
            "input_dilation": tuple(input_dilation[a] if first[a] == index else 1 for a in range(rank)),
        }
        for index in range(len(windows))
    ]


def compose(*kernels: jax.Array) -> jax.Array:
    r"""Computes the exact dense kernel of convolutions in a row.

    $K[w] = \sum_{u+v=w} A[u] B[v]$ for two kernels, and so on from left to right; a convolution with A and then one
    with B (both without padding) equals one with K.

    Args:
      *kernels: arrays `(*window, I, F_1)`, `(*window, F_1, F_2)`, ..., `(*window, F_n, O)`, first applied first.

    Returns:
      `(*window, I, O)`, where each window size is the sum of the kernels' sizes along the axis, minus the number of
      kernels, plus 1; in the dtype to which the kernels promote, int32 for narrower integers.

    Raises:
      ValueError: The channels or the numbers of axes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> row = jnp.array([1.0, 2.0, 1.0]).reshape(1, 3, 1, 1)
      >>> compose(row, row).ravel()
      Array([1., 4., 6., 4., 1.], dtype=float32)

    References:
      For one channel, `scipy.signal.convolve` of the kernels in its mode "full".
    """
    with ErrorPrefix("compose"):
        return _dense(KernelChain(kernels))


def _in_groups(kernel: jax.Array, count: int, groups: int) -> jax.Array:
    """Returns a kernel of `count` groups, a multiple of `groups`, as one dense kernel for each of `groups` groups.

    (*window, I / count, O) -> (groups, *window, I / groups, O / groups), with zeros between the finer groups.
    """
    *window, kernel_in, out_features = kernel.shape
    finer = count // groups
    blocks = kernel.reshape(*window, kernel_in, groups, finer, out_features // count)
    # (*window, I/count, G, f, O/count) -> (*window, f, I/count, G, f', O/count), zero unless f == f'
    eye = jnp.eye(finer, dtype=kernel.dtype)
    spread = jnp.einsum("...igfo,fh->...higfo", blocks, eye, precision=lax.Precision.HIGHEST)
    spread = spread.reshape(*window, finer * kernel_in, groups, out_features // groups)
    return jnp.moveaxis(spread, -2, 0)


def _compose_pair(first: jax.Array, second: jax.Array) -> jax.Array:
    """Composes two links: (G, *window, I, F) and (G, *window, F, O) -> (G, *window, I, O)."""
    rank = first.ndim - 3
    spatial = "DHW"[3 - rank :] if rank <= 3 else "ABCDEFGH"[:rank]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        # The first link's input features are the batch and its window is the image: (I, *window, F), (*window, F, O).
        image = jnp.moveaxis(a, -2, 0)
        full = [(size - 1, size - 1) for size in b.shape[:-2]]
        flipped = jnp.flip(b, tuple(range(rank)))
        dense = lax.conv_general_dilated(
            image, flipped, (1,) * rank, full, dimension_numbers=numbers, precision=lax.Precision.HIGHEST
        )
        return jnp.moveaxis(dense, 0, -2)

    if first.shape[0] == 1:
        return one(first[0], second[0])[None]
    return _compose_groups(first, second)


def _compose_groups(first: jax.Array, second: jax.Array) -> jax.Array:
    """Composes two links of several groups by one product for each tap of the smaller window.

    The gradient of a grouped convolution would be slow on XLA:CPU.
    """
    spread, taps = (first, second) if math.prod(second.shape[1:-2]) <= math.prod(first.shape[1:-2]) else (second, first)
    total: Any = 0
    for tap in np.ndindex(*taps.shape[1:-2]):
        tap_weights = taps[(slice(None), *tap)].reshape(len(taps), *[1] * len(tap), *taps.shape[-2:])
        product = jnp.matmul(
            *((spread, tap_weights) if spread is first else (tap_weights, spread)), precision=lax.Precision.HIGHEST
        )
        around = [(before, size - 1 - before) for before, size in zip(tap, taps.shape[1:-2], strict=True)]
        total = total + jnp.pad(product, [(0, 0), *around, (0, 0), (0, 0)])
    return total


@jax.jit
def _dense(chain: KernelChain) -> jax.Array:
    """Composes the links of a chain, in at least float32."""
    dtype = integer_at_least_int32(chain.dtype)  # products of narrow integers would wrap
    groups = chain.feature_group_count
    links = [
        _in_groups(jnp.asarray(kernel, floating_at_least_float32(dtype)), count, groups)
        for kernel, count in zip(chain.kernels, chain.feature_group_counts, strict=True)
    ]
    dense = reduce(_compose_pair, links)  # (G, *window, I / G, O / G)
    dense = jnp.moveaxis(dense, 0, -2)
    return dense.reshape(*dense.shape[:-2], -1).astype(dtype)


@jax.jit
def _relative_error(chain: KernelChain, kernel: jax.Array) -> jax.Array:
    dense = chain.dense()
    # Each is promoted with float32 first: bfloat16 and float16 have no common dtype in NumPy.
    wide = (np.promote_types(array.dtype, np.float32) for array in (dense, kernel))
    dtype = jax.dtypes.canonicalize_dtype(np.promote_types(*wide))
    kernel = kernel.astype(dtype)
    # Weights are divided by the largest one, because squares of 1e-23 are 0 in float32.
    largest = lax.stop_gradient(jnp.max(jnp.abs(kernel), initial=0))
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest)).astype(dtype)
    kernel = kernel / scale
    error = jnp.sqrt(jnp.sum(jnp.abs(dense.astype(dtype) / scale - kernel) ** 2))
    norm = jnp.sqrt(jnp.sum(jnp.abs(kernel) ** 2))
    ratio = error / jnp.where(norm > 0, norm, jnp.ones_like(norm))
    return jnp.where(norm > 0, ratio, jnp.where(error > 0, jnp.inf, jnp.zeros_like(error)))


# Exported functions of chains can then be written to files.
export.register_pytree_node_serialization(
    KernelChain,
    serialized_name="jaxcnn.KernelChain",
    serialize_auxdata=lambda counts: json.dumps(counts).encode(),
    deserialize_auxdata=lambda data: tuple(json.loads(data)),
)

register_state(
    KernelChain,
    lambda chain: {str(index): kernel for index, kernel in enumerate(chain.kernels)},
    lambda chain, state: KernelChain.tree_unflatten(chain.feature_group_counts, tuple(state.values())),
)
