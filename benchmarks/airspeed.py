"""Runs airspeed velocity in the checkout: `python -m benchmarks.airspeed run --quick`.

Each time, asv writes the list of all benchmarks with their source text into the folder of results. What no record needs
is taken out of it again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
LIST = "benchmarks.json"


def run_asv(*arguments: str, under: Sequence[str] = ()) -> int:
    """Runs asv in the checkout, prunes its list of benchmarks, and returns asv's exit code.

    Args:
      *arguments: a command of asv and its options.
      under: a command with its options that runs asv, as `taskset -c 0,1`.
    """
    code = subprocess.run([*under, sys.executable, "-m", "asv", *arguments], cwd=ROOT, check=False).returncode
    prune(RESULTS)
    return code


def recorded(results: Path) -> Iterable[str]:
    """Yields the names of the benchmarks that a file of results has values of."""
    for path in results.glob("*/*-*.json"):
        yield from json.loads(path.read_text())["results"]


def prune(results: Path) -> None:
    """Leaves in asv's list the benchmarks that are recorded, without their source text.

    asv shows the text as a hint over a curve, and tells the versions of a benchmark apart by a number of their own. The
    line at which a benchmark is set up would change with every edit of its file.
    """
    path = results / LIST
    if not path.exists():
        return
    names = {"version", *recorded(results)}
    content = {name: entry for name, entry in json.loads(path.read_text()).items() if name in names}
    for entry in content.values():
        if isinstance(entry, dict):
            entry["code"] = ""
            entry.pop("setup_cache_key", None)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(run_asv(*sys.argv[1:]))
