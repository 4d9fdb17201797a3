"""Prints what chains in the place of large kernels gain on the clock: `python -m benchmarks.peers.chains`.

Each line is one layer as a chain at a ratio of multiply-accumulates: how many times fewer they are, and how many times
faster the chain is than jaxcnn's exact layer (by `method="auto"`) and than the layer in lax. The clock over the
arithmetic is the second figure over the first. All are ratios of medians over blocks of calls that take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import jaxcnn

from ..shared import plain
from ..shared.arrays import array, decaying_kernel
from ..shared.environment import keep_to_processors, processors
from ..shared.timing import geometric_mean, milliseconds

PIXELS = 56
RANKS = {"separable": "rank", "low_rank": "rank", "tucker2": "ranks"}
"""The schemes, and what each calls its rank."""


def chains(
    sizes: Sequence[int], widths: Sequence[int], ratios: Sequence[float], multiple: int = 1
) -> Iterator[tuple[str, Any, Any]]:
    """Yields names, dense kernels and chains: columns and rows of full width first, then each scheme at each ratio.

    The ranks of the schemes are multiples of `multiple`.
    """
    for size in sizes:
        for channels in widths:
            dense = decaying_kernel(size, size, channels, channels)
            name = f"{size}x{size}, {channels} channels"
            yield f"1x{size} after {size}x1, {name}", dense, jaxcnn.separable(dense, rank=channels)
            for scheme, argument in RANKS.items():
                for ratio in ratios:
                    shape = (1, PIXELS, PIXELS, channels)
                    rank = jaxcnn.select_rank(dense, scheme, macs=1 / ratio, input_shape=shape, multiple=multiple)
                    yield f"{scheme} {ratio:g}, {name}", dense, getattr(jaxcnn, scheme)(dense, **{argument: rank})


def measure(dense: Any, chain: Any, seconds: float) -> dict[str, float]:
    """Returns the ratio of the multiply-accumulates, and the milliseconds of the chain and of the exact layer."""
    x = array(1, PIXELS, PIXELS, dense.shape[-2])
    functions = {"chain": (jaxcnn.conv, chain), "exact": (jaxcnn.conv, dense), "lax": (plain.conv, dense)}
    calls = {}
    for name, (function, kernel) in functions.items():
        compiled = jax.jit(function).lower(x, kernel).compile()
        calls[name] = lambda compiled=compiled, kernel=kernel: jax.block_until_ready(compiled(x, kernel))
    cost, exact = jaxcnn.conv_cost(x.shape, chain), jaxcnn.conv_cost(x.shape, dense)
    return {"fewer MACs": exact.macs / cost.macs, **milliseconds(calls, seconds)}


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.chains", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[11, 7], help="pixels of the kernels' sides")
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--ratio", type=float, nargs="+", default=[2, 3, 4, 6], help="of multiply-accumulates")
    parser.add_argument("--multiple", type=int, default=1, help="of which ranks are multiples; 8 suits vector units")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line, without compiling")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    keep_to_processors(processors())
    rows: dict[str, dict[str, float]] = {}
    print(f"{'layer':44} fewer MACs  faster than exact  faster than lax  clock over arithmetic")
    for name, dense, chain in chains(options.size, options.channels, options.ratio, options.multiple):
        rows[name] = times = measure(dense, chain, options.seconds)
        faster, than_lax = times["exact"] / times["chain"], times["lax"] / times["chain"]
        share = faster / times["fewer MACs"]
        print(f"{name:44} {times['fewer MACs']:10.2f}  {faster:17.2f}  {than_lax:15.2f}  {share:21.2f}", flush=True)
    shares = [row["exact"] / row["chain"] / row["fewer MACs"] for row in rows.values()]
    print(f"clock over arithmetic: geometric mean {geometric_mean(shares):.2f}, least {min(shares):.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
