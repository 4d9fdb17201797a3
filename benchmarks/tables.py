"""Writes the tables and figures of README.md and of four pages of docs/ from committed measurements.

    python -m benchmarks.tables                         # writes the pages: `make tables`
    python -m benchmarks.tables --measure               # measures everything first: `make performance`
    python -m benchmarks.tables --measure MobileNetV2   # measures one part and keeps the rest

The measurement is `benchmarks/performance.json`: milliseconds of one call by library, each the median over
blocks of calls that take turns. A page marks a block by its name in a comment, such as `<!-- table: networks -->`.
What stands between the mark and the next `<!-- end -->` is written by the function of that name. The history of commits
and the trained networks are not measured here: they come from the records in `benchmarks/results` and
`benchmarks/networks`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from . import history
from .networks import page as trained

ROOT = Path(__file__).parent.parent
MEASUREMENT = ROOT / "benchmarks" / "performance.json"
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{page}.md" for page in ("index", "performance", "benchmarks", "trained_networks")),
)

NETWORKS = ("MobileNetV2", "EfficientNet-B0", "ResNet-50", "ConvNeXt-T", "VGG-16", "Inception-v3", "U-Net", "Xception")
NAMES = {"lax": "`jax.jit`", "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""The libraries that are compared with, as the tables name them."""
LAYERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "depthwise 3x3, 124x124x256": (
        "jax#23713",
        "forward",
        {"x": (1, 124, 124, 256), "window": (3, 3), "features": 256, "groups": 256},
    ),
    "gradients of depthwise 3x3, 62x62x64": (
        "jax#23713",
        "gradient",
        {"x": (1, 62, 62, 64), "window": (3, 3), "features": 64, "groups": 64},
    ),
    "gradients of 3x3 in 32 groups, 4x14x14x256": (
        "jax#13800",
        "gradient",
        {"x": (4, 14, 14, 256), "window": (3, 3), "features": 256, "groups": 32},
    ),
    "3x3 in NCHW inside `scan`, 32x32x32": ("jax#12868", "2-D 3x3 1x32x32x32, 4 steps", {}),
    "31x31 filter, 256x256": ("jax#5227", "forward", {"x": (1, 256, 256, 1), "window": (31, 31), "features": 1}),
    "gradient of max pool 3x3/2, 4x112x112x64": (
        "",
        "gradient",
        {"x": (4, 112, 112, 64), "window": (3, 3), "features": 0, "strides": 2, "pool": "max"},
    ),
    "dense 3x3, 56x56x64": ("", "forward", {"x": (1, 56, 56, 64), "window": (3, 3), "features": 64}),
    "dense 1x1, 8x56x56x64 to 128": ("", "forward", {"x": (8, 56, 56, 64), "window": (1, 1), "features": 128}),
}
"""Layers against plain lax: the thread of JAX's tracker, the direction, and what `shared.layers.Layer` takes.

One without these is a layer of the asv benchmark `Jax12868LoopLayout`.
"""
HEADLINE_NETWORK, HEADLINE_LAYER = "MobileNetV2", "gradients of 3x3 in 32 groups, 4x14x14x256"
EDGES = "edge detector"
PHOTOGRAPH, PIXELS, MACS_SHARE = "astronaut", 256, 0.25
"""Photograph for the edge detector, pixels of its longer side, and share of the multiply-accumulates that stay."""
FAMILY_SEED, FAMILY_COUNT = 2, 4
"""Seed for the layers of the families, on which nothing was fitted, and their number for each family and role."""

Measurement = dict[str, Any]


# Measuring


def measure_network(name: str, seconds: float) -> Measurement:
    """Returns milliseconds, seconds of the first call and megabytes of one image, forward and gradient."""
    from .peers.networks import measure
    from .shared.networks import NETWORKS as ALL

    return {role: measure(ALL[name], 1, role, 10 * seconds) for role in ("forward", "gradient")}


