"""The method `per_group`: each group of channels by itself, as the dense convolution that it is.

XLA:CPU computes the groups of a convolution one after the other, by a form that is slower than its dense one and has no
tiles and no large products. Here each group is computed by the method with the least estimated time, so the error is
that method's: at most `winograd`'s, 16 epsilons of float32 times the largest sum of an output's magnitudes; `precision`
HIGHEST admits `direct`'s alone, as everywhere.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import materialize, shape_unsupported
from jaxcnn.lowering.methods import direct, matmul, shift, winograd
from jaxcnn.lowering.spec import ConvSpec

NAME = "per_group"

MAX_UNROLLED_GROUPS = 8
"""Most groups that are unrolled in the program. More groups go in a loop, which compiles as fast for any number."""


def refusal(spec: ConvSpec) -> str | None:
    """Returns None, or the reason why this convolution is not computed group by group."""
    groups = spec.feature_group_count
    if groups == 1:
        return "it has one group"
    if spec.input_shape[-1] == spec.output_shape[-1] == groups:
        return "its groups are single channels"
    if spec.stacked is not None:
        return f"it is a stack of {spec.stacked}"
    return shape_unsupported(spec)


def terms(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the method's time grows with."""
    _, seconds = costs.fastest_method((direct, shift, matmul, winograd), _one_group(spec))
    program = costs.NANOSECONDS["native"]["call"]  # the call of a program, which all groups share
    looped = "looped " if spec.feature_group_count > MAX_UNROLLED_GROUPS else ""
    return {
        costs.KNOWN: program,
        f"{looped}groups' nanoseconds": spec.feature_group_count * max(1e9 * seconds - program, 0.0),
        "looped groups": spec.feature_group_count if looped else 0,
        f"{looped}floats": costs.work(spec).floats,
    }


def program(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the time to compile the method grows with."""
    method, _ = costs.fastest_method((direct, shift, matmul, winograd), _one_group(spec))
    milliseconds = 1e3 * costs.seconds_to_compile(method, _one_group(spec))
    if spec.feature_group_count > MAX_UNROLLED_GROUPS:
        return {"looped call": 1.0, costs.KNOWN_TO_COMPILE: milliseconds}
    return {costs.KNOWN_TO_COMPILE: spec.feature_group_count * milliseconds}


def _one_group(spec: ConvSpec) -> ConvSpec:
    """Returns the convolution of one group."""
    groups = spec.feature_group_count
    # A kernel's channels are grouped along the output features alone.
    return dataclasses.replace(
        spec,
        input_shape=(*spec.input_shape[:-1], spec.input_shape[-1] // groups),
        kernel_shape=(*spec.kernel_shape[:-1], spec.kernel_shape[-1] // groups),
        output_shape=(*spec.output_shape[:-1], spec.output_shape[-1] // groups),
        feature_group_count=1,
    )


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    groups, group_spec = spec.feature_group_count, _one_group(spec)
    method, _ = costs.fastest_method((direct, shift, matmul, winograd), group_spec.with_known_batch())
    if groups <= MAX_UNROLLED_GROUPS:
        pairs = zip(jnp.split(lhs, groups, -1), jnp.split(rhs, groups, -1), strict=True)
        return jnp.concatenate([method.lower(a, b, group_spec) for a, b in pairs], -1)

    def by_group(array: jax.Array) -> jax.Array:
        """Transposes the groups to the front, (..., G * C) -> (G, ..., C), and so each group to one piece of memory."""
        split = array.reshape(*array.shape[:-1], groups, -1)
        return materialize(jnp.moveaxis(split, -2, 0), spec.xla_only)

    results = lax.map(lambda pair: method.lower(pair[0], pair[1], group_spec), (by_group(lhs), by_group(rhs)))
    return jnp.moveaxis(results, 0, -2).reshape(spec.result_shape)
