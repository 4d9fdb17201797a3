"""Programs for several devices: each device computes its own part of a windowed operation, by the form of one device.

XLA's partitioner does not see into compiled kernels, and splits the forms that methods are made of badly. So a
primitive in a partitioned program is lowered as one opaque operation (`custom_partitioning`) that says along which axes
it may be split. Along batch, stack and channels each device computes with its own parts, and sums that run over
several devices are added up. Along a spatial axis each device first gets the rows that its windows reach into from its
neighbours, and from nobody else.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

MeshAxes = tuple[str, ...]
"""Names of the mesh axes along which one axis of an array is split, in order; none if it is whole."""


@dataclasses.dataclass(frozen=True)
class Window:
    """A window on one spatial axis.

    Args:
      image: pixels of the image.
      outputs: places of the window.
      reach: pixels from the window's first to its last tap.
      stride: pixels from one place to the next.
      padding: (low, high) pixels around the image.
    """

    image: int
    outputs: int
    reach: int
    stride: int
    padding: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Slab:
    """The part of a spatial axis that each device needs, the same length on all of them.

    Args:
      starts: first row that each device needs, negative in the padding.
      length: number of rows.
    """

    starts: tuple[int, ...]
    length: int


@dataclasses.dataclass(frozen=True)
class Split:
    """How an operation on windows may be split over devices.

    Each axis of an array has a name, and arrays that share a name share that axis. `"x0"` is the first spatial axis of
    the image, `"y0"` that of the outputs, and both are split alike. An axis that the result lacks is summed up over the
    devices. `"g i"` is an axis of groups of channels, which is split by whole groups only. An axis without a name is
    whole on every device.

    Args:
      operands: names of each operand's axes.
      result: names of the result's axes.
      sizes: number of groups and of a group's channels, by name.
      windows: window on each spatial axis.
      fill: number that stands for the pixels beyond each operand's ends.
      dtype: dtype of the result.
      local: function from the parts of the operands, the window on each of them, the pixel of the whole image at which
        each axis of the part begins, and the dtype of sums, to a part of the result.
    """

    operands: tuple[tuple[str, ...], ...]
    result: tuple[str, ...]
    sizes: Mapping[str, int]
    windows: tuple[Window, ...]
    fill: tuple[Any, ...]
    dtype: Any
    local: Callable[[Sequence[jax.Array], Sequence[Window], Sequence[Any], Any], jax.Array]

    def over_devices(self, shape: tuple[int, ...]) -> Callable[..., jax.Array]:
        """Returns a function of the whole operands that XLA splits over the devices of its program.

        Args:
          shape: shape of the result.
        """
        # Of the function itself JAX takes the type of the result alone: what is computed is one device's part.
        function = custom_partitioning(lambda *operands: jnp.zeros(shape, self.dtype))
        pairs = {factor for names in self._arrays for name in names if " " in name for factor in name.split()}
        whole_axes = {name for names in self._arrays for name in names}
        sizes = {factor: size for factor, size in self.sizes.items() if factor in pairs - whole_axes}
        function.def_partition(partition=self._partition, sharding_rule=self._rule(), **sizes)
        return function

    def result_sharding(self, operands: Sequence[Any], shape: Sequence[int]) -> NamedSharding:
        """Returns how the result is split where the operands are split in a certain way.

        Args:
          operands: arrays or their types on an Explicit mesh.
          shape: shape of the result. An axis that does not divide evenly is whole.
        """
        mesh = next(operand.sharding.mesh for operand in operands if not operand.sharding.mesh.empty)
        axes = self._mesh_axes(mesh, list(zip(self.operands, operands, strict=True)))
        parts = [axes.get(_factor(name), ()) for name in self.result]
        return NamedSharding(
            mesh,
            PartitionSpec(
                *(part if size % _count(mesh, part) == 0 else None for part, size in zip(parts, shape, strict=True))
            ),
        )

    @property
    def _arrays(self) -> tuple[tuple[str, ...], ...]:
        return (*self.operands, self.result)

    def _rule(self) -> str:
        """Returns the axes that are split alike, in the notation of `custom_partitioning`."""
        unnamed = (f"whole{number}" for number in itertools.count())

        def words(names: Sequence[str]) -> str:
            return " ".join(f"({name})" if " " in name else _factor(name) or next(unnamed) for name in names)

        return f"{', '.join(map(words, self.operands))} -> {words(self.result)}"

    def _partition(self, mesh: Any, arguments: Sequence[Any], result: Any) -> tuple[Any, Any, Any, Any]:
        arrays = [*zip(self.operands, arguments, strict=True), (self.result, result)]
        axes = self._mesh_axes(mesh, arrays)
        *shardings, out = (NamedSharding(mesh, _spec(names, axes)) for names, _ in arrays)
        body = partial(self._body, mesh, axes, [argument.shape for argument in arguments])
        return mesh, body, out, tuple(shardings)

    def _mesh_axes(self, mesh: Any, arrays: Sequence[tuple[Sequence[str], Any]]) -> dict[str, MeshAxes]:
        """Returns the mesh axes along which each name is split: as in the first array that is split along it."""
        axes: dict[str, MeshAxes] = {}
        for names, array in arrays:
            spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else ()
            for name, entry, size in zip(names, spec, array.shape, strict=False):
                mesh_axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
                count = _count(mesh, mesh_axes)
                factor = _factor(name)
                is_taken = factor in axes or any(axis in taken for taken in axes.values() for axis in mesh_axes)
                fits = self.sizes[factor] % count == 0 if factor in self.sizes else size >= count
                if factor and count > 1 and fits and not is_taken:
                    axes[factor] = mesh_axes
        return axes

    def _body(
        self, mesh: Any, axes: Mapping[str, MeshAxes], shapes: Sequence[tuple[int, ...]], *parts: jax.Array
    ) -> jax.Array:
        """Computes one device's part of the result."""
        summed = [name for name in axes if name not in map(_factor, self.result)]
        operands = list(parts)
        for position, names in enumerate(self.operands):
            for axis, name in enumerate(names):
                # What lies beyond the end of an array that does not divide evenly must not reach a sum or a window.
                if _factor(name) in axes and (name[0] in "xy" or name in summed):
                    size, split = shapes[position][axis], axes[_factor(name)]
                    operands[position] = _without_rest(operands[position], axis, size, split, self.fill[position])
        windows, skipped = list(self.windows), {}
        origins: list[Any] = [0] * len(windows)
        for number, window in enumerate(self.windows):
            split = axes.get(f"h{number}", ())
            if not split:
                continue
            count, makes_image = _count(mesh, split), f"x{number}" in self.result
            source = f"y{number}" if makes_image else f"x{number}"
            device = lax.axis_index(split)
            if makes_image:
                slab, windows[number], skipped[number] = _outputs_that_reach(window, count)
                origins[number] = device * (windows[number].image - max(skipped[number]))
                origins[number] -= jnp.asarray(skipped[number])[device]
            else:
                slab, windows[number] = _image_of_outputs(window, count)
                origins[number] = jnp.asarray(slab.starts)[device]
            for position, names in enumerate(self.operands):
                if source in names:
                    rows = _Rows(names.index(source), split, count, self.fill[position])
                    operands[position] = rows.of(operands[position], slab)
        is_narrow = bool(summed) and jnp.issubdtype(self.dtype, jnp.floating) and jnp.finfo(self.dtype).bits < 32
        value = self.local(operands, windows, origins, jnp.float32 if is_narrow else self.dtype)
        for number, skips in skipped.items():
            if max(skips):
                start = jnp.asarray(skips)[lax.axis_index(axes[f"h{number}"])]
                length = windows[number].image - max(skips)
                value = lax.dynamic_slice_in_dim(value, start, length, self.result.index(f"x{number}"))
        if summed:
            value = lax.psum(value, tuple(axis for name in summed for axis in axes[name]))
        return value.astype(self.dtype)


