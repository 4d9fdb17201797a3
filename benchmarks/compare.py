"""Prints what moved by more than a quarter between the records of two commits: `make compare BASE=v1`.

A record is committed after the commit that it was made for. So each name stands for the newest commit with a record at
it or before it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from .airspeed import RESULTS, ROOT

FACTOR = 1.25


def recorded_commits(results: Path, machine: str) -> set[str]:
    """Returns the beginnings of hashes by which asv names a machine's records."""
    return {path.name.partition("-")[0] for path in (results / machine).glob("*-*.json")}


def newest_recorded(name: str, recorded: Collection[str], root: Path = ROOT) -> str:
    """Returns the newest commit with a record among a commit and those before it.

    Raises:
      SystemExit: none of them has a record, or there is no such commit.
    """
    command = ["git", "rev-list", "--first-parent", name]
    listed = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    if listed.returncode:
        raise SystemExit(f"compare: there is no commit {name}")
    for commit in listed.stdout.split():
        if commit[:8] in recorded:
            return commit
    raise SystemExit(f"compare: neither {name} nor a commit before it has a record, which `make bench` makes")


def main(arguments: list[str] | None = None, root: Path = ROOT, results: Path = RESULTS) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", help="commit to compare with (the record before the current one)")
    parser.add_argument("--machine", required=True, help="name of the kind of machine")
    parser.add_argument("--asv", action="append", default=[], help="option for `asv compare`; may be repeated")
    options = parser.parse_args(arguments)
    recorded = recorded_commits(results, options.machine)
    head = newest_recorded("HEAD", recorded, root)
    base = newest_recorded(options.base or f"{head}~1", recorded, root)
    command = [sys.executable, "-m", "asv", "compare", "--machine", options.machine, "--factor", str(FACTOR)]
    command += ["--only-changed", *options.asv, base, head]
    compared = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    if compared.returncode:
        raise SystemExit(compared.stdout + compared.stderr)
    print(f"{base[:8]} before, {head[:8]} after. Lower is better: + is worse, - is better.")
    print(compared.stdout.strip() or "No value moved by more than a quarter.")


if __name__ == "__main__":
    main()