def measure_layers(seconds: float) -> Measurement:
    """Returns milliseconds of the layers of `LAYERS`, in lax and by jaxcnn."""
    import jax

    from .asv.bench_convolution import Jax12868LoopLayout
    from .shared.layers import Layer, in_role
    from .shared.timing import milliseconds

    times = {}
    for title, (_, role, options) in LAYERS.items():
        if options:
            layer = Layer(name=title, **options)
            ours, plain, args = in_role(layer.by_jaxcnn, role), in_role(layer.by_lax, role), layer.arguments(role)
        else:
            case = Jax12868LoopLayout().case(role)
            ours, plain, args = case.ours, case.plain, case.args
        calls = {}
        for library, function in (("jaxcnn", ours), ("lax", plain)):
            jitted = jax.jit(function)
            calls[library] = lambda jitted=jitted, args=args: jax.block_until_ready(jitted(*args))
        times[title] = milliseconds(calls, seconds)
    return times


def measure_families(seconds: float) -> Measurement:
    """Returns how many times faster than lax jaxcnn is, by family and direction: geometric means over the layers."""
    from .choice.beside_torch import records
    from .choice.families import FAMILIES, ROLES
    from .shared.timing import geometric_mean

    means: Measurement = {family: {} for family in FAMILIES}
    for family in FAMILIES:
        forward = "input" if family == "transposed" else "output"
        for direction, roles in (("forward", [forward]), ("gradient", [role for role in ROLES if role != forward])):
            times = [row["milliseconds"] for row in records([family], roles, FAMILY_SEED, FAMILY_COUNT, seconds)]
            means[family][direction] = geometric_mean(row["lax"] / row["jaxcnn"] for row in times)
    return means


def measure_edges(seconds: float) -> Measurement:
    """Returns milliseconds and errors of the edge detector: in lax, accelerated, and with pairs of kernels."""
    from functools import partial

    import jax
    import numpy as np

    import jaxcnn
    from jaxcnn.demo import edges, hed, images
    from jaxcnn.demo.network import plain_convolution

    from .shared.timing import milliseconds

    x = hed.preprocess(images.load_image(PHOTOGRAPH, long_side=PIXELS))
    network = hed.load_network(hed.find_weights())
    pairs = edges.find_pairs(network, x, MACS_SHARE, calibration=(), seed=0)
    functions = {
        "lax": (jax.jit(partial(hed.edge_map, convolution=plain_convolution)), network),
        "jaxcnn": (jaxcnn.accelerate(hed.edge_map), network),
        "pairs": (jaxcnn.accelerate(pairs.apply), pairs.params),
    }
    calls = {
        name: lambda function=function, params=params: jax.block_until_ready(function(params, x))
        for name, (function, params) in functions.items()
    }
    before, after = np.asarray(calls["lax"]()), np.asarray(calls["pairs"]())
    return {
        "size": f"{x.shape[1]}x{x.shape[2]}",
        "macs_share": pairs.report.macs_after / pairs.report.macs_before,
        "relative_error": edges.relative_error(after, before),
        "edge_f1_within_1_pixel": edges.edge_f1(
            before > edges.EDGE_THRESHOLD, after > edges.EDGE_THRESHOLD, tolerance=1.0
        ),
        "milliseconds": milliseconds(calls, 10 * seconds),
    }


PARTS: dict[str, Callable[[float], Measurement]] = {
    **{name: lambda seconds, name=name: measure_network(name, seconds) for name in NETWORKS},
    "layers": measure_layers,
    "families": measure_families,
    EDGES: measure_edges,
}


def environment() -> dict[str, str]:
    """Returns the machine's kind and the versions of the libraries."""
    from .peers.literature import machine
    from .shared.environment import native_available

    versions = {"jax": importlib.metadata.version("jax")}
    for library in ("torch", "onnxruntime", "openvino"):
        versions[library] = importlib.metadata.version(library).split("+")[0].split("-")[0]
    return {"machine": machine(), "native": "yes" if native_available() else "no", **versions}


