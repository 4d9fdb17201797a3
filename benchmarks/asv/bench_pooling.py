"""Is a pool as fast as it could be, forwards and in its gradient?"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxcnn
from benchmarks.shared import plain
from benchmarks.shared.arrays import array
from benchmarks.shared.layers import FAMILIES, Layer, by_name

from .suite import Case, Comparison, LayerComparison

QUICK = Layer("max 3x3/2", (1, 9, 9, 4), (3, 3), 0, 2, pool="max")
"""A layer for tests."""


class PoolComparison(Comparison):
    """Time, speed-up and error of a pool, and its operations."""

    def track_flops(self, *params: str) -> int:
        return self.cost.flops

    track_flops.unit = "FLOPs"


class Pools(LayerComparison):
    """Max and average pools, from 2x2 to 13x13."""

    layers: ClassVar = by_name(FAMILIES["pool"])
    quick: ClassVar = {"layers": by_name([QUICK])}
    params: ClassVar = [sorted(layers)]


class PoolGradients(LayerComparison):
    """The gradients of pools; that of a max pool lax computes by scattering."""

    layers: ClassVar = by_name(FAMILIES["pool"])
    quick: ClassVar = {"layers": by_name([QUICK])}
    params: ClassVar = [sorted(layers)]
    role = "gradient"


class OtherPools(PoolComparison):
    """The other pools over a window, 3x3/2 on 1x56x56x64."""

    shape: ClassVar = (1, 56, 56, 64)
    quick: ClassVar = {"shape": (1, 9, 9, 4)}
    pools: ClassVar = {
        "lp": (lambda x: jaxcnn.lp_pool(x, 3, strides=2), lambda x: jnp.sqrt(plain.sum_pool(x**2, 3, 2))),
        "min": (lambda x: jaxcnn.min_pool(x, 3, strides=2), lambda x: plain.pool(x, 3, 2, np.inf, lax.min)),
        "sum": (lambda x: jaxcnn.sum_pool(x, 3, strides=2), lambda x: plain.sum_pool(x, 3, 2)),
        # In bfloat16 lax rounds at each step: the error is lax's.
        "sum, bfloat16": (
            lambda x: jaxcnn.sum_pool(x.astype(jnp.bfloat16), 3, strides=2),
            lambda x: plain.sum_pool(x.astype(jnp.bfloat16), 3, 2),
        ),
    }
    params: ClassVar = [sorted(pools)]
    param_names: ClassVar = ["pool"]

    def case(self, pool):
        return Case(*self.pools[pool], (array(*self.shape),), jaxcnn.pool_cost(self.shape, 3, strides=2))


class WholePlane(Comparison):
    """Pools of a size given by the output, against `jnp` on the whole plane."""

    shape: ClassVar = (8, 56, 56, 64)
    quick: ClassVar = {"shape": (1, 56, 56, 2)}
    pools: ClassVar = {
        "adaptive avg 7x7": (
            lambda x: jaxcnn.adaptive_avg_pool(x, (7, 7)),
            lambda x: x.reshape(-1, 7, 8, 7, 8, x.shape[-1]).mean((2, 4)),
        ),
        "adaptive max 7x7": (
            lambda x: jaxcnn.adaptive_max_pool(x, (7, 7)),
            lambda x: x.reshape(-1, 7, 8, 7, 8, x.shape[-1]).max((2, 4)),
        ),
        "global avg": (jaxcnn.global_avg_pool, lambda x: x.mean((1, 2))),
        "global max": (jaxcnn.global_max_pool, lambda x: x.max((1, 2))),
    }
    params: ClassVar = [sorted(pools)]
    param_names: ClassVar = ["pool"]

    def case(self, pool):
        return Case(*self.pools[pool], (array(*self.shape),))


def lax_adaptive_average(x, output):
    """Each window of an adaptive average cut out by itself, axis by axis."""
    for axis in (1, 2):
        size = x.shape[axis]
        bounds = [(place * size // output, -(-(place + 1) * size // output)) for place in range(output)]
        x = jnp.stack([lax.slice_in_dim(x, *pair, axis=axis).mean(axis) for pair in bounds], axis)
    return x


class AdaptivePoolGradient(Comparison):
    """The gradient of an adaptive average whose windows overlap."""

    layers: ClassVar = {"5x5 8x28x28x64": (8, 28, 28, 64)}
    quick: ClassVar = {"layers": {"5x5 1x9x9x2": (1, 9, 9, 2)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        return Case(
            plain.gradient(lambda x: jaxcnn.adaptive_avg_pool(x, (5, 5))),
            plain.gradient(lambda x: lax_adaptive_average(x, 5)),
            (array(*self.layers[layer]),),
        )


class Unpool(Comparison):
    """A max pool with indices, and its values put back: what the gradient of a max pool gives, from lax."""

    layers: ClassVar = {"2x2/2 1x56x56x64": (1, 56, 56, 64)}
    quick: ClassVar = {"layers": {"2x2/2 1x8x8x4": (1, 8, 8, 4)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape = self.layers[layer]

        def ours(x):
            values, indices = jaxcnn.max_pool_with_indices(x, 2, strides=2)
            return jaxcnn.max_unpool(values, indices, shape[1:3])

        def in_lax(x):
            values, vjp = jax.vjp(lambda x: plain.max_pool(x, 2, 2), x)
            return vjp(values)[0]

        return Case(ours, in_lax, (array(*shape),))


class DilatedMaxPoolGradient(Comparison):
    """The gradient of a dilated max pool, which lax refuses: jax#274. The plain form gathers the taps itself."""

    layers: ClassVar = {"3x3, dilation 2, 1x56x56x64": (1, 56, 56, 64)}
    quick: ClassVar = {"layers": {"3x3, dilation 2, 1x9x9x4": (1, 9, 9, 4)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        def in_lax(x):
            size = x.shape[1] - 4
            taps = [x[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size] for i, j in np.ndindex(3, 3)]
            return jnp.stack(taps).max(0)

        return Case(
            plain.gradient(lambda x: jaxcnn.max_pool(x, 3, window_dilation=2)),
            plain.gradient(in_lax),
            (array(*self.layers[layer]),),
        )