def _factor(name: str) -> str:
    """Returns the name of what is split: whole groups, and both sides of a spatial axis alike."""
    if " " in name:
        return name.split()[0]
    return f"h{name[1:]}" if name[:1] in ("x", "y") else name


def _count(mesh: Any, axes: MeshAxes) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _spec(names: Sequence[str], axes: Mapping[str, MeshAxes]) -> PartitionSpec:
    return PartitionSpec(*(axes.get(_factor(name)) for name in names))


def _image_of_outputs(window: Window, count: int) -> tuple[Slab, Window]:
    """Returns the rows of the image that each device's outputs are made of, and the window on them."""
    outputs = -(-window.outputs // count)
    starts = tuple(device * outputs * window.stride - window.padding[0] for device in range(count))
    length = (outputs - 1) * window.stride + window.reach + 1
    return Slab(starts, length), dataclasses.replace(window, image=length, outputs=outputs, padding=(0, 0))


def _outputs_that_reach(window: Window, count: int) -> tuple[Slab, Window, tuple[int, ...]]:
    """Returns the outputs that reach into each device's part of the image, and the window on that part.

    Each device computes from a multiple of the stride on, so that all devices have the same padding. The third result
    is the number of pixels that each of them computes too early.
    """
    stride, image, low = window.stride, -(-window.image // count), window.padding[0]
    skipped = tuple(device * image % stride for device in range(count))
    computed = image + max(skipped)
    first, last = -(-(low - window.reach) // stride), (computed - 1 + low) // stride
    before = low - first * stride
    if before < 0:
        first, before = first - 1, before + stride
    after = last * stride + window.reach + 1 - computed - low
    if after < 0:
        last, after = last + 1, after + stride
    starts = tuple((device * image - skip) // stride + first for device, skip in enumerate(skipped))
    outputs = last - first + 1
    local = dataclasses.replace(window, image=computed, outputs=outputs, padding=(before, after))
    return Slab(starts, outputs), local, skipped


def _without_rest(part: jax.Array, axis: int, size: int, axes: MeshAxes, fill: Any) -> jax.Array:
    """Returns a part with the fill in place of what lies beyond the array's end."""
    index = lax.axis_index(axes) * part.shape[axis] + lax.broadcasted_iota(jnp.int32, part.shape, axis)
    return jnp.where(index < size, part, jnp.asarray(fill, part.dtype))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """An axis that is split over devices, whose rows they send each other.

    Args:
      axis: axis of the array.
      mesh_axes: mesh axes along which it is split.
      count: number of devices.
      fill: number that stands for rows that no device has.
    """

    axis: int
    mesh_axes: MeshAxes
    count: int
    fill: Any

    def of(self, part: jax.Array, slab: Slab) -> jax.Array:
        """Returns the rows of a slab: the device's own, and what it lacks from the devices before and after."""
        rows = part.shape[self.axis]
        before = max(0, *(number * rows - start for number, start in enumerate(slab.starts)))
        after = max(0, *(start + slab.length - (number + 1) * rows for number, start in enumerate(slab.starts)))
        pieces = [part]
        for distance in range(1, -(-before // rows) + 1):
            length = min(rows, before - (distance - 1) * rows)
            pieces.insert(0, self._received(part, rows - length, length, -distance))
        for distance in range(1, -(-after // rows) + 1):
            length = min(rows, after - (distance - 1) * rows)
            pieces.append(self._received(part, 0, length, distance))
        around = jnp.concatenate(pieces, self.axis)
        offsets = [start - number * rows + before for number, start in enumerate(slab.starts)]
        if len(set(offsets)) == 1:
            return lax.slice_in_dim(around, offsets[0], offsets[0] + slab.length, axis=self.axis)
        offset = jnp.asarray(offsets)[lax.axis_index(self.mesh_axes)]
        return lax.dynamic_slice_in_dim(around, offset, slab.length, self.axis)

    def _received(self, part: jax.Array, start: int, length: int, distance: int) -> jax.Array:
        """Returns rows of the device that is `distance` further, and the fill where there is none."""
        pairs = [(source, source - distance) for source in range(self.count) if 0 <= source - distance < self.count]
        rows = lax.slice_in_dim(part, start, start + length, axis=self.axis)
        received = lax.ppermute(rows, self.mesh_axes, pairs)
        sender = lax.axis_index(self.mesh_axes) + distance
        return jnp.where((sender >= 0) & (sender < self.count), received, jnp.asarray(self.fill, part.dtype))
