"""Which convolution an equation is: lax's, in any layout and as either derivative, or jaxcnn's; as one `ConvSpec`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import conv_general_dilated_p

from jaxcnn.geometry import Ints, Pair, dilated_size
from jaxcnn.lowering.common.forms import transposed_kernel
from jaxcnn.lowering.spec import ConvSpec, Role, conv_spec
from jaxcnn.primitives import conv_p


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution met in a jaxpr.

    Args:
      spec: the convolution, with the role that is computed.
      params: the static parameters of `conv_p`, without its method.
      method: the method that the user asked for, `"auto"` for every convolution of lax.
      axes: of the equation's two operands and its result, each in the order that the role has them.
      flipped: whether the second operand is the kernel of the role `"output"` while the role is `"input"`: its window
        is to be reversed and its features exchanged.
      swapped: whether the role takes the equation's operands in the other order, and its result, a kernel, is to be
        reversed.
      edges: (low, high, interior) padding of the equation's first operand that comes before, where the equation has
        a negative one.
    """

    spec: ConvSpec
    params: dict[str, Any]
    method: str
    axes: tuple[Ints, Ints, Ints]
    flipped: bool = False
    swapped: bool = False
    edges: tuple[tuple[int, int, int], ...] | None = None

    def bind(self, lhs: jax.Array, rhs: jax.Array, method: str) -> jax.Array:
        """Computes the equation's result from its operands by `conv_p`."""
        lhs, rhs = self.arranged(lhs, rhs)
        return self.restored(conv_p.bind(lhs, rhs, **self.params, method=method))

    def arranged(self, lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the equation's operands as `conv_p` takes them."""
        lhs_axes, rhs_axes, _ = self.axes
        if self.edges is not None:
            lhs = _padded(lhs, self.edges)
        if self.swapped:
            lhs, rhs = rhs, lhs
        lhs, rhs = _transposed(lhs, lhs_axes), _transposed(rhs, rhs_axes)
        return lhs, _exchanged(rhs, self.spec) if self.flipped else rhs

    def restored(self, result: jax.Array) -> jax.Array:
        """Returns the equation's result from that of `conv_p`."""
        if self.swapped:
            result = lax.rev(result, tuple(range(self.spec.rank)))
        return _transposed(result, tuple(map(int, np.argsort(self.axes[2]))))


def _padded(lhs: jax.Array, edges: Sequence[tuple[int, int, int]]) -> jax.Array:
    return lax.pad(lhs, jnp.zeros((), lhs.dtype), edges)


def _transposed(array: jax.Array, axes: Ints) -> jax.Array:
    return array if axes == tuple(range(array.ndim)) else array.transpose(axes)


def _exchanged(kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    return transposed_kernel(lax.rev(kernel, tuple(range(spec.rank))), spec.feature_group_count)


def convolution(equation: JaxprEqn) -> Convolution | None:
    """The convolution that an equation computes, if jaxcnn can compute it; None if it is none, or one for lax alone."""
    operands = avals(equation)
    if not (is_convolution(equation) and all(map(is_plain, operands))):
        return None
    found = described(equation)
    if found is None or min(map(min, found.spec.padding)) < 0:
        found = _cropped(equation)
    if found is None or operands[-1].weak_type:
        return None  # jaxcnn's results never have a weak type
    if any(jnp.issubdtype(aval.dtype, kind) for aval in operands for kind in (np.complexfloating, np.bool_)):
        return found if equation.primitive is conv_p else None
    return found


def _cropped(equation: JaxprEqn) -> Convolution | None:
    """The convolution of an equation of lax with negative padding: that of what is left when its operand is cropped.

    XLA:CPU reads out of bounds for some negative padding (openxla/xla#48713).
    """
    params, operands = equation.params, avals(equation)[:2]
    padding, dilation = list(_pairs(params["padding"])), list(params["lhs_dilation"])
    edges = [(0, 0, 0)] * operands[0].ndim
    for axis, position in enumerate(params["dimension_numbers"].lhs_spec[2:]):
        if min(padding[axis]) < 0:
            edges[position] = (*padding[axis], dilation[axis] - 1)
            padding[axis], dilation[axis] = (0, 0), 1
    if not any(map(any, edges)):
        return None

    def cropped(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        options = {**params, "padding": tuple(padding), "lhs_dilation": tuple(dilation)}
        return conv_general_dilated_p.bind(_padded(lhs, edges), rhs, **options)

    *_, left = jax.make_jaxpr(cropped)(*(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in operands)).eqns
    found = described(left)
    return None if found is None else dataclasses.replace(found, edges=tuple(edges))


def described(equation: JaxprEqn) -> Convolution | None:
    """The convolution that an equation computes; None if it is none, or its sizes are not known or zero."""
    if not is_convolution(equation):
        return None
    if not all(isinstance(size, int) and size > 0 for aval in avals(equation) for size in aval.shape):
        return None
    return _own(equation) if equation.primitive is conv_p else _of_lax(equation)


def is_convolution(equation: JaxprEqn) -> bool:
    """Whether an equation is a convolution, lax's or jaxcnn's."""
    return equation.primitive is conv_p or equation.primitive is conv_general_dilated_p


def counted(equation: JaxprEqn) -> Convolution | None:
    """As `described`, and to be counted alone the kernel's gradients that no role computes.

    In groups, with a dilated input or a cropped one, they are convolutions in groups of the batch.
    """
    found = described(equation)
    groups = equation.params.get("batch_group_count", 1)
    if found is not None or groups == 1:
        return found
    if not all(isinstance(size, int) and size > 0 for aval in avals(equation) for size in aval.shape):
        return None
    found = _kernel_of_transposed(equation) if max(equation.params["lhs_dilation"]) > 1 else None
    return _batch_grouped(equation, groups) if found is None else found


def avals(equation: JaxprEqn) -> list[Any]:
    """The abstract values of an equation's operands and results."""
    return [variable.aval for variable in (*equation.invars, *equation.outvars)]


def is_plain(aval: Any) -> bool:
    """Whether an abstract value is an array of known, positive sizes, with no explicit sharding."""
    if not all(isinstance(size, int) and size > 0 for size in aval.shape):
        return False
    mesh = aval.sharding.mesh
    return mesh.empty or jax.sharding.AxisType.Explicit not in mesh.axis_types


def _own(equation: JaxprEqn) -> Convolution:
    params = dict(equation.params)
    method = params.pop("method")
    lhs, rhs, out = avals(equation)
    spec = conv_spec(lhs, rhs, **{name: value for name, value in params.items() if name != "sharding"})
    axes = tuple(range(lhs.ndim)), tuple(range(rhs.ndim)), tuple(range(out.ndim))
    found = None
    if spec.role == "output" and not spec.stacked and max(spec.input_dilation) > 1:
        found = _input(equation, axes, params)
    return Convolution(spec, params, method, axes) if found is None else dataclasses.replace(found, method=method)


def _of_lax(equation: JaxprEqn) -> Convolution | None:
    params = equation.params
    _, rhs, out = avals(equation)
    numbers = params["dimension_numbers"]
    window = _sizes(rhs, numbers.rhs_spec[2:])
    outputs = _sizes(out, numbers.out_spec[2:])
    single = params["feature_group_count"] == 1
    if params["batch_group_count"] > 1:
        return _kernel(equation) if single else None
    # The window of a kernel's gradient is the image of the cotangent, and its results are the kernel's taps. A large
    # window over a small image looks alike; but in a gradient channels are the batch, and batches come first.
    of_kernel = single and math.prod(window) > math.prod(outputs) and numbers.lhs_spec[0] != 0
    dilated = max(params["lhs_dilation"]) > 1
    found = None
    if of_kernel:
        found = _kernel_of_transposed(equation) if dilated else _kernel(equation)
    if found is None and dilated:
        found = _input(equation, *_forward(equation))
    return _output(equation) if found is None else found


def _batch_grouped(equation: JaxprEqn, groups: int) -> Convolution:
    """A convolution in groups of the batch as one in as many groups of features: each group's images side by side."""
    axes, options = _forward(equation)
    lhs, rhs, out = avals(equation)
    batch, *sizes, features = _sizes(lhs, axes[0])
    spec = conv_spec(
        jax.ShapeDtypeStruct((batch // groups, *sizes, features * groups), lhs.dtype),
        jax.ShapeDtypeStruct(_sizes(rhs, axes[1]), rhs.dtype),
        role="output",
        stacked=False,
        precision=equation.params["precision"],
        preferred_element_type=np.dtype(out.dtype),
        input_size=None,
        window=None,
        **{**options, "feature_group_count": groups},
    )
    return Convolution(spec, {}, "auto", axes)


def _sizes(aval: Any, axes: Sequence[int]) -> Ints:
    return tuple(aval.shape[axis] for axis in axes)


def _found(
    equation: JaxprEqn,
    role: Role,
    axes: tuple[Ints, Ints, Ints],
    flipped: bool = False,
    swapped: bool = False,
    **given: Any,
) -> Convolution:
    first, second, result = avals(equation)
    every = (second, first, result) if swapped else (first, second, result)
    lhs, rhs, out = (
        jax.ShapeDtypeStruct(_sizes(aval, order), aval.dtype) for aval, order in zip(every, axes, strict=True)
    )
    params = {
        "role": role,
        "stacked": False,
        "input_dilation": (1,) * len(given["strides"]),
        "input_size": None,
        "window": None,
        "precision": equation.params["precision"],
        "preferred_element_type": np.dtype(out.dtype),
        **given,
    }
    if flipped:
        *window, kernel_in, features = rhs.shape
        groups = params["feature_group_count"]
        rhs = jax.ShapeDtypeStruct((*window, features // groups, kernel_in * groups), rhs.dtype)
    return Convolution(conv_spec(lhs, rhs, **params), {**params, "sharding": None}, "auto", axes, flipped, swapped)


def _output(equation: JaxprEqn) -> Convolution:
    """The equation as (x, kernel) -> y."""
    axes, options = _forward(equation)
    return _found(equation, "output", axes, **options)


def _forward(equation: JaxprEqn) -> tuple[tuple[Ints, Ints, Ints], dict[str, Any]]:
    """The axes of lax's operands and result as the role `"output"` has them, and its options."""
    params = equation.params
    (n, c, *x_axes), (o, i, *taps), (out_n, out_c, *y_axes) = params["dimension_numbers"]
    options = {
        "strides": tuple(params["window_strides"]),
        "padding": _pairs(params["padding"]),
        "input_dilation": tuple(params["lhs_dilation"]),
        "kernel_dilation": tuple(params["rhs_dilation"]),
        "feature_group_count": params["feature_group_count"],
    }
    return ((n, *x_axes, c), (*taps, i, o), (out_n, *y_axes, out_c)), options


def _pairs(padding: Any) -> tuple[Pair, ...]:
    return tuple((int(low), int(high)) for low, high in padding)


def _input(equation: JaxprEqn, axes: tuple[Ints, Ints, Ints], options: Mapping[str, Any]) -> Convolution | None:
    """The equation, whose first operand is dilated, as (y, kernel) -> x with that dilation for strides."""
    if max(options["strides"]) > 1:
        return None
    (_, *y_axes, _), (*taps, _, _), (_, *x_axes, _) = axes
    lhs, rhs, out = avals(equation)
    inputs, window = _sizes(out, x_axes), _sizes(rhs, taps)
    strides, dilation = options["input_dilation"], options["kernel_dilation"]
    lows = [(taps - 1) * step - low for taps, step, (low, _) in zip(window, dilation, options["padding"], strict=True)]
    padding = _forward_padding(inputs, _sizes(lhs, y_axes), window, strides, dilation, lows)
    if padding is None:
        return None
    return _found(
        equation,
        "input",
        axes,
        flipped=True,
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=options["feature_group_count"],
        input_size=inputs,
    )


def _kernel(equation: JaxprEqn) -> Convolution | None:
    """The equation as (x, y) -> kernel: batch and features of both operands are exchanged, strides and dilation too."""
    params = equation.params
    if max(params["lhs_dilation"]) > 1:
        return None
    (c, n, *x_axes), (o, y_n, *y_axes), (i, out_o, *taps) = params["dimension_numbers"]
    lhs, rhs, out = avals(equation)
    strides, dilation = tuple(params["rhs_dilation"]), tuple(params["window_strides"])
    window = _sizes(out, taps)
    lows = [int(low) for low, _ in params["padding"]]
    padding = _forward_padding(_sizes(lhs, x_axes), _sizes(rhs, y_axes), window, strides, dilation, lows)
    if padding is None:
        return None
    return _found(
        equation,
        "kernel",
        ((n, *x_axes, c), (y_n, *y_axes, o), (*taps, i, out_o)),
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=params["batch_group_count"],
        window=window,
    )


def _kernel_of_transposed(equation: JaxprEqn) -> Convolution | None:
    """The equation, whose first operand is dilated, as the kernel's gradient of a transposed convolution.

    The pixels of its window lie under those of the dilated operand as the inputs of a convolution, strided by that
    dilation, lie under its outputs. It is the gradient of this convolution's kernel, whose taps run the other way.
    """
    params = equation.params
    if max(params["rhs_dilation"]) > 1:
        return None
    (o, n, *y_axes), (c, x_n, *x_axes), (out_o, i, *taps) = params["dimension_numbers"]
    lhs, rhs, out = avals(equation)
    strides, dilation = tuple(params["lhs_dilation"]), tuple(params["window_strides"])
    window = _sizes(out, taps)
    lows = [
        (taps - 1) * step - int(low) for taps, step, (low, _) in zip(window, dilation, params["padding"], strict=True)
    ]
    padding = _forward_padding(_sizes(rhs, x_axes), _sizes(lhs, y_axes), window, strides, dilation, lows)
    if padding is None:
        return None
    return _found(
        equation,
        "kernel",
        ((x_n, *x_axes, c), (n, *y_axes, o), (*taps, i, out_o)),
        swapped=True,
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=params["batch_group_count"],
        window=window,
    )


def _forward_padding(
    inputs: Ints, outputs: Ints, window: Ints, strides: Ints, dilation: Ints, lows: Sequence[int]
) -> tuple[Pair, ...] | None:
    """The padding of the convolution from `inputs` to exactly `outputs` pixels whose derivative an equation is.

    None if there is none without negative padding.
    """
    pairs = []
    for size, output, taps, stride, step, low in zip(inputs, outputs, window, strides, dilation, lows, strict=True):
        extent = dilated_size(taps, step)
        high = max((output - 1) * stride + extent - size - low, 0)
        if low < 0 or (size + low + high - extent) // stride + 1 != output:
            return None
        pairs.append((low, high))
    return tuple(pairs)
