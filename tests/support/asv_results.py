"""Results of a small repository in asv's format: pages are made of them in tests without measuring anything."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.asv import tracked

SUBJECTS = (
    "Convolution by lax alone",
    "Small kernels as chains",
    "Shifted products in place of depthwise convolutions, for every stride and dilation",
    "Tiles of Winograd's products",
    "Any function accelerated",
    "Kernels of any function substituted",
    "Dense windows as products",
    "Groups in a loop",
    "Bands of rows",
    "Layers weighed at several errors",
    "Bias and activations in the kernels",
    "Native kernels",
)
LABELS = (
    *("lax alone", "chains", "", "Winograd tiles, tables", "accelerate, all schemes, factorize", "substitute"),
    *("dense windows as matrix products", "groups in a loop, faster pools", "large images in bands of rows"),
    *("layers weighed at several errors", "bias and activation inside the kernels", "native kernels"),
)
"""Labels of the commits; the third has none."""
MACHINE = "small-machine"
GAPS = {"Substituted": 5, "Accelerated": 4}
"""The first commit with a value, of classes whose values begin late."""


def git(folder: Path, *arguments: str) -> str:
    """Runs git, and returns what it prints."""
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def benchmarks_of(module: Any) -> dict[str, tuple[type, str]]:
    """Returns the class and the method of each benchmark."""
    classes = [cls for cls in vars(module).values() if isinstance(cls, type) and hasattr(cls, "param_names")]
    return {
        f"tracked.{cls.__name__}.{name}": (cls, name)
        for cls in classes
        for name in dir(cls)
        if name.startswith("track_")
    }


def macs_share(name: str) -> float:
    """Returns the share that is in a name such as "25 to 18", or a quarter."""
    numbers = re.search(r"(\d+) to (\d+)$", name)
    return int(numbers[2]) / int(numbers[1]) if numbers else 0.25


def value(cls: type, method: str, name: str, commit: int) -> float:
    """Returns a value that depends on the benchmark, and falls from commit to commit, most of all to the last one."""
    if commit < GAPS.get(cls.__name__, 0):
        return math.nan
    position = sorted(cls.params[0]).index(name)
    slowness = (1.9 - 0.1 * position) * 0.95**commit * (0.4 if commit == len(SUBJECTS) - 1 else 1.0)
    metric = method.removeprefix("track_")
    return {
        "macs_share": macs_share(name),
        "time_over_exact": macs_share(name) * slowness,
        "clock_over_arithmetic": slowness,
        "error": 1e-6 if " to " in name else 0.05 * (position + 1),
        "compilations": 7.0,
    }.get(metric, slowness * (0.5 if metric == "time_over_lax" else 0.8))


def write_results(folder: Path, machine: str = MACHINE) -> list[str]:
    """Writes a git repository, asv's settings and one file of results for each commit. Returns the commits."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    results = folder / "benchmarks/results"
    (results / machine).mkdir(parents=True)
    settings = {
        "version": 1,
        "project": "jaxcnn",
        "repo": ".",
        "branches": ["HEAD"],
        "environment_type": "virtualenv",
        "benchmark_dir": "benchmarks/asv",
        "results_dir": "benchmarks/results",
        "html_dir": ".asv/html",
        "regressions_thresholds": {".*": 0.25},
    }
    (folder / "asv.conf.json").write_text(json.dumps(settings))
    (results / machine / "machine.json").write_text(json.dumps({"machine": machine, "version": 1}))
    benchmarks = benchmarks_of(tracked)
    listed = {
        name: {
            "code": "",
            "name": name,
            "param_names": list(cls.param_names),
            "params": [[repr(name) for name in cls.params[0]]],
            "timeout": 300,
            "type": "track",
            "unit": getattr(cls, method).unit,
            "version": cls.version,
        }
        for name, (cls, method) in benchmarks.items()
    }
    (results / "benchmarks.json").write_text(json.dumps(listed | {"version": 2}))
    commits = []
    for number, subject in enumerate(SUBJECTS):
        git(folder, "commit", "--quiet", "--allow-empty", f"--date=2026-01-{number + 1:02}T12:00:00Z", "-m", subject)
        commits.append(git(folder, "rev-parse", "HEAD"))
        rows = {
            name: [[value(cls, method, param, number) for param in cls.params[0]], listed[name]["params"], cls.version]
            for name, (cls, method) in benchmarks.items()
        }
        content = {
            "commit_hash": commits[-1],
            "env_name": "virtualenv-py3.11-jax0.10.2",
            "date": 1767268800000 + 86_400_000 * number,
            "params": {"machine": machine, "python": "3.11", "jax": "0.10.2"},
            "python": "3.11",
            "requirements": {"jax": "0.10.2"},
            "env_vars": {},
            "result_columns": ["result", "params", "version"],
            "results": rows,
            "durations": {},
            "version": 2,
        }
        (results / machine / f"{commits[-1][:8]}-virtualenv-py3.11-jax0.10.2.json").write_text(json.dumps(content))
    labels = {commit: label for commit, label in zip(commits, LABELS, strict=True) if label}
    (results / "capabilities.json").write_text(json.dumps(labels))
    return commits
