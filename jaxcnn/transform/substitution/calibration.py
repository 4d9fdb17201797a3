"""Responses of a function's layers to some inputs: errors of chains by them, and chains fitted to them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.responses.samples import Responses
from jaxcnn.transform.chains.find_kernels import KernelUses, find_kernels
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.signature import flatten_call
from jaxcnn.transform.progress import Advance
from jaxcnn.transform.substitution.layer import Layer, Option
from jaxcnn.transform.substitution.nonlinearity import ClipLimits, Limits
from jaxcnn.transform.substitution.problem import Problem
from jaxcnn.transform.substitution.samples import Stop, is_fitted, samples
from jaxcnn.transform.substitution.unrolled import Segment, UnrolledProgram, Values, needed_steps

_MAX_SEGMENTS = 16
"""Largest number of programs in which the function is computed on calibration inputs."""
_MAX_SAMPLES = 6000
"""Largest number of sampled positions to which a chain is fitted, in all calibration inputs together."""
_MAX_SAMPLES_JUDGED = 2000
"""Largest number of sampled positions by which the ranks of a layer are judged."""
_SAMPLES_PER_WEIGHT = 60
"""Samples for each weight of an output feature: depthwise kernels have few weights, and patches of many features."""


class Calibration:
    """Responses of the layers of a problem to some inputs.

    Args:
      problem: function and its layers.
      batches: inputs, each a tuple of the arguments after the parameters.
      seed: seed for the sampled positions.
      advance: function that is called with the number of finished layers, or parts of one, and what is done next.
    """

    def __init__(self, problem: Problem, batches: Sequence[tuple[Any, ...]], seed: int, advance: Advance) -> None:
        self.problem, self.seed, self.advance = problem, seed, advance
        self.runs: list[_Run] = []
        functions: dict[Any, _CalibrationFunction] = {}
        for batch in batches:
            signature, arrays = flatten_call("substitute", (problem.params, *batch), {})
            if any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
                raise TypeError("substitute: calibration must hold arrays, got a jax.ShapeDtypeStruct")
            arrays = [jax.device_put(array) for array in arrays]
            key = signature, tuple(array.aval for array in arrays)
            if key not in functions:
                functions[key] = _CalibrationFunction(*_traced(problem, signature, arrays, batch), problem.open, arrays)
            self.runs.append(_Run(functions[key], arrays))
        first, *others = functions.values()
        if any(other.site_keys != first.site_keys for other in others):
            raise ValueError("substitute: calibration inputs must run through the same convolutions in the same order")
        self.site_keys = first.site_keys
        for function in functions.values():
            function.compile(max(1, _MAX_SEGMENTS // len(functions)))

    @cached_property
    def uses(self) -> Counter[tuple[int, int]]:
        """Number of uses of each kernel, by layer and position in the layer's stack."""
        return Counter(self.site_keys)

    def judge(self) -> None:
        """Replaces the errors of the weights in the layers' options by errors of responses."""
        pool = _SamplePool(self.seed, self.uses, _MAX_SAMPLES_JUDGED)
        for index, _ in self.uses:
            self.problem.layers[index].is_judged = True
        states = [run.start({}) for run in self.runs]
        for segment in range(len(self.runs[0].function.segments)):
            results = [run.function.run(segment, state) for run, state in zip(self.runs, states, strict=True)]
            for ordinal in self.runs[0].function.ordinals(segment):
                stops = [
                    run.stop(ordinal, state, result, result)
                    for run, state, result in zip(self.runs, states, results, strict=True)
                ]
                layer = self.problem.layers[stops[0].index]
                self.advance(0, f"Judging chains of {layer.name}")
                responses = pool.responses(stops, layer)
                if responses is not None:
                    layer.judge(stops[0].number, stops[0].site, responses)
                    self.advance(1 / len(layer.kernels))
            for run, state, result in zip(self.runs, states, results, strict=True):
                run.function.proceed(segment, state, result)
        for index in {index for index, _ in self.uses}:
            if self.problem.layers[index].has_unjudged_kernels:
                self.problem.layers[index].leave_unjudged()

    def fit(
        self, chosen: Mapping[int, Option], chains: Mapping[int, KernelChain]
    ) -> tuple[dict[int, KernelChain], dict[int, float]]:
        """Returns the chains of options, fitted layer by layer given those before, and their errors of responses.

        Those that cannot be fitted stay the `chains` of the weights.
        """
        fits, errors = self._fit_once(chosen, chains, chains.keys())
        shared = {index for (index, _), count in self.uses.items() if count > 1 and index in chains}
        if not shared:
            return fits, errors
        # Layers between the uses of a shared kernel got its chain before this was fitted, so they are fitted again.
        again, others = self._fit_once(chosen, {**chains, **{i: fits[i] for i in shared}}, chains.keys() - shared)
        return again, errors | others

    def _fit_once(
        self, chosen: Mapping[int, Option], chains: Mapping[int, KernelChain], indices: Container[int]
    ) -> tuple[dict[int, KernelChain], dict[int, float]]:
        layers, pool = self.problem.layers, _SamplePool(self.seed, self.uses, _MAX_SAMPLES)
        parts = {index: layers[index].unstack(chain) for index, chain in chains.items()}
        arrays = {index: layers[index].array(chain) for index, chain in chains.items()}
        errors: dict[int, list[float]] = {}
        dense_states = [run.start({}) for run in self.runs]
        states = [run.start(arrays) for run in self.runs]
        for segment in range(len(self.runs[0].function.segments)):
            ordinals = [n for n in self.runs[0].function.ordinals(segment) if self.site_keys[n][0] in indices]
            dense = [run.function.run(segment, state) for run, state in zip(self.runs, dense_states, strict=True)]
            results: list[Any] = []
            for ordinal in ordinals:
                if not results and ordinal != self.runs[0].function.ordinals(segment)[0]:
                    results = self._results(segment, states)
                stops = [
                    run.stop(ordinal, state, image, response)
                    for run, state, image, response in zip(
                        self.runs, states, results or [{}] * len(states), dense, strict=True
                    )
                ]
                index, number = _kernel_key(stops)
                self.advance(0, f"Fitting the chain of {layers[index].name}")
                responses = pool.responses(stops, layers[index])
                if responses is not None:
                    parts[index][number], error = layers[index].fit(number, stops[0].site, chosen[index], responses)
                    errors.setdefault(index, []).append(error)
                    array = layers[index].array(layers[index].stack(parts[index]))
                    for state in states:
                        state[index] = array
                    results = []
                    self.advance(1 / len(layers[index].kernels))
            results = results or self._results(segment, states)
            for run, state, result in zip(self.runs, states, results, strict=True):
                run.function.proceed(segment, state, result)
            for run, state, result in zip(self.runs, dense_states, dense, strict=True):
                run.function.proceed(segment, state, result)
        fits = {index: layers[index].stack(parts[index]) if index in errors else chains[index] for index in chains}
        return fits, {index: float(np.sqrt(np.square(of_uses).mean())) for index, of_uses in errors.items()}

    def _results(self, segment: int, states: Sequence[Values]) -> list[Values]:
        return [run.function.run(segment, state) for run, state in zip(self.runs, states, strict=True)]


