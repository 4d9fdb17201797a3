"""Convolutions in a row: the links of a chain, or one kernel alone, bound one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.chain import plan_links
from jaxcnn.dtypes import floating_at_least_float32
from jaxcnn.geometry import Ints, Pair, dilated_size, output_sizes
from jaxcnn.lowering.common.forms import pad_spatial
from jaxcnn.options import PADDING_MODES, ConvGeometry
from jaxcnn.primitives import batch_sharding, bind_conv


def _pad_in_mode(x: jax.Array, padding: Sequence[Pair], mode: str) -> jax.Array:
    """Pads the spatial axes of (N, *spatial, C) from x's own pixels, in one of `PADDING_MODES` other than zeros.

    A negative padding crops.
    """
    added = [(_added(low), _added(high)) for low, high in padding]
    if not all(isinstance(n, int) for n in (*x.shape[1:-1], *(pad for pair in added for pad in pair))):
        for axis, (low, high) in enumerate(added, start=1):
            x = _pad_symbolic(x, axis, low, high, mode)
    elif any(map(any, added)):
        x = jnp.pad(x, ((0, 0), *added, (0, 0)), mode=PADDING_MODES[mode])
    return pad_spatial(x, [(_cropped(low), _cropped(high)) for low, high in padding])


def _added(pad: Any) -> Any:
    """Returns the pixels that a padding adds. A symbolic padding, that of "SAME", is never negative."""
    return max(pad, 0) if isinstance(pad, int) else pad


def _cropped(pad: Any) -> int:
    """Returns the padding, 0 or below, that crops."""
    return min(pad, 0) if isinstance(pad, int) else 0


def _pad_symbolic(x: jax.Array, axis: int, low: Any, high: Any, mode: str) -> jax.Array:
    """Pads one axis as `jnp.pad` does, but for sizes that may be symbolic: by the index of each pixel's source."""
    size = jnp.asarray(x.shape[axis], jnp.int32)
    places = lax.iota(jnp.int32, low + x.shape[axis] + high) - jnp.asarray(low, jnp.int32)
    if mode == "circular":
        sources = places % size
    elif mode == "replicate":
        sources = jnp.clip(places, 0, size - 1)
    else:
        period = jnp.maximum(2 * (size - 1), 1)  # one pixel is its own reflection
        sources = jnp.minimum(places % period, period - places % period)
    return jnp.take(x, sources, axis=axis, mode="clip")


def bind_links(
    x: jax.Array, kernels: Sequence[jax.Array], counts: Sequence[int], geometry: ConvGeometry, **params: Any
) -> jax.Array:
    """Convolves (N, *spatial, C) with kernels in a row.

    Args:
      x: array of the kernels' dtype.
      kernels: HWIO kernels, first applied first.
      counts: number of groups of each kernel.
      geometry: geometry of the convolution with the dense kernel that the row equals.
      params: parameters of `bind_conv` that all links share; `preferred_element_type` is that of the last one.
    """
    x, cropped_geometry = _pad_input(x, geometry)
    windows = [tuple(kernel.shape[:-2]) for kernel in kernels]
    out_dtype = params.pop("preferred_element_type")
    inner_dtype = floating_at_least_float32(out_dtype)  # 16-bit floats stay float32 between links
    for index, link in enumerate(plan_links(windows, geometry.strides, **cropped_geometry)):
        x = bind_conv(
            x,
            kernels[index],
            feature_group_count=counts[index],
            kernel_dilation=geometry.kernel_dilation,
            preferred_element_type=out_dtype if index == len(kernels) - 1 else inner_dtype,
            **link,
            **params,
        )
    return x


def _pad_input(x: jax.Array, geometry: ConvGeometry) -> tuple[jax.Array, dict[str, Any]]:
    """Pads x where the primitive cannot, and returns it with the padding and input dilation that are left.

    The primitive takes no padding of another mode than zeros and no negative padding (XLA reads out of bounds for some:
    openxla/xla#48713).
    """
    if geometry.padding_mode != "zeros":
        x = _pad_in_mode(x, geometry.padding, geometry.padding_mode)
        return x, {"padding": ((0, 0),) * geometry.order.rank, "input_dilation": geometry.input_dilation}
    padding, dilation = list(geometry.padding), list(geometry.input_dilation)
    for axis, (low, high) in enumerate(geometry.padding):
        # lax refuses symbolic padding of a convolution, which "SAME" of a symbolic size is with a stride.
        if not (isinstance(low, int) and isinstance(high, int)) or min(low, high) < 0:
            config = [(0, 0, 0)] * x.ndim
            config[axis + 1] = (low, high, dilation[axis] - 1)
            x = lax.pad(x, jnp.zeros((), x.dtype), config)
            padding[axis], dilation[axis] = (0, 0), 1
    return x, {"padding": tuple(padding), "input_dilation": tuple(dilation)}


def bind_links_transposed(
    y: jax.Array, kernels: Sequence[jax.Array], counts: Sequence[int], geometry: ConvGeometry, **params: Any
) -> jax.Array:
    """Computes the adjoint of `bind_links`, from (N, *output, C_out) to (N, *spatial, C_in).

    Args:
      y: array of the kernels' dtype.
      kernels, counts, geometry: arguments of `bind_links`; the last link is transposed first.
      params: parameters of `bind_conv` that all links share.
    """
    # Where the convolution crops its input, its adjoint pads the result.
    edges = [pair if min(pair) < 0 else (0, 0) for pair in geometry.padding]
    padding = [(0, 0) if min(pair) < 0 else pair for pair in geometry.padding]
    windows = [tuple(kernel.shape[:-2]) for kernel in kernels]
    plan = plan_links(windows, geometry.strides, padding, geometry.input_dilation)
    sizes: list[Ints] = [tuple(size + low + high for size, (low, high) in zip(geometry.sizes, edges, strict=True))]
    for window, link in zip(windows, plan, strict=True):
        extents = tuple(map(dilated_size, window, geometry.kernel_dilation))
        sizes.append(output_sizes(sizes[-1], link["padding"], extents, link["strides"]))
    for index in reversed(range(len(kernels))):
        y = bind_conv(
            y,
            kernels[index],
            role="input",
            input_size=sizes[index],
            sharding=batch_sharding(y),
            feature_group_count=counts[index],
            kernel_dilation=geometry.kernel_dilation,
            **plan[index],
            **params,
        )
    return pad_spatial(y, [(-low, -high) for low, high in edges])
