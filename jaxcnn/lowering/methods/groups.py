"""The method `groups`: each group of channels by itself, as the dense convolution that it is.

XLA:CPU computes the groups of a convolution one after the other by a form that is slower than its dense one, and no
tiles and no large products are to be had. AlexNet's second layer, 27x27x96 to 256 in 2 groups by 5x5, takes 1.7 ms
instead of 6.2 (PyTorch 2.1), 8x28x28x72 in 3 groups by 5x5 3.5 instead of 45. Each group is computed by the method that
suits it, so the error is that method's: at most `winograd`'s, 16 epsilons of float32 times the largest sum of an
output's magnitudes; `precision` HIGHEST admits `direct`'s alone, as everywhere.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.lowering import choice_one_group as dense
from jaxcnn.lowering.common.forms import settled, shape_unsupported
from jaxcnn.lowering.methods import direct
from jaxcnn.lowering.spec import ConvSpec

NAME = "groups"

_UNROLLED, _UNROLLED_BYTES = 8, 8 << 20
"""Most groups, and most bytes of both operands, for a program of each group by itself; more go in a loop, which
compiles in 0.3 s for any number and reuses its memory. 4x28x28x256 in 8 groups take 3.0 ms so and 5.4 in a loop;
8x28x28x512 in 8 38 and 24, 8x14x14x1024 in 32 41 and 18."""


def supports(spec: ConvSpec) -> str | None:
    """None, or why this convolution is not computed group by group."""
    groups = spec.feature_group_count
    if groups == 1:
        return "it has one group"
    if spec.input_shape[-1] == spec.output_shape[-1] == groups:
        return "its groups are single channels"
    if spec.stacked is not None:
        return f"it is a stack of {spec.stacked}"
    return shape_unsupported(spec)


def _one(spec: ConvSpec) -> ConvSpec:
    """The convolution of one group."""
    groups = spec.feature_group_count
    # Of a kernel the output features alone lie group by group.
    return dataclasses.replace(
        spec,
        input_shape=(*spec.input_shape[:-1], spec.input_shape[-1] // groups),
        kernel_shape=(*spec.kernel_shape[:-1], spec.kernel_shape[-1] // groups),
        output_shape=(*spec.output_shape[:-1], spec.output_shape[-1] // groups),
        feature_group_count=1,
    )


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, sharding: object = None) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    del sharding
    groups = spec.feature_group_count
    one = _one(spec)
    method, _ = dense.choose(one)
    compute = direct.lower_channels_last if method is direct else method.lower
    if groups <= _UNROLLED and lhs.nbytes + rhs.nbytes <= _UNROLLED_BYTES:
        pairs = zip(jnp.split(lhs, groups, -1), jnp.split(rhs, groups, -1), strict=True)
        return jnp.concatenate([compute(a, b, one) for a, b in pairs], -1)

    def by_group(array: jax.Array) -> jax.Array:
        """(..., G * C) -> (G, ..., C), in this order: a slice of a wide image touches each of its rows."""
        split = array.reshape(*array.shape[:-1], groups, -1)
        return settled(jnp.moveaxis(split, -2, 0), spec.exported)

    results = lax.map(lambda pair: compute(pair[0], pair[1], one), (by_group(lhs), by_group(rhs)))
    return jnp.moveaxis(results, 0, -2).reshape(spec.result_shape)
