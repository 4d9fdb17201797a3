"""Whole networks in plain lax, through `jaxcnn.accelerate`, and in other libraries' own layers, of equal weights."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxcnn

from .common import array, native_available
from .network_layers import TorchLayers, draw
from .networks import Network
from .peer_runtimes import WITHOUT_LIBRARY, runtime_functions, without_library
from .timing import Statistic, milliseconds, program, torch_or_none


def torch_function(network: Network, role: str, weights: list[Any], x: Any) -> Callable[[], Any]:
    """The forward pass, or the loss's gradient by all weights, by PyTorch; takes weights and images of lax's shapes."""
    torch = torch_or_none()
    kinds = [kind for kind, _ in network.asked(x.shape[1])]
    tensors = [TorchLayers.weight(kind, weight) for kind, weight in zip(kinds, weights, strict=True)]
    images = TorchLayers.images(x)

    def forward() -> Any:
        with torch.no_grad():
            return network.forward(TorchLayers(tensors, network.width), images)

    def gradient() -> Any:
        layers = TorchLayers(tensors, network.width)
        return torch.autograd.grad(layers.cross_entropy(network.forward(layers, images)), tensors)

    if role == "gradient":
        for tensor in tensors:
            tensor.requires_grad_()
    return forward if role == "forward" else gradient


def measure(
    network: Network, batch: int, role: str, seconds: float, statistic: Statistic = statistics.median
) -> dict[str, Any]:
    """Returns milliseconds by library, memory, and seconds of the first call.

    ONNX Runtime and OpenVINO compute forward passes alone. Where this process has jaxcnn's native library, another one
    without it computes the network too.
    """
    weights = draw(network.asked())
    x = array(batch, network.size, network.size, 3)
    arguments = ([jnp.asarray(weight) for weight in weights], x)
    plain = network.lax(role)
    programs = {}
    for name, function in (("lax", plain), ("jaxcnn", jaxcnn.accelerate(plain))):
        # The second would find the inner functions of the first already traced.
        jax.clear_caches()
        programs[name] = program(function, *arguments)
    functions = {name: programs[name].call for name in ("jaxcnn", "lax")}
    if torch_or_none() is not None:
        functions["torch"] = torch_function(network, role, weights, x)
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
