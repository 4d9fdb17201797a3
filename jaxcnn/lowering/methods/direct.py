"""The method `direct`: XLA's own convolution, which supports every convolution and defines the correct result.

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
from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import transposed_kernel
from jaxcnn.lowering.spec import ConvSpec

NAME = "direct"


def refusal(spec: ConvSpec) -> str | None:
    """Returns None, since `direct` computes every convolution."""
    del spec
    return None


def terms(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the method's time grows with."""
    work = costs.work(spec)
    zeros = math.prod(spec.strides) if spec.role == "input" else 1
    if work.groups * work.stack > 1:
        channel = "channel " if work.by_channel else "grouped "
        return {
            f"grouped {spec.role} call": 1,
            f"{channel}{spec.role} macs": work.slid * zeros,
            f"{channel}{spec.role} packed": work.gathered_numbers * zeros,
        }
    if _is_outsized(spec):
        # XLA computes these in plain loops, like convolutions of each channel by itself.
        return {"channel output macs": work.macs}
    runs, volume = float(work.pixels * work.taps), spec.rank > 2
    if spec.role == "kernel":
        # The images take the place of the channels: with one image no vectors are filled.
        single = "line " if spec.rank == 1 else "single " if spec.output_shape[0] == 1 else ""
        form, runs = f"{'volume ' if volume else single}kernel ", work.gathered_numbers / spec.output_shape[0]
    else:
        dilated = max(spec.kernel_dilation) > 1 and spec.rank > 1
        form = "volume " if volume else "stretched " if zeros > 1 else "dilated " if dilated else ""
    few = work.results < costs.VECTOR
    return {
        f"{form}call": 1,
        f"{form}macs": work.slid,
        f"{form}zeros": work.slid * (zeros - 1),
        f"{form}packed": work.gathered_numbers,
        f"{form}runs": runs,
        f"{form}few results' macs": work.slid if few else 0.0,
        f"{form}floats": work.floats,
    }


def _is_outsized(spec: ConvSpec) -> bool:
    """Returns whether the sliding array is larger than the other on every axis, a case that XLA computes in loops."""
    slid, over = {
        "output": (spec.window, spec.input_shape[1:-1]),
        "input": (spec.window, spec.output_shape[1:-1]),
        "kernel": (spec.output_shape[1:-1], spec.input_shape[1:-1]),
    }[spec.role]
    return all(taps > size for taps, size in zip(slid, over, strict=True))


def program(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the time to compile the method grows with."""
    grouped = "grouped " if spec.feature_group_count > 1 or spec.stacked is not None else ""
    return {f"{grouped}{spec.role} call": 1.0}


def _dimension_numbers(rank: int) -> lax.ConvDimensionNumbers:
    """Returns the dimension numbers of channels-last images and kernels (*window, I, O)."""
    spatial = tuple(range(1, rank + 1))
    channels_last = (0, rank + 1, *spatial)
    return lax.ConvDimensionNumbers(channels_last, (rank + 1, rank, *range(rank)), channels_last)


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the array that `spec.role` names from the two others.

    The derivatives are transposes of `lax.conv_general_dilated`. On a CPU the derivatives of floats are written as
    channels-last convolutions: in the body of a loop XLA:CPU is many times slower with any other dimension numbers, and
    JAX's own transposition has others.
    """
    if any(isinstance(n, int) and n == 0 for n in (*spec.input_shape, *spec.kernel_shape, *spec.output_shape)):
        lead = () if spec.stacked is None else (spec.stacked,)
        return jnp.zeros((*lead, *spec.result_shape), spec.out_dtype)
    if (padded_spec := _with_padding_as_input(spec)) is not None:
        return _without_padding(lower(lhs, rhs, padded_spec), spec)
    run = partial(_by_channels_last if _is_channels_last(spec) else _by_transposition, spec=spec)
    if spec.stacked is None:
        return run(lhs, rhs)
    run = partial(run, spec=dataclasses.replace(spec, sharding=None))
    if isinstance(spec.stacked, int):
        return jax.vmap(run)(lhs, rhs)
    # `vmap` makes groups of the stack's entries, and lax has no symbolic number of groups.
    return lax.map(lambda operands: run(*operands), (lhs, rhs))


def _is_channels_last(spec: ConvSpec) -> bool:
    """Returns whether a derivative is written as a channels-last convolution."""
    is_dense = spec.feature_group_count == 1 or spec.role == "input"
    is_floating = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (spec.lhs_dtype, spec.rhs_dtype, spec.out_dtype))
    return spec.platform == "cpu" and spec.role != "output" and is_dense and is_floating and spec.has_known_layer


