"""Layers over eight devices, of lax and of jaxcnn, and the programs that JAX compiles for them.

Run by itself, this file prints the programs of whichever jaxcnn Python imports, which `benchmarks.devices` counts. So
it uses nothing but public names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn

MESHES = ("Auto", "Explicit")
SPECS = {
    # How an image lies, then how the kernel does, on a mesh of the axes "a" and "b".
    "batch": (P(("a", "b")), P()),
    "rows": (P(None, ("a", "b")), P()),
    "columns": (P(None, None, ("a", "b")), P()),
    "batch and rows": (P("a", "b"), P()),
    "channels of the result": (P(), P(None, None, None, ("a", "b"))),
    "channels of the image": (P(None, None, None, ("a", "b")), P(None, None, ("a", "b"))),
    "groups": (P(None, None, None, ("a", "b")), P(None, None, None, ("a", "b"))),
}
UNPOOL, ERROR = "max unpool", "error: "
NUMBERS = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer in one role, on arrays that are split in one way.

    Args:
      name: name of the layer.
      role: name of what is computed.
      split: name of the axes that are split, one of `SPECS`.
      functions: function of the arrays by library, "lax" and "jaxcnn".
      shapes: shape and dtype of each array.
    """

    name: str
    role: str
    split: str
    functions: dict[str, Callable[..., Any]]
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    def key(self, kind: str) -> str:
        """Returns the text by which a table names the layer on a kind of mesh."""
        return " | ".join((self.name, self.role, self.split, kind))

    def program(self, library: str, kind: str, run: bool = False) -> str:
        """Returns the compiled program, or "error: " and the error where it cannot be compiled or run.

        Args:
          library: name of the library, "lax" or "jaxcnn".
          kind: kind of the axes of the mesh, one of `MESHES`.
          run: flag, True to run the program too, on zeros.
        """
        mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(getattr(AxisType, kind),) * 2)
        specs = SPECS[self.split]
        if self.name == UNPOOL:
            specs = (specs[0], specs[0])  # both arrays are images
        arrays = [
            jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec))
            for shape, spec in zip(self.shapes, specs, strict=False)
        ]
        with jax.set_mesh(mesh) if kind == "Explicit" else contextlib.nullcontext():
            try:
                compiled = jax.jit(self.functions[library]).lower(*arrays).compile()
                if run:
                    zeros = (jax.device_put(np.zeros(a.shape, a.dtype), a.sharding) for a in arrays)
                    jax.block_until_ready(compiled(*zeros))
            except Exception as error:  # of any kind, as each library raises its own
                return f"{ERROR}{type(error).__name__}: {error}"
        return compiled.as_text()


def lax_conv(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS, feature_group_count=groups)


def jaxcnn_conv(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    return jaxcnn.conv(x, kernel, feature_group_count=groups)


def lax_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=NUMBERS, transpose_kernel=True)


def jaxcnn_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jaxcnn.conv_transpose(x, kernel, strides=2)


def lax_max_pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 5, 5, 1), (1, 1, 1, 1), "SAME")


def jaxcnn_max_pool(x: jax.Array) -> jax.Array:
    return jaxcnn.max_pool(x, 5, padding="SAME")


def jaxcnn_max_unpool(values: jax.Array, indices: jax.Array) -> jax.Array:
    return jaxcnn.max_unpool(values, indices, (16, 16))


def gradient(function: Callable[..., jax.Array], position: int) -> Callable[..., jax.Array]:
    return jax.grad(lambda *arrays: (function(*arrays) ** 2).sum(), position)


ROLES: dict[str, int | None] = {"forward": None, "gradient by the image": 0, "gradient by the kernel": 1}
FORWARD, *_ = ROLES


def layers() -> Iterator[Layer]:
    """Yields all layers in all roles and splits."""

    def of(
        name: str, shapes: Sequence[tuple[int, ...]], splits: str, lax_function: Any, function: Any, roles: Any = ROLES
    ) -> Iterator[Layer]:
        for split in splits.split(", "):
            for role in roles:
                position = ROLES[role]
                functions = {"lax": lax_function, "jaxcnn": function}
                if position is not None:
                    functions = {library: gradient(f, position) for library, f in functions.items()}
                types = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
                yield Layer(name, role, split, functions, types)

    def conv(
        name: str, image: tuple[int, ...], kernel: tuple[int, ...], groups: int, splits: str, roles: Any = ROLES
    ) -> Iterator[Layer]:
        functions = (
            lambda x, kernel: lax_conv(x, kernel, groups),
            lambda x, kernel: jaxcnn_conv(x, kernel, groups),
        )
        return of(name, (image, kernel), splits, *functions, roles)

    square = (8, 64, 64, 64)
    yield from conv("3x3, 64 channels", square, (3, 3, 64, 64), 1, "batch, rows, batch and rows")
    yield from conv("3x3, 64 channels", square, (3, 3, 64, 64), 1, "channels of the result, channels of the image")
    yield from conv("1x1, 64 channels", square, (1, 1, 64, 64), 1, "rows, columns", (FORWARD,))
    yield from conv("8 groups of 16 channels", (16, 28, 28, 128), (3, 3, 16, 128), 8, "batch, groups")
    yield from conv("depthwise 3x3, 64 channels", (4, 64, 64, 64), (3, 3, 1, 64), 64, "rows")
    yield from conv("depthwise 7x7, 96 channels", (16, 56, 56, 96), (7, 7, 1, 96), 96, "batch")
    yield from conv("depthwise 7x7, 64 channels", (4, 64, 64, 64), (7, 7, 1, 64), 64, "rows")
    yield from conv("depthwise 13x13, 16 channels", (8, 32, 32, 16), (13, 13, 1, 16), 16, "batch, rows", (FORWARD,))
    shapes = (8, 32, 32, 32), (4, 4, 32, 32)
    yield from of("transposed 4x4, stride 2", shapes, "batch, rows", lax_conv_transpose, jaxcnn_conv_transpose)
    roles = tuple(ROLES)[:2]
    yield from of("max pool 5x5", [(8, 64, 64, 32)], "batch, rows", lax_max_pool, jaxcnn_max_pool, roles)
    indices = jax.ShapeDtypeStruct((8, 8, 8, 32), jnp.int32)
    (unpool,) = of(UNPOOL, [indices.shape], "batch", None, jaxcnn_max_unpool, (FORWARD,))
    yield dataclasses.replace(unpool, functions={"jaxcnn": jaxcnn_max_unpool}, shapes=(*unpool.shapes, indices))


if __name__ == "__main__":
    programs = {
        layer.key(kind): layer.program("jaxcnn", kind, run=layer.role == FORWARD)
        for layer in layers()
        for kind in MESHES
    }
    json.dump(programs, sys.stdout)