def _traced(
    problem: Problem, signature: Any, arrays: Sequence[Any], batch: tuple[Any, ...]
) -> tuple[Any, dict[int, KernelUses]]:
    """Returns the closed jaxpr of the problem's function for a batch of calibration inputs, and the kernels in it."""
    shapes = ", ".join(str(getattr(leaf, "shape", repr(leaf))) for leaf in jax.tree.leaves(batch))
    try:
        closed = jax.make_jaxpr(signature.flat(problem.f))(*arrays)
    except Exception as error:
        error.add_note(
            f"substitute called f with params and an item of calibration, of shapes {shapes}; an item must be "
            "all that follows params, as a tuple where that is more than one array"
        )
        raise
    kernels, _ = find_kernels(closed)
    if not kernels.keys() & problem.layers.keys():
        raise ValueError(f"substitute: of an item of calibration, of shapes {shapes}, f makes no convolution")
    return closed, kernels


class _CalibrationFunction:
    """The problem's function for inputs of some shapes, in segments that begin at convolutions of layers.

    Args:
      closed: closed jaxpr of the function.
      kernels: kernels among its arguments.
      layers: layers that may be fitted.
      arrays: arguments of a call.
    """

    def __init__(
        self, closed: Any, kernels: Mapping[int, KernelUses], layers: Mapping[int, Layer], arrays: Sequence[Any]
    ) -> None:
        fits = {index: uses for index, uses in kernels.items() if index in layers and is_fitted(uses)}
        sites = {site.path: (index, site) for index, uses in fits.items() for site in uses.sites}
        self.program = UnrolledProgram(closed, sites)
        self.limits = ClipLimits(self.program)
        placements = {index: uses.placement for index, uses in fits.items()}
        numbers = self._kernel_numbers(placements, arrays)
        self.site_keys = [(site.index, numbers.get(ordinal, 0)) for ordinal, site in enumerate(self.program.sites)]
        self.segments: list[_CalibrationSegment] = []

    def _kernel_numbers(self, placements: Mapping[int, Placement], arrays: Sequence[Any]) -> dict[int, int]:
        """Returns the number of the kernel that each convolution has, by ordinal, where parameters stack kernels."""
        program, inputs = self.program, dict[int, np.ndarray]()
        kernels = {}
        for ordinal, site in enumerate(program.sites):
            placement = placements[site.index]
            if placement.stack:
                stack = [placement.shape[axis] for axis in placement.stack]
                order = np.arange(math.prod(stack), dtype=np.float32).reshape(
                    *stack, *(1,) * len(placement.kernel_shape)
                )
                inputs[site.index] = placement.parameter(np.broadcast_to(order, (*stack, *placement.kernel_shape)))
                kernels[ordinal] = program.operand(site, 1)
        # All values of a kernel are the kernel's number.
        segment = Segment(
            program.steps,
            [kernel for kernel in kernels.values() if isinstance(kernel, int)],
            lambda results: {variable: kernel.reshape(-1)[0] for variable, kernel in results.items()},
        )
        numbers = segment.run(program.values(arrays) | inputs)
        return {ordinal: int(numbers[kernel]) for ordinal, kernel in kernels.items()}

    def compile(self, count: int) -> None:
        """Cuts the program into at most `count` segments after the steps before the first convolution."""
        program, ordinals = self.program, range(len(self.program.sites))
        taps = {program.response(site) for site in program.sites}
        taps |= {image for site in program.sites if isinstance(image := program.operand(site, 0), int)}
        parts = [part.tolist() for part in np.array_split(ordinals, max(1, min(count, len(ordinals))))]
        starts = [0, *(program.sites[part[0]].position for part in parts if part), len(program.steps)]
        needed = {id(step) for step in needed_steps(program.steps, taps)}
        for part, start, stop in zip([[], *parts], starts[:-1], starts[1:], strict=False):
            steps = [step for step in program.steps[start:stop] if id(step) in needed]
            later_steps = (step for step in program.steps[stop:] if id(step) in needed)
            later = {variable for step in later_steps for variable in step.reads}
            here = [program.sites[ordinal] for ordinal in part]
            taps_here = {variable for site in here for variable in (program.response(site), program.operand(site, 0))}
            self.segments.append(_CalibrationSegment(part, Segment(steps, later | (taps & taps_here)), later))

    def ordinals(self, segment: int) -> list[int]:
        """Returns the ordinals of a segment's convolutions of layers."""
        return self.segments[segment].ordinals

    def run(self, segment: int, state: Values) -> Values:
        """Returns the results of a segment: what its convolutions meet and make, and what later segments read."""
        results: Values = self.segments[segment].steps.run(state)
        return results

    def proceed(self, segment: int, state: Values, results: Values) -> None:
        """Replaces the values before a segment by those after it."""
        later = self.segments[segment].later
        state.update(results)
        for variable in state.keys() - later - set(self.program.inputs):
            del state[variable]


