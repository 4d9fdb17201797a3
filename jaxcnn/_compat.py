"""Parts of JAX that its releases spell differently, or that it offers in no single call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AxisType

SPLITS_EXPLICIT_MESHES = jax.__version_info__ < (0, 11)
"""Flag of releases whose `custom_partitioning` works on meshes of Explicit and other axes. On jax 0.12 its results have
a sharding there that XLA has no implementation of."""


_MESHES_OF_SHARD_MAP = ({AxisType.Explicit}, {AxisType.Explicit, AxisType.Auto})[: 1 if SPLITS_EXPLICIT_MESHES else 2]
"""Kinds of the axes of meshes on which `shard_map` takes the place of `custom_partitioning`."""


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


def is_explicit(aval: Any) -> bool:
    """Returns whether an abstract value lies on a mesh with Explicit axes."""
    sharding = getattr(aval, "sharding", None)
    return sharding is not None and AxisType.Explicit in sharding.mesh.axis_types


def is_plain(aval: Any) -> bool:
    """Returns whether a shape and a dtype are all that an abstract value has: no mesh, no place in another memory."""
    sharding = getattr(aval, "sharding", None)
    bare = jax.core.ShapedArray(aval.shape, aval.dtype, weak_type=aval.weak_type)
    return (sharding is None or sharding.mesh.empty) and bool(aval == bare)


def computes_on(mesh: Any) -> bool:
    """Returns whether jaxcnn computes on a mesh with Explicit axes itself: it can split its operations, or need not."""
    return SPLITS_EXPLICIT_MESHES or mesh.size == 1 or {*mesh.axis_types} in _MESHES_OF_SHARD_MAP


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


def is_on_explicit_mesh(context: mlir.LoweringRuleContext) -> bool:
    """Returns whether the arrays of a lowered operation lie on one mesh with Explicit axes that `shard_map` splits."""
    shardings = (getattr(aval, "sharding", None) for aval in (*context.avals_in, *context.avals_out))
    meshes = {sharding.mesh for sharding in shardings if sharding is not None and not sharding.mesh.empty}
    return len(meshes) == 1 and {*meshes.pop().axis_types} in _MESHES_OF_SHARD_MAP


def with_devices(context: mlir.LoweringRuleContext) -> mlir.LoweringRuleContext | None:
    """Returns a context in which `custom_partitioning` can be lowered; None where no mesh is known for all devices.

    JAX tells lowering rules of a mesh only in programs that hold a `custom_partitioning`. Here it is the one that the
    operands lie on. Which devices stand for it does not matter: parts are told by the names of the mesh's axes.
    """
    axes: Any = context.module_context.axis_context
    if not hasattr(axes, "num_devices") or axes.num_devices is None:
        return None
    shardings = (getattr(aval, "sharding", None) for aval in context.avals_in)
    meshes = {sharding.mesh for sharding in shardings if sharding is not None and not sharding.mesh.empty}
    devices = axes.device_assignment or tuple(jax.devices()[: axes.num_devices])
    if not SPLITS_EXPLICIT_MESHES and any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        return None
    if len(meshes) != 1 or {mesh.size for mesh in meshes} != {axes.num_devices} or len(devices) != axes.num_devices:
        return None
    axes_with_devices = replace(axes, device_assignment=devices, abstract_mesh=meshes.pop())
    return context.replace(module_context=context.module_context.replace(axis_context=axes_with_devices))


def lower_on_one_device(
    rule: Callable[..., Any], context: mlir.LoweringRuleContext, *operands: Any, **params: Any
) -> Any:
    """Lowers by a rule, which in a program of one device is told nothing of an Explicit mesh: all arrays are whole."""
    if is_partitioned(context) or not any(map(is_explicit, context.avals_in)):
        return rule(context, *operands, **params)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        avals: Any = context.avals_in
        whole = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in avals]
        return rule(context.replace(avals_in=whole), *operands, **params)


def row_major(value: jax.Array) -> jax.Array:
    """Lays a value out in memory in the order of its axes, which also keeps XLA from fusing it into its readers."""
    return with_layout_constraint(value, Layout(tuple(range(value.ndim))))
