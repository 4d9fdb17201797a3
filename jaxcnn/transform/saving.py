"""A substitution as one file: arrays by name, and their structure as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.transform.arguments import Signature, split
from jaxcnn.transform.report import Report

if TYPE_CHECKING:
    from jaxcnn.transform.placement import Placement

_FORMAT = 1
_STRUCTURE = "structure"


def _arrays(params: Any) -> tuple[list[str], list[Any], Signature]:
    signature, values = split("substitute", (params,), {}, (KernelChain,))
    return signature.paths(), values, signature


def save(path: str | os.PathLike[str], params: Any, placements: Mapping[str, Placement], report: Report) -> None:
    """Writes parameters, chains and report."""
    paths, values, _ = _arrays(params)
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for at, value in zip(paths, values, strict=True):
        links = value.kernels if isinstance(value, KernelChain) else (value,)
        names = [f"array_{len(arrays) + number}" for number in range(len(links))]
        for name, link in zip(names, links, strict=True):
            array = np.asarray(link)
            # NumPy has no name for bfloat16 and its like: their bits are kept.
            arrays[name] = array if array.dtype.isbuiltin else array.view(f"u{array.dtype.itemsize}")
        entry: dict[str, Any] = {"path": at, "arrays": names, "dtypes": [str(np.asarray(link).dtype) for link in links]}
        if isinstance(value, KernelChain):
            entry["feature_group_counts"] = value.feature_group_counts
            entry["placement"] = dataclasses.asdict(placements[at])
        entries.append(entry)
    structure = {"format": _FORMAT, "entries": entries, "report": json.loads(report.to_json())}
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **{**arrays, _STRUCTURE: np.array(json.dumps(structure))})


def load(path: str | os.PathLike[str], params: Any) -> tuple[Any, Report, dict[str, Placement]]:
    """The parameters with chains, the report and the placements of a file, for parameters of its structure."""
    from jaxcnn.transform.placement import Placement

    with np.load(path, allow_pickle=False) as file:
        if _STRUCTURE not in file:
            raise ValueError(f"load: {os.fspath(path)} is no substitution that was saved")
        structure = json.loads(str(file[_STRUCTURE]))
        if structure["format"] != _FORMAT:
            raise ValueError(
                f"load: {os.fspath(path)} is of format {structure['format']}, this version reads {_FORMAT}"
            )
        paths, _, signature = _arrays(params)
        entries = structure["entries"]
        if [entry["path"] for entry in entries] != paths:
            missing = sorted({entry["path"] for entry in entries} ^ set(paths))
            raise ValueError(f"load: {os.fspath(path)} is of parameters of another structure: {', '.join(missing[:3])}")
        loaded: list[Any] = []
        placements = {}
        for entry in entries:
            links = [
                jnp.asarray(file[name] if file[name].dtype == dtype else file[name].view(jnp.dtype(dtype)))
                for name, dtype in zip(entry["arrays"], entry["dtypes"], strict=True)
            ]
            if "placement" in entry:
                placements[entry["path"]] = Placement(**{k: _tuples(v) for k, v in entry["placement"].items()})
                loaded.append(KernelChain(tuple(links), tuple(entry["feature_group_counts"])))
            else:
                loaded.append(links[0])
    report = Report.from_json(json.dumps(structure["report"]))
    return signature.unflatten(loaded)[0][0], report, placements


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