def measure(parts: Iterable[str], seconds: float) -> None:
    """Measures the parts, and writes the file after each: an interrupted run keeps what it has."""
    for part in parts:
        measurement = json.loads(MEASUREMENT.read_text()) if MEASUREMENT.exists() else {}
        measurement[part] = _rounded(PARTS[part](seconds))
        measurement["environment"] = environment()
        order = [*PARTS, "environment"]
        measurement = {key: measurement[key] for key in order if key in measurement}
        MEASUREMENT.write_text(json.dumps(measurement, indent=1) + "\n")
        print(part, "is measured", file=sys.stderr)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


# Writing


def networks(
    measurement: Measurement, role: str = "forward", peers: Iterable[str] = ("lax", "torch", "openvino")
) -> str:
    """Returns a row for each network: milliseconds, and in brackets each library's time over that of `accelerate`."""
    rows, ratios = [], {peer: [] for peer in peers}
    for name in NETWORKS:
        times = measurement[name][role]["milliseconds"]
        cells = []
        for peer in ratios:
            ratios[peer].append(times[peer] / times["jaxcnn"])
            cells.append(f"{_milliseconds(times[peer])} ({_times(ratios[peer][-1])})")
        rows.append((name, f"**{_milliseconds(times['jaxcnn'])}**", *cells))
    means = [f"({_times(statistics.geometric_mean(values))})" for values in ratios.values()]
    header = ("one image, ms", "`accelerate`", *(NAMES[peer] for peer in ratios))
    return _table(header, [*rows, ("geometric mean", "", *means)])


def gradients(measurement: Measurement) -> str:
    """Returns the table of the networks' gradients, which the runtimes for inference do not compute."""
    return networks(measurement, "gradient", ("lax", "torch"))


def runtimes(measurement: Measurement) -> str:
    """Returns the table of the networks' forward passes beside all libraries."""
    return networks(measurement, "forward", ("lax", "torch", "onnxruntime", "openvino"))


def first_calls(measurement: Measurement) -> str:
    """Returns a row for each network: seconds of the first call, and megabytes of intermediate values."""
    rows = []
    for name in NETWORKS:
        cells = [name]
        for role in ("forward", "gradient"):
            record = measurement[name][role]
            for library in ("lax", "jaxcnn"):
                cells.append(f"{record['first_seconds'][library]:.1f} s, {record['megabytes'][library]:.0f} MB")
        rows.append(tuple(cells))
    titles = ("forward, `jax.jit`", "forward, `accelerate`", "gradient, `jax.jit`", "gradient, `accelerate`")
    return _table(("first call, memory", *titles), rows)


def without_library(measurement: Measurement) -> str:
    """Returns a row for each network: the forward pass with and without the native library."""
    rows = []
    for name in NETWORKS:
        times = measurement[name]["forward"]["milliseconds"]
        slower = times["without library"] / times["jaxcnn"]
        faster = times["lax"] / times["without library"]
        rows.append((name, _milliseconds(times["without library"]), _times(slower), _times(faster)))
    return _table(("one image", "ms without it", "over `accelerate` with it", "times faster than `jax.jit`"), rows)


def layers(measurement: Measurement) -> str:
    """Returns a row for each layer: milliseconds in lax and by jaxcnn, and the ratio."""
    rows = []
    for title, (thread, _, _) in LAYERS.items():
        times = measurement["layers"][title]
        ratio = _times(times["lax"] / times["jaxcnn"])
        rows.append(
            (title, f"[{thread}]" if thread else "", _milliseconds(times["lax"]), _milliseconds(times["jaxcnn"]), ratio)
        )
    return _table(("layer", "thread", "lax ms", "jaxcnn ms", "times faster"), rows)


def families(measurement: Measurement) -> str:
    """Returns a row for each family: how many times faster than lax jaxcnn is."""
    rows = [
        (family.replace("_", " "), _times(means["forward"]), _times(means["gradient"]))
        for family, means in measurement["families"].items()
    ]
    return _table(("family", "forward", "gradients"), rows)


