"""Programs for several devices: each device computes a part of a windowed operation as if it were the only device.

XLA's partitioner does not see into compiled kernels, and splits the operations that methods are made of badly. So a
primitive in a partitioned program is lowered as one opaque operation (`custom_partitioning`) that says along which axes
its arrays may be split. On a mesh of Explicit axes, where all shardings are known beforehand, `shard_map` replaces this
operation. Along batch, stack and channels each device computes with its parts of the operands, and sums that run over
several devices are added up. Along a spatial axis each device first gets the rows that its windows reach into, from its
neighbours alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Part:
    """One device's part of an operation that is split over devices.

    Args:
      operation: the operation as `Split` has it.
      shapes: shapes of the device's parts of the operands, then of the result.
      spec: spec by which the part is computed, in place of that of the whole operation.
      received: pairs of a collective operation's name and the bytes of its results on the device.
    """

    operation: Hashable
    shapes: tuple[tuple[int, ...], ...]
    spec: Any
    received: tuple[tuple[str, int], ...]


_PARTS: ContextVar[list[Part] | None] = ContextVar("parts", default=None)


@contextmanager
def record_parts() -> Iterator[list[Part]]:
    """Returns a context that gives a list, to which the parts of all operations that XLA splits meanwhile are added."""
    parts: list[Part] = []
    token = _PARTS.set(parts)
    try:
        yield parts
    finally:
        _PARTS.reset(token)


MeshAxes = tuple[str, ...]
"""Names of the mesh axes along which one axis of an array is split, in order; empty for an axis that is whole."""


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Holds JAX's settings of one thread, for the thread in which XLA splits the program.

    Args:
      enable_x64: flag, True for 64-bit types.
      matmul_precision: default precision of products and convolutions.
    """

    enable_x64: bool
    matmul_precision: str | None

    @classmethod
    def current(cls) -> _Settings:
        """Returns the settings of this thread."""
        config: Any = jax.config
        return cls(config.jax_enable_x64, config.jax_default_matmul_precision)

    @contextmanager
    def apply(self) -> Iterator[None]:
        """Returns a context with these settings."""
        with jax.enable_x64(self.enable_x64), jax.default_matmul_precision(self.matmul_precision):
            yield


@dataclasses.dataclass(frozen=True)
class Window:
    """Holds the geometry of a window on one spatial axis.

    Args:
      image: number of pixels of the image.
      outputs: number of places of the window.
      reach: distance from the window's first to its last tap, in pixels.
      stride: distance from one place to the next, in pixels.
      padding: pair (low, high) of numbers of pixels around the image.
    """

    image: int
    outputs: int
    reach: int
    stride: int
    padding: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Slab:
    """Holds the part of a spatial axis that each device needs, of one length on all devices.

    Args:
      starts: first row that each device needs, negative in the padding.
      length: number of rows.
    """

    starts: tuple[int, ...]
    length: int


