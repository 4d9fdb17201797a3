"""Responses of a function's layers to some inputs: errors of chains by them, and chains fitted to them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.responses.samples import Responses
from jaxcnn.norms import relative_error
from jaxcnn.transform.chains.find_kernels import KernelUses, Site, find_kernels
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.signature import flatten_call
from jaxcnn.transform.progress import Advance
from jaxcnn.transform.substitution.batches import in_a_file
from jaxcnn.transform.substitution.layer import Layer, Option
from jaxcnn.transform.substitution.nonlinearity import ClipLimits, Limits
from jaxcnn.transform.substitution.problem import Problem, floats
from jaxcnn.transform.substitution.samples import Blocks, block_sides, is_fitted, patches_at, responses_at
from jaxcnn.transform.substitution.unrolled import (
    Constant,
    Operand,
    Segment,
    Step,
    UnrolledProgram,
    Values,
    needed_steps,
)

_MAX_SEGMENTS = 16
"""Largest number of programs in which the function is computed on calibration inputs."""
_MAX_SAMPLES = 6000
"""Largest number of sampled positions to which a chain is fitted, in all calibration inputs together."""
_MAX_SAMPLES_JUDGED = 2000
"""Largest number of sampled positions by which the ranks of a layer are judged."""
_SAMPLES_PER_WEIGHT = 60
"""Largest number of samples for each weight of an output feature, a limit for kernels of few weights (depthwise)."""


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
        self._dense_outputs: list[list[np.ndarray]] = []
        functions: dict[Any, _CalibrationFunction] = {}
        for batch in batches:
            signature, arrays = flatten_call("substitute", (problem.params, *batch), {})
            if any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
                raise TypeError("substitute: calibration must hold arrays, got a jax.ShapeDtypeStruct")
            on_device = [jax.device_put(array) for array in arrays]
            key = signature, tuple(array.aval for array in on_device)
            if key not in functions:
                traced = _traced(problem, signature, on_device, batch)
                functions[key] = _CalibrationFunction(*traced, problem.open, on_device)
            pairs = zip(arrays, on_device, strict=True)
            self.runs.append(_Run(functions[key], [a if isinstance(a, np.memmap) else copy for a, copy in pairs]))
        self.site_keys = next(iter(functions.values())).site_keys
        if any(function.site_keys != self.site_keys for function in functions.values()):
            raise ValueError("substitute: calibration inputs must run through the same convolutions in the same order")
        for function in functions.values():
            function.cut(max(1, _MAX_SEGMENTS // len(functions)))

    @cached_property
    def uses(self) -> Counter[tuple[int, int]]:
        """Number of uses of each kernel, by layer and position in the layer's stack."""
        return Counter(self.site_keys)

    def judge(self) -> None:
        """Replaces the errors of the weights in the layers' options by errors of responses."""
        pool = _SamplePool(self, _MAX_SAMPLES_JUDGED)
        for index, _ in self.uses:
            self.problem.layers[index].is_judged = True
        states = [run.start({}) for run in self.runs]
        for segment, part in enumerate(self.segments):
            # One batch after the other, since the images of all batches together take much memory.
            for batch, (run, state) in enumerate(zip(self.runs, states, strict=True)):
                results = run.function.run(segment, state)
                for ordinal in part.ordinals:
                    pool.add_responses(ordinal, batch, run.response(ordinal, results))
                    pool.add_patches(ordinal, batch, run.image(ordinal, state, results))
                run.proceed(segment, state, results)
            for ordinal in part.ordinals:
                index, number = self.site_keys[ordinal]
                layer = self.problem.layers[index]
                self.advance(0, f"Judging chains of {layer.name}")
                responses = pool.pop_responses(ordinal)
                if responses is not None:
                    layer.judge(number, self.site(ordinal), responses)
                    self.advance(1 / len(layer.kernels))
        for index in {index for index, _ in self.uses}:
            if self.problem.layers[index].has_unjudged_kernels:
                self.problem.layers[index].leave_unjudged()

    def fit(
        self,
        chosen: Mapping[int, Option],
        chains: Mapping[int, KernelChain],
        tell: Callable[[int, KernelChain, float], None] = lambda index, chain, error: None,
    ) -> tuple[dict[int, KernelChain], dict[int, float]]:
        """Returns a fitted chain for each of `chains`, and the errors of the responses, by layer.

        Layers are fitted in the order of the function, with the fitted chains of the layers before in place. A layer
        that cannot be fitted keeps its chain, and has no error. If a kernel has several uses, all layers are fitted
        again, to what the fitted chains make. All layers keep their chains, and have the errors of the weights, if
        these make a lower error of the results.

        Args:
          chosen: options of the layers.
          chains: chains of the options, fitted to the weights.
          tell: function that is called with each layer whose kernels are all fitted, its chain and its error.
        """
        fit = self._fit_once(chosen, chains, chains.keys(), tell)
        candidates = [fit]
        shared = {index for (index, _), count in self.uses.items() if count > 1 and index in chains}
        if shared:
            # The first fit met what chains make that were not fitted yet, so all kernels are fitted again. Then the
            # layers between two uses of a shared kernel are, since its chain has changed after they were fitted.
            again = self._fit_once(chosen, fit.chains, chains.keys(), tell)
            last = self._fit_once(chosen, again.chains, chains.keys() - shared, tell)
            again = dataclasses.replace(again, error=self._error(again.chains))
            candidates = [dataclasses.replace(last, errors=again.errors | last.errors), again]
        errors = {index: self.problem.layers[index].weights_error(option) for index, option in chosen.items()}
        candidates.append(_Fit(dict(chains), errors, self._error(chains)))
        best = min(candidates, key=lambda candidate: candidate.error)
        return best.chains, best.errors

    def _error(self, chains: Mapping[int, KernelChain]) -> float:
        """Returns the relative error of the results with chains, for all inputs together, after a fit."""
        self.advance(0, "Comparing fitted chains")
        arrays = {index: self.problem.layers[index].array(chain) for index, chain in chains.items()}
        outputs = []
        for run in self.runs:
            state = run.start(arrays)
            for segment in range(len(self.segments)):
                run.proceed(segment, state, run.function.run(segment, state))
            outputs.append(run.outputs(state))
        return relative_error(outputs, self._dense_outputs)

    def _fit_once(
        self,
        chosen: Mapping[int, Option],
        chains: Mapping[int, KernelChain],
        indices: Container[int],
        tell: Callable[[int, KernelChain, float], None],
    ) -> _Fit:
        """Fits the chains of the layers in `indices` once, with the other `chains` as they are."""
        layers, pool = self.problem.layers, _SamplePool(self, _MAX_SAMPLES)
        parts = {index: layers[index].unstack(chain) for index, chain in chains.items()}
        arrays = {index: layers[index].array(chain) for index, chain in chains.items()}
        errors: dict[int, list[float]] = {}
        dense_states = [run.start({}) for run in self.runs]
        states = [run.start(arrays) for run in self.runs]
        for segment, part in enumerate(self.segments):
            ordinals = [ordinal for ordinal in part.ordinals if self.site_keys[ordinal][0] in indices]
            for batch, (run, state) in enumerate(zip(self.runs, dense_states, strict=True)):
                results = run.function.run(segment, state)
                for ordinal in ordinals:
                    pool.add_responses(ordinal, batch, run.response(ordinal, results))
                run.proceed(segment, state, results)
            for ordinal in ordinals:
                index, number = self.site_keys[ordinal]
                self.advance(0, f"Fitting the chain of {layers[index].name}")
                for batch, (run, state) in enumerate(zip(self.runs, states, strict=True)):
                    results = {} if run.is_image_known(ordinal, state) else run.function.run(segment, state)
                    pool.add_patches(ordinal, batch, run.image(ordinal, state, results))
                responses = pool.pop_responses(ordinal)
                if responses is not None:
                    fitted, error = layers[index].fit(number, self.site(ordinal), chosen[index], responses)
                    parts[index][number] = fitted
                    errors.setdefault(index, []).append(error)
                    stacked = layers[index].stack(parts[index])
                    array = layers[index].array(stacked)
                    for state in states:
                        state[index] = array
                    if len(errors[index]) == len(parts[index]):
                        tell(index, stacked, _mean(errors[index]))
                    self.advance(1 / len(layers[index].kernels))
            for run, state in zip(self.runs, states, strict=True):
                run.proceed(segment, state, run.function.run(segment, state))
        fits = {index: layers[index].stack(parts[index]) if index in errors else chains[index] for index in chains}
        self._dense_outputs = [run.outputs(state) for run, state in zip(self.runs, dense_states, strict=True)]
        outputs = [run.outputs(state) for run, state in zip(self.runs, states, strict=True)]
        error = relative_error(outputs, self._dense_outputs)
        return _Fit(fits, {index: _mean(of_uses) for index, of_uses in errors.items()}, error)

    @property
    def segments(self) -> list[_CalibrationSegment]:
        """Segments of the function, whose convolutions are the same for all batches."""
        return self.runs[0].function.segments

    def name(self, ordinal: int) -> str:
        """Returns the name of the layer that has a convolution."""
        return self.problem.layers[self.site_keys[ordinal][0]].name

    def site(self, ordinal: int) -> Site:
        """Returns a convolution of a layer, for the first batch."""
        return self.runs[0].function.program.sites[ordinal].site


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Chains of layers.

    Args:
      chains: chains by layer.
      errors: error of each layer.
      error: relative error of the results for all inputs together.
    """

    chains: dict[int, KernelChain]
    errors: dict[int, float]
    error: float


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
    kernels, _ = find_kernels(closed, problem.dense)
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

    def cut(self, count: int) -> None:
        """Cuts the program into one segment of the steps before the first convolution and at most `count` more.

        Steps on which neither a convolution of a layer nor a result depends are left out. A segment is compiled when
        it first runs.
        """
        program, ordinals = self.program, range(len(self.program.sites))
        taps = {program.response(site) for site in program.sites}
        taps |= _variables(program.operand(site, 0) for site in program.sites)
        outputs = _variables(program.outputs)
        parts = [part.tolist() for part in np.array_split(ordinals, max(1, min(count, len(ordinals))))]
        starts = [0, *(program.sites[part[0]].position for part in parts if part), len(program.steps)]
        # A fit replaces parameters between two segments, so each segment computes its kernels from the parameters.
        kernels = _variables(program.operand(site, 1) for site in program.sites)
        kernel_steps = needed_steps(program.steps, kernels)
        of_kernels = {variable for step in kernel_steps for variable in step.results}
        needed = {id(step) for step in needed_steps(program.steps, taps | outputs)} - {
            id(step) for step in kernel_steps
        }
        for part, start, stop in zip([[], *parts], starts[:-1], starts[1:], strict=False):
            steps = [step for step in program.steps[start:stop] if id(step) in needed]
            later_steps = (step for step in program.steps[stop:] if id(step) in needed)
            later = outputs | (_variables_read(later_steps) - of_kernels)
            here = [program.sites[ordinal] for ordinal in part]
            results = later | _variables(x for site in here for x in (program.response(site), program.operand(site, 0)))
            steps = [*needed_steps(kernel_steps, results | _variables_read(steps)), *steps]
            self.segments.append(_CalibrationSegment(part, Segment(steps, results), later))

    def run(self, segment: int, state: Values) -> Values:
        """Returns the results of a segment: images and responses of its convolutions, and what later segments read."""
        results: Values = self.segments[segment].steps.run(state)
        return results

    def proceed(self, segment: int, state: Values, results: Values) -> None:
        """Changes `state` in place, from the values before a segment to those after it.

        The state keeps the arguments and what later segments read.
        """
        later = self.segments[segment].later
        state.update(results)
        for variable in state.keys() - later - set(self.program.inputs) - self.program.constants.keys():
            del state[variable]


def _mean(errors: Sequence[float]) -> float:
    """Returns the root of the mean square of some errors."""
    return float(np.sqrt(np.square(errors).mean()))


def _variables(operands: Iterable[Operand]) -> set[int]:
    return {operand for operand in operands if isinstance(operand, int)}


def _variables_read(steps: Iterable[Step]) -> set[int]:
    return {variable for step in steps for variable in step.reads}


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
        return {**self.function.program.values(self.arrays), **arrays}

    def proceed(self, segment: int, state: Values, results: Values) -> None:
        """Changes `state` in place, from the values before a segment to those after it.

        The values of a batch from a file are in files, too, until the next segment reads them.
        """
        self.function.proceed(segment, state, results)
        if any(isinstance(array, np.memmap) for array in self.arrays):
            state.update({variable: in_a_file(state[variable]) for variable in results.keys() & state.keys()})

    def is_image_known(self, ordinal: int, state: Values) -> bool:
        """Returns whether what a convolution meets is a constant or a value before its segment."""
        image = self.function.program.operand(self.function.program.sites[ordinal], 0)
        return isinstance(image, Constant) or image in state

    def image(self, ordinal: int, state: Values, results: Values) -> Any:
        """Returns the image of a convolution, a value before its segment or one of the segment's results."""
        image = self.function.program.operand(self.function.program.sites[ordinal], 0)
        if isinstance(image, Constant):
            return image.value
        return results[image] if image in results else state[image]

    def response(self, ordinal: int, results: Values) -> Any:
        """Returns the response of a convolution."""
        program = self.function.program
        return results[program.response(program.sites[ordinal])]

    def outputs(self, state: Values) -> list[np.ndarray]:
        """Returns the floating results of the function, from the values after the last segment."""
        outputs = self.function.program.outputs
        return floats([np.asarray(o.value) if isinstance(o, Constant) else state[o] for o in outputs])


