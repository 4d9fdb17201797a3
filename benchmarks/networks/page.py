"""Tables of `docs/trained_networks.md`, from the records that `python -m benchmarks.networks --json` keeps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxcnn.transform.substitution.report import MAX_ERROR

from ..shared.timing import geometric_mean

RECORDS = Path(__file__).with_name("records.json")
"""File of the committed records."""

BEFORE = {
    "edges": ("0.039", "0.98", "2.6 to 2.9", "451"),
    "faces": ("0.01", "all", "0.9 to 1.5", "250"),
    "notes": ("0.03", "99 %", "1.5", "284"),
    "pitch": ("0.13 to 0.47", "most", "0.65", "118"),
    "spindles": ("0.003", "all", "0.25", "84"),
    "text detection": ("0.23", "0.93", "1.0", "692"),
    "object detection": ("0.05 to 0.07", "the best box moved", "1.5", "600, 4020"),
    "text recognition": ("0.39 to 0.71", "1 of 5", "1.5 to 1.8", "370, 2669"),
}
"""Results of the former search for networks of these kinds, at the same budgets: error, task kept, times faster
than `jax.jit`, and seconds, with compilations where they were counted. The machine was busy for some of them."""

Record = dict[str, Any]


def records() -> list[Record]:
    """Returns the committed records."""
    return json.loads(RECORDS.read_text())


def key(record: Record) -> tuple[Any, ...]:
    """Returns what a record is a measurement of; a newer one of the same replaces it."""
    return record["name"], record["mode"], record.get("macs"), record.get("count"), record.get("steps")


def merged(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Returns all records, of two of the same measurement the newer one."""
    return list(({key(record): record for record in old} | {key(record): record for record in new}).values())


def searches(measured: list[Record]) -> str:
    """Returns a row for each search, with what the search before this one gave."""
    rows = []
    for record in measured:
        if record["mode"] != "search" or record["steps"] or "failure" in record:
            continue
        error, kept, faster, seconds = BEFORE.get(record["name"], ("", "", "", ""))
        cost = _after(f"{record['wall_seconds']:.0f}", seconds), f"{record['compilations']}"
        if "refusal" in record:
            rows.append((record["network"], _budget(record), "refused", "", "", "", *cost, ""))
            continue
        times = record["milliseconds"]
        rows.append(
            (
                record["network"],
                _budget(record),
                _after(f"{record['error']:.3f}", error),
                _after(f"{record['kept']:.2f}", kept) + f" ({record['task']})",
                _after(f"{times['jit'] / times['chains']:.2f}", faster),
                f"{times['jit'] / times['chains accelerated']:.2f}",
                *cost,
                _memory(record),
            )
        )
    titles = ("budget", "error", "task kept", "times faster", "with `accelerate`", "search, s", "programs", "memory")
    return _table(("network", *titles), rows)


def distillations(measured: list[Record]) -> str:
    """Returns a row for each network whose chains were trained to the dense network's results."""
    rows = []
    for record in measured:
        if record["mode"] == "search" and record["steps"] and "before_training" in record:
            before = record["before_training"]
            rows.append(
                (
                    record["network"],
                    _budget(record),
                    f"{before['error']:.3f}",
                    f"{record['error']:.3f}",
                    _kept(before),
                    f"{_kept(record)} ({', '.join([record['task'], *record.get('further', {})])})",
                    f"{record['steps']} steps, {record['training_wall_seconds']:.0f} s",
                )
            )
    titles = ("budget", "error before", "error after", "task before", "task after", "training")
    return _table(("network", *titles), rows)


def accelerations(measured: list[Record]) -> str:
    """Returns a row for each network as it is: milliseconds by library, and seconds of the first call."""
    rows, over_runtime, over_jit = [], [], []
    for record in measured:
        if record["mode"] != "accelerate" or "failure" in record:
            continue
        times, first = record["milliseconds"], record["first_seconds"]
        over_jit.append(times["accelerate"] / times["jit"])
        runtime = times.get("onnxruntime")
        if runtime:
            over_runtime.append(times["accelerate"] / runtime)
        rows.append(
            (
                record["network"],
                f"{times['accelerate']:.2f}",
                f"{times['jit']:.2f} ({over_jit[-1]:.2f})",
                f"{runtime:.2f} ({over_runtime[-1]:.2f})" if runtime else "",
                f"{first['accelerate']:.1f} s",
                f"{first['jit']:.1f} s ({first['accelerate'] / first['jit']:.2f})",
            )
        )
    if rows:
        means = [f"({geometric_mean(ratios):.2f})" if ratios else "" for ratios in (over_jit, over_runtime)]
        rows.append(("geometric mean", "", *means, "", ""))
    titles = ("`accelerate` ms", "`jax.jit` ms", "ONNX Runtime ms", "first call", "first call of `jax.jit`")
    return _table(("network", *titles), rows)


def _kept(record: Record) -> str:
    return ", ".join(f"{share:.2f}" for share in (record["kept"], *record.get("further", {}).values()))


def _budget(record: Record) -> str:
    consent = ""
    if max(record.get("report_error") or 0.0, record.get("held_out_error") or 0.0) > MAX_ERROR:
        consent = ", max_error inf"
    return f"macs {record['macs']:g}" + (", count macs" if record["count"] == "macs" else "") + consent


def _after(now: str, before: str) -> str:
    return f"{before} → **{now}**" if before else f"**{now}**"


def _memory(record: Record) -> str:
    if "search_megabytes" not in record:
        return ""
    beyond = record["search_megabytes"] - record["calibration_megabytes"]
    return f"{record['search_megabytes']:.0f} MB ({beyond / record['dense_megabytes']:.1f}x)"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    align = ("---", *["---:"] * (len(header) - 1))
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, align, *rows))