@dataclasses.dataclass(frozen=True)
class Split:
    """Holds the axes along which an operation on windows may be split over devices, and the computation of one part.

    Each axis of an array has a name, and arrays that share a name share that axis. `"x0"` is the first spatial axis of
    the image, `"y0"` that of the outputs, and both are split alike. An axis that the result lacks is summed over the
    devices. `"g i"` is an axis of groups of channels, which is split by whole groups only. An axis without a name is
    whole on every device.

    Args:
      operands: names of each operand's axes.
      result: names of the result's axes.
      sizes: number of groups and of a group's channels, by name.
      windows: window on each spatial axis.
      fill: number that stands for the pixels beyond each operand's ends.
      dtype: dtype of the result.
      local: function that returns one device's part of the result from the parts of the operands, the window on each
        spatial axis of the part, the pixel of the whole image at which the part begins on each, and the dtype of sums.
      operation: the whole operation, by which `record_parts` tells it from others.
      local_spec: function from the shapes of the parts of the operands, the window on each spatial axis of the part and
        the dtype of sums to the spec of the part.
    """

    operands: tuple[tuple[str, ...], ...]
    result: tuple[str, ...]
    sizes: Mapping[str, int]
    windows: tuple[Window, ...]
    fill: tuple[Any, ...]
    dtype: Any
    local: Callable[[Sequence[jax.Array], Sequence[Window], Sequence[Any], Any], jax.Array]
    operation: Hashable
    local_spec: Callable[[Sequence[tuple[int, ...]], Sequence[Window], Any], Any]

    def over_devices(self, shape: tuple[int, ...]) -> Callable[..., jax.Array]:
        """Returns a function of the whole operands that XLA splits over the devices of its program.

        Args:
          shape: shape of the result.
        """
        # JAX takes only the type of the result from this function. `_body` computes each device's part.
        function = custom_partitioning(lambda *operands: jnp.zeros(shape, self.dtype))
        partition = partial(self._partition, _Settings.current(), _PARTS.get())
        pairs = {factor for names in self._arrays for name in names if " " in name for factor in name.split()}
        whole_axes = {name for names in self._arrays for name in names}
        sizes = {factor: size for factor, size in self.sizes.items() if factor in pairs - whole_axes}
        function.def_partition(partition=partition, sharding_rule=self._rule(), **sizes)
        return function

    def over_explicit_mesh(self, operands: Sequence[Any], result: Any) -> Callable[..., jax.Array]:
        """Returns a function of the whole operands, on a mesh with Explicit axes, where shardings are known.

        How arrays lie along Auto axes of the mesh is not known. These split the batch, if it divides evenly.

        Args:
          operands: types of the operands, with their shardings.
          result: type of the result.
        """
        mesh = result.sharding.mesh
        arrays = [*zip(self.operands, operands, strict=True), (self.result, result)]
        explicit_axes = axes = self._mesh_axes(mesh, arrays)
        batch_axes = (*axes.get("n", ()), *_auto_axes(mesh))
        sizes = {name: size for names, array in arrays for name, size in zip(names, array.shape, strict=True)}
        if sizes["n"] % _device_count(mesh, batch_axes) == 0:
            axes = {**axes, "n": batch_axes}
        *specs, out_spec = (_partition_spec(names, axes) for names, _ in arrays)
        body = partial(self._body, mesh, axes, [operand.shape for operand in operands], _PARTS.get())
        mapped = jax.shard_map(body, mesh=mesh, in_specs=tuple(specs), out_specs=out_spec, check_vma=False)

        def rest(names: Sequence[str], shape: Sequence[int]) -> list[int]:
            """Returns how much longer each axis is if all devices have parts of one length."""
            counts = (_device_count(mesh, axes.get(_factor(name), ())) for name in names)
            return [-size % count for size, count in zip(shape, counts, strict=True)]

        def function(*values: jax.Array) -> jax.Array:
            # An Explicit mesh splits only axes that divide evenly, so the other ones are padded first.
            placed = [
                jax.sharding.reshard(
                    lax.pad(value, jnp.zeros((), value.dtype), [(0, length, 0) for length in rest(names, value.shape)]),
                    NamedSharding(mesh, _partition_spec(names, explicit_axes)),
                )
                for names, value in zip(self.operands, values, strict=True)
            ]
            return lax.slice(
                jax.sharding.reshard(mapped(*placed), result.sharding), [0] * len(result.shape), result.shape
            )

        return function

    def result_sharding(self, operands: Sequence[Any], shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding of the result that follows from those of the operands.

        Args:
          operands: arrays on an Explicit mesh, or their types.
          shape: shape of the result. An axis that does not divide evenly is whole.
        """
        mesh = next(operand.sharding.mesh for operand in operands if not operand.sharding.mesh.empty)
        axes = self._mesh_axes(mesh, list(zip(self.operands, operands, strict=True)), least_count=1)
        parts = [axes.get(_factor(name), ()) for name in self.result]
        return NamedSharding(
            mesh,
            PartitionSpec(
                *(
                    part if size % _device_count(mesh, part) == 0 else None
                    for part, size in zip(parts, shape, strict=True)
                )
            ),
        )

    @property
    def _arrays(self) -> tuple[tuple[str, ...], ...]:
        """Returns the names of the axes of each operand, then of the result."""
        return (*self.operands, self.result)

    def _rule(self) -> str:
        """Returns the sharding rule in the notation of `custom_partitioning`, which names axes that are split alike."""
        unnamed = (f"whole{number}" for number in itertools.count())

        def words(names: Sequence[str]) -> str:
            return " ".join(f"({name})" if " " in name else _factor(name) or next(unnamed) for name in names)

        return f"{', '.join(map(words, self.operands))} -> {words(self.result)}"

    def _partition(
        self, settings: _Settings, recorded: list[Part] | None, mesh: Any, arguments: Sequence[Any], result: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Returns the mesh, the function of the parts, and the shardings of the result and of the operands."""
        arrays = [*zip(self.operands, arguments, strict=True), (self.result, result)]
        axes = self._mesh_axes(mesh, arrays)
        *shardings, out = (NamedSharding(mesh, _partition_spec(names, axes)) for names, _ in arrays)
        shapes = [argument.shape for argument in arguments]

        def body(*parts: jax.Array) -> jax.Array:
            with settings.apply():
                return self._body(mesh, axes, shapes, recorded, *parts)

        return mesh, body, out, tuple(shardings)

    def _mesh_axes(
        self, mesh: Any, arrays: Sequence[tuple[Sequence[str], Any]], least_count: int = 2
    ) -> dict[str, MeshAxes]:
        """Returns the mesh axes of each factor (see `_factor`), from the first array that is split along the factor.

        A factor stays whole where its size does not divide by the number of devices, or where another factor has the
        mesh axis. Mesh axes of fewer than `least_count` devices are left out.
        """
        axes: dict[str, MeshAxes] = {}
        for names, array in arrays:
            spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else ()
            for name, entry, size in zip(names, spec, array.shape, strict=False):
                mesh_axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
                count = _device_count(mesh, mesh_axes)
                factor = _factor(name)
                is_taken = factor in axes or any(axis in other for other in axes.values() for axis in mesh_axes)
                fits = self.sizes[factor] % count == 0 if factor in self.sizes else size >= count
                if factor and mesh_axes and count >= least_count and fits and not is_taken:
                    axes[factor] = mesh_axes
        return axes

    def _body(
        self,
        mesh: Any,
        axes: Mapping[str, MeshAxes],
        shapes: Sequence[tuple[int, ...]],
        recorded: list[Part] | None,
        *parts: jax.Array,
    ) -> jax.Array:
        """Computes one device's part of the result."""
        summed = [name for name in axes if name not in map(_factor, self.result)]
        operands = list(parts)
        received: list[tuple[str, int]] = []
        for position, names in enumerate(self.operands):
            for axis, name in enumerate(names):
                # The rest beyond the end of an array that does not divide evenly must not reach a sum or a window.
                if _factor(name) in axes and (name[0] in "xy" or name in summed):
                    size, split = shapes[position][axis], axes[_factor(name)]
                    operands[position] = _without_rest(operands[position], axis, size, split, self.fill[position])
        windows, skipped = list(self.windows), {}
        origins: list[Any] = [0] * len(windows)
        for number, window in enumerate(self.windows):
            split = axes.get(f"h{number}", ())
            if not split:
                continue
            count, makes_image = _device_count(mesh, split), f"x{number}" in self.result
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
                    axis_rows = _SplitAxis(names.index(source), split, count, self.fill[position], received)
                    operands[position] = axis_rows.slab_of(operands[position], slab)
        is_narrow = bool(summed) and jnp.issubdtype(self.dtype, jnp.floating) and jnp.dtype(self.dtype).itemsize < 4
        sum_dtype = jnp.float32 if is_narrow else self.dtype
        value = self.local(operands, windows, origins, sum_dtype)
        for number, skips in skipped.items():
            if max(skips):
                start = jnp.asarray(skips)[lax.axis_index(axes[f"h{number}"])]
                length = windows[number].image - max(skips)
                value = lax.dynamic_slice_in_dim(value, start, length, self.result.index(f"x{number}"))
        if summed:
            received.append(("all-reduce", value.size * value.dtype.itemsize))
            value = lax.psum(value, tuple(axis for name in summed for axis in axes[name]))
        if recorded is not None:
            spec = self.local_spec([operand.shape for operand in operands], windows, sum_dtype)
            part_shapes = (*(part.shape for part in parts), value.shape)
            recorded.append(Part(self.operation, part_shapes, spec, tuple(received)))
        return value.astype(self.dtype)


def _factor(name: str) -> str:
    """Returns the factor of the sharding rule along which an axis is split.

    The factor of `"g i"` is `"g"`, the groups; `"x0"` and `"y0"` have one factor, `"h0"`. Other names are factors.
    """
    if " " in name:
        return name.split()[0]
    return f"h{name[1:]}" if name[:1] in ("x", "y") else name


def _device_count(mesh: Any, axes: MeshAxes) -> int:
    """Returns the number of devices along mesh axes."""
    return math.prod(mesh.shape[axis] for axis in axes)


def _auto_axes(mesh: Any) -> MeshAxes:
    """Returns the Auto axes of a mesh that have several devices."""
    return tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    )


