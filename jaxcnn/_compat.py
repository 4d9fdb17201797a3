"""What JAX's releases spell differently, or offer in no single call."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint


def varying_axes(value: Any) -> frozenset[str]:
    """The manual mesh axes over which a value varies inside `jax.shard_map`."""
    aval = jax.typeof(value)
    manual = getattr(aval, "manual_axis_type", None)
    return manual.varying if manual is not None else getattr(aval, "vma", frozenset())


def example(shape: tuple[int, ...], dtype: Any, sharding: Any, *operands: jax.Array) -> Any:
    """What `jax.linear_transpose` may take for an argument of that type that varies over the operands' mesh axes."""
    axes = frozenset().union(*map(varying_axes, operands))
    if axes:
        return lax.pcast(jnp.zeros(shape, dtype), tuple(sorted(axes)), to="varying")
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def row_major(value: jax.Array) -> jax.Array:
    """The value laid out in memory in the order of its axes, which also keeps XLA from fusing it into what reads it."""
    return with_layout_constraint(value, Layout(tuple(range(value.ndim))))
