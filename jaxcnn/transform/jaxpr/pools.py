"""Pools in jaxprs: lax's window reductions and the derivatives of its maximum, as jaxcnn's primitives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core import primitives as lax_primitives
from jax.sharding import NamedSharding, PartitionSpec

from jaxcnn._compat import is_explicit
from jaxcnn.lowering import choice
from jaxcnn.lowering.spec import PoolSpec
from jaxcnn.primitives import extremum_p, scatter_p, select_p, window_sum_p, winner_p
from jaxcnn.transform.jaxpr.equations import avals, explicit_sharding, inner_jaxpr, is_computable

_REDUCTION_KINDS: dict[Primitive, str] = {
    lax_primitives.reduce_window_max_p: "max",
    lax_primitives.reduce_window_min_p: "min",
    lax_primitives.reduce_window_sum_p: "sum",
}
_BODY_KINDS: dict[Primitive, str] = {lax_primitives.max_p: "max", lax_primitives.min_p: "min"}
_SELECTION_KINDS: dict[Primitive, str] = {lax_primitives.ge_p: "max", lax_primitives.le_p: "min"}
_SELECTING_PRIMITIVES = (lax_primitives.select_and_scatter_add_p, lax_primitives.select_and_gather_add_p)

POOLS = (*_REDUCTION_KINDS, lax_primitives.reduce_window_p, *_SELECTING_PRIMITIVES)
"""The primitives of lax that may be pools."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pool that an equation of a jaxpr computes or differentiates.

    Args:
      spec: pool over the equation's operand reshaped to (N, *spatial, C).
      kind: `"max"`, `"min"` or `"sum"`.
      first: first axis of the operand over which a window slides.
    """

    spec: PoolSpec
    kind: str
    first: int

    @property
    def params(self) -> dict[str, Any]:
        """Returns the static parameters that all of jaxcnn's pool primitives have."""
        names = ("window_shape", "strides", "padding", "window_dilation")
        return {name: getattr(self.spec, name) for name in names}


def as_pool(equation: JaxprEqn) -> Pool | None:
    """Returns the pool that an equation of lax computes or differentiates; None if the equation is left to lax."""
    primitive, params = equation.primitive, equation.params
    if primitive not in POOLS:
        return None
    if primitive in _REDUCTION_KINDS:
        kind = _REDUCTION_KINDS[primitive]
    elif primitive in _SELECTING_PRIMITIVES:
        kind = _SELECTION_KINDS.get(params["select_prim"], "")
    else:
        kind = _body_kind(equation)
    # The derivatives of a maximum take the operand of the pool as their second operand.
    arrays = avals(equation)
    operand, result = arrays[1 if primitive in _SELECTING_PRIMITIVES else 0], arrays[-1]
    if (
        not kind
        or result.weak_type
        or not (is_computable(operand) and is_computable(result))
        or not jnp.issubdtype(operand.dtype, jnp.number)
    ):
        return None
    if jnp.issubdtype(operand.dtype, jnp.complexfloating):
        return None
    ones = (1,) * operand.ndim
    if max(params.get("base_dilation", ones)) > 1 or min(map(min, params["padding"])) < 0:
        return None
    spec, first = _spec_and_layout(operand, params)
    last = first + spec.rank
    images = [aval for aval in arrays if aval.ndim == operand.ndim]
    if any(_splits_merged_axes(aval, axes) for aval in images for axes in (range(first), range(last, operand.ndim))):
        return None
    is_selection = primitive is lax_primitives.select_and_gather_add_p
    is_improved = choice.pool_method(spec, "cpu", selects=is_selection).NAME != "direct"
    return Pool(spec, kind, first) if is_improved else None


def _body_kind(equation: JaxprEqn) -> str:
    """Returns the kind of a window reduction by a function; "" unless that is a maximum or minimum of two values."""
    body = equation.params["jaxpr"]
    if len(equation.invars) != 2 or equation.params["consts"]:
        return ""
    while True:
        body = inner_jaxpr(body)
        if len(body.eqns) != 1 or body.constvars:
            return ""
        (inner,) = body.eqns
        if {*map(id, inner.invars)} != {*map(id, body.invars)} or inner.outvars[0] is not body.outvars[0]:
            return ""
        if inner.primitive is not lax_primitives.jit_p:
            return _BODY_KINDS.get(inner.primitive, "")
        body = inner.params["jaxpr"]  # jnp.maximum is a jitted function


