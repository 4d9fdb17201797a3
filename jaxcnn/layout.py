"""Layouts: which axis of an array is batch, feature or spatial.

Of arrays this module uses only `shape`, `transpose` and `reshape`, so that it works on any library's arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxcnn.geometry import Ints

_SPATIAL = "0123456789"
Layout = str | tuple[Any, Any, Any] | None


@dataclasses.dataclass(frozen=True)
class AxisOrder:
    """Holds the order of the axes of input, kernel and output.

    Each order is a string of `N` (batch), `C`, `I`, `O` (features) and `0`, `1`, ... (spatial axes, in the order in
    which strides, windows and padding are given).

    Args:
      rank: number of spatial axes.
      input: order of the input's axes.
      kernel: order of the kernel's axes.
      output: order of the output's axes.
    """

    rank: int
    input: str
    kernel: str
    output: str

    def split_input(self, shape: Sequence[int]) -> tuple[Ints, Ints, int]:
        """Returns batch shape, spatial sizes and number of features of an input of that shape."""
        ordered = [shape[axis] for axis in self._canonical_axes(self.input, shape)]
        return tuple(ordered[: -self.rank - 1]), tuple(ordered[-self.rank - 1 : -1]), ordered[-1]

    def to_canonical(self, x: Any) -> Any:
        """Returns x as (N, *spatial, C), with its batch axes (none, one or several) merged into N."""
        canonical = transpose_axes(x, self._canonical_axes(self.input, x.shape))
        if x.ndim == self.rank + 2:
            return canonical
        return canonical.reshape(math.prod(canonical.shape[: -self.rank - 1]), *canonical.shape[-self.rank - 1 :])

    def from_canonical(self, y: Any, batch_shape: Sequence[int]) -> Any:
        """Returns (N, *spatial, C) with its axes in the user's order and N split into the batch axes."""
        if len(batch_shape) != 1:
            y = y.reshape(*batch_shape, *y.shape[1:])
        axes = self._canonical_axes(self.output, y.shape)
        inverse = sorted(range(len(axes)), key=axes.__getitem__)
        return transpose_axes(y, tuple(inverse))

    def output_shape(self, batch_shape: Sequence[int], sizes: Sequence[int], features: int) -> Ints:
        """Returns the shape of an output in the user's order of axes."""
        ordered = (*batch_shape, *sizes, features)
        axes = self._canonical_axes(self.output, ordered)
        return tuple(size for _, size in sorted(zip(axes, ordered, strict=True), key=lambda item: item[0]))

    def output_spatial_axes(self, ndim: int) -> Ints:
        """Returns the spatial axes of an output with `ndim` axes."""
        return self._canonical_axes(self.output, (0,) * ndim)[-self.rank - 1 : -1]

    def kernel_to_canonical(self, kernel: Any) -> Any:
        """Returns a kernel as (*window, I, O)."""
        return transpose_axes(kernel, self.kernel_axes)

    @property
    def kernel_axes(self) -> Ints:
        """Returns the axes of a kernel array in the order spatial, input feature, output feature."""
        return tuple(self.kernel.index(name) for name in _SPATIAL[: self.rank] + "IO")

    def _canonical_axes(self, names: str, shape: Sequence[int]) -> Ints:
        """Returns the axes of an array, which are named by `names`, in the order batch, spatial, features."""
        batch_axes = len(shape) - self.rank - 1
        if batch_axes < 0:
            raise ValueError(
                f"x must have {self.rank} spatial axes and a feature axis, {self.rank + 1} in all, "
                f"and may have batch axes; got {len(shape)} axes (x {tuple(shape)})"
            )
        batch_position = names.index("N")
        axes = {"N": tuple(range(batch_position, batch_position + batch_axes))}
        for position, name in enumerate(names):
            if name != "N":
                axes[name] = (position if position < batch_position else position - 1 + batch_axes,)
        return sum((axes[name] for name in "N" + _SPATIAL[: self.rank] + "C"), ())


