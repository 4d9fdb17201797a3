"""Devices of the arrays of a substitution: all are read as a whole, and put back where the parameters lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxcnn.chain import KernelChain
from jaxcnn.processes import placed_like, whole
from jaxcnn.transform.chains.axis_views import Factors
from jaxcnn.transform.chains.explicit_kernels import ComputedKernels
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.signature import flatten_call

_REPLACEMENTS = (KernelChain, ComputedKernels)
"""Classes of what stands in place of parameters."""


def gathered(tree: Any) -> Any:
    """Returns a pytree whose arrays hold the parts of all processes; all processes call this."""
    return jax.tree.map(whole, tree)


def replacements(params: Any) -> dict[int, Any]:
    """Returns what stands in place of parameters, chains and `ComputedKernels`, by the index of the parameter."""
    _, values = flatten_call("substitute", (params,), {}, _REPLACEMENTS)
    return {index: value for index, value in enumerate(values) if isinstance(value, _REPLACEMENTS)}


def placed_like_parameters(substituted: Any, params: Any, placements: Mapping[str, Placement]) -> Any:
    """Returns parameters with chains, which lie as the kernels do.

    Args:
      substituted: parameters with chains.
      params: parameters as they were.
      placements: axes of each kernel in its parameter, by the parameter's path.
    """
    return params_with(params, replacements(substituted), placements)


def params_with(params: Any, replaced: Mapping[int, Any], placements: Mapping[str, Placement]) -> Any:
    """Returns parameters with chains and `ComputedKernels` in place of some, which lie as those do.

    Args:
      params: parameters as they were.
      replaced: replacement of a parameter, by the index of the parameter among the arrays of `params`.
      placements: axes of each kernel in its parameter, by the parameter's path.
    """
    signature, arrays = flatten_call("substitute", (params,), {})
    values = []
    for index, (path, array) in enumerate(zip(signature.paths(), arrays, strict=True)):
        value = replaced.get(index, array)
        if isinstance(value, KernelChain):
            value = chain_like(value, array, placements[path])
        elif isinstance(value, ComputedKernels):
            # A kernel that is computed has axes of its own.
            value = jax.tree.map(partial(_on_all_devices_of, array), value)
        values.append(value if index in replaced else on_device(value))
    return signature.unflatten(values)[0][0]


def on_device(value: Any) -> jax.Array:
    """Returns an array of JAX's with some values, as `jnp.asarray` does, without a program for each shape."""
    return jax.device_put(value) if isinstance(value, np.ndarray) else jnp.asarray(value)


def _on_all_devices_of(parameter: Any, array: Any) -> Any:
    """Returns an array that is whole on every device on which a parameter lies."""
    sharding = _sharding_to_keep(parameter)
    if sharding is None:
        return array
    whole_sharding = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
    return placed_like(array, whole_sharding)


def array_like(array: jax.Array, parameter: Any) -> jax.Array:
    """Returns an array that lies as a parameter of the same shape does."""
    sharding = _sharding_to_keep(parameter)
    return array if sharding is None else placed_like(array, sharding)


def chain_like(chain: KernelChain, parameter: Any, placement: Placement) -> KernelChain:
    """Returns a chain whose links lie as the parameter does that held the kernel.

    Axes that stack kernels are split as they were; the first link is split along its input features as the kernel was,
    and the last one along its output features. A depthwise first link is split along its features. Links are whole on
    every device along all other axes, and along those that do not divide evenly.

    Args:
      chain: chain in place of the kernel.
      parameter: parameter, or anything else with a sharding.
      placement: axes of the kernel in the parameter.
    """
    if isinstance(parameter, KernelChain):
        if [link.shape for link in chain.kernels] != [link.shape for link in parameter.kernels]:
            return chain
        return dataclasses.replace(chain, kernels=tuple(map(array_like, chain.kernels, parameter.kernels)))
    sharding = _sharding_to_keep(parameter)
    if sharding is None:
        return chain
    if not isinstance(sharding, NamedSharding):
        return dataclasses.replace(chain, kernels=tuple(placed_like(link, sharding) for link in chain.kernels))
    entries = (*sharding.spec, *(None,) * (len(placement.shape) - len(sharding.spec)))
    stack = [entries[axis] for axis in placement.stack]
    inputs, outputs = (_entry(entries, factors) for factors in (placement.inputs, placement.outputs))
    if not placement.inputs and chain.feature_group_counts[0] > 1:
        inputs = outputs if len(chain.kernels) > 1 else None  # of a depthwise kernel
    specs = [[*stack, *(None,) * (link.ndim - len(stack))] for link in chain.kernels]
    specs[0][-1 if chain.kernels[0].shape[-2] == 1 else -2] = inputs
    if len(specs) > 1 or inputs is None or inputs != outputs:
        specs[-1][-1] = outputs
    links = (
        placed_like(link, NamedSharding(sharding.mesh, _fitting(sharding.mesh, link.shape, spec)))
        for link, spec in zip(chain.kernels, specs, strict=True)
    )
    return dataclasses.replace(chain, kernels=tuple(links))


def _sharding_to_keep(parameter: Any) -> Any:
    """Returns the sharding of an array that was put somewhere; None for one that lies where JAX puts arrays."""
    sharding = getattr(parameter, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) or getattr(parameter, "committed", False) else None


def _entry(entries: Sequence[Any], factors: Factors) -> Any:
    """Returns the mesh axes along which the features of some factors are split; those of the slowest factor."""
    return entries[factors[0][0]] if factors else None


def _fitting(mesh: Any, shape: Sequence[int], spec: Sequence[Any]) -> PartitionSpec:
    """Returns a spec without the axes that do not divide evenly, and without mesh axes that occurred before."""
    entries: list[Any] = []
    used: set[str] = set()
    for size, entry in zip(shape, spec, strict=True):
        axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
        devices = 1
        for axis in axes:
            devices *= mesh.shape[axis]
        fits = size % devices == 0 and not used & {*axes}
        entries.append(entry if axes and fits else None)
        used |= {*axes} if fits else set()
    return PartitionSpec(*entries)
