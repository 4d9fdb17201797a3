"""Layers of the seeded families by jaxcnn, in plain lax and in PyTorch, each role by itself."""

from __future__ import annotations

import math
import statistics
from typing import Any

import jax

from jaxcnn.lowering.spec import ConvSpec

from ..choice.families import macs
from ..choice.layers import jaxcnn_function, lax_function, operands
from ..choice.torch_layers import torch_function
from ..shared.environment import torch_or_none
from ..shared.timing import Statistic, compile_program, milliseconds


def measure(
    name: str, spec: ConvSpec, seconds: float, peak: float, bandwidth: float, statistic: Statistic = statistics.median
) -> dict[str, Any]:
    """Returns milliseconds by library, memory, seconds of the first call, and the share of the machine's ceilings.

    Args:
      name: the layer's family.
      spec: the layer.
      seconds: time for all libraries.
      peak: operations a second of the machine.
      bandwidth: bytes a second of the machine.
      statistic: what counts of the blocks of calls.
    """
    arrays = operands(spec)
    programs = {}
    for library, function in (("jaxcnn", jaxcnn_function(spec)), ("lax", lax_function(spec))):
        jax.clear_caches()  # or what one has traced is known to the other
        programs[library] = compile_program(function, *map(jax.numpy.asarray, arrays))
    calls = {library: compiled.call for library, compiled in programs.items()}
    if torch_or_none() is not None:
        calls["torch"] = torch_function(spec, *arrays, transposed=name == "transposed")
    times = milliseconds(calls, seconds, statistic)
    elements = sum(map(math.prod, (spec.input_shape, spec.kernel_shape, spec.output_shape)))
    least = max(2 * macs(spec) / peak, 4 * elements / bandwidth) * 1e3
    return {
        "milliseconds": times,
        "megabytes": {library: compiled.megabytes for library, compiled in programs.items()},
        "first_seconds": {library: compiled.first_seconds for library, compiled in programs.items()},
        "roofline": least / times["jaxcnn"],
    }
