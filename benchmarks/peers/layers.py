"""Single layers by jaxcnn, in plain lax, Flax and PyTorch, and image filters by SciPy and OpenCV.

Flax's layers call lax: their column says whether anything is lost or won on the way.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..shared.arrays import array
from ..shared.environment import torch_or_none
from ..shared.layers import Layer, in_role
from ..shared.timing import Program, Statistic, compile_program, milliseconds
from ..shared.torch_layers import torch_function


def _flax_pool(layer: Layer, x: jax.Array) -> jax.Array:
    from flax import linen

    pool = linen.max_pool if layer.pool == "max" else linen.avg_pool
    return pool(x, layer.window, (layer.strides,) * 2, layer.padding)


def _flax_conv(layer: Layer, x: jax.Array, kernel: jax.Array) -> jax.Array:
    from flax import linen

    options = {"features": layer.features, "kernel_size": layer.window, "strides": layer.strides, "use_bias": False}
    if layer.transposed:
        module = linen.ConvTranspose(**options, padding=layer.padding_of_adjoint, transpose_kernel=True)
    else:
        module = linen.Conv(**options, padding=layer.padding, feature_group_count=layer.groups)
    return module.apply({"params": {"kernel": kernel}}, x)


def _filter_functions(x: np.ndarray, kernel: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Returns an image filter by SciPy and OpenCV, where they are installed."""
    image, taps = x[0, :, :, 0], kernel[:, :, 0, 0]
    functions: dict[str, Callable[[], Any]] = {}
    try:
        from scipy import ndimage, signal
    except ImportError:
        pass
    else:
        functions["scipy"] = lambda: ndimage.correlate(image, taps, mode="constant")
        functions["scipy fft"] = lambda: signal.fftconvolve(image, taps[::-1, ::-1], mode="same")
    try:
        import cv2
    except ImportError:
        pass
    else:
        functions["opencv"] = lambda: cv2.filter2D(image, -1, taps, borderType=cv2.BORDER_CONSTANT)
    return functions


def _flax_installed() -> bool:
    return importlib.util.find_spec("flax") is not None


def functions(layer: Layer, role: str) -> tuple[dict[str, Callable[[], Any]], dict[str, Program]]:
    """Returns what is timed by library, and the programs of jaxcnn and lax."""
    arguments = layer.arguments(role)
    forms: dict[str, Callable] = {"jaxcnn": layer.by_jaxcnn, "lax": layer.by_lax}
    if _flax_installed():
        forms["flax"] = functools.partial(_flax_pool if layer.pool else _flax_conv, layer)
    programs: dict[str, Program] = {}
    for name, function in forms.items():
        jax.clear_caches()  # equal layers of another library, or of the row before, would be found traced
        programs[name] = compile_program(in_role(function, role), *arguments)
    calls = {name: program.call for name, program in programs.items()}
    if torch_or_none() is not None:
        calls["torch"] = torch_function(layer, role, *arguments)
    if role == "forward" and not layer.pool and layer.x[-1] == layer.features == 1:
        calls |= _filter_functions(*map(np.asarray, arguments))
    return calls, {name: programs[name] for name in ("jaxcnn", "lax")}


def ceilings() -> tuple[float, float]:
    """Returns operations a second of a matrix product, and bytes a second of a copy from memory, on this machine."""
    a = array(2048, 2048)
    product = milliseconds({"product": compile_program(lambda a: a @ a, a).call}, 2.0)["product"]
    b = jnp.zeros((64, 1 << 20))
    copy = milliseconds({"copy": compile_program(lambda b: b + 1, b).call}, 2.0)["copy"]
    return 2 * 2048**3 / product * 1e3, 2 * b.nbytes / copy * 1e3


def _roofline_milliseconds(layer: Layer, role: str, peak: float, bandwidth: float) -> float:
    times = 1 if role == "forward" else 2
    return times * max(layer.cost.flops / peak, layer.cost.bytes / bandwidth) * 1e3


def measure(
    layer: Layer, role: str, seconds: float, peak: float, bandwidth: float, statistic: Statistic = statistics.median
) -> dict[str, Any]:
    """Returns milliseconds by library, memory, seconds of the first call, and the share of the machine's ceilings."""
    calls, programs = functions(layer, role)
    times = milliseconds(calls, seconds, statistic)
    roofline = _roofline_milliseconds(layer, role, peak, bandwidth) / times["jaxcnn"]
    return {
        "milliseconds": times,
        "megabytes": {name: program.megabytes for name, program in programs.items()},
        "first_seconds": {name: program.first_seconds for name, program in programs.items()},
        "roofline": roofline,
    }
