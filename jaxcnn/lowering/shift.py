"""The method `shift`: products of shifted slices with one tap each, added up in one vectorised loop.

For windows over few input channels for each output: depthwise convolutions and image filters, any stride and dilation.
Every sum is in float32 at least (int32 for integers), in four interleaved chains: the error is `direct`'s.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.lowering.forms import (
    Window,
    accumulation_dtype,
    balanced_sum,
    forward_window,
    input_by_phases,
    pad_spatial,
    shape_unsupported,
    tap_slice,
    taps,
)
from jaxcnn.lowering.spec import ConvSpec

NAME = "shift"

_LARGEST_PRODUCTS = 2048
"""Most slices that are multiplied for one output: 31x31 depthwise, or 3x3 over 200 channels."""


def supports(spec: ConvSpec) -> str | None:
    """None, or why this convolution is not computed as shifted products."""
    if jnp.issubdtype(accumulation_dtype(spec), jnp.complexfloating):
        return "its operands are complex"
    products = math.prod(spec.kernel_shape[:-1])
    if products > _LARGEST_PRODUCTS:
        return f"each output has {products} products, more than {_LARGEST_PRODUCTS} slices"
    return shape_unsupported(spec)


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, sharding: object = None) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    del sharding
    dtype = accumulation_dtype(spec)

    def single(a: jax.Array, b: jax.Array) -> jax.Array:
        if spec.role == "output":
            return _forward(a.astype(dtype), b.astype(dtype), forward_window(spec))
        if spec.role == "input":
            return input_by_phases(a.astype(dtype), b.astype(dtype), spec, _forward)
        return _kernel(a.astype(dtype), b.astype(dtype), spec)

    run = single if spec.stacked is None else jax.vmap(single)
    return run(lhs, rhs).astype(spec.out_dtype)


def _forward(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """(N, *spatial, G * I), (*taps, I, G * O) -> (N, *outputs, G * O)."""
    *sizes, kernel_in, features = kernel.shape
    groups = window.groups
    out = features // groups
    # XLA materialises the padded image only behind a barrier: fused, each tap would test the image's borders.
    x = lax.optimization_barrier(pad_spatial(x, window.padding))
    ones = (1,) * (len(sizes) + 1)
    if kernel_in == 1 and out == 1:
        weights = kernel.reshape(*sizes, *ones, features)
        return balanced_sum([tap_slice(x, tap, window) * weights[tap] for tap in taps(sizes)])
    # (N, *spatial, G, I) and (*taps, I, G, O); every product is (N, *outputs, G, O).
    weights = kernel.reshape(*sizes, kernel_in, *ones, groups, out)
    terms = []
    for tap in taps(sizes):
        pixels = tap_slice(x, tap, window)
        pixels = pixels.reshape(*pixels.shape[:-1], groups, kernel_in)
        terms += [pixels[..., i, None] * weights[tap][i] for i in range(kernel_in)]
    total = balanced_sum(terms)
    return total.reshape(*total.shape[:-2], features)


def _kernel(x: jax.Array, y: jax.Array, spec: ConvSpec) -> jax.Array:
    """(N, *spatial, G * I), (N, *outputs, G * O) -> (*taps, I, G * O)."""
    window = forward_window(spec)
    groups = window.groups
    kernel_in, features = spec.kernel_shape[-2:]
    out = features // groups
    x = lax.optimization_barrier(pad_spatial(x, window.padding))
    y = y.reshape(*y.shape[:-1], groups, 1, out)
    results = []
    for tap in taps(spec.window):
        pixels = tap_slice(x, tap, window)
        products = pixels.reshape(*pixels.shape[:-1], groups, kernel_in, 1) * y
        results.append(products.sum(tuple(range(spec.rank + 1))))  # (G, I, O)
    stacked = jnp.stack(results).reshape(*spec.window, groups, kernel_in, out)
    return jnp.swapaxes(stacked, -3, -2).reshape(spec.kernel_shape)
