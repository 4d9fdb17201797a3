"""The method `direct`: XLA's own convolution and window reduction, which supports everything and defines the answer.

The error of a float32 output on CPU is within 4 epsilons of the sum of its products' magnitudes.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn._compat import example
from jaxcnn.geometry import dilated_size
from jaxcnn.lowering.common.forms import transposed_kernel
from jaxcnn.lowering.spec import ConvSpec, PoolSpec

NAME = "direct"


def supports(spec: ConvSpec) -> str | None:
    """None, since `direct` computes every convolution."""
    del spec
    return None


def _dimension_numbers(rank: int) -> lax.ConvDimensionNumbers:
    spatial = tuple(range(1, rank + 1))
    channels_last = (0, rank + 1, *spatial)
    return lax.ConvDimensionNumbers(channels_last, (rank + 1, rank, *range(rank)), channels_last)


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, sharding: Any = None) -> jax.Array:
    """Computes the array that `spec.role` names from the two others, by `lax.conv_general_dilated` or its transpose."""
    if any(isinstance(n, int) and n == 0 for n in (*spec.input_shape, *spec.kernel_shape, *spec.output_shape)):
        lead = () if spec.stacked is None else (spec.stacked,)
        return jnp.zeros((*lead, *spec.result_shape), spec.out_dtype)
    if (wide := _widened(spec)) is not None:
        return _narrowed(lower(lhs, rhs, wide, sharding), spec)
    if spec.stacked is not None:
        return jax.vmap(lambda a, b: _single(a, b, spec, None))(lhs, rhs)
    return _single(lhs, rhs, spec, sharding)


def _leads(spec: ConvSpec) -> list[bool]:
    """For each axis, whether the window's first places see nothing but padding."""
    extents = map(dilated_size, spec.window, spec.kernel_dilation)
    return [low >= extent for (low, _), extent in zip(spec.padding, extents, strict=True)]


def _widened(spec: ConvSpec) -> ConvSpec | None:
    """The role "input" with the padding as pixels wherever it holds whole windows; None where it holds none.

    As one convolution this role would pad y by a negative number, and XLA:CPU reads out of bounds for some
    (openxla/xla#48713).
    """
    if spec.role != "input" or not any(leads := _leads(spec)):
        return None
    sizes, padding, dilation = list(spec.input_shape), list(spec.padding), list(spec.input_dilation)
    for axis, leading in enumerate(leads):
        if leading:
            sizes[axis + 1] = dilated_size(sizes[axis + 1], dilation[axis]) + sum(padding[axis])
            padding[axis], dilation[axis] = (0, 0), 1
    return dataclasses.replace(spec, input_shape=tuple(sizes), padding=tuple(padding), input_dilation=tuple(dilation))


