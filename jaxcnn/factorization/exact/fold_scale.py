"""`fold_scale`: a batch norm, or any scale and offset of channels, folded into the convolution before it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.layout import Layout, parse_layout


@ErrorPrefix("fold_scale")
def fold_scale(
    kernel: ArrayLike | KernelChain,
    *,
    scale: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    epsilon: float = 1e-5,
    bias: ArrayLike | None = None,
    layout: Layout = None,
) -> tuple[Any, jax.Array]:
    r"""Returns the kernel and the bias that compute a convolution and the batch norm after it in one.

    With $s = \gamma / \sqrt{\sigma^2 + \epsilon}$ they are $K'[..., o] = s[o] K[..., o]$ and
    $b'[o] = s[o] (b[o] - \mu[o]) + \beta[o]$, so that
    $\mathrm{conv}(x, K') + b' = s (\mathrm{conv}(x, K) + b - \mu) + \beta$.

    Args:
      kernel: Kernel `(*window, I, O)` or as `layout` says, of any number of groups; or a `KernelChain`, whose last link
        takes the scale.
      scale: Scale $\gamma$, `(O,)`; 1 if left out.
      offset: Offset $\beta$, `(O,)`; 0 if left out.
      mean: Running mean $\mu$, `(O,)`; 0 if left out.
      variance: Running variance $\sigma^2$, `(O,)`. If left out, s is `scale` itself.
      epsilon: Number $\epsilon$ added to the variance.
      bias: Bias b of the convolution, `(O,)`; 0 if left out.
      layout: Layout of `kernel`: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple. A chain's kernels are
        HWIO in any layout.

    Returns:
      The kernel, or chain, of the same shape and layout, and the bias `(O,)`, both in the kernel's dtype.

    Raises:
      ValueError: an argument that is not `(O,)`.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.ones((3, 1, 2))                     # a window of 3, 1 channel to 2
      >>> fold_scale(kernel, scale=jnp.array([2.0, 4.0]), mean=jnp.array([1.0, 1.0]), offset=jnp.array([0.0, 5.0]))
      (Array([[[2., 4.]],
             [[2., 4.]],
             [[2., 4.]]], dtype=float32), Array([-2.,  1.], dtype=float32))

    References:
      Equals `flax.linen.BatchNorm(use_running_average=True)` and `torch.nn.BatchNorm2d` in evaluation, whose epsilon is
      1e-5 as here; Keras' is 1e-3. `torch.nn.utils.fuse_conv_bn_weights`.
    """
    chain = kernel if isinstance(kernel, KernelChain) else None
    array = jnp.asarray(chain.kernels[-1] if chain else kernel)
    if array.ndim < 3:
        raise ValueError(
            f"fold_scale: kernel must have at least one window axis, an input and an output feature axis, "
            f"got shape {array.shape}"
        )
    with ErrorPrefix("fold_scale"):
        out_axis = parse_layout(None if chain else layout, array.ndim - 2).kernel_axes[-1]
    features = array.shape[out_axis]
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"fold_scale: kernel must be of floats, which the scale makes it, got dtype {dtype}")
    # The dtype is float32 at least, because an epsilon of 1e-5 would be lost beside a variance of 16 bits.
    wide = np.promote_types(dtype, np.float32)

    def vector(name: str, value: ArrayLike | None, default: float) -> jax.Array:
        """Returns an argument, or its default, as one value for each output channel."""
        if value is None:
            return jnp.full((features,), default, wide)
        values = jnp.asarray(value)
        if values.shape != (features,):
            raise ValueError(
                f"fold_scale: {name} must have one value for each of the kernel's {features} output channels, "
                f"got shape {values.shape}"
            )
        return values.astype(wide)

    factor = vector("scale", scale, 1.0)
    if variance is not None:
        factor = factor * lax.rsqrt(vector("variance", variance, 1.0) + jnp.asarray(epsilon, wide))
    shift = vector("bias", bias, 0.0) - vector("mean", mean, 0.0)
    folded_bias = (factor * shift + vector("offset", offset, 0.0)).astype(dtype)
    column = [1] * array.ndim
    column[out_axis] = features
    folded = (array.astype(wide) * factor.reshape(column)).astype(dtype)
    if chain is None:
        return folded, folded_bias
    return KernelChain((*chain.kernels[:-1], folded), chain.feature_group_counts), folded_bias
