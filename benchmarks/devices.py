"""Counts what layers receive and compute on several devices, in compiled programs, for the tables of docs/devices.md.

    python -m benchmarks.devices            # writes the tables
    python -m benchmarks.devices --check    # fails if they differ
    python -m benchmarks.devices --before CHECKOUT    # counts the column of an earlier commit again

Nothing is timed: the programs are compiled for eight devices that one CPU stands for. What was before is counted of
commit 59e651f, the last one without splits of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn
from benchmarks.device_layers import ERROR, MESHES, layers
from jaxcnn.lowering.spec import ConvSpec
from jaxcnn.partitioning import record_parts
from jaxcnn.transform.jaxpr.signature import compile_uncached
from jaxcnn.transform.summary.shards import received_bytes

PAGE = Path(__file__).parent.parent / "docs" / "devices.md"
BEFORE = Path(__file__).with_name("devices_before.json")
SHORT_NAMES = {"all-gather": "gather", "all-reduce": "sum", "all-to-all": "exchange", "collective-permute": "permute"}


def split(shape: tuple[int, ...], *spec: Any, devices: int = 8) -> jax.ShapeDtypeStruct:
    """An array over devices."""
    mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def received(program: str) -> str:
    """Returns the number of collective operations of each kind and the bytes of their results on a device."""
    if program.startswith(ERROR):
        return "error"
    sizes: dict[str, list[int]] = {}
    for name, size in received_bytes(program):
        sizes.setdefault(name, []).append(size)
    texts = [
        f"{len(of_name)} {SHORT_NAMES[name]}{'s' * (len(of_name) > 1)} of {text_of(sum(of_name))}"
        for name, of_name in sizes.items()
    ]
    return "; ".join(texts) or "nothing"


def text_of(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def layer_rows() -> list[tuple[str, ...]]:
    """Returns layer, role, split axes and kind of mesh, and what lax, jaxcnn before and jaxcnn receive."""
    rows = []
    before = json.loads(BEFORE.read_text(encoding="utf-8"))["received"]
    for layer in layers():
        for kind in MESHES:
            cells = ["-" if "lax" not in layer.functions else received(layer.program("lax", kind))]
            cells += [before[layer.key(kind)], received(layer.program("jaxcnn", kind))]
            rows.append((*layer.key(kind).split(" | "), *cells))
    return rows


def layer_tables(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns a table for each layer; a row serves both kinds of mesh where they receive the same."""
    lines = []
    for layer, of_layer in itertools.groupby(rows, lambda row: row[0]):
        lines += [f"#### {layer}", "", "| role | split along | mesh | `lax` | jaxcnn before | jaxcnn |"]
        lines.append("|---|---|---|---|---|---|")
        for (role, axes), of_meshes in itertools.groupby(of_layer, lambda row: row[1:3]):
            kinds: dict[tuple[str, ...], list[str]] = {}
            for row in of_meshes:
                kinds.setdefault(row[4:], []).append(row[3])
            for cells, meshes in kinds.items():
                mesh = "both" if len(meshes) == len(MESHES) else meshes[0]
                lines.append(f"| {' | '.join((role, axes, mesh, *cells))} |")
        lines.append("")
    return lines[:-1]


def record_before(checkout: Path) -> None:
    """Writes what programs of the jaxcnn of another checkout receive."""
    script = Path(__file__).with_name("device_layers.py")
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    output = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, env=environment).stdout
    counts = {key: received(program) for key, program in json.loads(output).items()}
    BEFORE.write_text(json.dumps({"jax": jax.__version__, "received": counts}, indent=1) + "\n", encoding="utf-8")


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
    "layers": lambda: layer_tables(layer_rows()),
    "strong": lambda: scaling_table(lambda devices: 512),
    "weak": lambda: scaling_table(lambda devices: 64 * devices),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the page differs, and leave it as it is")
    parser.add_argument("--before", type=Path, help="folder of a checkout whose programs are counted")
    options = parser.parse_args(arguments)
    if options.before:
        record_before(options.before)
    text = page = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        lines = "\n".join(table())
        text = re.sub(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", rf"\g<1>\n{lines}\n\n\g<2>", text, flags=re.S)
    if options.check:
        return int(text != page)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