def _partition_spec(names: Sequence[str], axes: Mapping[str, MeshAxes]) -> PartitionSpec:
    """Returns the `PartitionSpec` of an array whose axes have these names."""
    return PartitionSpec(*(axes.get(_factor(name)) for name in names))


def _image_of_outputs(window: Window, count: int) -> tuple[Slab, Window]:
    """Returns the rows of the image that each device needs for its outputs, and the window on these rows."""
    outputs = -(-window.outputs // count)
    starts = tuple(device * outputs * window.stride - window.padding[0] for device in range(count))
    length = (outputs - 1) * window.stride + window.reach + 1
    return Slab(starts, length), dataclasses.replace(window, image=length, outputs=outputs, padding=(0, 0))


def _outputs_that_reach(window: Window, count: int) -> tuple[Slab, Window, tuple[int, ...]]:
    """Returns the outputs that reach into each device's part of the image, and the window on that part.

    Each device computes from a multiple of the stride on, so that all devices have the same padding. The third result
    is the number of pixels that each device computes before the first pixel of its part.
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
    """Returns a part with the fill in place of the rest beyond the array's end.

    Args:
      part: part of the array on this device.
      axis: axis that is split.
      size: size of that axis in the whole array.
      axes: mesh axes along which the axis is split.
      fill: number that stands for the rest.
    """
    index = lax.axis_index(axes) * part.shape[axis] + lax.broadcasted_iota(jnp.int32, part.shape, axis)
    return jnp.where(index < size, part, jnp.asarray(fill, part.dtype))


@dataclasses.dataclass(frozen=True)
class _SplitAxis:
    """Holds an axis of an array that is split over devices, and gets rows of it from other devices.

    Args:
      axis: number of the axis.
      mesh_axes: mesh axes along which the axis is split.
      count: number of devices.
      fill: number that stands for rows that no device has.
      received: list to which the names and bytes of collective operations are added.
    """

    axis: int
    mesh_axes: MeshAxes
    count: int
    fill: Any
    received: list[tuple[str, int]]

    def slab_of(self, part: jax.Array, slab: Slab) -> jax.Array:
        """Returns the rows of this device's slab: from its part, and the others from devices before and after."""
        rows = part.shape[self.axis]
        before = [number * rows - start for number, start in enumerate(slab.starts)]
        after = [start + slab.length - (number + 1) * rows for number, start in enumerate(slab.starts)]
        pieces = [part]
        for distance in range(1, -(-max(0, *before) // rows) + 1):
            fill, length = self._lengths(before, before[distance:], rows, distance)
            pieces.insert(0, self._rows_of_neighbour(part, rows - length, length, -distance))
            pieces.insert(0, self._fill_rows(part, fill))
        for distance in range(1, -(-max(0, *after) // rows) + 1):
            fill, length = self._lengths(after, after[:-distance], rows, distance)
            pieces.append(self._rows_of_neighbour(part, 0, length, distance))
            pieces.append(self._fill_rows(part, fill))
        neighbourhood = jnp.concatenate(pieces, self.axis)
        offsets = [max(0, *before) - rows_before for rows_before in before]
        if len(set(offsets)) == 1:
            return lax.slice_in_dim(neighbourhood, offsets[0], offsets[0] + slab.length, axis=self.axis)
        offset = jnp.asarray(offsets)[lax.axis_index(self.mesh_axes)]
        return lax.dynamic_slice_in_dim(neighbourhood, offset, slab.length, self.axis)

    @staticmethod
    def _lengths(needed: Sequence[int], received: Sequence[int], rows: int, distance: int) -> tuple[int, int]:
        """Returns how many rows at a distance are the fill on all devices, and how many come from a neighbour.

        Args:
          needed: number of rows that each device needs on one side.
          received: those numbers of the devices that have a neighbour at the distance.
          rows: number of rows of a part.
          distance: number of devices.
        """
        missing, sent = (min(max(0, *counts) - (distance - 1) * rows, rows) for counts in (needed, [*received, 0]))
        return missing - max(sent, 0), max(sent, 0)

    def _fill_rows(self, part: jax.Array, length: int) -> jax.Array:
        shape = (*part.shape[: self.axis], length, *part.shape[self.axis + 1 :])
        return jnp.full(shape, self.fill, part.dtype)

    def _rows_of_neighbour(self, part: jax.Array, start: int, length: int, distance: int) -> jax.Array:
        """Returns rows of the device that is `distance` further along the axis, or the fill if there is none.

        Args:
          part: part of this device; its rows go to the device that is `distance` back.
          start, length: rows of a part that are sent.
          distance: number of devices, negative for devices before this one.
        """
        if length == 0:
            return self._fill_rows(part, 0)
        pairs = [(source, source - distance) for source in range(self.count) if 0 <= source - distance < self.count]
        rows = lax.slice_in_dim(part, start, start + length, axis=self.axis)
        received = lax.ppermute(rows, self.mesh_axes, pairs)
        self.received.append(("collective-permute", received.size * received.dtype.itemsize))
        sender = lax.axis_index(self.mesh_axes) + distance
        return jnp.where((sender >= 0) & (sender < self.count), received, jnp.asarray(self.fill, part.dtype))