@dataclasses.dataclass(frozen=True)
class _CalibrationSegment:
    """A segment of a function.

    Args:
      ordinals: ordinals of its convolutions of layers.
      steps: compiled steps.
      later: variables that later segments read.
    """

    ordinals: list[int]
    steps: Segment
    later: set[int]


@dataclasses.dataclass(frozen=True)
class _Run:
    """The problem's function for one batch of inputs.

    Args:
      function: function for the batch's shapes.
      arrays: arguments, with the parameters.
    """

    function: _CalibrationFunction
    arrays: Sequence[Any]

    @cached_property
    def limits(self) -> list[Limits]:
        """Limits of the responses of each convolution of a layer."""
        return self.function.limits.of(self.arrays)

    def start(self, arrays: Mapping[int, Any]) -> Values:
        """Returns the values before the first segment, with some arguments replaced."""
        return self.function.program.values(self.arrays) | arrays

    def stop(self, ordinal: int, state: Values, results: Values, dense: Values) -> Stop:
        """Returns what a convolution meets in one function, and makes in the dense one."""
        program = self.function.program
        site = program.sites[ordinal]
        image, response = program.operand(site, 0), dense[program.response(site)]
        image = {**state, **results}[image] if isinstance(image, int) else image.value
        index, number = self.function.site_keys[ordinal]
        return Stop(index, number, site.site, image, response, *self.limits[ordinal])


