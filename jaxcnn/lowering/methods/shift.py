"""The method `shift`: products of shifted slices with one tap each, added up in one vectorized loop.

The method suits outputs that read few input channels: depthwise convolutions, narrow groups and image filters, with any
stride and dilation. `shift_lanes` computes windows of many taps by blocks of channels, and `shift_tiles` kernel
gradients by tiles.
Every sum is in float32 at least (int32 for integers), in four interleaved chains: the error is `direct`'s, within 4
epsilons of float32 of the sum of the magnitudes of an output's products.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import (
    Window,
    balanced_sum,
    by_role,
    forward_window,
    pad_spatial,
    shape_unsupported,
    sum_dtype,
    tap_slice,
    taps,
)
from jaxcnn.lowering.methods import shift_lanes, shift_tiles
from jaxcnn.lowering.spec import ConvSpec

NAME = "shift"

MAX_PRODUCTS = 2048
"""Most products of one output, each from a slice of its own: 31x31 depthwise, or 3x3 over 200 channels."""
MAX_ESTIMATED_PRODUCTS = 128
"""Most products of an output in one loop for which this method has an estimate: XLA does not vectorize larger loops."""
MAX_LOOP_PRODUCTS = 10
"""Most products of an output over several channels that one loop over all channels adds."""


def refusal(spec: ConvSpec) -> str | None:
    """Returns None, or the reason why this convolution is not computed as shifted products."""
    if jnp.issubdtype(sum_dtype(spec), jnp.complexfloating):
        return "its operands are complex"
    products = math.prod(spec.kernel_shape[:-1])
    if products > MAX_PRODUCTS:
        return f"each output has {products} products, more than {MAX_PRODUCTS} slices"
    return shape_unsupported(spec)


def terms(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the method's time grows with."""
    work = costs.work(spec)
    channels = "channel " if work.summed == 1 else ""
    filled = work.macs_of_whole_vectors(work.slid, shift_lanes.LANES)
    if spec.role == "kernel":
        if not channels and (spec.rank == 1 or min(work.summed, work.results) > costs.VECTOR):
            return costs.NEVER  # `matmul` is faster there: its matrices are large enough
        # Each row of taps reads both images once.
        narrow = not channels and 2 * work.results <= shift_lanes.LANES
        form = f"{channels}line " if spec.rank == 1 else "narrow " if narrow else channels
        rows = work.taps // spec.window[-1]
        read = work.stack * math.prod(spec.input_shape) / math.prod(spec.strides[:-1])
        return {
            f"{form}tile call": rows,
            f"{form}tile macs": work.macs if narrow else filled,
            f"{form}tile floats": rows * (read + work.stack * math.prod(spec.output_shape)),
        }
    strides = spec.strides if spec.role == "input" else (1,) * spec.rank
    phases = math.prod(strides)
    # The role "input" has a smaller window for each residue of the pixels by the strides.
    phase_taps = math.prod(-(-taps // stride) for taps, stride in zip(spec.window, strides, strict=True))
    if (work.summed > 1 or spec.xla_only) and phase_taps * work.summed > MAX_ESTIMATED_PRODUCTS:
        return costs.NEVER
    blocks = _in_blocks(phase_taps, work.summed, work.results, spec.xla_only)
    form = "block " if blocks else "loop "
    return {
        f"{channels}{form}call": 1,
        "phases": phases - 1,
        f"{channels}{form}products": phases * phase_taps * work.summed,
        f"{channels}{form}macs": filled if blocks else work.slid,
        f"{channels}floats": work.floats,
        "interleaved": work.result if phases > 1 else 0.0,
        "large": costs.above_cliff((8 if blocks else 4) * work.floats),
    }


def program(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the time to compile the method grows with."""
    work = costs.work(spec)
    if spec.role == "kernel":
        limit = shift_tiles.MAX_CHANNEL_PIXELS if work.summed == 1 else shift_tiles.MAX_GROUP_PIXELS
        pixels = min(math.prod(spec.output_shape[-3:-1]), limit)
        return {"kernel call": 1.0, "kernel operations": float(work.taps // spec.window[-1] * pixels)}
    strides = spec.strides if spec.role == "input" else (1,) * spec.rank
    phases = float(math.prod(strides))
    phase_taps = math.prod(-(-taps // stride) for taps, stride in zip(spec.window, strides, strict=True))
    return {"call": 1.0, "phases": phases - 1, "operations": phases * phase_taps * work.summed}


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    return by_role(lhs, rhs, spec, _forward, _kernel)


def _in_blocks(taps: int, summed: int, results: int, xla_only: bool) -> bool:
    """Returns whether the products of a forward convolution are added by blocks of channels."""
    if xla_only:
        return False
    if summed == 1:
        return taps > shift_lanes.MAX_CHUNK
    return taps * summed > MAX_LOOP_PRODUCTS and results >= shift_lanes.LANES


def _forward(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Computes the forward convolution: (N, *spatial, G * I), (*taps, I, G * O) -> (N, *outputs, G * O)."""
    *sizes, kernel_in, features = kernel.shape
    out = features // window.groups
    if _in_blocks(math.prod(sizes), kernel_in, out, window.xla_only):
        return shift_lanes.forward_by_blocks(x, kernel, window)
    # The barrier makes XLA store the padded image. Fused, the pad would test the borders at each tap.
    x = lax.optimization_barrier(pad_spatial(x, window.padding))
    ones = (1,) * (len(sizes) + 1)
    if kernel_in == 1 and out == 1:
        weights = kernel.reshape(*sizes, *ones, features)
        return balanced_sum([tap_slice(x, tap, window) * weights[tap] for tap in taps(sizes)])
    # (N, *spatial, G, I) and (*taps, I, G, O); every product is (N, *outputs, G, O).
    weights = kernel.reshape(*sizes, kernel_in, *ones, window.groups, out)
    products = []
    for tap in taps(sizes):
        pixels = tap_slice(x, tap, window)
        pixels = pixels.reshape(*pixels.shape[:-1], window.groups, kernel_in)
        products += [lax.slice_in_dim(pixels, i, i + 1, axis=-1) * weights[tap][i] for i in range(kernel_in)]
    total = balanced_sum(products)
    return total.reshape(*total.shape[:-2], features)


def _kernel(x: jax.Array, y: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the kernel gradient: (N, *spatial, G * I), (N, *outputs, G * O) -> (*taps, I, G * O)."""
    return shift_tiles.kernel_gradient(x, y, forward_window(spec), spec.kernel_shape)