def _spec_and_layout(operand: Any, params: dict[str, Any]) -> tuple[PoolSpec, int]:
    """Returns the pool over (N, *spatial, C), and the first spatial axis in the equation's axes.

    The axes before the first one over which a window slides make up N, those after the last one make up C. Axes in
    between without a window get a window of one pixel. So a reshape is enough, and no axis moves.
    """
    shape, ndim = operand.shape, operand.ndim
    window, strides = (tuple(params[name]) for name in ("window_dimensions", "window_strides"))
    padding = tuple((int(low), int(high)) for low, high in params["padding"])
    dilation = tuple(params.get("window_dilation", (1,) * ndim))
    window_axes = [a for a in range(ndim) if (window[a], strides[a], padding[a]) != (1, 1, (0, 0))]
    first, last = (window_axes[0], window_axes[-1] + 1) if window_axes else (0, ndim)
    spatial = slice(first, last)
    spec = PoolSpec(
        input_shape=(math.prod(shape[:first]), *shape[spatial], math.prod(shape[last:])),
        window_shape=window[spatial],
        strides=strides[spatial],
        padding=padding[spatial],
        window_dilation=dilation[spatial],
        dtype=np.dtype(operand.dtype),
    )
    return spec, first


def _splits_merged_axes(aval: Any, axes: Sequence[int]) -> bool:
    """Returns whether an array on an Explicit mesh is split along one of some axes, other than the first of them.

    Such axes cannot become one axis without communication.
    """
    if not is_explicit(aval):
        return False
    sharding = explicit_sharding(aval, [axis for axis in axes if aval.shape[axis] > 1])
    return sharding is not None and any(sharding.spec[1:])


def bind_pool(equation: JaxprEqn, pool: Pool, operands: Sequence[Any]) -> jax.Array:
    """Computes an equation's result from its operands by jaxcnn's primitives."""
    spec, params = pool.spec, pool.params
    out_aval = avals(equation)[-1]
    merged = partial(_with_axes_merged, pool)

    def restored(result: jax.Array) -> jax.Array:
        return _reshape(result, out_aval.shape, explicit_sharding(out_aval, range(out_aval.ndim)))

    if equation.primitive is lax_primitives.select_and_scatter_add_p:
        cotangent, operand = operands
        index = winner_p.bind(merged(lax.stop_gradient(operand)), mode=pool.kind, padding_wins=True, **params)
        y, sharding = _sixteen_bit_as_float32(merged(cotangent)), _merged_sharding(pool, out_aval)
        result = scatter_p.bind(y, index, input_size=spec.input_shape[1:-1], sharding=sharding, **params)
        return restored(result.astype(cotangent.dtype))
    if equation.primitive is lax_primitives.select_and_gather_add_p:
        tangent, operand = operands
        index = winner_p.bind(merged(lax.stop_gradient(operand)), mode=pool.kind, padding_wins=True, **params)
        return restored(select_p.bind(merged(tangent), index, **params))
    x = merged(operands[0])
    if pool.kind == "sum":
        return restored(window_sum_p.bind(_sixteen_bit_as_float32(x), **params).astype(x.dtype))
    result = restored(extremum_p.bind(x, mode=pool.kind, **params))
    if equation.primitive is lax_primitives.reduce_window_p:
        # A reduction by a function has an initial value of the user's, which is also the value of the padding.
        result = (lax.max if pool.kind == "max" else lax.min)(result, jnp.broadcast_to(operands[1], result.shape))
    return result


def _with_axes_merged(pool: Pool, array: jax.Array) -> jax.Array:
    """Returns an array of the equation as (N, *spatial, C)."""
    first, last = pool.first, pool.first + pool.spec.rank
    shape = math.prod(array.shape[:first]), *array.shape[first:last], math.prod(array.shape[last:])
    return _reshape(array, shape, _merged_sharding(pool, jax.typeof(array)))


def _merged_sharding(pool: Pool, aval: Any) -> NamedSharding | None:
    """Returns the sharding of an array of the equation as (N, *spatial, C), on an Explicit mesh; None elsewhere."""
    sharding = explicit_sharding(aval, range(aval.ndim))
    if sharding is None:
        return None
    first, last = pool.first, pool.first + pool.spec.rank
    parts = sharding.spec
    batch, channels = (next(filter(None, axes), None) for axes in (parts[:first], parts[last:]))
    return NamedSharding(sharding.mesh, PartitionSpec(batch, *parts[first:last], channels))


def _reshape(array: jax.Array, shape: Sequence[int], sharding: NamedSharding | None) -> jax.Array:
    """Returns an array in another shape, with the sharding that it has on an Explicit mesh."""
    return array if array.shape == tuple(shape) else lax.reshape(array, shape, out_sharding=sharding)


def _sixteen_bit_as_float32(array: jax.Array) -> jax.Array:
    """Returns 16-bit floats as float32, the dtype of sums; other arrays as they are."""
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(jnp.float32) if narrow else array
