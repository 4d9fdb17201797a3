"""Counts what layers receive and compute on several devices, in compiled programs, for the tables of docs/devices.md.

    python -m benchmarks.devices            # writes the tables
    python -m benchmarks.devices --check    # fails if they differ

Nothing is run or timed: the programs are compiled for eight devices that one CPU stands for.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn.lowering.spec import ConvSpec
from jaxcnn.partitioning import record_parts
from jaxcnn.transform.jaxpr.signature import compile_uncached
from jaxcnn.transform.summary.shards import received_bytes

PAGE = Path(__file__).parent.parent / "docs" / "devices.md"
SHORT_NAMES = {"all-gather": "gather", "all-reduce": "sum", "all-to-all": "exchange", "collective-permute": "permute"}

Arrays = Sequence[jax.ShapeDtypeStruct]


def split(shape: tuple[int, ...], *spec: Any, devices: int = 8) -> jax.ShapeDtypeStruct:
    """An array over devices."""
    mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def lax_conv(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def our_conv(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    return jaxcnn.conv(x, kernel, feature_group_count=groups)


def lax_max_pool(x: jax.Array, size: int) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, 1, 1, 1), "SAME")


def our_max_pool(x: jax.Array, size: int) -> jax.Array:
    return jaxcnn.max_pool(x, size, padding="SAME")


def gradient(function: Callable[..., jax.Array], position: int) -> Callable[..., jax.Array]:
    return jax.grad(lambda *arrays: (function(*arrays) ** 2).sum(), position)


def layers() -> dict[tuple[str, str, str], tuple[Callable[..., Any], Callable[..., Any], Arrays]]:
    """Functions of lax and of jaxcnn and their arguments, by layer, role and axis that is split."""
    by_batch, by_rows, by_columns = ("d",), (None, "d"), (None, None, "d")
    rows = {}

    def add(layer: str, axis: str, x: Any, kernel: tuple[int, ...], groups: int, roles: Sequence[str]) -> None:
        ours, theirs = (
            lambda x, kernel, conv=conv: conv(x, kernel, groups) for conv in (our_conv, lax_conv)
        )  # of the groups of this layer
        for role in roles:
            position = {"kernel": 1, "image": 0}.get(role)
            pair = (theirs, ours) if position is None else (gradient(theirs, position), gradient(ours, position))
            rows[layer, role, axis] = (*pair, (x, split(kernel)))

    every = ("forward", "image", "kernel")
    add("3x3, 64 channels", "batch", split((16, 56, 56, 64), *by_batch), (3, 3, 64, 64), 1, every)
    add("3x3, 64 channels", "rows", split((4, 64, 64, 64), *by_rows), (3, 3, 64, 64), 1, every)
    add("1x1, 64 channels", "rows", split((4, 64, 64, 64), *by_rows), (1, 1, 64, 64), 1, ("forward",))
    add("1x1, 64 channels", "columns", split((4, 64, 64, 64), *by_columns), (1, 1, 64, 64), 1, ("forward",))
    add("4 groups of 16 channels", "batch", split((16, 28, 28, 64), *by_batch), (3, 3, 16, 64), 4, every)
    add("depthwise 3x3, 64 channels", "rows", split((4, 64, 64, 64), *by_rows), (3, 3, 1, 64), 64, every)
    add("depthwise 7x7, 96 channels", "batch", split((16, 56, 56, 96), *by_batch), (7, 7, 1, 96), 96, every)
    add("depthwise 7x7, 96 channels", "rows", split((4, 64, 64, 96), *by_rows), (7, 7, 1, 96), 96, every)
    add("depthwise 13x13, 16 channels", "batch", split((8, 32, 32, 16), *by_batch), (13, 13, 1, 16), 16, ("forward",))
    for axis, spec in (("batch", by_batch), ("rows", by_rows)):
        x = split((8, 64, 64, 32), *spec)
        pair = tuple(lambda x, pool=pool: pool(x, 5) for pool in (lax_max_pool, our_max_pool))
        rows["max pool 5x5", "forward", axis] = (*pair, (x,))
        rows["max pool 5x5", "image", axis] = (*(gradient(pool, 0) for pool in pair), (x,))
    return rows


def received(function: Callable[..., Any], arrays: Arrays) -> str:
    """Returns the bytes that a device receives in the compiled program, as text."""
    sizes: dict[str, int] = {}
    for name, size in received_bytes(compile_uncached("count", function, arrays).as_text()):
        sizes[name] = sizes.get(name, 0) + size
    return ", ".join(f"{SHORT_NAMES[name]} {text_of(size)}" for name, size in sizes.items()) or "nothing"


def text_of(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def layer_table() -> list[str]:
    lines = ["| layer | role | split along | `lax` receives | jaxcnn receives |", "|---|---|---|---|---|"]
    for (layer, role, axis), (theirs, ours, arrays) in layers().items():
        name = role if role == "forward" else f"gradient by the {role}"
        lines.append(f"| {layer} | {name} | {axis} | {received(theirs, arrays)} | {received(ours, arrays)} |")
    return lines


def network(params: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    first, depthwise, last = params
    x = jax.nn.relu(jaxcnn.conv(x, first))
    x = jax.nn.relu(jaxcnn.depthwise_conv(x, depthwise))
    x = jaxcnn.max_pool(x, 2, strides=2)
    return jaxcnn.conv(x, last)


def scaling_row(devices: int, rows: int) -> tuple[int, int]:
    """MACs of a device, and bytes that it receives, for the gradients by the parameters."""
    shapes = (5, 5, 3, 32), (7, 7, 32, 1), (3, 3, 32, 32)
    params = [split(shape, devices=devices) for shape in shapes]
    x = split((1, rows, 512, 3), None, "d", devices=devices)
    step = jax.grad(lambda params, x: (network(params, x) ** 2).sum())
    if devices == 1:
        macs = sum(row.cost.macs for row in jaxcnn.summarize(step, params, x).rows)
        return macs, 0
    with record_parts() as parts:
        compiled = compile_uncached("count", lambda *arrays: step(arrays[:-1], arrays[-1]), [*params, x])
    macs = sum(part.spec.macs for part in parts if isinstance(part.spec, ConvSpec))
    return macs, sum(size for _, size in received_bytes(compiled.as_text()))


def scaling_table(rows_of: Callable[[int], int]) -> list[str]:
    lines = [
        "| devices | rows | MACs of a device | of one device's | a device receives |",
        "|---:|---:|---:|---:|---:|",
    ]
    single, _ = scaling_row(1, rows_of(1))
    for devices in (1, 2, 4, 8):
        macs, size = scaling_row(devices, rows_of(devices))
        share = f"{macs / single:.3f}"
        lines.append(f"| {devices} | {rows_of(devices)} | {macs / 1e9:.2f} G | {share} | {text_of(size)} |")
    return lines


TABLES: dict[str, Callable[[], list[str]]] = {
    "layers": layer_table,
    "strong": lambda: scaling_table(lambda devices: 512),
    "weak": lambda: scaling_table(lambda devices: 64 * devices),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the page differs, and leave it as it is")
    check = parser.parse_args(arguments).check
    text = page = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        lines = "\n".join(table())
        text = re.sub(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", rf"\g<1>\n{lines}\n\n\g<2>", text, flags=re.S)
    if check:
        return int(text != page)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
