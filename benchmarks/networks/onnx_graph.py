"""Graphs of ONNX as functions of JAX: each node is what a user would write in `jax.lax` and `jax.numpy`.

Arrays that depend on shapes alone stay arrays of NumPy, so that shapes are known when the function is traced.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LEAST_WEIGHTS = 8
"""Number of values from which on a constant of floating numbers is a parameter."""

_DIMENSIONS = {1: ("NCH", "OIH", "NCH"), 2: ("NCHW", "OIHW", "NCHW")}

Graph = Callable[..., tuple[Any, ...]]
"""Function of the parameters and the inputs to the outputs."""


def read_graph(path: Path, outputs: Sequence[str] | None = None) -> tuple[Graph, dict[str, np.ndarray]]:
    """Returns a graph as a function of its parameters and inputs, and the parameters.

    Args:
      path: path of the file.
      outputs: names of the outputs; by default all.

    Raises:
      NotImplementedError: the graph has a kind of node that is not here.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    attributes = [
        {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        for node in graph.node
    ]
    unknown = {node.op_type for node in graph.node} - _OPERATIONS.keys() - {"Constant"}
    if unknown:
        raise NotImplementedError(f"{path.name} has nodes that are not read: {', '.join(sorted(unknown))}")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node, options in zip(graph.node, attributes, strict=True):
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(options["value"])
    params = {
        name: array for name, array in constants.items() if array.dtype == np.float32 and array.size >= _LEAST_WEIGHTS
    }
    inputs = [value.name for value in graph.input if value.name not in constants]
    names = list(outputs or [value.name for value in graph.output])
    nodes = [
        (node.op_type, list(node.input), list(node.output), options)
        for node, options in zip(graph.node, attributes, strict=True)
        if node.op_type != "Constant"
    ]

    def function(params: dict[str, Any], *arrays: Any) -> tuple[Any, ...]:
        values = {"": None, **constants, **params, **dict(zip(inputs, arrays, strict=True))}
        for operation, operands, results, options in nodes:
            result = _OPERATIONS[operation](*(values[name] for name in operands), **options)
            values.update(zip(results, result if isinstance(result, tuple) else (result,), strict=False))
        return tuple(values[name] for name in names)

    return function, params


def _module(*arrays: Any) -> Any:
    """Returns NumPy for arrays of NumPy alone, else `jax.numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def _elementwise(name: str) -> Callable[..., Any]:
    def operation(*arrays: Any) -> Any:
        module = _module(*arrays)
        if module is jnp:
            arrays = tuple(jnp.broadcast_arrays(*arrays)) if len(arrays) > 1 else arrays
        return getattr(module, name)(*arrays)

    return operation


def _divide(a: Any, b: Any) -> Any:
    is_integral = np.issubdtype(np.result_type(a.dtype), np.integer)
    return _elementwise("floor_divide" if is_integral else "divide")(a, b)


def _pads(pads: Sequence[int]) -> list[tuple[int, int]]:
    """Returns ONNX' pads, all low ones and then all high ones, as a pair for each axis."""
    return [(int(low), int(high)) for low, high in zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True)]


