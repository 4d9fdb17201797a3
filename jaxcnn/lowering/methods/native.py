"""The method `native`: kernels compiled from C++, for float32 on CPU.

Dense convolutions and wide groups are products of matrices, gathered block by block; depthwise convolutions and narrow
groups are shifted products on vectors of channels. Padding is zeros that are multiplied, so NaN and infinities reach
the same results as in `direct`. Sums are in float32, in blocks of at most 320 products that are added one after the
other: the error is `direct`'s, within 4 epsilons of float32 of the sum of the magnitudes of an output's products.
Results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxcnn import native as library
from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import shape_unsupported
from jaxcnn.lowering.spec import ConvSpec

NAME = "native"

MAX_RANK = 3
"""Most spatial axes of a convolution that the kernels compute."""

_ACTIVATIONS = (
    "none",
    "relu",
    "relu6",
    "leaky_relu",
    "silu",
    "hard_swish",
    "gelu",
    "gelu_exact",
    "sigmoid",
    "tanh",
    "hard_sigmoid",
)
"""The activations in the order of the enumeration in `kernels.h`."""


MAX_OPTION = 2**31 - 1
"""Largest stride, dilation or padding of the compiled kernels, which take them as 32-bit numbers."""


def refusal(spec: ConvSpec) -> str | None:
    """Returns None, or the reason why this convolution is not computed by the compiled kernels."""
    if not library.is_available():
        return library.status()
    if not spec.lhs_dtype == spec.rhs_dtype == spec.out_dtype == np.float32:
        return f"its operands are {spec.lhs_dtype} and {spec.rhs_dtype} and its result {spec.out_dtype}, not float32"
    if spec.rank > MAX_RANK:
        return f"it has {spec.rank} spatial axes, more than {MAX_RANK}"
    if spec.stacked is not None:
        return f"it is a stack of {spec.stacked}"
    if spec.xla_only:
        return "its program is exported, or partitioned over several devices"
    options = (
        *spec.strides,
        *spec.kernel_dilation,
        *spec.input_dilation,
        *(side for pair in spec.padding for side in pair),
    )
    if max(options) > MAX_OPTION:
        return f"a stride, a dilation or a padding is {max(options)}, more than {MAX_OPTION}"
    return shape_unsupported(spec)


def terms(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the kernels' time grows with."""
    work = costs.work(spec)
    role = "kernel " if spec.role == "kernel" else ""
    counts = {f"{role}call": 1.0, f"{role}floats": work.floats}
    if not work.by_channel:
        # Each tap begins with loads, which cost as much as the products if the channels are few.
        narrow = "narrow " if work.results < costs.VECTOR else ""
        groups = "grouped " if work.groups > 1 else ""
        # Narrow groups lie side by side in a vector.
        macs = work.slid if groups and narrow else work.macs_of_whole_vectors(work.slid)
        prefix = role + groups + narrow
        return counts | {f"{prefix}macs": macs, f"{prefix}taps": macs / work.summed}
    macs = work.macs_of_whole_vectors(work.slid)
    few = "few " if work.groups < costs.VECTOR else ""
    counts[f"{role}{few}channel macs"] = macs
    if few:
        counts[f"{role}few channel pixels"] = work.pixels
    if max(spec.kernel_dilation) > 1:
        counts[f"{role}dilated channel macs"] = macs
    if spec.rank == MAX_RANK:
        counts[f"{role}volume channel macs"] = macs
    if max(spec.strides) > 1:
        counts[f"{role}strided channel macs"] = macs
    return counts


def program(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the time to compile the method grows with."""
    del spec
    return {"call": 1.0}


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, *, tiles: bool = False) -> jax.Array:
    """Computes the array that `spec.role` names from the two others.

    With `tiles` the kernels may compute tiles of fewer products, whose errors are larger.
    """
    target, attributes = call(spec, tiles=tiles)
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(spec.result_shape, np.float32))(lhs, rhs, **attributes)


def call(spec: ConvSpec, *, tiles: bool = False) -> tuple[str, dict[str, Any]]:
    """Returns the FFI target, and its attributes, of the one call that computes a convolution."""
    if spec.role == "kernel":
        return "jaxcnn_kernel_gradient", options(spec)
    return "jaxcnn_slide", {**options(spec), **slide_options(spec, tiles=tiles)}


def supports_fused(spec: ConvSpec, epilogue: Any) -> str | None:
    """Returns None, or the reason why the kernels do not apply this epilogue to the results of this convolution."""
    if spec.role == "kernel":
        return "it computes a kernel"
    if epilogue.activation not in _ACTIVATIONS:
        return f"{epilogue.activation} is not among its activations"
    return refusal(spec)


def lower_fused(
    lhs: jax.Array,
    rhs: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.Array | None,
    spec: ConvSpec,
    epilogue: Any,
    *,
    tiles: bool = False,
) -> jax.Array:
    """Computes activation(result * scale + bias + residual), with one scale and bias for each channel, or for all."""
    operands = (scale, bias, residual)
    attributes = slide_options(
        spec,
        operands=sum(1 << bit for bit, operand in enumerate(operands) if operand is not None),
        activation=_ACTIVATIONS.index(epilogue.activation),
        alpha=epilogue.alpha,
        tiles=tiles,
    )
    call = jax.ffi.ffi_call("jaxcnn_slide", jax.ShapeDtypeStruct(spec.result_shape, np.float32))
    extras = [operand for operand in operands if operand is not None]
    return call(lhs, rhs, *extras, **options(spec), **attributes)


def options(spec: ConvSpec) -> dict[str, Any]:
    """Returns the attributes that all FFI targets take."""
    return {
        "strides": np.array(spec.strides, np.int64),
        "pad_low": np.array([low for low, _ in spec.padding], np.int64),
        "dilation": np.array(spec.kernel_dilation, np.int64),
        "groups": np.int64(spec.feature_group_count),
    }


def slide_options(
    spec: ConvSpec, *, operands: int = 0, activation: int = 0, alpha: float = 0.0, tiles: bool = False
) -> dict[str, Any]:
    """Returns the FFI attributes for the roles `"output"` and `"input"`: the role, the epilogue and the use of tiles.

    Bit i of `operands` stands for the presence of scale, bias and residual, in this order.
    """
    return {
        "operands": np.int64(operands),
        "activation": np.int64(activation),
        "alpha": np.float32(alpha),
        "transposed": np.bool_(spec.role == "input"),
        "tiles": np.bool_(tiles),
    }