def _kernel_key(stops: Sequence[Stop]) -> tuple[int, int]:
    return stops[0].index, stops[0].number


class _SamplePool:
    """The samples of kernels, each gathered from all of its uses.

    Args:
      seed: seed for the sampled positions.
      uses: number of uses of each kernel.
      max_samples: largest number of samples of a kernel.
    """

    def __init__(self, seed: int, uses: Mapping[tuple[int, int], int], max_samples: int) -> None:
        self.seed, self.uses, self.max_samples = seed, uses, max_samples
        self.pieces: dict[tuple[int, int], list[tuple[np.ndarray, ...]]] = {}

    def responses(self, stops: Sequence[Stop], layer: Layer) -> Responses | None:
        """Returns the samples of a layer's kernel after the stops at its last use, else None.

        Also None if all responses are equal, as those to images of zeros, since every chain would fit them.
        """
        kernel = _kernel_key(stops)
        pieces = self.pieces.setdefault(kernel, [])
        generator = np.random.default_rng((self.seed, *kernel, len(pieces)))
        samples_of_kernel = min(self.max_samples, _SAMPLES_PER_WEIGHT * layer.weights_of_an_output(stops[0].site))
        count = max(1, samples_of_kernel // (len(stops) * self.uses[kernel]))
        for stop in stops:
            patches, targets = samples(stop, count, generator)
            if not (np.isfinite(patches).all() and np.isfinite(targets).all()):
                raise ValueError(
                    f"substitute: on calibration what enters or leaves {layer.name} is NaN or infinite in places"
                )
            pieces.append((patches, targets, *(np.tile(limit, (len(targets), 1)) for limit in (stop.low, stop.high))))
        if len(pieces) < len(stops) * self.uses[kernel]:
            return None
        patches, targets, low, high = (np.concatenate(arrays) for arrays in zip(*self.pieces.pop(kernel), strict=True))
        clipped = np.clip(targets, low, high)
        if (clipped == clipped[0]).all():
            return None
        # The fit is faster with one limit for all samples.
        low, high = (limit[0] if (limit == limit[0]).all() else limit for limit in (low, high))
        return Responses(patches, targets, low, high)
