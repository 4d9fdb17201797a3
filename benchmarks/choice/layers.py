"""Layers of the families as functions: through jaxcnn, in plain lax, and compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn.lowering.spec import ConvSpec

from ..shared import plain
from ..shared.timing import compile_program


def operands(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    """Returns random float32 operands of a layer."""
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.standard_normal(shape, np.float32) for shape in spec.operand_shapes)
    return lhs, rhs


def _in_role(convolve: Callable[[Any, Any], Any], spec: ConvSpec) -> Callable[[Any, Any], Any]:
    """Returns the function of a role's two operands, from the function of images and kernels."""
    images = jax.ShapeDtypeStruct(spec.input_shape, jnp.float32)
    kernels = jax.ShapeDtypeStruct(spec.kernel_shape, jnp.float32)
    if spec.role == "input":
        return lambda y, kernel: jax.linear_transpose(lambda x: convolve(x, kernel), images)(y)[0]
    if spec.role == "kernel":
        return lambda x, y: jax.linear_transpose(lambda kernel: convolve(x, kernel), kernels)(y)[0]
    return convolve


def jaxcnn_function(spec: ConvSpec) -> Callable[[Any, Any], Any]:
    """Returns the function of a layer's operands that calls jaxcnn's public function."""
    options = {"strides": spec.strides, "padding": spec.padding, "kernel_dilation": spec.kernel_dilation}
    conv = functools.partial(jaxcnn.conv, **options, feature_group_count=spec.feature_group_count)
    return _in_role(conv, spec)


def lax_function(spec: ConvSpec) -> Callable[[Any, Any], Any]:
    """Returns the function of a layer's operands in plain lax."""
    conv = functools.partial(
        plain.conv,
        strides=spec.strides,
        padding=spec.padding,
        rhs_dilation=spec.kernel_dilation,
        feature_group_count=spec.feature_group_count,
    )
    return _in_role(conv, spec)


def program(function: Callable[[Any, Any], Any], arrays: tuple[np.ndarray, np.ndarray]) -> Callable[[], Any]:
    """Returns the compiled program of a function on these operands; a call waits for the result."""
    return compile_program(function, *map(jnp.asarray, arrays)).call


def short(spec: ConvSpec) -> str:
    """Returns a layer's shapes and options, without the role, in a few characters."""
    joined = "x".join
    *_, c_in = spec.input_shape
    parts = [joined(map(str, spec.input_shape[:-1])), f"{c_in}->{spec.output_shape[-1]}", joined(map(str, spec.window))]
    for letter, values in (("s", spec.strides), ("d", spec.kernel_dilation)):
        if max(values) > 1:
            parts.append(f"{letter}{values[0]}")
    if spec.feature_group_count > 1:
        parts.append(f"g{spec.feature_group_count}")
    if not any(high for _, high in spec.padding) and max(spec.window) > 1:
        parts.append("valid")
    return " ".join(parts)
