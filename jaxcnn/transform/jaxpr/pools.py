"""Pools in jaxprs: lax's window reductions and the derivatives of its maximum, as jaxcnn's primitives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core import primitives as lax_primitives

from jaxcnn.lowering import choice
from jaxcnn.lowering.spec import PoolSpec
from jaxcnn.primitives import extremum_p, scatter_p, select_p, window_sum_p, winner_p
from jaxcnn.transform.jaxpr.equations import avals, inner_jaxpr, is_plain

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
      shape: shape of the equation's operand.
      out_shape: shape of the equation's result.
      first: first axis of the operand over which a window slides.
    """

    spec: PoolSpec
    kind: str
    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
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
        or not (is_plain(operand) and is_plain(result))
        or not jnp.issubdtype(operand.dtype, jnp.number)
    ):
        return None
    if jnp.issubdtype(operand.dtype, jnp.complexfloating):
        return None
    ones = (1,) * operand.ndim
    if max(params.get("base_dilation", ones)) > 1 or min(map(min, params["padding"])) < 0:
        return None
    spec, out_shape, first = _spec_and_layout(operand, params)
    is_selection = primitive is lax_primitives.select_and_gather_add_p
    is_improved = choice.pool_method(spec, "cpu", selects=is_selection).NAME != "direct"
    return Pool(spec, kind, operand.shape, out_shape, first) if is_improved else None


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


def _spec_and_layout(operand: Any, params: dict[str, Any]) -> tuple[PoolSpec, tuple[int, ...], int]:
    """Returns the pool over (N, *spatial, C), the result's shape in the equation's axes, and the first spatial axis.

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
    return spec, (*shape[:first], *spec.output_shape[1:-1], *shape[last:]), first


def bind_pool(equation: JaxprEqn, pool: Pool, operands: Sequence[Any]) -> jax.Array:
    """Computes an equation's result from its operands by jaxcnn's primitives."""
    spec, params = pool.spec, pool.params
    out_shape = spec.output_shape
    if equation.primitive is lax_primitives.select_and_scatter_add_p:
        cotangent, operand = operands
        index = winner_p.bind(lax.stop_gradient(operand).reshape(spec.input_shape), mode=pool.kind, **params)
        y = _sixteen_bit_as_float32(cotangent.reshape(out_shape))
        result = scatter_p.bind(y, index, input_size=spec.input_shape[1:-1], sharding=None, **params)
        return result.astype(cotangent.dtype).reshape(pool.shape)
    if equation.primitive is lax_primitives.select_and_gather_add_p:
        tangent, operand = operands
        index = winner_p.bind(lax.stop_gradient(operand).reshape(spec.input_shape), mode=pool.kind, **params)
        return select_p.bind(tangent.reshape(spec.input_shape), index, **params).reshape(pool.out_shape)
    x = operands[0].reshape(spec.input_shape)
    if pool.kind == "sum":
        return window_sum_p.bind(_sixteen_bit_as_float32(x), **params).astype(x.dtype).reshape(pool.out_shape)
    result = extremum_p.bind(x, mode=pool.kind, **params).reshape(pool.out_shape)
    if equation.primitive is lax_primitives.reduce_window_p:
        # A reduction by a function has an initial value of the user's, which is also the value of the padding.
        result = (lax.max if pool.kind == "max" else lax.min)(result, jnp.broadcast_to(operands[1], result.shape))
    return result


def _sixteen_bit_as_float32(array: jax.Array) -> jax.Array:
    """Returns 16-bit floats as float32, the dtype of sums; other arrays as they are."""
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(jnp.float32) if narrow else array