class _SamplePool:
    """The samples of kernels, each gathered from all of its uses.

    Args:
      calibration: inputs.
      max_samples: largest number of samples of a kernel.
    """

    def __init__(self, calibration: Calibration, max_samples: int) -> None:
        self.calibration, self.max_samples = calibration, max_samples
        self._patches: dict[tuple[int, int], list[np.ndarray]] = {}
        self._targets: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}
        self._places: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._block_sizes: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}

    def add_responses(self, ordinal: int, batch: int, response: Any) -> None:
        """Adds samples of a convolution's responses to a batch, at random places; chains are fitted to these."""
        calibration, run = self.calibration, self.calibration.runs[batch]
        targets = responses_at(self._equation(ordinal, batch), response, self._chosen(ordinal, batch))
        limits = (np.broadcast_to(limit, targets.shape) for limit in run.limits[ordinal])
        self._targets[ordinal, batch] = (_checked(targets, calibration.name(ordinal)), *limits)

    def add_patches(self, ordinal: int, batch: int, image: Any) -> None:
        """Adds samples of the image patches under a convolution's kernel, at the places of its responses."""
        key = self.calibration.site_keys[ordinal]
        patches = patches_at(self._equation(ordinal, batch), image, self._chosen(ordinal, batch))
        self._patches.setdefault(key, []).append(_checked(patches, self.calibration.name(ordinal)))
        self._places.setdefault(key, []).append((ordinal, batch))

    def _chosen(self, ordinal: int, batch: int) -> Blocks:
        """Returns the output positions that are sampled."""
        key = self.calibration.site_keys[ordinal]
        count, sides = self._blocks_of(key)
        equation = self._equation(ordinal, batch)
        return Blocks.chosen(equation, count, sides, np.random.default_rng((self.calibration.seed, ordinal, batch)))

    def _blocks_of(self, key: tuple[int, int]) -> tuple[int, tuple[int, ...]]:
        """Returns the number of output positions to sample in each use of a kernel, and the sides of all blocks."""
        if key not in self._block_sizes:
            calibration, runs = self.calibration, range(len(self.calibration.runs))
            uses = [ordinal for ordinal, other in enumerate(calibration.site_keys) if other == key]
            weights = calibration.problem.layers[key[0]].weights_of_an_output(calibration.site(uses[0]))
            samples_of_kernel = min(self.max_samples, _SAMPLES_PER_WEIGHT * weights)
            count = max(1, samples_of_kernel // (len(runs) * len(uses)))
            # The samples of all uses and batches are stacked, so their blocks have one size.
            sides = (
                block_sides(self._equation(ordinal, batch), count, samples_of_kernel)
                for ordinal in uses
                for batch in runs
            )
            self._block_sizes[key] = count, tuple(map(min, zip(*sides, strict=True)))
        return self._block_sizes[key]

    def _equation(self, ordinal: int, batch: int) -> JaxprEqn:
        return self.calibration.runs[batch].function.program.sites[ordinal].site.equation

    def pop_responses(self, ordinal: int) -> Responses | None:
        """Returns the samples of a convolution's kernel, and removes them from the pool, once they are complete.

        None before all uses in all batches are added. Also None if all responses are equal, as those to images of
        zeros, since every chain would fit them.
        """
        key = self.calibration.site_keys[ordinal]
        if len(self._patches.get(key, ())) < len(self.calibration.runs) * self.calibration.uses[key]:
            return None
        patches = np.concatenate(self._patches.pop(key))
        pieces = [self._targets.pop(place) for place in self._places.pop(key)]
        targets, low, high = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        first = (0,) * (targets.ndim - 1)
        clipped = np.clip(targets, low, high)
        if (clipped == clipped[first]).all():
            return None
        # The fit is faster with one limit for all samples.
        low, high = (limit[first] if (limit == limit[first]).all() else limit for limit in (low, high))
        return Responses(patches, targets, low, high)


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    """Returns an array of samples; refuses values that are not finite."""
    if not np.isfinite(array).all():
        raise ValueError(f"substitute: on calibration what enters or leaves {name} is NaN or infinite in places")
    return array
