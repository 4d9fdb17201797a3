"""The JAX primitives behind the public functions: abstract evaluation, derivatives, batching and lowering.

`conv_p` has three roles, the partial derivatives of the trilinear form sum(y * conv(x, kernel)): each transpose of one
role is another role. `extremum_p` (a max or min pool) is differentiated through the index of each window's winner,
`winner_p`, and a linear primitive that selects by it, `select_p`, whose transpose `scatter_p` adds back. `window_sum_p`
and `window_spread_p` are each other's transpose.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import ad, batching, mlir

from jaxcnn._compat import (
    computes_on,
    is_explicit,
    is_on_explicit_mesh,
    is_partitioned,
    is_plain,
    lower_on_one_device,
    varying_axes,
    with_devices,
)
from jaxcnn.geometry import Ints
from jaxcnn.lowering import choice, tuning_table
from jaxcnn.lowering.pools.direct import pool_identity
from jaxcnn.lowering.spec import ConvSpec, PoolSpec, Role, conv_spec
from jaxcnn.partitioning import Split
from jaxcnn.rematerialization import ask_about_lax
from jaxcnn.splits import conv_split, pool_split

# The source line of an operation is the user's that called jaxcnn, in profiles as in summaries.
source_info_util.register_exclusion(os.path.join(os.path.dirname(__file__), ""))


def _register(
    primitive: Primitive,
    run: Callable[..., jax.Array],
    split: Callable[..., Split],
    static: Sequence[str],
    *,
    shape: Callable[..., tuple[Ints, np.dtype]] | None = None,
    call: Callable[..., tuple[str, dict[str, Any]] | None] = lambda **_: None,
) -> None:
    """Defines a primitive's evaluation, eager, abstract and lowered.

    Args:
      primitive: the primitive.
      run: function of its operands and parameters.
      split: function of its abstract operands and parameters, which returns how it is split over devices.
      static: names of its parameters.
      shape: function of its parameters, which returns the shape and dtype of the result; None where `run` tells them.
      call: function of its parameters, which returns the FFI target and attributes of a program of one device that is
        one call of a compiled kernel; None for any other program.
    """

    @primitive.def_abstract_eval
    def _abstract(*operands: Any, **params: Any) -> Any:
        if shape is not None and all(map(is_plain, operands)):
            return jax.core.ShapedArray(*shape(**params))  # tracing `run` would take most of the time of a trace
        if not any(is_explicit(operand) and computes_on(operand.sharding.mesh) for operand in operands):
            # Tracing on the abstract values keeps what a bare shape and dtype would lose: the mesh axes over which a
            # value varies in shard_map, and explicit shardings.
            return jax.make_jaxpr(partial(run, **params))(*operands).out_avals[0]
        result = _type_of_result(run, operands, params)
        sharding = params.get("sharding") or split(*operands, **params).result_sharding(operands, result.shape)
        return result.update(sharding=sharding)

    @partial(jax.jit, static_argnames=tuple(static))
    def apply(*operands: jax.Array, **params: Any) -> jax.Array:
        return primitive.bind(*operands, **params)

    @primitive.def_impl
    def _impl(*operands: jax.Array, **params: Any) -> jax.Array:
        # Where JAX evaluates operation by operation (jax.disable_jit, a search for NaN), `apply` would call itself for
        # ever.
        with jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False):
            result = apply(*operands, **params)
        for name, is_invalid in (("nan", jnp.isnan), ("inf", jnp.isinf)):
            if (
                getattr(jax.config, f"jax_debug_{name}s")
                and jnp.issubdtype(result.dtype, jnp.inexact)
                and bool(is_invalid(result).any())
            ):
                raise FloatingPointError(f"invalid value ({name}) encountered in {primitive}")
        return result

    def run_on(platform: str, *operands: jax.Array, **params: Any) -> jax.Array:
        # On an Explicit mesh each reshape needs a sharding for its result, which only `direct` gives.
        return run(*operands, platform=None if any(map(is_explicit, map(jax.typeof, operands))) else platform, **params)

    mlir.register_lowering(primitive, mlir.lower_fun(partial(run_on, "accelerator"), multiple_results=False))

    def lower_on_cpu(context: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        # A program of symbolic sizes runs only after its export.
        is_symbolic = any(not isinstance(size, int) for aval in context.avals_in for size in getattr(aval, "shape", ()))
        for_export = context.module_context.lowering_parameters.for_export or is_symbolic
        xla_only = for_export or is_partitioned(context)
        if xla_only and not for_export and is_on_explicit_mesh(context):
            parts = split(*context.avals_in, **params).over_explicit_mesh(context.avals_in, context.avals_out[0])
            return mlir.lower_fun(parts, multiple_results=False)(context, *operands)
        if xla_only and not for_export and (with_mesh := with_devices(context)) is not None:
            parts = split(*context.avals_in, **params).over_devices(context.avals_out[0].shape)
            return mlir.lower_fun(parts, multiple_results=False)(with_mesh, *operands)
        if not xla_only and all(map(is_plain, context.avals_in)) and (compiled := call(**params)) is not None:
            target, attributes = compiled
            return jax.ffi.ffi_lowering(target)(context, *operands, **attributes)
        rule = mlir.lower_fun(partial(run_on, "cpu", xla_only=xla_only), multiple_results=False)
        return lower_on_one_device(rule, context, *operands, **params)

    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")
    _SPLITS[primitive] = split


_SPLITS: dict[Primitive, Callable[..., Split]] = {}
"""Function from abstract operands and parameters to the `Split`, by primitive."""


def operation_of(equation: Any) -> Hashable:
    """Returns the operation of an equation as `record_parts` has it; None if that is none of jaxcnn's."""
    if equation.primitive not in _SPLITS:
        return None
    return _SPLITS[equation.primitive](*(operand.aval for operand in equation.invars), **equation.params).operation


