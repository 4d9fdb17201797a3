"""`tune` measures which method is the fastest for each convolution of a function on this device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from itertools import chain
from typing import Any

import jax
import numpy as np

from jaxcnn.factorization.numerics.ranks import check_number
from jaxcnn.lowering import choice
from jaxcnn.lowering import tuning_table as tables
from jaxcnn.lowering.methods import direct
from jaxcnn.lowering.spec import ConvSpec
from jaxcnn.lowering.tuning_table import Measurement, TuningTable
from jaxcnn.processes import decided_by_first
from jaxcnn.timing import median_seconds
from jaxcnn.transform.acceleration.accelerate import accelerate
from jaxcnn.transform.jaxpr.signature import compile_uncached, flatten_call, has_split_array
from jaxcnn.transform.progress import bar

_TIE_RATIO = 1.05
"""Largest ratio of the time of `direct` to the fastest for which `direct` wins; two runs differ by as much."""
_HOPELESS_RATIO = 4.0
"""Ratio to the best time so far above which the measurement of a method stops."""
_MAX_PROGRAM_EQUATIONS = 1000
"""Largest number of equations of a program that is compiled only for a measurement; XLA is slow on larger ones."""


def tune(f: Callable[..., Any], *args: Any, seconds: float = 30.0, progress: bool = True) -> TuningTable:
    """Measures which method is the fastest for each convolution that a function executes on this device.

    The function is traced and lowered for its arguments' shapes, and is not run. Each distinct convolution in it, those
    of its derivatives included, is then computed from random operands by each method that supports it, in blocks of
    calls that take turns, so that a slowdown of the machine affects all of them. The methods' medians decide; `direct`
    is kept where it is within a twentieth of the fastest. A convolution for which the user asked for a method is left
    out.

    Args:
      f: function; `jax.grad` of a loss, or a whole training step, to tune derivatives too.
      *args: arguments of f. Arrays, and anything else with a shape and a dtype such as `jax.ShapeDtypeStruct`, are
        traced, with their sharding; all other leaves (bool, int, float, str, None, functions) reach f as they are.
      seconds: approximate time of the measurement, shared among the convolutions. `direct` and the method that would be
        taken without a table are measured in any case, a method that is left when the time is up is not.
      progress: flag to show a progress bar on a terminal once the measurement has taken two seconds; needs rich.

    Returns:
      A table to use by `with table:` or `table.install()`, and to keep by `table.save(path)`.

    Raises:
      ValueError: `seconds` is not positive, or infinite; an argument is split over a mesh without devices.
      TypeError: f is no function, or an argument that is not an array is not hashable.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> x, kernel = jnp.ones((1, 16, 16, 8)), jnp.ones((3, 3, 8, 1))
      >>> table = jaxcnn.tune(jaxcnn.depthwise_conv, x, kernel, seconds=0.1)
      >>> len(table.entries)
      1

    References:
      M. Frigo, S. G. Johnson, "FFTW: an adaptive software architecture for the FFT", ICASSP 1998: plans by measurement.
    """
    if not callable(f):
        raise TypeError(f"tune: f must be a function, got {f!r}")
    seconds = check_number("tune: seconds", seconds)
    if not seconds > 0:
        raise ValueError(f"tune: seconds must be positive, got {seconds:g}")
    if math.isinf(seconds):
        raise ValueError(f"tune: seconds must be finite, got {seconds:g}")
    specs = _record_specs(accelerate(f), args)  # so that lax's own convolutions are among them
    device = _device()
    end = time.perf_counter() + seconds

    def measure_all() -> tuple[Measurement, ...]:
        entries = []
        with bar("Measuring convolutions", len(specs), progress) as advance:
            for index, spec in enumerate(specs):
                share = max(end - time.perf_counter(), 0.0) / (len(specs) - index)
                entries.append(_measure(spec, device.platform, share, advance))
                advance(1)
        return tuple(entries)

    entries = decided_by_first(measure_all)
    return TuningTable(entries, device.platform, tables.device_kind(device), metadata.version("jaxlib"))


def _record_specs(f: Callable[..., Any], args: tuple[Any, ...]) -> list[ConvSpec]:
    """Returns the distinct convolutions of f for which a method is chosen, in the order in which they are lowered."""
    signature, arrays = flatten_call("tune", args, {})
    recorder = tables.Recorder()
    with tables.table_context(recorder):
        if has_split_array(arrays):
            compile_uncached("tune", signature.flat(f), arrays)
        else:
            jax.jit(signature.flat(f)).lower(*arrays)
    return [spec for spec in recorder.specs if 0 not in (*spec.input_shape, *spec.kernel_shape, *spec.output_shape)]


def _device() -> jax.Device:
    """Returns the device on which a plain call runs."""
    (device,) = jax.device_put(np.zeros((), np.float32)).devices()
    return device


def _measure(spec: ConvSpec, platform: str, seconds: float, advance: Callable[[float], None]) -> Measurement:
    """Measures one convolution by each method that supports the convolution, as long as there is time."""
    end = time.perf_counter() + seconds
    operands = jax.block_until_ready(_operands(spec))
    default_method = choice.choose(spec, "auto", platform).method
    programs = {name: _program(name, spec) for name, module in choice.METHODS.items() if module.refusal(spec) is None}
    calls: dict[str, Callable[[], Any]] = {}
    required = {
        direct.NAME: programs.pop(direct.NAME),
        **({default_method: programs.pop(default_method)} if default_method in programs else {}),
    }
    for method, program in chain(required.items(), _programs_in_time(programs, operands, end)):
        calls[method] = partial(program, *operands)
        jax.block_until_ready(calls[method]())  # compiles
        advance(0)
    seconds = max(end - time.perf_counter(), 0.0) if len(calls) > 1 else 0.0
    medians = median_seconds(calls, seconds, hopeless=_HOPELESS_RATIO, after_round=partial(advance, 0))
    milliseconds = {name: 1e3 * median for name, median in medians.items()}
    return Measurement(spec, fastest(milliseconds), tuple(milliseconds.items()))


def fastest(milliseconds: Mapping[str, float]) -> str:
    """Returns the method with the least time, or `direct` if that is as fast within the error of a measurement."""
    best = min(milliseconds, key=lambda method: milliseconds[method])
    return "direct" if milliseconds["direct"] <= _TIE_RATIO * milliseconds[best] else best


def _program(method: str, spec: ConvSpec) -> Any:
    return jax.jit(lambda lhs, rhs: choice.METHODS[method].lower(lhs, rhs, spec))


def _programs_in_time(
    programs: dict[str, Any], operands: tuple[jax.Array, jax.Array], end: float
) -> Iterator[tuple[str, Any]]:
    """Yields the methods whose programs do not take too long to compile, as long as there is time."""
    # The order is reversed since the general methods, at the registry's start, unroll large windows into programs that
    # are slow to trace.
    for name in reversed(programs):
        if time.perf_counter() < end and len(programs[name].trace(*operands).jaxpr.eqns) <= _MAX_PROGRAM_EQUATIONS:
            yield name, programs[name]


def _operands(spec: ConvSpec) -> tuple[jax.Array, jax.Array]:
    """Returns random operands; some processors multiply zeros faster."""
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in spec.operand_shapes)
    if np.dtype(spec.lhs_dtype).kind in "iub":
        lhs, rhs = 4 * abs(lhs), 4 * abs(rhs)
    return jax.device_put(lhs.astype(spec.lhs_dtype)), jax.device_put(rhs.astype(spec.rhs_dtype))
