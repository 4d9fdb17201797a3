"""The JAX primitives behind the public functions: abstract evaluation, derivatives, batching and lowering.

`conv_p` has three roles, the partial derivatives of the trilinear form sum(y * conv(x, kernel)): each transpose of one
is another of them. `extremum_p` (a max or min pool) is differentiated through the index of each window's winner,
`winner_p`, and a linear primitive that selects by it, `select_p`, whose transpose `scatter_p` adds back. `window_sum_p`
and `window_spread_p` are each other's transpose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxcnn._compat import is_partitioned, varying_axes
from jaxcnn.lowering import choice
from jaxcnn.lowering.spec import PoolSpec, conv_spec

# The source line of an operation is the user's that called jaxcnn, in profiles as in summaries.
source_info_util.register_exclusion(os.path.join(os.path.dirname(__file__), ""))


def _register(primitive: Primitive, run: Callable[..., jax.Array], static: Sequence[str]) -> None:
    """Evaluation of a primitive by `run`, eager, abstract and lowered."""

    @primitive.def_abstract_eval
    def _abstract(*operands: Any, **params: Any) -> Any:
        # Tracing on the abstract values keeps what a bare shape and dtype would lose: explicit sharding and the mesh
        # axes over which a value varies in shard_map.
        return jax.make_jaxpr(partial(run, **params))(*operands).out_avals[0]

    @partial(jax.jit, static_argnames=tuple(static))
    def apply(*operands: jax.Array, **params: Any) -> jax.Array:
        return primitive.bind(*operands, **params)

    @primitive.def_impl
    def _impl(*operands: jax.Array, **params: Any) -> jax.Array:
        # Evaluated operation by operation, as by jax.disable_jit() and where a NaN is looked for, `apply` would call
        # itself for ever.
        with jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False):
            result = apply(*operands, **params)
        for name, found in (("nan", jnp.isnan), ("inf", jnp.isinf)):
            if (
                getattr(jax.config, f"jax_debug_{name}s")
                and jnp.issubdtype(result.dtype, jnp.inexact)
                and bool(found(result).any())
            ):
                raise FloatingPointError(f"invalid value ({name}) encountered in {primitive}")
        return result

    def run_on(platform: str, *operands: jax.Array, **params: Any) -> jax.Array:
        # On an Explicit mesh JAX asks of each reshape how its result lies; there only `direct` knows.
        return run(*operands, platform=None if any(map(_is_explicit, operands)) else platform, **params)

    mlir.register_lowering(primitive, mlir.lower_fun(partial(run_on, "accelerator"), multiple_results=False))

    def lower_on_cpu(context: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        xla_only = context.module_context.lowering_parameters.for_export or is_partitioned(context)
        rule = mlir.lower_fun(partial(run_on, "cpu", xla_only=xla_only), multiple_results=False)
        return rule(context, *operands, **params)

    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")


def _is_explicit(operand: jax.Array) -> bool:
    return jax.sharding.AxisType.Explicit in jax.typeof(operand).sharding.mesh.axis_types


# Convolution. No static parameter may be called g, x or y: ad.defbilinear uses these names.

conv_p = Primitive("jaxcnn_conv")
_CONV_STATIC = (
    "role",
    "stacked",
    "strides",
    "padding",
    "input_dilation",
    "kernel_dilation",
    "feature_group_count",
    "precision",
    "preferred_element_type",
    "method",
    "input_size",
    "window",
    "sharding",
)


def _run_conv(lhs: jax.Array, rhs: jax.Array, *, method: str, platform: str | None = None, **params: Any) -> jax.Array:
    spec = conv_spec(lhs, rhs, platform=platform, **params)
    return choice.METHODS[choice.choose(spec, method, platform).method].lower(lhs, rhs, spec)


_register(conv_p, _run_conv, _CONV_STATIC)


def bind_conv(lhs: jax.Array, rhs: jax.Array, *, method: str, **params: Any) -> jax.Array:
    """Binds `conv_p` with both operands varying over the same manual mesh axes (as `shard_map` asks).

    Raises:
      ValueError: the method that was asked for does not support this convolution.
    """
    lhs, rhs = _match_varying(lhs, rhs)
    full = {"role": "output", "stacked": False, "input_size": None, "window": None, **params}
    sharding = full.pop("sharding", None)
    choice.check_supported(method, conv_spec(lhs, rhs, **full))
    return conv_p.bind(lhs, rhs, method=method, sharding=sharding, **full)


def _match_varying(*operands: jax.Array) -> tuple[jax.Array, ...]:
    varying = [varying_axes(operand) for operand in operands]
    union: frozenset[str] = frozenset().union(*varying)
    return tuple(
        lax.pcast(operand, tuple(sorted(union - own)), to="varying") if union - own else operand
        for operand, own in zip(operands, varying, strict=True)
    )


def _transposed(lhs: Any, rhs: Any, target: Any, params: dict[str, Any], role: str, lead: int) -> jax.Array:
    """Binds `conv_p` in another role, to compute the cotangent of `target`."""
    aval = target.aval
    return conv_p.bind(
        lhs,
        rhs,
        **{
            **params,
            "role": role,
            "input_size": tuple(aval.shape[lead + 1 : -1]) if role == "input" else None,
            "window": tuple(aval.shape[lead:-2]) if role == "kernel" else None,
            "preferred_element_type": aval.dtype,
            "sharding": _aval_sharding(aval),
        },
    )


def _aval_sharding(aval: Any) -> Any:
    """The sharding of a value on an Explicit mesh, else None."""
    sharding = getattr(aval, "sharding", None)
    return None if sharding is None or sharding.mesh.empty else sharding


# The operands of each role, and of the role that computes each of them from the cotangent of the result.
_OPERANDS = {"output": ("input", "kernel"), "input": ("output", "kernel"), "kernel": ("input", "output")}


def _conv_transpose_rule(position: int, cotangent: Any, lhs: Any, rhs: Any, **params: Any) -> jax.Array:
    role = params["role"]
    arrays = dict(zip(_OPERANDS[role], (lhs, rhs), strict=True))
    wanted = _OPERANDS[role][position]
    arrays[role] = cotangent
    first, second = (arrays[name] for name in _OPERANDS[wanted])
    lead = 1 if params["stacked"] else 0
    return _transposed(first, second, arrays[wanted], params, wanted, lead)


ad.defbilinear(conv_p, partial(_conv_transpose_rule, 0), partial(_conv_transpose_rule, 1))

# Where a `vmap` over one operand alone goes: into an axis of that operand which the result keeps. Each entry is that
# axis of the operand and of the result, and whether its features lie group by group (a kernel's input features do not).
_BATCH = 0
_FOLDS = {
    ("output", 0): ((_BATCH, False), (_BATCH, False)),
    ("output", 1): ((-1, True), (-1, True)),
    ("input", 0): ((_BATCH, False), (_BATCH, False)),
    ("input", 1): ((-2, False), (-1, True)),
    ("kernel", 0): ((-1, True), (-2, False)),
    ("kernel", 1): ((-1, True), (-1, True)),
}


def _fold(array: jax.Array, axis: int, groups: int) -> jax.Array:
    """Merges the leading axis B into `axis` of the rest: (B, ..., G * F, ...) -> (..., G * B * F, ...)."""
    size, shape = array.shape[0], array.shape[1:]
    axis %= len(shape)
    moved = jnp.moveaxis(array, 0, axis)
    split = moved.reshape(*shape[:axis], size, groups, shape[axis] // groups, *shape[axis + 1 :])
    return jnp.swapaxes(split, axis, axis + 1).reshape(*shape[:axis], size * shape[axis], *shape[axis + 1 :])


def _unfold(array: jax.Array, axis: int, groups: int, size: int) -> jax.Array:
    """The inverse of `_fold`: (..., G * B * F, ...) -> (B, ..., G * F, ...)."""
    shape = array.shape
    axis %= len(shape)
    features = shape[axis] // size
    split = array.reshape(*shape[:axis], groups, size, features // groups, *shape[axis + 1 :])
    merged = jnp.swapaxes(split, axis, axis + 1).reshape(*shape[:axis], size, features, *shape[axis + 1 :])
    return jnp.moveaxis(merged, axis, 0)


def _conv_batching_rule(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[jax.Array, int]:
    role, stacked, groups = params["role"], params["stacked"], params["feature_group_count"]
    params["sharding"] = None
    operands = [arg if dim is None else jnp.moveaxis(arg, dim, 0) for arg, dim in zip(args, dims, strict=True)]
    if any(arg.shape[dim] == 0 for arg, dim in zip(args, dims, strict=True) if dim is not None):
        # What is folded into an axis of size 0 cannot be told apart again.
        shapes = [op.shape if dim is None else op.shape[1:] for op, dim in zip(operands, dims, strict=True)]
        ones = [jax.ShapeDtypeStruct(shape, op.dtype) for shape, op in zip(shapes, operands, strict=True)]
        result = jax.eval_shape(partial(conv_p.bind, **params), *ones)
        return jnp.zeros((0, *result.shape), result.dtype), 0
    if None in dims:
        position = dims.index(None) ^ 1
        size = operands[position].shape[0]
        (axis, grouped), (result_axis, result_grouped) = (
            (int(stacked) if axis == _BATCH else axis, groups if grouped else 1)
            for axis, grouped in _FOLDS[role, position]
        )
        operands[position] = _fold(operands[position], axis, grouped)
        return _unfold(conv_p.bind(*operands, **params), result_axis, result_grouped, size), 0
    if not stacked:
        return conv_p.bind(*operands, **{**params, "stacked": True}), 0
    size, stack = operands[0].shape[:2]
    merged = [operand.reshape(size * stack, *operand.shape[2:]) for operand in operands]
    result = conv_p.bind(*merged, **params)
    return result.reshape(size, stack, *result.shape[1:]), 0


batching.primitive_batchers[conv_p] = _conv_batching_rule


# Pools. Every operand is (N, *spatial, C); a `vmap` is folded into N.

_POOL_STATIC = ("window_shape", "strides", "padding", "window_dilation")


def _pool_batching_rule(
    primitive: Primitive, args: Sequence[Any], dims: Sequence[Any], **params: Any
) -> tuple[jax.Array, int]:
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    operands = [
        jnp.broadcast_to(arg, (size, *arg.shape)) if dim is None else jnp.moveaxis(arg, dim, 0)
        for arg, dim in zip(args, dims, strict=True)
    ]
    batch = operands[0].shape[1]
    folded = [operand.reshape(size * batch, *operand.shape[2:]) for operand in operands]
    if "sharding" in params:
        params["sharding"] = None
    result = primitive.bind(*folded, **params)
    return result.reshape(size, batch, *result.shape[1:]), 0


def _pool_primitive(name: str, run: Callable[..., jax.Array], static: Sequence[str]) -> Primitive:
    primitive = Primitive(name)
    _register(primitive, run, static)
    batching.primitive_batchers[primitive] = partial(_pool_batching_rule, primitive)
    return primitive


def _pool_spec_of(operand: Any, params: dict[str, Any], input_size: tuple[int, ...] | None = None) -> PoolSpec:
    shape = operand.shape if input_size is None else (operand.shape[0], *input_size, operand.shape[-1])
    flags = {name: params[name] for name in ("xla_only", "sharding") if name in params}
    return PoolSpec(input_shape=tuple(shape), dtype=jnp.dtype(operand.dtype), **flags, **_window_params(params))


def _run_extremum(operand: jax.Array, *, mode: str, platform: str | None = None, **params: Any) -> jax.Array:
    spec = _pool_spec_of(operand, params)
    return choice.pool_method(spec, platform).extremum(operand, spec, mode)


def _run_winner(operand: jax.Array, *, mode: str, platform: str | None = None, **params: Any) -> jax.Array:
    spec = _pool_spec_of(operand, params)
    return choice.pool_method(spec, platform).winner(operand, spec, mode)


def _run_select(operand: jax.Array, index: jax.Array, *, platform: str | None = None, **params: Any) -> jax.Array:
    spec = _pool_spec_of(operand, params)
    return choice.pool_method(spec, platform, selects=True).select(operand, index, spec)


def _run_scatter(
    operand: jax.Array,
    index: jax.Array,
    *,
    input_size: tuple[int, ...],
    platform: str | None = None,
    **params: Any,
) -> jax.Array:
    spec = _pool_spec_of(operand, params, input_size)
    return choice.pool_method(spec, platform).scatter(operand, index, spec)


def _run_window_sum(operand: jax.Array, *, platform: str | None = None, **params: Any) -> jax.Array:
    spec = _pool_spec_of(operand, params)
    return choice.pool_method(spec, platform).window_sum(operand, spec)


def _run_window_spread(
    operand: jax.Array, *, input_size: tuple[int, ...], platform: str | None = None, **params: Any
) -> jax.Array:
    spec = _pool_spec_of(operand, params, input_size)
    return choice.pool_method(spec, platform).window_spread(operand, spec)


extremum_p = _pool_primitive("jaxcnn_extremum", _run_extremum, (*_POOL_STATIC, "mode"))
winner_p = _pool_primitive("jaxcnn_winner", _run_winner, (*_POOL_STATIC, "mode"))
select_p = _pool_primitive("jaxcnn_select", _run_select, _POOL_STATIC)
scatter_p = _pool_primitive("jaxcnn_scatter", _run_scatter, (*_POOL_STATIC, "input_size", "sharding"))
window_sum_p = _pool_primitive("jaxcnn_window_sum", _run_window_sum, _POOL_STATIC)
window_spread_p = _pool_primitive("jaxcnn_window_spread", _run_window_spread, (*_POOL_STATIC, "input_size", "sharding"))


def _extremum_jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    # The index is piecewise constant: no derivative passes through it, so second derivatives are zero.
    index = winner_p.bind(lax.stop_gradient(x), **params)
    return extremum_p.bind(x, **params), select_p.bind(tangent, index, **_window_params(params))


ad.primitive_jvps[extremum_p] = _extremum_jvp


def _linear_in_first(primitive: Primitive, transpose: Callable[..., jax.Array]) -> None:
    """Derivatives of a primitive that is linear in its first operand and constant in the others."""

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[jax.Array, jax.Array]:
        return primitive.bind(*primals, **params), primitive.bind(tangents[0], *primals[1:], **params)

    def transpose_rule(cotangent: Any, operand: Any, *others: Any, **params: Any) -> list[Any]:
        if isinstance(cotangent, ad.Zero):
            return [ad.Zero(operand.aval), *(None for _ in others)]
        return [transpose(cotangent, operand.aval, *others, **params), *(None for _ in others)]

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose_rule


def _window_params(params: dict[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in _POOL_STATIC}


def _to_input(primitive: Primitive) -> Callable[..., jax.Array]:
    """The transpose of a primitive that takes inputs to outputs: `primitive`, which needs the input's size."""

    def transpose(cotangent: Any, aval: Any, *others: Any, **params: Any) -> jax.Array:
        size = tuple(aval.shape[1:-1])
        return primitive.bind(cotangent, *others, input_size=size, sharding=_aval_sharding(aval), **params)

    return transpose


def _to_output(primitive: Primitive) -> Callable[..., jax.Array]:
    """The transpose of a primitive that takes outputs to inputs: `primitive`."""

    def transpose(cotangent: Any, aval: Any, *others: Any, **params: Any) -> jax.Array:
        del aval
        return primitive.bind(cotangent, *others, **_window_params(params))

    return transpose


_linear_in_first(select_p, _to_input(scatter_p))
_linear_in_first(scatter_p, _to_output(select_p))
_linear_in_first(window_sum_p, _to_input(window_spread_p))
_linear_in_first(window_spread_p, _to_output(window_sum_p))
