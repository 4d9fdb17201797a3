"""`merge`: parallel branches, and an identity beside them, merged into one kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import whole_number
from jaxcnn.layout import Layout, parse_layout


@ErrorPrefix("merge")
def merge(
    *kernels: ArrayLike, identity: ArrayLike | None = None, feature_group_count: int = 1, layout: Layout = None
) -> jax.Array:
    r"""Returns the one kernel that equals several convolutions of one image, and an identity, added up.

    $K[w] = \sum_n K_n[w - c_n]$, each kernel in the middle of the largest window, at the offset
    $c_n = \lfloor (W - 1) / 2 \rfloor - \lfloor (W_n - 1) / 2 \rfloor$ on each axis. So
    $\mathrm{conv}(x, K) = \sum_n \mathrm{conv}(x, K_n)$ with padding `"SAME"` at stride 1, and at any stride with
    padding (W_n - 1) // 2 of each odd window. The equality does not hold at stride 2 for `"SAME"`, which pads each
    window differently there.

    Args:
      *kernels: Kernels of the branches, `(*window, I / feature_group_count, O)` or as `layout` says, with windows of
        any sizes.
      identity: Weight of a branch that is x itself: a number, or `(O,)` with one for each channel. None: no such
        branch.
      feature_group_count: Number of groups of the kernels; only the identity depends on it.
      layout: Layout of the kernels: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

    Returns:
      A kernel in the same layout, whose window is the largest on each axis, in the dtype to which the kernels promote.

    Raises:
      ValueError: no kernel; kernels of different channels or numbers of axes; an identity where the numbers of input
        and output channels differ.
      TypeError: a kernel that is a chain; an identity of floats with kernels of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> row, column = jnp.ones((1, 3, 1, 1)), jnp.ones((3, 1, 1, 1))
      >>> merge(row, column, identity=10)[:, :, 0, 0]
      Array([[ 0.,  1.,  0.],
             [ 1., 12.,  1.],
             [ 0.,  1.,  0.]], dtype=float32)

    References:
      Ding et al., "RepVGG: making VGG-style ConvNets great again", 2021; Ding, Guo, Ding and Han, "ACNet: strengthening
      the kernel skeletons for powerful CNN via asymmetric convolution blocks", 2019. Batch norms go in first, with
      `fold_scale`.
    """
    if not kernels:
        raise ValueError("merge: there must be at least one kernel")
    if any(isinstance(kernel, KernelChain) for kernel in kernels):
        raise TypeError("merge: a kernel is a KernelChain; its dense kernel is chain.dense()")
    arrays = [jnp.asarray(kernel) for kernel in kernels]
    shapes = [array.shape for array in arrays]
    if len({len(shape) for shape in shapes}) > 1 or len(shapes[0]) < 3:
        raise ValueError(
            f"merge: all kernels must have the same number of axes, at least one window axis and two feature axes, "
            f"got {shapes}"
        )
    order, groups = parse_layout(layout, len(shapes[0]) - 2), whole_number("feature_group_count", feature_group_count)
    *window_axes, in_axis, out_axis = order.kernel_axes
    if len({(shape[in_axis], shape[out_axis]) for shape in shapes}) > 1:
        raise ValueError(f"merge: all kernels must have the same input and output channels, got {shapes}")
    features = (shapes[0][in_axis], shapes[0][out_axis])
    if any(shape[axis] < 1 for shape in shapes for axis in window_axes):
        raise ValueError(f"merge: no kernel may have an empty window, got {shapes}")
    window = [max(shape[axis] for shape in shapes) for axis in window_axes]
    centred_kernels = []
    for array in arrays:
        widths = [(0, 0)] * array.ndim
        for axis, size in zip(window_axes, window, strict=True):
            low = (size - 1) // 2 - (array.shape[axis] - 1) // 2
            widths[axis] = (low, size - array.shape[axis] - low)
        centred_kernels.append(jnp.pad(array, widths))
    if identity is not None:
        branch = _identity_kernel(identity, features, groups, jnp.result_type(*arrays))
        # The branch is a tap in the middle of the window. The transpose makes the user's order of axes.
        middle = tuple((size - 1) // 2 for size in window)
        dense = jnp.zeros((*window, *features), branch.dtype).at[middle].set(branch)
        inverse = sorted(range(len(shapes[0])), key=order.kernel_axes.__getitem__)
        centred_kernels.append(dense.transpose(inverse))
    return sum(centred_kernels[1:], centred_kernels[0])


def _identity_kernel(identity: Any, features: tuple[int, int], groups: int, dtype: Any) -> jax.Array:
    """Returns the matrix (I, O) of the tap that passes each channel on with its weight, I input channels in a group.

    Output o of the convolution is input number o % I of the group of o, times the weight.
    """
    in_features, out_features = features
    if in_features * groups != out_features:
        times = f" * {groups} groups" if groups > 1 else ""
        raise ValueError(
            f"merge: an identity needs as many input as output channels, got {in_features}{times} and {out_features}"
        )
    weight = jnp.asarray(identity)
    for kind, name in ((jnp.inexact, "floats"), (jnp.complexfloating, "complex numbers")):
        if jnp.issubdtype(weight.dtype, kind) and not jnp.issubdtype(dtype, kind):
            raise TypeError(f"merge: an identity of {weight.dtype} needs kernels of {name}, got dtype {dtype}")
    weight = weight.astype(dtype)
    if weight.shape not in ((), (1,), (out_features,)):
        raise ValueError(f"merge: identity must be a number or ({out_features},) of them, got shape {weight.shape}")
    return jnp.tile(jnp.eye(in_features, dtype=dtype), (1, groups)) * jnp.broadcast_to(weight, (1, out_features))
