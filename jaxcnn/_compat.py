"""Parts of JAX that its releases spell differently, or that it offers in no single call."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import mlir

FAST_CONVOLUTION = jax.__version_info__ >= (0, 11)
"""True where XLA's dense convolution on CPU is as fast as its product of matrices for windows along one axis, and for
few or uneven features."""


def varying_axes(value: Any) -> frozenset[str]:
    """Returns the manual mesh axes over which a value varies inside `jax.shard_map`."""
    aval = jax.typeof(value)
    manual = getattr(aval, "manual_axis_type", None)
    return manual.varying if manual is not None else getattr(aval, "vma", frozenset())


def example(shape: tuple[int, ...], dtype: Any, sharding: Any, *operands: jax.Array) -> Any:
    """Returns an argument of that type for `jax.linear_transpose`, which varies over the operands' mesh axes."""
    axes = frozenset().union(*map(varying_axes, operands))
    if axes:
        return lax.pcast(jnp.zeros(shape, dtype), tuple(sorted(axes)), to="varying")
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@cache
def shard_map_primitive() -> Primitive:
    """Returns the primitive of `jax.shard_map`, which has no public name, from a trace that needs no device."""
    spec = jax.sharding.PartitionSpec()
    mesh = jax.sharding.AbstractMesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        mapped = jax.shard_map(lambda x: x, mesh=mesh, in_specs=spec, out_specs=spec)
        return jax.make_jaxpr(mapped)(jax.ShapeDtypeStruct((), jnp.float32)).eqns[0].primitive


def manual_axes(params: dict[str, Any]) -> Any:
    """Returns the mesh axes over which a `jax.shard_map`, given by its equation's parameters, is manual."""
    return params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]


@cache
def custom_vmap_primitive() -> Primitive:
    """Returns the primitive of `jax.custom_batching.custom_vmap`, which has no public name."""
    mapped = custom_vmap(lambda x: x)
    mapped.def_vmap(lambda size, batched, x: (x, batched[0]))
    return jax.make_jaxpr(mapped)(jax.ShapeDtypeStruct((), jnp.float32)).eqns[0].primitive


def is_partitioned(context: mlir.LoweringRuleContext) -> bool:
    """Returns whether XLA will partition the lowered program over several devices, other than by `jax.shard_map`."""
    axes = context.module_context.axis_context
    if hasattr(axes, "num_devices"):
        return axes.num_devices not in (None, 1)
    return axes.mesh.size > 1 and set(axes.manual_axes) != set(axes.mesh.axis_names)


def row_major(value: jax.Array) -> jax.Array:
    """Lays a value out in memory in the order of its axes, which also keeps XLA from fusing it into its readers."""
    return with_layout_constraint(value, Layout(tuple(range(value.ndim))))