def _type_of_result(run: Callable[..., jax.Array], operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """Returns the type of a primitive's result from operands whose shardings do not matter."""
    plain = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
    return jax.make_jaxpr(partial(run, **{**params, **dict.fromkeys(params.keys() & {"sharding"})}))(*plain).out_avals[
        0
    ]


# Convolution. No parameter may be called g, x or y: ad.defbilinear uses these names.

conv_p = Primitive("jaxcnn_conv")
"""Parameters: `spec`, the convolution; `method`, the name that the user asked for; `sharding` of the result on an
Explicit mesh, or None."""


def _run_conv(
    lhs: jax.Array, rhs: jax.Array, *, spec: ConvSpec, method: str, platform: str | None = None, **program: Any
) -> jax.Array:
    spec = dataclasses.replace(spec, platform=platform, **program)
    # Without a platform only the type of the result matters.
    method = method if platform else "direct"
    return choice.METHODS[choice.choose(spec, method, platform).method].lower(lhs, rhs, spec)


def _split_conv(lhs: Any, rhs: Any, *, spec: ConvSpec, method: str, **program: Any) -> Split:
    del program
    table = tuning_table.active_table()

    def run_part(lhs: jax.Array, rhs: jax.Array, part: ConvSpec) -> jax.Array:
        # XLA splits a program in a thread of its own, where no `with table:` holds.
        with tuning_table.table_context(table):
            return _run_conv(lhs, rhs, spec=part, method=method, platform="cpu")

    return conv_split(spec, run_part)


def _shape_of_conv(*, spec: ConvSpec, **params: Any) -> tuple[Ints, np.dtype]:
    del params
    lead = () if spec.stacked is None else (spec.stacked,)
    return (*lead, *spec.result_shape), spec.out_dtype


def _call_of_conv(*, spec: ConvSpec, method: str, **params: Any) -> tuple[str, dict[str, Any]] | None:
    del params
    spec = dataclasses.replace(spec, platform="cpu")
    module = choice.METHODS[choice.choose(spec, method, "cpu").method]
    return module.call(spec) if hasattr(module, "call") else None


_register(conv_p, _run_conv, _split_conv, ("spec", "method", "sharding"), shape=_shape_of_conv, call=_call_of_conv)


def lax_equation(equation: JaxprEqn) -> JaxprEqn | None:
    """Returns lax's convolution for an equation of `conv_p`, channels-last; None if the convolution is empty."""
    avals: list[Any] = [operand.aval for operand in equation.invars]
    operands = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    run = partial(_run_conv, **{**equation.params, "sharding": None})
    convs = (eqn for eqn in jax.make_jaxpr(run)(*operands).eqns if eqn.primitive is conv_general_dilated_p)
    return next(convs, None)


ask_about_lax(conv_p, lax_equation)


def bind_conv(lhs: jax.Array, rhs: jax.Array, *, method: str, sharding: Any = None, **options: Any) -> jax.Array:
    """Computes a convolution by `conv_p`, with both operands varying over the same manual mesh axes of `shard_map`.

    Args:
      lhs: first operand of the role.
      rhs: second operand of the role.
      method: name of a method, or `"auto"`.
      sharding: sharding of the result on an Explicit mesh, or None.
      options: arguments of `conv_spec`; the role is `"output"` if left out.

    Raises:
      ValueError: the method that was asked for does not support this convolution.
    """
    lhs, rhs = _match_varying(lhs, rhs)
    spec = conv_spec(lhs, rhs, **{"role": "output", "stacked": False, "input_size": None, "window": None, **options})
    choice.check_supported(method, spec)
    return conv_p.bind(lhs, rhs, spec=spec, method=method, sharding=sharding)


def _match_varying(*operands: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the operands, each marked as varying over all manual mesh axes over which any of them varies."""
    varying = [varying_axes(operand) for operand in operands]
    union: frozenset[str] = frozenset().union(*varying)
    return tuple(
        lax.pcast(operand, tuple(sorted(union - axes)), to="varying") if union - axes else operand
        for operand, axes in zip(operands, varying, strict=True)
    )


def batch_sharding(y: jax.Array) -> Any:
    """Returns a sharding of the batch axis alone, as y's, on an Explicit mesh where XLA computes; None elsewhere."""
    sharding = jax.typeof(y).sharding
    if sharding.mesh.empty or computes_on(sharding.mesh):
        return None
    spec = jax.sharding.PartitionSpec(sharding.spec[0], *(None,) * (y.ndim - 1))
    return jax.sharding.NamedSharding(sharding.mesh, spec)


def _aval_sharding(aval: Any) -> Any:
    """Returns the sharding of a value on an Explicit mesh; None elsewhere."""
    sharding = getattr(aval, "sharding", None)
    return None if sharding is None or sharding.mesh.empty else sharding


# The operands of each role, and of the role that computes each of them from the cotangent of the result.
_OPERANDS: dict[str, tuple[Role, Role]] = {
    "output": ("input", "kernel"),
    "input": ("output", "kernel"),
    "kernel": ("input", "output"),
}


def _conv_transpose_rule(
    position: int, cotangent: Any, lhs: Any, rhs: Any, *, spec: ConvSpec, sharding: Any, **params: Any
) -> jax.Array:
    """Computes the cotangent of one operand: a convolution with the role of this operand."""
    del sharding
    arrays = dict(zip(_OPERANDS[spec.role], (lhs, rhs), strict=True))
    role = _OPERANDS[spec.role][position]
    aval = arrays[role].aval
    arrays[spec.role] = cotangent
    first, second = (arrays[name] for name in _OPERANDS[role])
    dtypes = {"lhs_dtype": first.dtype, "rhs_dtype": second.dtype, "out_dtype": aval.dtype}
    transposed = dataclasses.replace(spec, role=role, **{name: np.dtype(dtype) for name, dtype in dtypes.items()})
    return conv_p.bind(first, second, spec=transposed, sharding=_aval_sharding(aval), **params)


ad.defbilinear(conv_p, partial(_conv_transpose_rule, 0), partial(_conv_transpose_rule, 1))

# A `vmap` over one operand alone is folded into an axis of that operand which the result keeps. By role and position of
# the operand: that axis of the operand and of the result, each with whether its features lie group by group (a kernel's
# input features do not).
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
    split = jnp.moveaxis(array, 0, axis).reshape(*shape[:axis], size, groups, shape[axis] // groups, *shape[axis + 1 :])
    return jnp.swapaxes(split, axis, axis + 1).reshape(*shape[:axis], size * shape[axis], *shape[axis + 1 :])


def _unfold(array: jax.Array, axis: int, groups: int, size: int) -> jax.Array:
    """Undoes `_fold`: (..., G * B * F, ...) -> (B, ..., G * F, ...)."""
    shape = array.shape
    axis %= len(shape)
    features = shape[axis] // size
    split = array.reshape(*shape[:axis], groups, size, features // groups, *shape[axis + 1 :])
    merged = jnp.swapaxes(split, axis, axis + 1).reshape(*shape[:axis], size, features, *shape[axis + 1 :])
    return jnp.moveaxis(merged, axis, 0)


def _conv_batching_rule(
    args: Sequence[Any], dims: Sequence[Any], *, spec: ConvSpec, sharding: Any, **params: Any
) -> tuple[jax.Array, int]:
    del sharding
    role, groups, stacked = spec.role, spec.feature_group_count, spec.stacked is not None
    operands = [arg if dim is None else jnp.moveaxis(arg, dim, 0) for arg, dim in zip(args, dims, strict=True)]

    def bind(operands: Sequence[Any], stacked: bool) -> jax.Array:
        return conv_p.bind(*operands, spec=_with_operands(spec, operands, stacked), sharding=None, **params)

    if any(arg.shape[dim] == 0 for arg, dim in zip(args, dims, strict=True) if dim is not None):
        lead = () if spec.stacked is None else (spec.stacked,)
        # An axis of size 0 that is folded into another cannot be told apart again.
        return jnp.zeros((0, *lead, *spec.result_shape), spec.out_dtype), 0
    if None in dims:
        position = dims.index(None) ^ 1
        size = operands[position].shape[0]
        (axis, grouped), (result_axis, result_grouped) = (
            (int(stacked) if axis == _BATCH else axis, groups if grouped else 1)
            for axis, grouped in _FOLDS[role, position]
        )
        operands[position] = _fold(operands[position], axis, grouped)
        return _unfold(bind(operands, stacked), result_axis, result_grouped, size), 0
    if not stacked:
        return bind(operands, stacked=True), 0
    size, stack = operands[0].shape[:2]
    merged = [operand.reshape(size * stack, *operand.shape[2:]) for operand in operands]
    result = bind(merged, stacked)
    return result.reshape(size, stack, *result.shape[1:]), 0


def _with_operands(spec: ConvSpec, operands: Sequence[Any], stacked: bool) -> ConvSpec:
    """Returns the spec of a convolution with the same options and operands of more images or channels."""
    return conv_spec(
        *operands,
        role=spec.role,
        stacked=stacked,
        strides=spec.strides,
        padding=spec.padding,
        input_dilation=spec.input_dilation,
        kernel_dilation=spec.kernel_dilation,
        feature_group_count=spec.feature_group_count,
        precision=spec.precision,
        preferred_element_type=spec.out_dtype,
        input_size=spec.input_shape[1:-1],
        window=spec.window,
    )


batching.primitive_batchers[conv_p] = _conv_batching_rule


# Pools. Every operand is (N, *spatial, C), and a `vmap` is folded into N.

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
    primitive = Primitive(f"jaxcnn_{name}")

    def split(*operands: Any, **params: Any) -> Split:
        options = {key: value for key, value in params.items() if key not in ("padding", "input_size", "sharding")}

        def run_part(*parts: jax.Array, spec: PoolSpec) -> jax.Array:
            sizes = {"input_size": spec.input_shape[1:-1], "sharding": None} if "input_size" in params else {}
            return run(*parts, **options, **sizes, padding=spec.padding, platform="cpu")

        spec = _pool_spec_of(operands[0], {**params, "sharding": None}, params.get("input_size"))
        fill = pool_identity(params["mode"], operands[0].dtype) if "mode" in params else 0
        dtype = _type_of_result(run, operands, params).dtype
        return pool_split(name, spec, fill, dtype, run_part, params.get("padding_wins", False))

    _register(primitive, run, split, static)
    batching.primitive_batchers[primitive] = partial(_pool_batching_rule, primitive)
    return primitive


def _pool_spec_of(operand: Any, params: dict[str, Any], input_size: tuple[int, ...] | None = None) -> PoolSpec:
    shape = operand.shape if input_size is None else (operand.shape[0], *input_size, operand.shape[-1])
    flags = {name: params[name] for name in ("xla_only", "sharding") if name in params}
    return PoolSpec(input_shape=tuple(shape), dtype=jnp.dtype(operand.dtype), **flags, **_window_params(params))


def _run_extremum(operand: jax.Array, *, mode: str, platform: str | None = None, **params: Any) -> jax.Array:
    spec = _pool_spec_of(operand, params)
    return choice.pool_method(spec, platform).extremum(operand, spec, mode)


def _run_winner(
    operand: jax.Array, *, mode: str, padding_wins: bool, platform: str | None = None, **params: Any
) -> jax.Array:
    spec = _pool_spec_of(operand, params)
    index, best = choice.pool_method(spec, platform).winner(operand, spec, mode)
    if not padding_wins:
        return index
    # Pixels that equal the padding come after it where their window starts on padding.
    outputs = (1, *spec.output_shape[1:-1], 1)
    for axis, (stride, (low, _)) in enumerate(zip(spec.strides, spec.padding, strict=True), start=1):
        if low > 0:
            starts_on_padding = lax.broadcasted_iota(jnp.int32, outputs, axis) * np.int32(stride) < np.int32(low)
            index = jnp.where(starts_on_padding & (best == pool_identity(mode, spec.dtype)), -1, index)
    return index


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


extremum_p = _pool_primitive("extremum", _run_extremum, (*_POOL_STATIC, "mode"))
winner_p = _pool_primitive("winner", _run_winner, (*_POOL_STATIC, "mode", "padding_wins"))
"""Parameters beside the window's: `mode`; `padding_wins`, True if a tap on padding wins before a pixel of the same
value, as in the gradient of lax's pools, and the index of such a window is -1."""
select_p = _pool_primitive("select", _run_select, _POOL_STATIC)
scatter_p = _pool_primitive("scatter", _run_scatter, (*_POOL_STATIC, "input_size", "sharding"))
window_sum_p = _pool_primitive("window_sum", _run_window_sum, _POOL_STATIC)
window_spread_p = _pool_primitive("window_spread", _run_window_spread, (*_POOL_STATIC, "input_size", "sharding"))


def _extremum_jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    # The index is piecewise constant: no derivative passes through it, so second derivatives are zero.
    index = winner_p.bind(lax.stop_gradient(x), padding_wins=True, **params)
    return extremum_p.bind(x, **params), select_p.bind(tangent, index, **_window_params(params))


ad.primitive_jvps[extremum_p] = _extremum_jvp


def _linear_in_first(primitive: Primitive, transpose: Callable[..., jax.Array]) -> None:
    """Defines the derivatives of a primitive that is linear in its first operand and constant in the others."""

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[jax.Array, jax.Array]:
        return primitive.bind(*primals, **params), primitive.bind(tangents[0], *primals[1:], **params)

    def transpose_rule(cotangent: Any, operand: Any, *operands: Any, **params: Any) -> list[Any]:
        if isinstance(cotangent, ad.Zero):
            return [ad.Zero(operand.aval), *(None for _ in operands)]
        return [transpose(cotangent, operand.aval, *operands, **params), *(None for _ in operands)]

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose_rule


def _window_params(params: dict[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in _POOL_STATIC}


def _to_input(primitive: Primitive) -> Callable[..., jax.Array]:
    """Returns the transpose of a primitive from inputs to outputs: `primitive`, which is told the input's size."""

    def transpose(cotangent: Any, aval: Any, *operands: Any, **params: Any) -> jax.Array:
        size = tuple(aval.shape[1:-1])
        return primitive.bind(cotangent, *operands, input_size=size, sharding=_aval_sharding(aval), **params)

    return transpose


def _to_output(primitive: Primitive) -> Callable[..., jax.Array]:
    """Returns the transpose of a primitive from outputs to inputs: `primitive`."""

    def transpose(cotangent: Any, aval: Any, *operands: Any, **params: Any) -> jax.Array:
        del aval
        return primitive.bind(cotangent, *operands, **_window_params(params))

    return transpose


_linear_in_first(select_p, _to_input(scatter_p))
_linear_in_first(scatter_p, _to_output(select_p))
_linear_in_first(window_sum_p, _to_input(window_spread_p))
_linear_in_first(window_spread_p, _to_output(window_sum_p))