def _padding(
    auto_pad: bytes, pads: Sequence[int], sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    if auto_pad in (b"NOTSET", b"VALID"):
        return _pads(pads)
    totals = [
        max((math.ceil(size / stride) - 1) * stride + window - size, 0)
        for size, window, stride in zip(sizes, windows, strides, strict=True)
    ]
    return [
        (total // 2, total - total // 2) if auto_pad == b"SAME_UPPER" else (total - total // 2, total // 2)
        for total in totals
    ]


@dataclasses.dataclass(frozen=True)
class _ConvAttributes:
    """Holds the attributes of a node `Conv` or `ConvTranspose`, as ONNX names them.

    Args:
      kernel_shape: taps on each spatial axis, which the kernel has too.
      strides: step on each spatial axis, 1 if left out.
      dilations: distance between neighbouring taps, 1 if left out.
      pads: all low pads and then all high ones, 0 if left out.
      output_padding: pixels that a `ConvTranspose` adds at the end of each axis, 0 if left out.
      group: number of groups.
      auto_pad: name of an automatic padding.
    """

    kernel_shape: Sequence[int] = ()
    strides: Sequence[int] = ()
    dilations: Sequence[int] = ()
    pads: Sequence[int] = ()
    output_padding: Sequence[int] = ()
    group: int = 1
    auto_pad: bytes = b"NOTSET"

    def for_axes(self, axes: int) -> _ConvAttributes:
        """Returns the attributes with a value for each of some axes in place of those that were left out."""
        return dataclasses.replace(
            self,
            strides=tuple(self.strides) or (1,) * axes,
            dilations=tuple(self.dilations) or (1,) * axes,
            pads=self.pads or (0,) * 2 * axes,
            output_padding=tuple(self.output_padding) or (0,) * axes,
        )


def _conv(x: Any, kernel: Any, bias: Any = None, **attributes: Any) -> Any:
    axes = x.ndim - 2
    node = _ConvAttributes(**attributes).for_axes(axes)
    windows = [(size - 1) * dilation + 1 for size, dilation in zip(kernel.shape[2:], node.dilations, strict=True)]
    padding = _padding(node.auto_pad, node.pads, x.shape[2:], windows, node.strides)
    y = lax.conv_general_dilated(
        x, kernel, node.strides, padding, None, node.dilations, _DIMENSIONS[axes], feature_group_count=node.group
    )
    return _with_bias(y, bias)


def _conv_transpose(x: Any, kernel: Any, bias: Any = None, **attributes: Any) -> Any:
    axes = x.ndim - 2
    node = _ConvAttributes(**attributes).for_axes(axes)
    if node.group != 1 or node.auto_pad != b"NOTSET" or any(dilation != 1 for dilation in node.dilations):
        raise NotImplementedError("ConvTranspose with groups, dilations or automatic padding")
    ends = zip(kernel.shape[2:], _pads(node.pads), node.output_padding, strict=True)
    padding = [(size - 1 - low, size - 1 - high + more) for size, (low, high), more in ends]
    y = lax.conv_transpose(x, kernel, node.strides, padding, dimension_numbers=_DIMENSIONS[axes], transpose_kernel=True)
    return _with_bias(y, bias)


def _with_bias(y: Any, bias: Any) -> Any:
    return y if bias is None else y + jnp.reshape(bias, (1, -1, *(1,) * (y.ndim - 2)))


def _pool(
    x: Any,
    initial: Any,
    function: Any,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    auto_pad: bytes = b"NOTSET",
    ceil_mode: int = 0,
) -> Any:
    axes = x.ndim - 2
    strides = tuple(strides) or (1,) * axes
    padding = _padding(auto_pad, pads or (0,) * 2 * axes, x.shape[2:], kernel_shape, strides)
    if ceil_mode:
        sizes = [size + low + high for size, (low, high) in zip(x.shape[2:], padding, strict=True)]
        more = [-(size - window) % stride for size, window, stride in zip(sizes, kernel_shape, strides, strict=True)]
        padding = [(low, high + extra) for (low, high), extra in zip(padding, more, strict=True)]
    edges = ((0, 0), (0, 0), *padding)
    return lax.reduce_window(x, np.float32(initial), function, (1, 1, *kernel_shape), (1, 1, *strides), edges)


def _max_pool(x: Any, **options: Any) -> Any:
    return _pool(x, -np.inf, lax.max, **options)


def _avg_pool(x: Any, *, count_include_pad: int = 0, **options: Any) -> Any:
    total = _pool(x, 0.0, lax.add, **options)
    if not any(options.get("pads", ())):
        return total / np.float32(math.prod(options["kernel_shape"]))
    raise NotImplementedError("AveragePool with padding")


def _batch_norm(x: Any, scale: Any, bias: Any, mean: Any, variance: Any, *, epsilon: float = 1e-5, **_: Any) -> Any:
    def per_channel(array: Any) -> Any:
        return jnp.reshape(array, (1, -1, *(1,) * (x.ndim - 2)))

    factor = scale / jnp.sqrt(variance + np.float32(epsilon))
    return x * per_channel(factor) + per_channel(bias - mean * factor)


def _prelu(x: Any, slope: Any) -> Any:
    slope = jnp.broadcast_to(slope, (1,) * (x.ndim - slope.ndim) + slope.shape)
    return jnp.where(x > 0, x, x * jnp.broadcast_to(slope, x.shape))


def _resize(x: Any, roi: Any = None, scales: Any = None, sizes: Any = None, **options: Any) -> Any:
    if options.get("mode") != b"nearest" or options.get("coordinate_transformation_mode") != b"asymmetric":
        raise NotImplementedError(f"Resize {options}")
    for axis, scale in enumerate(scales):
        if scale != 1:
            places = np.floor(np.arange(int(x.shape[axis] * scale)) / scale).astype(int)
            x = jnp.take(x, places, axis)
    return x


def _slice(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    index: list[slice] = [slice(None)] * x.ndim
    axes = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, [1] * len(starts) if steps is None else steps, strict=True):
        start, end, step = int(start), int(end), int(step)
        # The end before the first element, of a slice that goes backwards, is a number below all negative indices.
        index[int(axis)] = slice(start, None if step < 0 and end < -x.shape[int(axis)] else end, step)
    return x[tuple(index)]


def _pad(x: Any, pads: Any, value: Any = None, axes: Any = None, *, mode: bytes = b"constant") -> Any:
    if axes is not None:
        raise NotImplementedError("Pad of some axes")
    kind = mode.decode()
    if kind == "constant":
        return jnp.pad(x, _pads(pads), constant_values=0 if value is None else value)
    return jnp.pad(x, _pads(pads), mode=kind)


def _axes(operand: Any, attribute: Any) -> tuple[int, ...]:
    """Returns the axes that are an operand in newer graphs and an attribute in older ones."""
    return tuple(int(axis) for axis in np.atleast_1d(attribute if operand is None else operand))


def _unsqueeze(x: Any, operand: Any = None, *, axes: Any = None) -> Any:
    return _module(x).expand_dims(x, _axes(operand, axes))


def _squeeze(x: Any, operand: Any = None, *, axes: Any = None) -> Any:
    return _module(x).squeeze(x, _axes(operand, axes))


def _reduction(name: str) -> Callable[..., Any]:
    def operation(x: Any, operand: Any = None, *, axes: Any = None, keepdims: int = 1, **_: Any) -> Any:
        every = operand is None and axes is None
        chosen = None if every else _axes(operand, axes)
        return getattr(_module(x), name)(x, axis=chosen, keepdims=bool(keepdims))

    return operation


def _reshape(x: Any, shape: Any, **_: Any) -> Any:
    sizes = [x.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)]
    return _module(x).reshape(x, sizes)


def _clip(x: Any, low: Any = None, high: Any = None, **attributes: float) -> Any:
    return jnp.clip(x, attributes.get("min", low), attributes.get("max", high))


def _flatten(x: Any, *, axis: int = 1) -> Any:
    return jnp.reshape(x, (math.prod(x.shape[:axis]), -1))


def _cast(x: Any, *, to: int) -> Any:
    from onnx import helper

    return x.astype(helper.tensor_dtype_to_np_dtype(to)) if isinstance(x, np.ndarray) else x.astype(_narrow(to))


def _narrow(to: int) -> Any:
    from onnx import helper

    return jax.dtypes.canonicalize_dtype(helper.tensor_dtype_to_np_dtype(to))


def _hard_sigmoid(x: Any, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    return jnp.clip(x * np.float32(alpha) + np.float32(beta), 0, 1)


def _constant_of_shape(shape: Any, *, value: Any = None) -> Any:
    from onnx import numpy_helper

    return np.full([int(size) for size in shape], 0.0 if value is None else numpy_helper.to_array(value)[0], np.float32)


def _gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    return _module(x).take(x, indices, axis)


def _power(a: Any, b: Any) -> Any:
    return (
        a**2
        if np.ndim(b) <= 1 and np.size(b) == 1 and not isinstance(b, jax.Array) and float(np.ravel(b)[0]) == 2
        else a**b
    )


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": _elementwise("add"),
    "AveragePool": _avg_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *arrays, axis: _module(*arrays).concatenate(arrays, axis),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _divide,
    "Equal": _elementwise("equal"),
    "Erf": lambda x: jax.scipy.special.erf(x),
    "Flatten": _flatten,
    "Gather": _gather,
    "GlobalAveragePool": lambda x: jnp.mean(x, tuple(range(2, x.ndim)), keepdims=True),
    "HardSigmoid": _hard_sigmoid,
    "Identity": lambda x: x,
    "Log": lambda x: jnp.log(x),
    "MatMul": lambda a, b: jnp.matmul(a, b),
    "MaxPool": _max_pool,
    "Mul": _elementwise("multiply"),
    "Neg": _elementwise("negative"),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _power,
    "ReduceMax": _reduction("max"),
    "ReduceMean": _reduction("mean"),
    "ReduceMin": _reduction("min"),
    "ReduceSum": _reduction("sum"),
    "Relu": lambda x: jnp.maximum(x, 0),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda x: np.array(x.shape, np.int64),
    "Sigmoid": lambda x: jax.nn.sigmoid(x),
    "Slice": _slice,
    "Softmax": lambda x, *, axis=-1: jax.nn.softmax(x, axis),
    "Sqrt": _elementwise("sqrt"),
    "Squeeze": _squeeze,
    "Sub": _elementwise("subtract"),
    "Transpose": lambda x, *, perm: _module(x).transpose(x, perm),
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise("where"),
}
