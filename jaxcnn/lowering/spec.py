"""`ConvSpec` and `PoolSpec`: one convolution, one pool, in the canonical layout that every method takes.

Inputs are (N, *spatial, C), kernels (*window, C_in / groups, C_out), padding is explicit and not negative. With
`stacked` every operand and the result carry one more leading axis, and each entry of this axis is one convolution.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import numpy as np
from jax import lax

from jaxcnn.geometry import Ints, Pair, dilated_size, output_sizes, window_hits

Role = Literal["output", "input", "kernel"]

STAND_IN_BATCH = 1
"""Number of images that stands for a symbolic batch where a method is chosen, whose estimates need a number."""


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """Holds one convolution y = conv(x, kernel), and the role: the array that is computed from the other two.

    The three roles are the partial derivatives of the trilinear form sum(y * conv(x, kernel)): `"output"` maps
    (x, kernel) to y, `"input"` maps (y, kernel) to x, `"kernel"` maps (x, y) to the kernel.

    Args:
      role: array that is computed.
      input_shape: shape (N, *spatial, C_in) of x; N and `stacked` may be symbolic dimensions of `jax.export`.
      kernel_shape: shape (*window, C_in / feature_group_count, C_out) of the kernel.
      output_shape: shape (N, *spatial, C_out) of y.
      strides: step of the window on each spatial axis.
      padding: pair (low, high) on each spatial axis, none negative, added after input dilation.
      input_dilation: distance between neighbouring pixels of x, on each spatial axis.
      kernel_dilation: distance between neighbouring taps of the kernel, on each spatial axis.
      feature_group_count: number of groups into which the channels are split.
      lhs_dtype: dtype of the first operand.
      rhs_dtype: dtype of the second operand.
      out_dtype: dtype of the result.
      precision: precision of the products, as in `lax.conv_general_dilated`.
      stacked: size of the leading axis that operands and result carry, or None.
      xla_only: flag, True for a program that is exported, or partitioned over several devices. Such a program holds no
        compiled kernel and no layout constraint: `jax.export` refuses both, and XLA gathers their operands on every
        device.
      platform: platform that the program is compiled for, or None. Equality ignores the platform.
      sharding: sharding of the result on an Explicit mesh, or None. Equality ignores the sharding.
    """

    role: Role
    input_shape: Ints
    kernel_shape: Ints
    output_shape: Ints
    strides: Ints
    padding: tuple[Pair, ...]
    input_dilation: Ints
    kernel_dilation: Ints
    feature_group_count: int
    lhs_dtype: np.dtype
    rhs_dtype: np.dtype
    out_dtype: np.dtype
    precision: Any
    stacked: int | None
    xla_only: bool = False
    platform: str | None = dataclasses.field(default=None, compare=False)
    sharding: Any = dataclasses.field(default=None, compare=False)

    @property
    def rank(self) -> int:
        """Returns the number of spatial axes."""
        return len(self.strides)

    @property
    def window(self) -> Ints:
        """Returns the taps of the kernel on each spatial axis."""
        return self.kernel_shape[:-2]

    @property
    def has_known_layer(self) -> bool:
        """Returns whether all sizes are numbers, but for the batch and the stacked axis, which may be symbolic."""
        sizes = (*self.input_shape[1:], *self.kernel_shape, *self.output_shape[1:])
        return all(isinstance(size, int) for size in sizes)

    def with_known_batch(self) -> ConvSpec:
        """Returns the convolution with `STAND_IN_BATCH` in place of a symbolic batch or stacked axis."""
        batch, stacked = self.input_shape[0], self.stacked
        if isinstance(batch, int) and isinstance(stacked, int | None):
            return self
        batch, stacked = (STAND_IN_BATCH if not isinstance(n, int | None) else n for n in (batch, stacked))
        shapes = {name: (batch, *getattr(self, name)[1:]) for name in ("input_shape", "output_shape")}
        return dataclasses.replace(self, stacked=stacked, **shapes)

    @property
    def result_shape(self) -> Ints:
        """Returns the shape of the computed array, without the stacked axis."""
        return {"output": self.output_shape, "input": self.input_shape, "kernel": self.kernel_shape}[self.role]

    @property
    def operand_shapes(self) -> tuple[Ints, Ints]:
        """Returns the shapes of the two operands, with the stacked axis."""
        shapes = {"input": self.input_shape, "output": self.output_shape, "kernel": self.kernel_shape}
        lead = () if self.stacked is None else (self.stacked,)
        lhs, rhs = ((*lead, *shape) for role, shape in shapes.items() if role != self.role)
        return lhs, rhs

    @property
    def macs(self) -> int:
        """Returns the multiply-accumulates of the formula, those on padding included."""
        return self._products * math.prod(self.output_shape[1:-1]) * math.prod(self.window)

    @property
    def macs_valid(self) -> int:
        """Returns the multiply-accumulates whose tap falls on a pixel of x."""
        low = (pair[0] for pair in self.padding)
        sizes = self.input_shape[1:-1], self.output_shape[1:-1], self.window
        axes = zip(*sizes, self.strides, low, self.kernel_dilation, self.input_dilation, strict=True)
        return self._products * math.prod(window_hits(*axis) for axis in axes)

    @property
    def _products(self) -> int:
        """Returns the multiply-accumulates for one pixel of y and one tap, of all images and features."""
        return self.output_shape[0] * math.prod(self.kernel_shape[-2:]) * (self.stacked or 1)

    def __str__(self) -> str:
        """Returns a line of text: role, shapes, and the options that are not the default."""
        shapes = (self.input_shape, self.kernel_shape, self.output_shape)
        x, kernel, y = ("x".join(map(str, shape)) for shape in shapes)
        options = {"strides": self.strides, "kernel_dilation": self.kernel_dilation}
        options |= {"input_dilation": self.input_dilation}
        named = [f"{name}={value}" for name, value in options.items() if max(value) > 1]
        named += [f"feature_group_count={self.feature_group_count}"] if self.feature_group_count > 1 else []
        named += [] if self.stacked is None else [f"stacked={self.stacked}"]
        return " ".join((self.role, "of", x, "*", kernel, "->", y, str(self.out_dtype), *named))


@dataclasses.dataclass(frozen=True)
class PoolSpec:
    """Holds one pool: a window that slides over the spatial axes of x.

    Args:
      input_shape: shape (N, *spatial, C) of x.
      window_shape: taps on each spatial axis.
      strides: step of the window on each spatial axis.
      padding: pair (low, high) on each spatial axis, none negative.
      window_dilation: distance between neighbouring taps on each spatial axis.
      dtype: dtype of x and of the result.
      xla_only: flag as in `ConvSpec`.
      sharding: sharding of the result, as in `ConvSpec`.
    """

    input_shape: Ints
    window_shape: Ints
    strides: Ints
    padding: tuple[Pair, ...]
    window_dilation: Ints
    dtype: np.dtype
    xla_only: bool = False
    sharding: Any = dataclasses.field(default=None, compare=False)

    @property
    def rank(self) -> int:
        """Returns the number of spatial axes."""
        return len(self.strides)

    @property
    def output_shape(self) -> Ints:
        """Returns the shape (N, *spatial, C) of the result."""
        sizes = output_sizes(self.input_shape[1:-1], self.padding, self.extents, self.strides)
        return (self.input_shape[0], *sizes, self.input_shape[-1])

    @property
    def extents(self) -> Ints:
        """Returns the pixels that the dilated window spans on each spatial axis."""
        return tuple(map(dilated_size, self.window_shape, self.window_dilation))


def conv_spec(
    lhs: Any,
    rhs: Any,
    *,
    role: Role,
    stacked: bool,
    input_size: Ints | None,
    window: Ints | None,
    preferred_element_type: Any,
    **options: Any,
) -> ConvSpec:
    """Returns the spec of a primitive's operands and parameters.

    Args:
      lhs: first operand, an object with `shape` and `dtype`.
      rhs: second operand, of the same kind.
      role: array that is computed.
      stacked: flag, True for operands and a result that carry one more leading axis.
      input_size: pixels of x on each spatial axis, for the role `"input"`.
      window: taps on each spatial axis, for the role `"kernel"`.
      preferred_element_type: dtype of the result.
      **options: other fields of `ConvSpec`.
    """
    lead = 1 if stacked else 0
    lhs_shape, rhs_shape = tuple(lhs.shape[lead:]), tuple(rhs.shape[lead:])
    groups = options["feature_group_count"]
    if role == "output":
        input_shape, kernel_shape = lhs_shape, rhs_shape
        extents = tuple(map(dilated_size, kernel_shape[:-2], options["kernel_dilation"]))
        dilated = tuple(map(dilated_size, input_shape[1:-1], options["input_dilation"]))
        sizes = output_sizes(dilated, options["padding"], extents, options["strides"])
        output_shape = (input_shape[0], *sizes, kernel_shape[-1])
    elif role == "input":
        output_shape, kernel_shape = lhs_shape, rhs_shape
        input_shape = (output_shape[0], *(input_size or ()), kernel_shape[-2] * groups)
    else:
        input_shape, output_shape = lhs_shape, rhs_shape
        kernel_shape = (*(window or ()), input_shape[-1] // groups, output_shape[-1])
    return ConvSpec(
        role=role,
        input_shape=input_shape,
        kernel_shape=kernel_shape,
        output_shape=output_shape,
        lhs_dtype=np.dtype(lhs.dtype),
        rhs_dtype=np.dtype(rhs.dtype),
        out_dtype=np.dtype(preferred_element_type),
        stacked=lhs.shape[0] if stacked else None,
        **options,
    )


def spec_to_plain(spec: ConvSpec) -> dict[str, Any]:
    """Returns a spec in types that JSON can hold; `spec_from_plain` is the inverse.

    Raises:
      ValueError: a shape is symbolic, or the precision has no name.
    """
    plain = {name: getattr(spec, name) for name in _IDENTITY}
    if not all(isinstance(n, int) for n in (*spec.input_shape, *spec.kernel_shape, *spec.output_shape)):
        raise ValueError(f"a convolution of symbolic shape has no plain form: {spec}")
    names = {name: str(plain[name]) for name in _DTYPES}
    return {**plain, **names, "precision": _precision_to_plain(spec.precision)}


def spec_from_plain(plain: Any) -> ConvSpec:
    """Returns the spec that `spec_to_plain` wrote.

    Raises:
      ValueError: a field is missing or wrong; the message names it.
    """
    if not isinstance(plain, dict) or plain.keys() != set(_IDENTITY):
        raise ValueError(f"a convolution must have the fields {sorted(_IDENTITY)}, got {plain!r}")
    values = {**plain, "precision": _precision_from_plain(plain["precision"])}
    for name in _SHAPES + _PER_AXIS:
        values[name] = _ints(name, plain[name])
    values["padding"] = tuple(_ints("padding", pair) for pair in plain["padding"])
    for name in _DTYPES:
        try:
            values[name] = np.dtype(plain[name])
        except TypeError:
            raise ValueError(f"{name} must name a dtype, got {plain[name]!r}") from None
    counts = [plain["feature_group_count"]] + ([] if plain["stacked"] is None else [plain["stacked"]])
    _ints("feature_group_count and stacked", counts)
    if not isinstance(plain["xla_only"], bool):
        raise ValueError(f"xla_only must be true or false, got {plain['xla_only']!r}")
    spec = ConvSpec(**values)
    ranks = {len(getattr(spec, name)) - 2 for name in _SHAPES} | {len(getattr(spec, name)) for name in _PER_AXIS}
    if spec.role not in get_args(Role) or ranks != {len(spec.padding)} or {len(p) for p in spec.padding} != {2}:
        raise ValueError(f"role, shapes and options must fit together, got {plain!r}")
    return spec


_IDENTITY = tuple(field.name for field in dataclasses.fields(ConvSpec) if field.compare)
_SHAPES = ("input_shape", "kernel_shape", "output_shape")
_PER_AXIS = ("strides", "input_dilation", "kernel_dilation")
_DTYPES = ("lhs_dtype", "rhs_dtype", "out_dtype")


def _ints(name: str, value: Any) -> Ints:
    """Returns a list of whole numbers as a tuple; raises a ValueError that names the field for any other value."""
    if not isinstance(value, list | tuple) or not all(type(n) is int for n in value):
        raise ValueError(f"{name} must hold whole numbers, got {value!r}")
    return tuple(value)


def _precision_to_plain(precision: Any) -> Any:
    """Returns a precision in types that JSON can hold.

    None and strings stay as they are, a `lax.Precision` becomes `"Precision.<name>"`, and a pair becomes a list.
    """
    if precision is None or isinstance(precision, str):
        return precision
    if isinstance(precision, lax.Precision):
        return f"Precision.{precision.name}"
    if isinstance(precision, tuple):
        return [_precision_to_plain(part) for part in precision]
    raise ValueError(f"a precision must be None, a string or a lax.Precision to have a plain form, got {precision!r}")


def _precision_from_plain(plain: Any) -> Any:
    """Returns the precision that `_precision_to_plain` has converted; raises a ValueError for any other value."""
    if isinstance(plain, list):
        return tuple(map(_precision_from_plain, plain))
    if plain is None or (isinstance(plain, str) and not plain.startswith("Precision.")):
        return plain
    names = {f"Precision.{precision.name}": precision for precision in lax.Precision}
    if not isinstance(plain, str) or plain not in names:
        raise ValueError(f"precision must be None, a string or one of {sorted(names)}, got {plain!r}")
    return names[plain]