def edge_detector(measurement: Measurement) -> str:
    """Returns a row for each form of the edge detector: milliseconds, speed-up and error."""
    record = measurement[EDGES]
    times = record["milliseconds"]
    rows = [("dense, `jax.jit`", "1", _milliseconds(times["lax"]), "", "", "")]
    rows.append(
        ("dense, `accelerate`", "1", _milliseconds(times["jaxcnn"]), _times(times["lax"] / times["jaxcnn"]), "", "")
    )
    rows.append(
        (
            "pairs, `substitute` and `accelerate`",
            f"{record['macs_share']:.2f}",
            _milliseconds(times["pairs"]),
            _times(times["lax"] / times["pairs"]),
            f"{record['relative_error']:.3f}",
            f"{record['edge_f1_within_1_pixel']:.2f}",
        )
    )
    titles = ("share of MACs", "ms", "times faster", "relative error", "edge F1 within 1 pixel")
    return _table((f"photograph of {record['size']}", *titles), rows)


def headlines(measurement: Measurement) -> str:
    """Returns the three things that the library does, with one ratio each."""

    def faster(times: Mapping[str, float], ours: str = "jaxcnn") -> str:
        return f"**{_times(times['lax'] / times[ours])} as fast**"

    detector, layer = measurement[EDGES], measurement["layers"][HEADLINE_LAYER]
    points = (
        "`accelerate(f)` computes the convolutions, pools and gradients in any JAX function, with the same values. "
        f"{HEADLINE_NETWORK} is {faster(measurement[HEADLINE_NETWORK]['forward']['milliseconds'])} as under `jax.jit`.",
        "`substitute(f, params, x)` replaces trained kernels by chains of smaller ones, within an error, a cost or a "
        f"time that you set. A VGG-16 edge detector with {detector['macs_share']:.0%} of its multiplications is "
        f"{faster(detector['milliseconds'], 'pairs')}, "
        f"and {detector['edge_f1_within_1_pixel']:.0%} of its edges are where they were (F1, within a pixel).",
        "`conv`, `conv_transpose` and every pool are functions of arrays, in any number of dimensions and any layout, "
        f"with all derivatives. The {HEADLINE_LAYER} ([jax#13800]), are {faster(layer)} as by `lax`.",
    )
    return "\n".join(textwrap.fill(f"- {point}", 120, subsequent_indent="  ") for point in points)


def machine(measurement: Measurement) -> str:
    """Returns what was measured on, and with which versions."""
    kept = measurement["environment"]
    libraries = (
        f"jax {kept['jax']}, PyTorch {kept['torch']}, ONNX Runtime {kept['onnxruntime']}, OpenVINO {kept['openvino']}"
    )
    return textwrap.fill(f"Measured on {kept['machine']}, in float32, with {libraries}.", 120)


BLOCKS: dict[str, Callable[[Measurement], str]] = {
    "headlines": headlines,
    "networks": networks,
    "runtimes": runtimes,
    "gradients": gradients,
    "first calls": first_calls,
    "without library": without_library,
    "layers": layers,
    "families": families,
    "edge detector": edge_detector,
    "machine": machine,
    "history": lambda measurement: history.table(history.records()),
    "trained searches": lambda measurement: trained.searches(trained.records()),
    "trained distillation": lambda measurement: trained.distillations(trained.records()),
    "trained acceleration": lambda measurement: trained.accelerations(trained.records()),
}


def written(page: str, measurement: Measurement) -> str:
    """Returns the page with its blocks as the measurement has them."""

    def block(match: re.Match) -> str:
        return f"{match[1]}\n{BLOCKS[match[2]](measurement)}\n<!-- end -->"

    return re.sub(r"(<!-- table: ([\w ]+) -->).*?<!-- end -->", block, page, flags=re.DOTALL)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    align = ("---", *["---:"] * (len(header) - 1))
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, align, *rows))


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x"


def main(arguments: list[str] | None = None) -> None:
    """Measures if asked to, and writes the pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="*", choices=list(PARTS), metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for a layer; ten times as long for a network")
    options = parser.parse_args(arguments)
    if options.measure is not None:
        measure(options.measure or PARTS, options.seconds)
    measurement = json.loads(MEASUREMENT.read_text())
    for page in PAGES:
        page.write_text(written(page.read_text(), measurement))


if __name__ == "__main__":
    main()
