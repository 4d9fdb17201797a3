"""Convolutions in jaxprs as one `ConvSpec`: lax's in any layout and as either derivative, and jaxcnn's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import conv_general_dilated_p

from jaxcnn.geometry import Ints, Pair, dilated_size
from jaxcnn.lowering.spec import ConvSpec, Role, conv_spec
from jaxcnn.primitives import conv_p
from jaxcnn.transform.jaxpr.equations import avals, explicit_sharding, has_known_sizes, is_computable


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution that an equation of a jaxpr computes.

    Args:
      spec: convolution, with the role that is computed.
      method: method that the user asked for, `"auto"` for every convolution of lax.
      axes: axes of the equation's two operands and its result, each in the order that the role has them.
      flipped: flag, True for a second operand that is the kernel of the role `"output"` while the role is `"input"`:
        its window must be reversed and its features exchanged.
      swapped: flag, True for a role that takes the equation's operands in the other order, and whose result, a kernel,
        must be reversed.
      edges: (low, high, interior) padding that is applied to the equation's first operand beforehand, where the
        equation has negative padding; else None.
      sharding: sharding of the result on an Explicit mesh, or None.
    """

    spec: ConvSpec
    method: str
    axes: tuple[Ints, Ints, Ints]
    flipped: bool = False
    swapped: bool = False
    edges: tuple[tuple[int, int, int], ...] | None = None
    sharding: Any = None

    def bind(self, lhs: jax.Array, rhs: jax.Array, method: str) -> jax.Array:
        """Computes the equation's result from its operands by `conv_p`."""
        lhs, rhs = self.arrange(lhs, rhs)
        return self.restore(conv_p.bind(lhs, rhs, **self.conv_params(method)))

    def arrange(self, lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the equation's operands as `conv_p` takes them."""
        lhs_axes, rhs_axes, _ = self.axes
        if self.edges is not None:
            lhs = _pad(lhs, self.edges)
        if self.swapped:
            lhs, rhs = rhs, lhs
        lhs = _transpose(lhs, lhs_axes)
        if not self.flipped:
            return lhs, _transpose(rhs, rhs_axes)
        *taps, kernel_in, features = rhs_axes
        # JAX's gradients reverse the kernel too. XLA drops the two reversals where nothing but reshapes lies between.
        kernel = lax.rev(_transpose(rhs, (*taps, features, kernel_in)), tuple(range(self.spec.rank)))
        return lhs, _exchange_features(kernel, self.spec)

    def conv_params(self, method: str) -> dict[str, Any]:
        """Returns the parameters of `conv_p`."""
        return {"spec": self.spec, "method": method, "sharding": self.sharding}

    def restore(self, result: jax.Array) -> jax.Array:
        """Returns the equation's result from that of `conv_p`."""
        if self.swapped:
            result = lax.rev(result, tuple(range(self.spec.rank)))
        return _transpose(result, tuple(map(int, np.argsort(self.axes[2]))))


def _pad(lhs: jax.Array, edges: Sequence[tuple[int, int, int]]) -> jax.Array:
    return lax.pad(lhs, jnp.zeros((), lhs.dtype), edges)


def _transpose(array: jax.Array, axes: Ints) -> jax.Array:
    return array if axes == tuple(range(array.ndim)) else array.transpose(axes)


def _exchange_features(kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Returns the kernel (*window, I, G * O) for a kernel (*window, G * I, O) of the transposed convolution."""
    *window, features, kernel_out = kernel.shape
    groups = spec.feature_group_count
    if groups == 1:
        return kernel
    split = kernel.reshape(*window, groups, features // groups, kernel_out)
    return jnp.moveaxis(split, -3, -2).reshape(spec.kernel_shape)


Purpose = Literal["count", "describe", "compute"]
"""Reason for the description of an equation. Each reason accepts fewer convolutions than the one before: `"count"`
every convolution of known sizes, `"describe"` those that are one role of `conv_p`, `"compute"` those that jaxcnn
computes in place of XLA, whose batch alone may be of symbolic size.
"""


def as_convolution(equation: JaxprEqn, purpose: Purpose) -> Convolution | None:
    """Returns the convolution that an equation computes; None if there is none, or one that the purpose excludes."""
    if not is_convolution(equation):
        return None
    if purpose != "count" and avals(equation)[0].ndim == 2:
        # Without spatial axes a convolution of lax is a product of matrices.
        return None
    if purpose == "compute":
        return _convolution_to_compute(equation)
    if not all(map(has_known_sizes, avals(equation))):
        return None
    conv = _in_some_role(equation)
    if conv is None and purpose == "count":
        has_dilated_input = max(equation.params["lhs_dilation"], default=1) > 1
        conv = _as_kernel_gradient_of_transposed(equation) if has_dilated_input else None
        # JAX computes the gradient of a grouped kernel as a convolution in groups of the batch. With a dilated or a
        # cropped input that gradient has no role of `conv_p`.
        conv = conv or _as_feature_grouped(equation)
    return conv


def is_convolution(equation: JaxprEqn) -> bool:
    """Returns whether an equation is a convolution of lax or of jaxcnn."""
    return equation.primitive is conv_p or equation.primitive is conv_general_dilated_p


def _convolution_to_compute(equation: JaxprEqn) -> Convolution | None:
    """Returns the convolution that jaxcnn computes in place of XLA; None if XLA keeps the equation."""
    operands = avals(equation)
    # jaxcnn's results never have a weak type.
    if not all(map(is_computable, operands)) or operands[-1].weak_type or not _has_known_pixels(equation):
        return None
    conv = _in_some_role(equation)
    if conv is not None and conv.spec.role == "output" and _has_exchanged_kernel(equation):
        conv = _as_input_gradient(equation) or conv
    if conv is None or min(map(min, conv.spec.padding)) < 0:
        conv = _as_convolution_of_cropped(equation)
    if any(jnp.issubdtype(aval.dtype, kind) for aval in operands for kind in (np.complexfloating, np.bool_)):
        conv = conv if equation.primitive is conv_p else None
    if conv is None or not conv.spec.has_known_layer:
        return None
    return dataclasses.replace(conv, sharding=explicit_sharding(operands[-1], conv.axes[2]))


def _in_some_role(equation: JaxprEqn) -> Convolution | None:
    """Returns the convolution of an equation that is one role of `conv_p`; None if the equation is none."""
    return _from_jaxcnn(equation) if equation.primitive is conv_p else _from_lax(equation)


def _has_known_pixels(equation: JaxprEqn) -> bool:
    """Returns whether all sizes of a convolution are known along the axes over which the window slides."""
    if equation.primitive is conv_p:
        return bool(equation.params["spec"].has_known_layer)
    orders = zip(avals(equation), equation.params["dimension_numbers"], strict=True)
    return all(isinstance(size, int) for aval, order in orders for size in _sizes(aval, order[2:]))


def _as_convolution_of_cropped(equation: JaxprEqn) -> Convolution | None:
    """Returns a convolution of lax with negative padding as one of a cropped operand; None if no padding is negative.

    XLA:CPU reads out of bounds for some negative padding (openxla/xla#48713).
    """
    params, operands = equation.params, avals(equation)[:2]
    padding, dilation = list(_int_pairs(params["padding"])), list(params["lhs_dilation"])
    edges = [(0, 0, 0)] * operands[0].ndim
    for axis, position in enumerate(params["dimension_numbers"].lhs_spec[2:]):
        if min(padding[axis]) < 0:
            edges[position] = (*padding[axis], dilation[axis] - 1)
            padding[axis], dilation[axis] = (0, 0), 1
    if not any(map(any, edges)):
        return None

    def convolve_cropped(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        options = {**params, "padding": tuple(padding), "lhs_dilation": tuple(dilation)}
        return conv_general_dilated_p.bind(_pad(lhs, edges), rhs, **options)

    shapes = (jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in operands)
    *_, equation = jax.make_jaxpr(convolve_cropped)(*shapes).eqns
    conv = _in_some_role(equation)
    return None if conv is None else dataclasses.replace(conv, edges=tuple(edges))


def _from_jaxcnn(equation: JaxprEqn) -> Convolution:
    """Returns the convolution of an equation of `conv_p`; one over a dilated image as an input's gradient."""
    spec, method = equation.params["spec"], equation.params["method"]
    has_dilated_input = spec.role == "output" and not spec.stacked and max(spec.input_dilation) > 1
    transposed = _as_input_gradient(equation) if has_dilated_input else None
    if transposed is None:
        return Convolution(spec, method, forward_axes(equation))
    return dataclasses.replace(transposed, method=method)


def _from_lax(equation: JaxprEqn) -> Convolution | None:
    """Returns the convolution of an equation of lax, in the role of a derivative where it computes one."""
    params = equation.params
    _, rhs, out = avals(equation)
    numbers = params["dimension_numbers"]
    window = _sizes(rhs, numbers.rhs_spec[2:])
    outputs = _sizes(out, numbers.out_spec[2:])
    is_ungrouped = params["feature_group_count"] == 1
    if params["batch_group_count"] > 1:
        return _as_kernel_gradient(equation) if is_ungrouped else None
    # In a kernel's gradient the window is the cotangent's image, and the outputs are the kernel's taps. A forward
    # convolution with a large window has such sizes too. But a gradient takes the channels for the batch axis, so this
    # axis is not the first one.
    is_kernel_gradient = is_ungrouped and math.prod(window) > math.prod(outputs) and numbers.lhs_spec[0] != 0
    has_dilated_input = max(params["lhs_dilation"], default=1) > 1
    conv = None
    if is_kernel_gradient:
        conv = _as_kernel_gradient_of_transposed(equation) if has_dilated_input else _as_kernel_gradient(equation)
    if conv is None and has_dilated_input:
        conv = _as_input_gradient(equation)
    groups = params["feature_group_count"]
    return conv or _in_role(
        equation, "output", forward_axes(equation), **forward_options(equation), feature_group_count=groups
    )


def _has_exchanged_kernel(equation: JaxprEqn) -> bool:
    """Returns whether the kernel lies in memory as (*window, O, I).

    JAX's gradient by the input has such a kernel, reversed: as the role `"input"` it needs no copy of the kernel.
    """
    *taps, kernel_in, features = forward_axes(equation)[1]
    return (*taps, features, kernel_in) == tuple(range(len(taps) + 2))


def _as_feature_grouped(equation: JaxprEqn) -> Convolution:
    """Returns a convolution in groups of the batch as one in groups of features: the groups become channels."""
    axes, groups = forward_axes(equation), equation.params["batch_group_count"]
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
        feature_group_count=groups,
        **forward_options(equation),
    )
    return Convolution(spec, "auto", axes)


def _sizes(aval: Any, axes: Sequence[int]) -> Ints:
    return tuple(aval.shape[axis] for axis in axes)


def _in_role(
    equation: JaxprEqn,
    role: Role,
    axes: tuple[Ints, Ints, Ints],
    flipped: bool = False,
    swapped: bool = False,
    **options: Any,
) -> Convolution:
    """Returns an equation as the convolution of a role; the options are those of `conv_spec`."""
    first, second, result = avals(equation)
    arrays = (second, first, result) if swapped else (first, second, result)
    lhs, rhs, out = (
        jax.ShapeDtypeStruct(_sizes(aval, order), aval.dtype) for aval, order in zip(arrays, axes, strict=True)
    )
    params = {
        "role": role,
        "stacked": False,
        "input_dilation": (1,) * len(options["strides"]),
        "input_size": None,
        "window": None,
        "precision": option(equation, "precision"),
        "preferred_element_type": np.dtype(out.dtype),
        **options,
    }
    if flipped:
        *window, kernel_in, features = rhs.shape
        groups = params["feature_group_count"]
        rhs = jax.ShapeDtypeStruct((*window, features // groups, kernel_in * groups), rhs.dtype)
    return Convolution(conv_spec(lhs, rhs, **params), "auto", axes, flipped, swapped)


def option(equation: JaxprEqn, name: str) -> Any:
    """Returns an option of a convolution whose name is the same in lax and in jaxcnn."""
    return getattr(equation.params["spec"], name) if equation.primitive is conv_p else equation.params[name]


def role_of(equation: JaxprEqn) -> Role:
    """Returns the role in the equation's parameters; every convolution of lax has the role `"output"`."""
    return equation.params["spec"].role if equation.primitive is conv_p else "output"


def is_stacked(equation: JaxprEqn) -> bool:
    """Returns whether the operands and the result of a convolution have a leading axis that stacks convolutions."""
    return equation.primitive is conv_p and equation.params["spec"].stacked is not None


def forward_axes(equation: JaxprEqn) -> tuple[Ints, Ints, Ints]:
    """Returns the axes of image, kernel and result in the order (N, *spatial, C), (*window, I, O), (N, *spatial, C)."""
    if equation.primitive is conv_p:
        lhs, rhs, out = (tuple(range(aval.ndim)) for aval in avals(equation))
        return lhs, rhs, out
    (n, c, *x_axes), (o, i, *taps), (out_n, out_c, *y_axes) = equation.params["dimension_numbers"]
    return (n, *x_axes, c), (*taps, i, o), (out_n, *y_axes, out_c)


def forward_options(equation: JaxprEqn) -> dict[str, Any]:
    """Returns a convolution's options as `jaxcnn.conv` takes them, without the groups."""
    params = equation.params
    if equation.primitive is conv_p:
        names = ("strides", "padding", "input_dilation", "kernel_dilation")
        return {name: getattr(params["spec"], name) for name in names}
    return {
        "strides": tuple(params["window_strides"]),
        "padding": _int_pairs(params["padding"]),
        "input_dilation": tuple(params["lhs_dilation"]),
        "kernel_dilation": tuple(params["rhs_dilation"]),
    }


def _int_pairs(padding: Any) -> tuple[Pair, ...]:
    return tuple((int(low), int(high)) for low, high in padding)


def _as_input_gradient(equation: JaxprEqn) -> Convolution | None:
    """Returns an equation as the gradient (y, kernel) -> x, with the dilation of the first operand as strides.

    None if no forward convolution has this gradient.
    """
    axes, options = forward_axes(equation), forward_options(equation)
    if max(options["strides"]) > 1:
        return None
    (_, *y_axes, _), (*taps, _, _), (_, *x_axes, _) = axes
    lhs, rhs, out = avals(equation)
    input_sizes, window = _sizes(out, x_axes), _sizes(rhs, taps)
    strides, dilation = options["input_dilation"], options["kernel_dilation"]
    lows = [(taps - 1) * step - low for taps, step, (low, _) in zip(window, dilation, options["padding"], strict=True)]
    padding = _forward_padding(input_sizes, _sizes(lhs, y_axes), window, strides, dilation, lows)
    if padding is None:
        return None
    return _in_role(
        equation,
        "input",
        axes,
        flipped=True,
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=option(equation, "feature_group_count"),
        input_size=input_sizes,
    )


def _as_kernel_gradient(equation: JaxprEqn) -> Convolution | None:
    """Returns an equation as the gradient (x, y) -> kernel.

    Batch and features exchange their places, as do strides and dilation. None if no forward convolution has this
    gradient.
    """
    params = equation.params
    if max(params["lhs_dilation"], default=1) > 1:
        return None
    (c, n, *x_axes), (o, y_n, *y_axes), (i, out_o, *taps) = params["dimension_numbers"]
    lhs, rhs, out = avals(equation)
    strides, dilation = tuple(params["rhs_dilation"]), tuple(params["window_strides"])
    window = _sizes(out, taps)
    lows = [int(low) for low, _ in params["padding"]]
    padding = _forward_padding(_sizes(lhs, x_axes), _sizes(rhs, y_axes), window, strides, dilation, lows)
    if padding is None:
        return None
    return _in_role(
        equation,
        "kernel",
        ((n, *x_axes, c), (y_n, *y_axes, o), (*taps, i, out_o)),
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=params["batch_group_count"],
        window=window,
    )


def _as_kernel_gradient_of_transposed(equation: JaxprEqn) -> Convolution | None:
    """Returns an equation with a dilated first operand as the kernel's gradient of a transposed convolution.

    The second operand takes the place of x and the first that of y: the dilation of the first is the stride of the
    forward convolution from x to y. The equation computes the gradient of this convolution's kernel with its taps
    reversed. None if no forward convolution has this gradient.
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
    return _in_role(
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
    """Returns the padding of the forward convolution that takes `inputs` pixels to exactly `outputs` pixels.

    None if that needs negative padding.

    Args:
      inputs, outputs: sizes of x and y along the spatial axes.
      window, strides, dilation: options of the forward convolution.
      lows: low padding of the forward convolution.
    """
    pairs = []
    for size, output, taps, stride, step, low in zip(inputs, outputs, window, strides, dilation, lows, strict=True):
        extent = dilated_size(taps, step)
        high = max((output - 1) * stride + extent - size - low, 0)
        if low < 0 or (size + low + high - extent) // stride + 1 != output:
            return None
        pairs.append((low, high))
    return tuple(pairs)