def transpose_axes(array: Any, axes: Ints) -> Any:
    """Returns an array with its axes in that order, the array itself where this is its order."""
    return array if axes == tuple(range(len(axes))) else array.transpose(axes)


def parse_layout(layout: Layout, rank: int | None) -> AxisOrder:
    """Returns the axis order that a `layout` argument means.

    Args:
      layout: order of the axes: None (channels-last), a string such as `"NCHW"`, or the triple of strings or of axis
        tuples that `lax.conv_general_dilated` takes as `dimension_numbers`.
      rank: number of spatial axes where a kernel or a window says it, else None.
    """
    if layout is None:
        if rank is None:
            raise ValueError("the number of spatial axes is unknown; give layout, such as 'NHWC'")
        spatial = _spatial_names(rank)
        return AxisOrder(rank, f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    if isinstance(layout, str):
        order = _from_string(layout)
    elif isinstance(layout, Sequence) and len(layout) == 3:
        order = _from_triple(layout)
    else:
        raise TypeError(
            f"layout must be None, a string such as 'NCHW' or lax's triple of dimension numbers, got {layout!r}"
        )
    if rank is not None and order.rank != rank:
        raise ValueError(
            f"layout {layout!r} has {order.rank} spatial axes, but the kernel, window or output shape has {rank}"
        )
    return order


def _spatial_names(rank: int) -> str:
    if not 1 <= rank <= len(_SPATIAL):
        raise ValueError(f"there must be at least one spatial axis, got {rank}")
    return _SPATIAL[:rank]


def _check_names(layout: Any, names: str, features: str) -> str:
    names = names.upper()
    if len(set(names)) != len(names) or any(name not in names for name in features) or not names.isalpha():
        needed = " and ".join(repr(name) for name in features)
        raise ValueError(f"layout {layout!r}: {names!r} must name each axis once, with {needed} among them")
    return names


def _from_string(layout: str) -> AxisOrder:
    names = _check_names(layout, layout, "C")
    if "N" not in names:
        names = "N" + names
    letters = [name for name in names if name not in "NC"]
    spatial = _spatial_names(len(letters))
    for letter, digit in zip(letters, spatial, strict=True):
        names = names.replace(letter, digit)
    channels_first = names.index("C") < names.index(spatial[0])
    return AxisOrder(len(letters), names, f"OI{spatial}" if channels_first else f"{spatial}IO", names)


def _from_triple(layout: Sequence[Any]) -> AxisOrder:
    """Returns the axis order of a triple as lax takes it, of strings or of tuples of axes."""
    specs = list(layout)
    if all(isinstance(spec, str) for spec in specs):
        names_in = _check_names(layout, specs[0], "NC")
        names_kernel = _check_names(layout, specs[1], "IO")
        names_out = _check_names(layout, specs[2], "NC")
        # lax orders the spatial axes as the kernel names them.
        letters = [name for name in names_kernel if name not in "IO"]
        spatial = _spatial_names(len(letters))
        for names, features in ((names_in, "NC"), (names_out, "NC")):
            if sorted(set(names) - set(features)) != sorted(letters):
                raise ValueError(f"layout {layout!r}: {names!r} and {names_kernel!r} name different axes")
        table = str.maketrans("".join(letters), spatial)
        return AxisOrder(
            len(letters), names_in.translate(table), names_kernel.translate(table), names_out.translate(table)
        )
    rank = len(specs[0]) - 2
    spatial = _spatial_names(rank)
    arranged = []
    for spec, features in zip(specs, ("NC", "OI", "NC"), strict=True):
        if sorted(spec) != list(range(rank + 2)):
            raise ValueError(f"layout {layout!r}: {spec!r} is not an order of the axes 0 to {rank + 1}")
        by_axis = dict(zip(spec, features + spatial, strict=True))
        arranged.append("".join(by_axis[axis] for axis in range(rank + 2)))
    return AxisOrder(rank, *arranged)
