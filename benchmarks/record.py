"""Records the tracked set for commits, with airspeed velocity: `make bench`, `make bench-history COMMITS="..."`.

Every commit is measured in several rounds, each of which takes the commits in another order, so that a step between two
of them is a step of the code and not of the machine. The record of a commit is the median over its rounds. Values of
finished rounds are kept in build/history, where an interrupted run goes on when it is started again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .airspeed import RESULTS, ROOT, run_asv

ROUNDS_KEPT = ROOT / "build/history"
TRACKED = r"^tracked\."
INSTALL_ONLY = "just-discover"
"""The name by which asv installs a commit, looks for benchmarks, and runs none."""
FORK = ("--launch-method", "forkserver")
"""Options of asv by which a value is read in a process that has imported the suites, in place of a new one."""
FAILED_BENCHMARKS = 2
"""The exit code of asv where a commit is measured, and one of its benchmarks failed."""

Values = list[float | None]
"""The values of a benchmark, one for each set of parameters: NaN where the commit has none, None after a failure."""


def commit_hash(name: str) -> str:
    """Returns the full hash of a commit."""
    command = ["git", "rev-parse", "--verify", f"{name}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def result_file(folder: Path, commit: str) -> Path:
    """Returns the file in which asv keeps a commit's results.

    Raises:
      FileNotFoundError: there is none, or one for each of several environments.
    """
    files = sorted(folder.glob(f"{commit[:8]}-*.json"))
    if len(files) != 1:
        raise FileNotFoundError(f"{folder} holds {len(files)} results of {commit[:8]}, expected one")
    return files[0]


def values_of(content: dict[str, Any]) -> dict[str, Values]:
    """Returns the values of the tracked benchmarks in a file of results."""
    return {name: row[0] for name, row in content["results"].items() if name.startswith("tracked.") and row[0]}


def median_values(rounds: Sequence[dict[str, Values]]) -> dict[str, Values]:
    """Returns the medians over rounds; a value that is missing in all of them stays so."""

    def median(values: Iterable[float | None]) -> float | None:
        values = list(values)
        numbers = [value for value in values if value is not None and not math.isnan(value)]
        return statistics.median(numbers) if numbers else values[0]

    names = dict.fromkeys(name for values in rounds for name in values)
    rows = {name: [values[name] for values in rounds if name in values] for name in names}
    return {name: [median(column) for column in zip(*rows[name], strict=True)] for name in names}


def measure_round(commit: str, machine: str, kept: Path, options: Sequence[str], under: Sequence[str] = ()) -> bool:
    """Measures a commit once, and keeps the values; returns whether that went well.

    Building and installing come first, in a run of their own: they need no quiet.
    """
    for bench, command in ((INSTALL_ONLY, ()), (TRACKED, under)):
        arguments = ("run", "--machine", machine, "--bench", bench, *FORK, "--show-stderr", *options, f"{commit}^!")
        code = run_asv(*arguments, under=command)
        if code not in (0, FAILED_BENCHMARKS):
            print(f"{commit[:8]} is not measured: asv ended with {code}", file=sys.stderr)
            return False
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(values_of(json.loads(result_file(RESULTS / machine, commit).read_text()))))
    return True


def write_medians(commit: str, machine: str, rounds: Sequence[Path]) -> None:
    """Writes the medians over a commit's rounds into its file of results."""
    path = result_file(RESULTS / machine, commit)
    content = json.loads(path.read_text())
    for name, values in median_values([json.loads(kept.read_text()) for kept in rounds]).items():
        content["results"][name][0] = values
    path.write_text(json.dumps(content, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", default=["HEAD"], help="names of commits (HEAD)")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each commit")
    parser.add_argument("--machine", required=True, help="name of the kind of machine")
    parser.add_argument(
        "--measurements", type=int, default=sys.maxsize, help="stop after so many; a later start goes on"
    )
    parser.add_argument(
        "--under", type=shlex.split, default=[], help='command that runs a measurement: "taskset -c 0,1"'
    )
    parser.add_argument("--asv", action="append", default=[], help="option for `asv run`; may be repeated")
    options = parser.parse_args(arguments)
    commits = list(dict.fromkeys(map(commit_hash, options.commits)))
    rounds = {
        commit: [ROUNDS_KEPT / options.machine / f"{commit}-{number}.json" for number in range(options.rounds)]
        for commit in commits
    }
    orders = [random.Random(number).sample(commits, len(commits)) for number in range(options.rounds)]
    todo = [(commit, rounds[commit][number]) for number, order in enumerate(orders) for commit in order]
    todo = [(commit, path) for commit, path in todo if not path.exists()]
    for commit, path in todo[: options.measurements]:
        if measure_round(commit, options.machine, path, options.asv, options.under):
            write_medians(commit, options.machine, [path for path in rounds[commit] if path.exists()])
    if len(todo) <= options.measurements:
        for path in itertools.chain(*rounds.values()):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