def _has_window_in_padding(spec: ConvSpec) -> list[bool]:
    """Returns for each axis whether the low padding holds a whole window."""
    extents = map(dilated_size, spec.window, spec.kernel_dilation)
    return [low >= extent for (low, _), extent in zip(spec.padding, extents, strict=True)]


def _with_padding_as_input(spec: ConvSpec) -> ConvSpec | None:
    """Returns the role "input" for an input that includes the padding, on axes with a window in the padding.

    The result is None if there is no such axis. As one convolution the given role would pad y by a negative number, and
    XLA:CPU reads out of bounds for some of these (openxla/xla#48713).
    """
    if spec.role != "input" or not any(padded_axes := _has_window_in_padding(spec)):
        return None
    sizes, padding, dilation = list(spec.input_shape), list(spec.padding), list(spec.input_dilation)
    for axis, is_padded in enumerate(padded_axes):
        if is_padded:
            sizes[axis + 1] = dilated_size(sizes[axis + 1], dilation[axis]) + sum(padding[axis])
            padding[axis], dilation[axis] = (0, 0), 1
    return dataclasses.replace(spec, input_shape=tuple(sizes), padding=tuple(padding), input_dilation=tuple(dilation))


def _without_padding(x: jax.Array, spec: ConvSpec) -> jax.Array:
    """Returns the input of a spec, cut out of the input of `_with_padding_as_input(spec)`."""
    for axis, is_padded in enumerate(_has_window_in_padding(spec)):
        if is_padded:
            (low, _), step, size = spec.padding[axis], spec.input_dilation[axis], spec.input_shape[axis + 1]
            spatial = axis + x.ndim - 1 - spec.rank
            x = lax.slice_in_dim(x, low, low + dilated_size(size, step), step, axis=spatial)
    return x


def _by_transposition(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes any role by `lax.conv_general_dilated` or by JAX's transposition of this function."""
    # NumPy's promotion gives JAX's dtypes, ml_dtypes included, and ignores JAX's strict promotion. The user's own
    # operands were checked before; here a float32 cotangent may meet a bfloat16 kernel.
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
        # JAX's transposition returns booleans for integers.
        result = _input(lhs.astype(spec.out_dtype), rhs.astype(spec.out_dtype), spec)
    else:
        if wider:
            lhs, rhs = lhs.astype(spec.out_dtype), rhs.astype(spec.out_dtype)
        struct = example(spec.result_shape, lhs.dtype, spec.sharding, lhs, rhs)
        if spec.role == "input":
            (result,) = jax.linear_transpose(lambda x: forward(x, rhs), struct)(lhs)
        else:
            (result,) = jax.linear_transpose(lambda kernel: forward(lhs, kernel), struct)(rhs)
    return result.astype(spec.out_dtype)


def _by_channels_last(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes a derivative as one channels-last convolution with a kernel (*window, I, O)."""
    dtype = np.promote_types(np.promote_types(spec.lhs_dtype, spec.rhs_dtype), spec.out_dtype)
    run = _input if spec.role == "input" else _kernel
    return run(lhs.astype(dtype), rhs.astype(dtype), spec).astype(spec.out_dtype)


def _input(y: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the role "input" as a convolution of y, dilated by the strides, with the reversed kernel."""
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
    """Computes the role "kernel" of one group as a convolution over the batch, with the dilated y as its kernel."""
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
