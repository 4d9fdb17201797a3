"""Whole networks in plain lax, through `jaxcnn.accelerate`, and in other libraries' own layers, of equal weights."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp

import jaxcnn

from ..shared.arrays import array
from ..shared.environment import native_available, torch_or_none
from ..shared.network_layers import draw
from ..shared.networks import Network
from ..shared.timing import Statistic, compile_program, milliseconds
from .runtimes import WITHOUT_LIBRARY, runtime_functions, without_library


def measure(
    network: Network, batch: int, role: str, seconds: float, statistic: Statistic = statistics.median
) -> dict[str, Any]:
    """Returns milliseconds by library, memory, and seconds of the first call.

    ONNX Runtime and OpenVINO compute forward passes alone. Where this process has jaxcnn's native library, another one
    without it computes the network too.
    """
    weights = draw(network.weight_specs())
    x = array(batch, network.size, network.size, 3)
    arguments = ([jnp.asarray(weight) for weight in weights], x)
    plain = network.lax(role)
    programs = {}
    for name, function in (("lax", plain), ("jaxcnn", jaxcnn.accelerate(plain))):
        # The second would find the inner functions of the first already traced.
        jax.clear_caches()
        programs[name] = compile_program(function, *arguments)
    functions = {name: programs[name].call for name in ("jaxcnn", "lax")}
    if torch_or_none() is not None:
        functions["torch"] = network.torch(role, weights, x)
    if role == "forward":
        functions |= runtime_functions(network, weights, x)
    with contextlib.ExitStack() as stack:
        if native_available():
            programs[WITHOUT_LIBRARY] = stack.enter_context(without_library(network, batch, role))
            functions[WITHOUT_LIBRARY] = programs[WITHOUT_LIBRARY].call
        times = milliseconds(functions, seconds, statistic)
    return {
        "milliseconds": times,
        "megabytes": {name: programs[name].megabytes for name in functions if name in programs},
        "first_seconds": {name: programs[name].first_seconds for name in functions if name in programs},
    }
