"""Is a pool as fast as it could be, forwards and in its gradient?"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxcnn

from .common import Case, Comparison, array

# window, strides and image of the pools that networks have
POOLS = {
    "02x02/2 4x112x112x64": (2, 2, (4, 112, 112, 64)),
    "03x03/1 4x56x56x64": (3, 1, (4, 56, 56, 64)),
    "03x03/2 4x112x112x64": (3, 2, (4, 112, 112, 64)),
    "13x13/1 1x56x56x64": (13, 1, (1, 56, 56, 64)),
}
QUICK = {"layers": {"03x03/2 1x9x9x4": (3, 2, (1, 9, 9, 4))}}


def lax_pool(x, window, strides, start, combine):
    """A pool as it is written without jaxcnn."""
    return lax.reduce_window(x, start, combine, (1, window, window, 1), (1, strides, strides, 1), "VALID")


def lax_max_pool(x, window, strides):
    return lax_pool(x, window, strides, -np.inf, lax.max)


def lax_sum_pool(x, window, strides):
    return lax_pool(x, window, strides, 0.0, lax.add)


def gradient(function):
    """The gradient of a pool, of a loss whose own gradient is the result."""
    return jax.grad(lambda x: 0.5 * jnp.sum(function(x) ** 2))


class PoolComparison(Comparison):
    """The same as for a convolution, with operations in place of multiply-accumulates."""

    def track_flops(self, *params: str) -> int:
        return self.cost.flops

    track_flops.unit = "FLOPs"


class MaxPool(PoolComparison):
    """A max pool, from 2x2 to 13x13."""

    layers: ClassVar = POOLS
    quick: ClassVar = QUICK
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        window, strides, shape = self.layers[layer]
        return Case(
            lambda x: jaxcnn.max_pool(x, window, strides=strides),
            lambda x: lax_max_pool(x, window, strides),
            (array(*shape),),
            jaxcnn.pool_cost(shape, window, strides=strides),
        )


class MaxPoolGradient(Comparison):
    """The gradient of a max pool, which lax computes by scattering."""

    layers: ClassVar = POOLS
    quick: ClassVar = QUICK
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        window, strides, shape = self.layers[layer]
        return Case(
            gradient(lambda x: jaxcnn.max_pool(x, window, strides=strides)),
            gradient(lambda x: lax_max_pool(x, window, strides)),
            (array(*shape),),
        )


class AvgPool(PoolComparison):
    """An average pool, from 2x2 to 13x13."""

    layers: ClassVar = POOLS
    quick: ClassVar = QUICK
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        window, strides, shape = self.layers[layer]
        return Case(
            lambda x: jaxcnn.avg_pool(x, window, strides=strides),
            lambda x: lax_sum_pool(x, window, strides) / window**2,
            (array(*shape),),
            jaxcnn.pool_cost(shape, window, strides=strides),
        )


class AvgPoolGradient(Comparison):
    """The gradient of an average pool."""

    layers: ClassVar = POOLS
    quick: ClassVar = QUICK
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        window, strides, shape = self.layers[layer]
        return Case(
            gradient(lambda x: jaxcnn.avg_pool(x, window, strides=strides)),
            gradient(lambda x: lax_sum_pool(x, window, strides) / window**2),
            (array(*shape),),
        )


class OtherPools(PoolComparison):
    """The other pools over a window, 3x3/2 on 1x56x56x64."""

    shape: ClassVar = (1, 56, 56, 64)
    quick: ClassVar = {"shape": (1, 9, 9, 4)}
    pools: ClassVar = {
        "lp": (lambda x: jaxcnn.lp_pool(x, 3, strides=2), lambda x: jnp.sqrt(lax_sum_pool(x**2, 3, 2))),
        "min": (lambda x: jaxcnn.min_pool(x, 3, strides=2), lambda x: lax_pool(x, 3, 2, np.inf, lax.min)),
        "sum": (lambda x: jaxcnn.sum_pool(x, 3, strides=2), lambda x: lax_sum_pool(x, 3, 2)),
        # In bfloat16 lax rounds at each step: the error is lax's.
        "sum, bfloat16": (
            lambda x: jaxcnn.sum_pool(x.astype(jnp.bfloat16), 3, strides=2),
            lambda x: lax_sum_pool(x.astype(jnp.bfloat16), 3, 2),
        ),
    }
    params: ClassVar = [sorted(pools)]
    param_names: ClassVar = ["pool"]

    def case(self, pool):
        ours, plain = self.pools[pool]
        return Case(ours, plain, (array(*self.shape),), jaxcnn.pool_cost(self.shape, 3, strides=2))


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
        ours, plain = self.pools[pool]
        return Case(ours, plain, (array(*self.shape),))


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
            gradient(lambda x: jaxcnn.adaptive_avg_pool(x, (5, 5))),
            gradient(lambda x: lax_adaptive_average(x, 5)),
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

        def plain(x):
            values, vjp = jax.vjp(lambda x: lax_max_pool(x, 2, 2), x)
            return vjp(values)[0]

        return Case(ours, plain, (array(*shape),))


class DilatedMaxPoolGradient(Comparison):
    """The gradient of a dilated max pool, which lax refuses: jax#274. The plain form gathers the taps itself."""

    layers: ClassVar = {"3x3, dilation 2, 1x56x56x64": (1, 56, 56, 64)}
    quick: ClassVar = {"layers": {"3x3, dilation 2, 1x9x9x4": (1, 9, 9, 4)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        def plain(x):
            size = x.shape[1] - 4
            taps = [x[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size] for i, j in np.ndindex(3, 3)]
            return jnp.stack(taps).max(0)

        return Case(
            gradient(lambda x: jaxcnn.max_pool(x, 3, window_dilation=2)),
            gradient(plain),
            (array(*self.layers[layer]),),
        )
