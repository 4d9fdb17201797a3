"""Times every method on seeded families of layers: `python -m benchmarks.choice.measure --seed 0 --count 9 --output F`.

The cost model is fitted to these files, and the choice of a method is tested on them. The files
`seed?_without_library.json` are measured with `JAXCNN_NATIVE=0` in the environment. Each layer is computed by every
method that supports it, in one process, in blocks that take turns. The file holds the median and the least of the
blocks' best calls. A run that was interrupted goes on where it stopped when it is started again with the same file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxcnn.lowering import tuning_table as table
from jaxcnn.lowering.choice import METHODS
from jaxcnn.lowering.spec import ConvSpec, Role, spec_from_plain, spec_to_plain

from ..shared.environment import keep_to_processors, native_available, processors
from ..shared.timing import block_milliseconds
from .families import FAMILIES, ROLES, family
from .layers import operands, program

HOPELESS_RATIO = 8.0
"""Ratio to the fastest method's time from which a method is timed by one or two calls and not by blocks."""
MAX_EQUATIONS = 1000
"""Most equations of a method's program. A larger program takes too long to compile to be a choice."""
BY_CHANNEL = "fft"
"""The method that is measured only where each channel is convolved by itself.

Between many channels the method multiplies spectra pair by pair, which takes far too long.
"""
ALWAYS = "direct"
"""The method that supports every layer and is measured even when the time limit of a layer is over."""


def method_calls(spec: ConvSpec, seconds: float, methods: Sequence[str] = ()) -> dict[str, Callable[[], Any]]:
    """Returns the compiled methods that support a layer.

    Args:
      spec: the layer.
      seconds: wall time after which no other method is compiled.
      methods: names of the methods to compile; all methods if empty.
    """
    end = time.perf_counter() + seconds
    arrays = operands(spec)
    spec = dataclasses.replace(spec, platform="cpu")
    calls = {}
    # The general methods at the registry's start come last: they unroll large windows into programs that trace slowly.
    for name in (ALWAYS, *(name for name in reversed(METHODS) if name != ALWAYS)):
        if methods and name not in methods:
            continue
        if METHODS[name].refusal(spec) is not None or (name != ALWAYS and time.perf_counter() > end):
            continue
        if name == BY_CHANNEL and spec.kernel_shape[-2:] != (1, spec.feature_group_count):
            continue

        def lowered(lhs: Any, rhs: Any, name: str = name) -> Any:
            return METHODS[name].lower(lhs, rhs, spec)

        if len(jax.make_jaxpr(lowered)(*arrays).eqns) <= MAX_EQUATIONS:
            calls[name] = program(lowered, arrays)
    return calls


def measure(
    spec: ConvSpec, seconds: float, limit: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Returns the median and the best milliseconds of a layer by method.

    Args:
      spec: the layer.
      seconds: time for the blocks of all methods.
      limit: wall time after which no other method is compiled.
      clock: function that returns the seconds by which a call is timed.
    """
    return summary(block_milliseconds(method_calls(spec, limit), seconds, hopeless=HOPELESS_RATIO, clock=clock))


def summary(blocks: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Returns the median and the least milliseconds by method."""
    return {
        "milliseconds": {name: round(statistics.median(times), 5) for name, times in blocks.items()},
        "best_milliseconds": {name: round(min(times), 5) for name, times in blocks.items()},
    }


def measured_again(layer: dict[str, Any], methods: Sequence[str], seconds: float, limit: float) -> dict[str, Any]:
    """Returns a layer's record with new times of some methods, for instance after a change of the compiled kernels."""
    calls = method_calls(spec_from_plain(layer["spec"]), limit, methods)
    if not calls:
        return layer
    times = summary(block_milliseconds(calls, seconds, hopeless=HOPELESS_RATIO))
    return layer | {statistic: layer[statistic] | times[statistic] for statistic in times}


def header(seed: int) -> dict[str, Any]:
    """Returns the header of a file, which keeps the measurements of two machines or two releases apart."""
    return {
        "machine": table.device_kind(jax.devices("cpu")[0]),
        "jax": jax.__version__,
        "native": native_available(),
        "seed": seed,
    }


def read(path: Path, expected: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the layers that a file already holds; an empty list without a file.

    Raises:
      ValueError: the file holds measurements of another machine, release or seed.
    """
    if not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    layers = content.pop("layers")
    if content != expected:
        raise ValueError(f"{path} holds measurements of {content}, and these would be of {expected}")
    return layers


def write(path: Path, head: dict[str, Any], layers: Sequence[dict[str, Any]]) -> None:
    """Writes a file with a line for each layer; an interrupted call leaves the old file."""
    lines = ",\n".join(json.dumps(layer) for layer in layers)
    text = json.dumps(head)[:-1] + ', "layers": [\n' + lines + "\n]}\n"
    temporary = path.with_suffix(".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def work(names: Sequence[str], roles: Sequence[Role], seed: int, count: int) -> list[tuple[str, ConvSpec]]:
    """Returns `count` layers of each family, with the families in turn: an interrupted run has layers of each."""
    columns = [[(name, spec) for spec in family(name, seed, count, roles)] for name in names]
    return [layer for row in zip(*columns, strict=True) for layer in row]


def records(
    layers: Sequence[tuple[str, ConvSpec]],
    done: Sequence[dict[str, Any]],
    seconds: float,
    limit: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[str, Any]]:
    """Yields a record for each layer that has none in `done`."""
    from rich.console import Console
    from rich.progress import track

    known = {json.dumps(layer["spec"]) for layer in done}
    rest = [(name, spec) for name, spec in layers if json.dumps(spec_to_plain(spec)) not in known]
    for name, spec in track(rest, "Measuring layers", console=Console(stderr=True)) if rest else ():
        yield {"family": name, "spec": spec_to_plain(spec), **measure(spec, seconds, limit, clock)}
        jax.clear_caches()


def main(arguments: list[str] | None = None) -> None:
    """Measures the layers and writes the file after each one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="seed for the families")
    parser.add_argument("--count", type=int, required=True, help="layers of each family, in all roles together")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON, new or of an interrupted run")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="only this; may be repeated")
    parser.add_argument("--role", action="append", choices=ROLES, help="only this; may be repeated")
    parser.add_argument("--again", action="append", choices=list(METHODS), help="only this, of the file's layers")
    parser.add_argument("--seconds", type=float, default=1.0, help="for the blocks of a layer")
    parser.add_argument(
        "--limit", type=float, default=20.0, help="seconds after which a layer's methods compile no more"
    )
    parser.add_argument("--threads", type=int, default=processors(), help="processors to use")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="where other programs run: with --threads 1, processor time in place of time",
    )
    options = parser.parse_args(arguments)
    keep_to_processors(options.threads)
    clock = "process_time" if options.busy and options.threads == 1 else "perf_counter"
    head = header(options.seed) | {"threads": options.threads, "clock": clock}
    layers = read(options.output, head)
    if options.again:
        families = options.family or list(FAMILIES)
        for index, layer in enumerate(layers):
            if layer["family"] in families:
                layers[index] = measured_again(layer, options.again, options.seconds, options.limit)
                jax.clear_caches()
        write(options.output, head, layers)
        return
    chosen = work(options.family or list(FAMILIES), options.role or list(ROLES), options.seed, options.count)
    for record in records(chosen, layers, options.seconds, options.limit, getattr(time, clock)):
        layers.append(record)
        write(options.output, head, layers)


if __name__ == "__main__":
    sys.exit(main())
