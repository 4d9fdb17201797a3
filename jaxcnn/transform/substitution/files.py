"""A substitution as one file: arrays by name, and their structure as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.npyio import NpzFile

from jaxcnn.chain import KernelChain
from jaxcnn.processes import whole
from jaxcnn.saving import whole_file
from jaxcnn.transform.chains.explicit_kernels import ComputedKernels
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.signature import Signature, flatten_call, short_name
from jaxcnn.transform.substitution.placing import array_like, chain_like, computed_like
from jaxcnn.transform.substitution.report import SubstitutionReport

_FORMAT_VERSION = 1
_STRUCTURE_NAME = "structure"


def _flatten_params(params: Any) -> tuple[list[str], list[Any], Signature]:
    signature, values = flatten_call("substitute", (params,), {}, (KernelChain,))
    return signature.paths(), values, signature


def save(
    path: str | os.PathLike[str], params: Any, placements: Mapping[str, Placement], report: SubstitutionReport
) -> None:
    """Writes parameters, chains and report to a file. Of several processes all call this, and the first one writes."""
    paths, values, _ = _flatten_params(params)
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for parameter_path, value in zip(paths, values, strict=True):
        links = value.kernels if isinstance(value, KernelChain) else (value,)
        names = [f"array_{len(arrays) + number}" for number in range(len(links))]
        entry: dict[str, Any] = {"path": parameter_path, "arrays": names, "dtypes": [str(link.dtype) for link in links]}
        for name, link in zip(names, links, strict=True):
            if jnp.issubdtype(link.dtype, jax.dtypes.prng_key):
                entry["key"] = str(jax.random.key_impl(link))
                link = jax.random.key_data(link)
            array = np.asarray(whole(link))
            # NumPy cannot store bfloat16 and similar dtypes, so the file holds their bits.
            arrays[name] = array if array.dtype.isbuiltin else array.view(f"u{array.dtype.itemsize}")
        if isinstance(value, KernelChain):
            entry["feature_group_counts"] = value.feature_group_counts
            entry["placement"] = dataclasses.asdict(placements[parameter_path])
        entries.append(entry)
    structure = {
        "format": _FORMAT_VERSION,
        "entries": entries,
        "computed": _computed_kernels(params),
        "report": json.loads(report.to_json()),
    }
    if jax.process_index() > 0:
        return
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, **{**arrays, _STRUCTURE_NAME: np.array(json.dumps(structure))})


def load(path: str | os.PathLike[str], params: Any) -> tuple[Any, SubstitutionReport, dict[str, Placement]]:
    """Returns the parameters with chains, the report and the placements of a file, for parameters of its structure."""
    name, file = os.fspath(path), _read(path)
    try:
        return _contents(name, file, params)
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"load: {name} is no substitution that was saved: {error!r}") from error
    except ValueError as error:
        if str(error).startswith("load: "):
            raise
        raise ValueError(f"load: {name} is no substitution that was saved: {error}") from error


def _contents(
    name: str, file: Mapping[str, np.ndarray], params: Any
) -> tuple[Any, SubstitutionReport, dict[str, Placement]]:
    """Returns what `load` does, from the arrays of a file."""
    structure = json.loads(str(file[_STRUCTURE_NAME]))
    if structure["format"] != _FORMAT_VERSION:
        raise ValueError(f"load: {name} is of format {structure['format']}, this version reads {_FORMAT_VERSION}")
    entries = structure["entries"]
    paths, values, signature = _flatten_params(_with_computed_kernels(params, structure.get("computed", {})))
    if [entry["path"] for entry in entries] != paths:
        missing = sorted({entry["path"] for entry in entries} ^ set(paths))
        names = ", ".join(map(short_name, missing[:3]))
        raise ValueError(f"load: {name} is of parameters of another structure: {names}")
    loaded: list[Any] = []
    placements = {}
    for entry, current in zip(entries, values, strict=True):
        links = [
            _as_array(file[array], dtype, entry.get("key"))
            for array, dtype in zip(entry["arrays"], entry["dtypes"], strict=True)
        ]
        placement = None
        if "placement" in entry:
            placement = Placement(**{k: _as_tuples(v) for k, v in entry["placement"].items()})
            placements[entry["path"]] = placement
        shape = links[0].shape if placement is None else placement.shape
        if not isinstance(current, KernelChain) and tuple(current.shape) != shape:
            raise ValueError(
                f"load: {name} is of another model: {short_name(entry['path'])} is {shape} there, in params "
                f"{tuple(current.shape)}"
            )
        if placement is not None:
            chain = KernelChain(tuple(links), tuple(entry["feature_group_counts"]))
            lead = len(placement.stack)
            single = KernelChain.of_shapes(
                *((link.shape[lead:], count) for link, count in zip(links, chain.feature_group_counts, strict=True))
            )
            if single.shape != placement.kernel_shape:
                path, expected = short_name(entry["path"]), placement.kernel_shape
                raise ValueError(f"the chain of {path} stands for a kernel {single.shape}, not {expected}")
            loaded.append(chain_like(chain, current, placement))
        else:
            loaded.append(array_like(links[0], current))
    report = SubstitutionReport.from_json(json.dumps(structure["report"]))
    return computed_like(signature.unflatten(loaded)[0][0], params), report, placements


def _computed_kernels(params: Any) -> dict[str, Any]:
    """Returns the structure of the `ComputedKernels` among parameters, by path."""
    signature, values = flatten_call("substitute", (params,), {}, (ComputedKernels, KernelChain))
    return {
        path: {
            "shape": value.shape,
            "dtype": value.dtype,
            "has_parameter": value.parameter is not None,
            "has_kernels": [kernel is not None for kernel in value.kernels],
        }
        for path, value in zip(signature.paths(), values, strict=True)
        if isinstance(value, ComputedKernels)
    }


def _with_computed_kernels(params: Any, computed: Mapping[str, Any]) -> Any:
    """Returns parameters with `ComputedKernels`, of shapes alone, where a file has them."""
    signature, values = flatten_call("substitute", (params,), {}, (ComputedKernels, KernelChain))
    for index, path in enumerate(signature.paths()):
        current = values[index]
        if path in computed and not isinstance(current, ComputedKernels):
            node = computed[path]
            if tuple(current.shape) != tuple(node["shape"]):
                raise ValueError(
                    f"load: the file is of another model: {short_name(path)} is {tuple(node['shape'])} there, in "
                    f"params {tuple(current.shape)}"
                )
            kernels = tuple(
                KernelChain.tree_unflatten((), ()) if has_kernel else None for has_kernel in node["has_kernels"]
            )
            parameter = current if node["has_parameter"] else None
            values[index] = ComputedKernels(parameter, kernels, tuple(node["shape"]), node["dtype"])
    return signature.unflatten(values)[0][0]


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file that `save` wrote."""
    foreign = f"load: {os.fspath(path)} is no substitution that was saved, or not all of it"
    try:
        with open(path, "rb") as stream:
            _check_sizes(stream)
            file = np.load(stream, allow_pickle=False)
            arrays = dict(file.items()) if isinstance(file, NpzFile) else {}
    except (ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(foreign) from error
    if _STRUCTURE_NAME not in arrays:
        raise ValueError(foreign)
    return arrays


def _check_sizes(stream: BinaryIO) -> None:
    """Refuses an archive whose arrays claim more bytes than the file has, before memory is set aside for them."""
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            with archive.open(member) as content:
                version = np.lib.format.read_magic(content)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read_header(content)
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} holds less than an array of shape {shape}")
    stream.seek(0)


def _as_array(values: np.ndarray, dtype: str, key: str | None) -> jax.Array:
    if key is not None:
        return jax.random.wrap_key_data(jnp.asarray(values), impl=key)
    return jnp.asarray(values if values.dtype == dtype else values.view(jnp.dtype(dtype)))


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
