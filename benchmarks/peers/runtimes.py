"""Whole networks in ONNX Runtime and OpenVINO, forward, in float32; and by jaxcnn without its native library."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxcnn

from ..shared.arrays import array
from ..shared.environment import native_available, processors
from ..shared.network_layers import OnnxLayers
from ..shared.networks import Network
from ..shared.timing import Program, compile_program

RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
WITHOUT_LIBRARY = "without library"
"""Name of jaxcnn's column without the native library."""


def missing() -> dict[str, str]:
    """Returns a reason for each runtime that cannot run here, by its module's name."""
    reasons = {}
    for module, name in RUNTIMES.items():
        absent = [part for part in (module, "onnx") if importlib.util.find_spec(part) is None]
        if absent:
            reasons[module] = f"{name} is left out: {' and '.join(absent)} not installed (pip install 'jaxcnn[peers]')"
    return reasons


def onnx_model(network: Network, weights: list[np.ndarray], shape: tuple[int, ...]) -> Any:
    """Returns a network as an ONNX model.

    Args:
      network: the network.
      weights: its weights, in lax's shapes.
      shape: (N, H, W, C) of its images; those of the model are (N, C, H, W).
    """
    layers = OnnxLayers(weights, network.width)
    n, height, width, channels = shape
    images = layers.images((n, channels, height, width))
    return layers.model(images, network.forward(layers, images))


def onnxruntime_session(model: bytes, inputs: Sequence[Any]) -> Callable[[], np.ndarray]:
    """Returns a call of a model in ONNX Runtime, on as many threads as this process has processors.

    Args:
      model: bytes of the model's file.
      inputs: arrays, in the order of the model's inputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = processors(), 1
    # Its threads would look for work while others are measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {value.name: np.asarray(array) for value, array in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)[0]


def _onnxruntime(model: bytes, images: np.ndarray) -> Callable[[], np.ndarray]:
    return onnxruntime_session(model, [images])


def _openvino(model: bytes, images: np.ndarray) -> Callable[[], np.ndarray]:
    # Imported with it, OpenVINO would report its use to its makers; without it, it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": processors(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # or it takes bfloat16 where the processor has it
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(images))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return call


def runtime_functions(network: Network, weights: list[np.ndarray], x: Any) -> dict[str, Callable[[], np.ndarray]]:
    """Returns the forward pass of each runtime that is installed; results are channels-first.

    Args:
      network: the network.
      weights: its weights, in lax's shapes.
      x: images (N, H, W, C).
    """
    names = [name for name in RUNTIMES if name not in missing()]
    if not names:
        return {}
    model = onnx_model(network, weights, x.shape).SerializeToString()
    images = np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2))
    makers = {"openvino": _openvino, "onnxruntime": _onnxruntime}
    return {name: makers[name](model, images) for name in names}


def _serve(connection: Any, network: Network, batch: int, role: str) -> None:
    """Computes the network each time that it is asked to."""
    arguments = [jnp.asarray(weight) for weight in network.weights()], array(batch, network.size, network.size, 3)
    compiled = compile_program(jaxcnn.accelerate(network.lax(role)), *arguments)
    connection.send((native_available(), compiled.first_seconds, compiled.megabytes))
    while connection.recv():
        compiled.call()
        connection.send(None)


@contextmanager
def without_library(network: Network, batch: int, role: str) -> Iterator[Program]:
    """Gives a network as a program of another process, one without the native library.

    A call takes some tens of microseconds longer than the network itself, for the message there and back.

    Raises:
      RuntimeError: the process has the library all the same.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, network, batch, role), daemon=True)
    before = os.environ.get("JAXCNN_NATIVE")
    os.environ["JAXCNN_NATIVE"] = "0"
    try:
        process.start()
    finally:
        os.environ.pop("JAXCNN_NATIVE")
        if before is not None:
            os.environ["JAXCNN_NATIVE"] = before
    there.close()

    def call() -> None:
        here.send(True)
        here.recv()

    try:
        available, seconds, megabytes = here.recv()
        if available:
            raise RuntimeError("JAXCNN_NATIVE=0 does not switch the native library off")
        yield Program(call, seconds, megabytes)
    finally:
        with suppress(OSError):
            here.send(False)
        process.join(10)
        if process.is_alive():
            process.terminate()
        here.close()