def _narrowed(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """The input of a spec from that of its `_widened` one."""
    for axis, leading in enumerate(_leads(spec)):
        if leading:
            (low, _), step, size = spec.padding[axis], spec.input_dilation[axis], spec.input_shape[axis + 1]
            spatial = axis + x.ndim - 1 - spec.rank
            x = lax.slice_in_dim(x, low, low + dilated_size(size, step), step, axis=spatial)
    return x


def _single(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, sharding: Any) -> jax.Array:
    # NumPy's promotion of ml_dtypes is JAX's, and is not refused under strict promotion: the user's own operands were
    # checked before, here a float32 cotangent may meet a bfloat16 kernel.
    common = np.promote_types(spec.lhs_dtype, spec.rhs_dtype)
    wider = np.promote_types(common, spec.out_dtype) == spec.out_dtype and common != spec.out_dtype
    lhs, rhs = lhs.astype(common), rhs.astype(common)

    def forward(x: jax.Array, kernel: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=spec.strides,
            padding=spec.padding,
            lhs_dilation=spec.input_dilation,
            rhs_dilation=spec.kernel_dilation,
            dimension_numbers=_dimension_numbers(spec.rank),
            feature_group_count=spec.feature_group_count,
            precision=spec.precision,
            preferred_element_type=preferred_element_type,
        )

    if spec.role == "output":
        result = forward(lhs, rhs, spec.out_dtype if wider else None)
    elif spec.role == "input" and not jnp.issubdtype(spec.out_dtype, jnp.inexact):
        result = _integer_input(lhs.astype(spec.out_dtype), rhs.astype(spec.out_dtype), spec)
    else:
        if wider:
            lhs, rhs = lhs.astype(spec.out_dtype), rhs.astype(spec.out_dtype)
        struct = example(spec.result_shape, lhs.dtype, sharding, lhs, rhs)
        if spec.role == "input":
            (result,) = jax.linear_transpose(lambda x: forward(x, rhs), struct)(lhs)
        else:
            (result,) = jax.linear_transpose(lambda kernel: forward(lhs, kernel), struct)(rhs)
    return result.astype(spec.out_dtype)


def lower_channels_last(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """The same as `lower`, with operands transposed so that every convolution is channels-last, its kernel HWIO.

    In the body of a loop XLA:CPU is 15 to 40 times slower with any other dimension numbers, and the derivatives of a
    convolution in JAX have others; outside of loops it transposes by itself.
    """
    dense = spec.feature_group_count == 1 or spec.role == "input"
    floating = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (spec.lhs_dtype, spec.rhs_dtype, spec.out_dtype))
    known = all(isinstance(n, int) and n > 0 for n in (*spec.input_shape, *spec.kernel_shape, *spec.output_shape))
    if spec.role == "output" or not (dense and floating and known):
        return lower(lhs, rhs, spec)
    if (wide := _widened(spec)) is not None:
        return _narrowed(lower_channels_last(lhs, rhs, wide), spec)
    dtype = np.promote_types(np.promote_types(spec.lhs_dtype, spec.rhs_dtype), spec.out_dtype)
    run = partial(_input if spec.role == "input" else _kernel, spec=spec)
    run = run if spec.stacked is None else jax.vmap(run)
    return run(lhs.astype(dtype), rhs.astype(dtype)).astype(spec.out_dtype)


def _input(y: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """The role "input" as a convolution of the outputs, dilated by the strides, with the kernel turned around."""
    edges = []
    for axis in range(spec.rank):
        reach = (spec.window[axis] - 1) * spec.kernel_dilation[axis]
        low = reach - spec.padding[axis][0]
        stretched = (y.shape[axis + 1] - 1) * spec.strides[axis] + 1
        needed = (spec.input_shape[axis + 1] - 1) * spec.input_dilation[axis] + 1 + reach
        edges.append((low, needed - stretched - low))
    return lax.conv_general_dilated(
        y,
        lax.rev(transposed_kernel(kernel, spec.feature_group_count), tuple(range(spec.rank))),
        window_strides=spec.input_dilation,
        padding=edges,
        lhs_dilation=spec.strides,
        rhs_dilation=spec.kernel_dilation,
        dimension_numbers=_dimension_numbers(spec.rank),
        feature_group_count=spec.feature_group_count,
        precision=spec.precision,
    )


def _kernel(x: jax.Array, y: jax.Array, spec: ConvSpec) -> jax.Array:
    """The role "kernel" of one group as a convolution over the batch: its window is the image of y, dilated."""
    rank = spec.rank
    edges = []
    for axis in range(rank):
        low = spec.padding[axis][0]
        size = (x.shape[axis + 1] - 1) * spec.input_dilation[axis] + 1
        extent = (y.shape[axis + 1] - 1) * spec.strides[axis] + 1
        needed = (spec.window[axis] - 1) * spec.kernel_dilation[axis] + extent
        edges.append((low, needed - size - low))
    spatial = tuple(range(1, rank + 1))
    result = lax.conv_general_dilated(
        x.transpose(rank + 1, *spatial, 0),
        y.transpose(*spatial, 0, rank + 1),
        window_strides=spec.kernel_dilation,
        padding=edges,
        lhs_dilation=spec.input_dilation,
        rhs_dilation=spec.strides,
        dimension_numbers=_dimension_numbers(rank),
        precision=spec.precision,
    )  # (C_in, *window, C_out)
    return jnp.moveaxis(result, 0, -2)


def _integer_input(y: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """The role "input" of integers, which JAX's transposition turns into truth values: the convolution that it is."""
    *window, kernel_in, out_features = kernel.shape
    groups, rank = spec.feature_group_count, spec.rank
    blocks = kernel.reshape(*window, kernel_in, groups, out_features // groups)
    swapped = jnp.swapaxes(blocks, -3, -1).reshape(*window, out_features // groups, groups * kernel_in)
    edges = []
    for axis in range(rank):
        reach = (window[axis] - 1) * spec.kernel_dilation[axis]
        low = reach - spec.padding[axis][0]
        stretched = (y.shape[axis + 1] - 1) * spec.strides[axis] + 1
        needed = (spec.input_shape[axis + 1] - 1) * spec.input_dilation[axis] + 1 + reach
        edges.append((low, needed - stretched - low, spec.strides[axis] - 1))
    return lax.conv_general_dilated(
        lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *edges, (0, 0, 0))),
        jnp.flip(swapped, tuple(range(rank))),
        window_strides=spec.input_dilation,
        padding=((0, 0),) * rank,
        rhs_dilation=spec.kernel_dilation,
        dimension_numbers=_dimension_numbers(rank),
        feature_group_count=groups,
    )


def pool_identity(mode: str, dtype: np.dtype) -> np.ndarray:
    """The value that never wins a maximum (`mode` "max") or a minimum (`mode` "min")."""
    if dtype == np.bool_:
        return np.array(mode == "min", dtype)
    low = -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
    high = np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max
    return np.array(low if mode == "max" else high, dtype)


def _window_options(spec: PoolSpec) -> dict[str, Any]:
    return {
        "window_dimensions": (1, *spec.window_shape, 1),
        "window_strides": (1, *spec.strides, 1),
        "padding": ((0, 0), *spec.padding, (0, 0)),
        "window_dilation": (1, *spec.window_dilation, 1),
    }


def _is_empty(spec: PoolSpec) -> bool:
    return any(isinstance(n, int) and n == 0 for n in spec.input_shape)


def extremum(x: jax.Array, spec: PoolSpec, mode: str) -> jax.Array:
    """Maximum (`mode` "max") or minimum ("min") of each window; NaN wins."""
    identity = pool_identity(mode, spec.dtype)
    if _is_empty(spec):
        return jnp.full(spec.output_shape, identity)
    return lax.reduce_window(x, identity, lax.max if mode == "max" else lax.min, **_window_options(spec))


def winner(x: jax.Array, spec: PoolSpec, mode: str) -> jax.Array:
    """Flat index in the unpadded plane of each window's first maximum or minimum, int32; -1 where there is no pixel."""
    if _is_empty(spec):
        return jnp.full(spec.output_shape, -1, jnp.int32)
    shape = x.shape
    plane = (1, *shape[1:-1], 1)
    flat = jnp.zeros(plane, jnp.int32)
    for axis in range(1, len(shape) - 1):
        flat = flat * shape[axis] + lax.broadcasted_iota(jnp.int32, plane, axis)
    flat = jnp.broadcast_to(flat, shape)
    nobody = np.array(np.iinfo(np.int32).max, np.int32)
    better = lax.gt if mode == "max" else lax.lt

    def first(a: Any, b: Any) -> Any:
        (a_value, a_index), (b_value, b_index) = a, b
        a_nan, b_nan = a_value != a_value, b_value != b_value
        tie = (a_value == b_value) | (a_nan & b_nan)
        a_wins = (better(a_value, b_value) & ~b_nan) | (a_nan & ~b_nan) | (tie & (a_index < b_index))
        # A pixel that equals the identity still beats the padding, whose index is larger than any.
        return jnp.where(a_wins, a_value, b_value), jnp.where(a_wins, a_index, b_index)

    identity = pool_identity(mode, spec.dtype)
    _, index = lax.reduce_window((x, flat), (identity, nobody), first, **_window_options(spec))
    return jnp.where(index == nobody, -1, index)


def _flattened(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def select(x: jax.Array, index: jax.Array, spec: PoolSpec) -> jax.Array:
    """x at the flat index of each output, 0 where it is -1; linear in x."""
    del spec
    flat, at = _flattened(x), _flattened(index)  # (N, P, C), (N, Q, C)
    if any(isinstance(n, int) and n == 0 for n in flat.shape):
        return jnp.zeros(index.shape, x.dtype)
    taken = jnp.take_along_axis(flat, jnp.maximum(at, 0), axis=1)
    return jnp.where(at < 0, jnp.zeros((), x.dtype), taken).reshape(index.shape)


def scatter(y: jax.Array, index: jax.Array, spec: PoolSpec, sharding: Any = None) -> jax.Array:
    """The transpose of `select`: adds each y to the pixel that its index names."""
    struct = example(spec.input_shape, y.dtype, sharding, y, index)
    (x,) = jax.linear_transpose(lambda x: select(x, index, spec), struct)(y)
    return x


def window_sum(x: jax.Array, spec: PoolSpec) -> jax.Array:
    """Sum of each window, in x's dtype."""
    if _is_empty(spec):
        return jnp.zeros(spec.output_shape, spec.dtype)
    return lax.reduce_window(x, np.zeros((), spec.dtype), lax.add, **_window_options(spec))


def window_spread(y: jax.Array, spec: PoolSpec, sharding: Any = None) -> jax.Array:
    """The transpose of `window_sum`: adds each y to the pixels of its window."""
    if _is_empty(spec):
        return jnp.zeros(spec.input_shape, spec.dtype)
    struct = example(spec.input_shape, spec.dtype, sharding, y)
    (x,) = jax.linear_transpose(lambda x: window_sum(x, spec), struct)(y)
    return x
