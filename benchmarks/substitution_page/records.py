"""Reads the tracked set out of asv's results, as what the page draws: commits in order, and series of values over them.

The values in the results are shares of another time, of which less is better. The page turns them into speed-ups.
"""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LABELS = "capabilities.json"
"""The file beside the results that says what a commit brought: labels by the hashes of commits."""
DIGITS = 5

SUBSTITUTION = re.compile(r"(?P<layer>.+?) (?:by|as) (?P<scheme>.+?)(?:: (?P<before>\d+) to (?P<after>\d+))?")


def subjects(root: Path = ROOT) -> dict[str, str]:
    """Returns the first line of each commit's message by the commit's hash; nothing where there is no repository."""
    command = ["git", "log", "--format=%H %s", "HEAD"]
    try:
        printed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(line.split(" ", 1) for line in printed.splitlines() if " " in line)


def read_records(results: Path, subject_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns one dict for each machine: its name `"machine"`, its `"commits"` from the oldest on, and its `"series"`.

    Args:
      results: Folder of asv's results.
      subject_of: First line of each commit's message, by the commit's hash.
    """
    if not (results / "benchmarks.json").exists():
        return []
    listed = json.loads((results / "benchmarks.json").read_text())
    label_of = json.loads((results / LABELS).read_text()) if (results / LABELS).exists() else {}
    machines = []
    for folder in sorted(path.parent for path in results.glob("*/machine.json")):
        files = [json.loads(path.read_text()) for path in folder.glob("*.json") if path.name != "machine.json"]
        files.sort(key=lambda content: content["date"])
        rows = [tracked_rows(content, listed) for content in files]
        measured = [number for number, row in enumerate(rows) if row]
        if measured:
            machines.append(
                {
                    "machine": folder.name,
                    "commits": [commit_of(files[number], subject_of, label_of) for number in measured],
                    "series": series_over([rows[number] for number in measured], listed),
                }
            )
    return machines


def commit_of(content: Mapping[str, Any], subject_of: Mapping[str, str], label_of: Mapping[str, str]) -> dict[str, Any]:
    """Returns a commit's short hash, date, subject and label, as the page shows them."""
    name = content["commit_hash"]
    subject = subject_of.get(name, name[:8])
    return {"hash": name[:8], "date": content["date"], "subject": subject, "label": label_of.get(name, subject)}


def tracked_rows(content: Mapping[str, Any], listed: Mapping[str, Any]) -> dict[tuple[str, str, str], float]:
    """Returns the values of a file of results by benchmark class, parameter and quantity, without its gaps."""
    columns = content["result_columns"]
    values: dict[tuple[str, str, str], float] = {}
    for benchmark, cells in content["results"].items():
        row = dict(zip(columns, cells, strict=False))
        suite, _, name = benchmark.rpartition(".track_")
        if not suite.startswith("tracked.") or not row.get("result") or benchmark not in listed:
            continue
        if row.get("version") != listed[benchmark]["version"]:
            continue  # measured in another way
        for parameter, value in zip(row["params"][0], row["result"], strict=True):
            if value is not None and math.isfinite(value):
                values[suite, ast.literal_eval(parameter), name] = float(f"{value:.{DIGITS}g}")
    return values


def series_over(rows: list[dict[tuple[str, str, str], float]], listed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns one series for each benchmark class and parameter: values of each quantity over the commits."""
    keys = sorted({key for row in rows for key in row})
    quantities: dict[tuple[str, str], dict[str, list[float | None]]] = {}
    for suite, parameter, quantity in keys:
        curve = [row.get((suite, parameter, quantity)) for row in rows]
        quantities.setdefault((suite, parameter), {})[quantity] = curve
    parameter_name = {name.rpartition(".track_")[0]: listed[name]["param_names"][0] for name in listed if "." in name}
    return [
        describe(parameter_name[suite], parameter, "macs_share" in values) | {"values": values}
        for (suite, parameter), values in quantities.items()
    ]


def describe(kind: str, name: str, is_substitution: bool) -> dict[str, Any]:
    """Returns a series' kind, its name, and the layer, the scheme and the network by which it is filtered.

    The kind of a substitution is `"substitution"`. If a scheme ends in two numbers of multiply-accumulates, these are
    `"macs"`, and the series' name lacks them. The name of a network has the library's function added to it.

    Args:
      kind: Name of the benchmark's parameter: `"scheme"`, `"layer"` or `"network"`.
      name: Value of the parameter, such as `"5x5 as two 3x3: 25 to 18"`.
      is_substitution: flag, True if small kernels are compared with a dense one.
    """
    series = {
        "kind": "substitution" if is_substitution else kind,
        "name": name,
        "layer": name if kind == "layer" else None,
        "scheme": "substitute" if is_substitution else "exact methods",
        "network": name if kind == "network" else None,
        "macs": None,
    }
    if kind == "scheme" and (match := SUBSTITUTION.fullmatch(name)):
        series |= {"layer": match["layer"], "scheme": match["scheme"]}
        if match["before"]:
            series |= {"name": name.rpartition(":")[0], "macs": [int(match["before"]), int(match["after"])]}
    elif kind == "network":
        series["name"] = f"{name} by {'substitute' if is_substitution else 'accelerate'}"
    return series
