"""Responses of a function's layers to some inputs: errors of chains by them, and chains fitted to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.responses.samples import Responses
from jaxcnn.transform.chains.find_kernels import find_kernels
from jaxcnn.transform.jaxpr.signature import flatten_call
from jaxcnn.transform.substitution.layer import Layer, Option
from jaxcnn.transform.substitution.paired_walk import (
    Stop,
    Walk,
    is_fitted,
    kernel_numbers,
    run_in_step,
    samples,
    side_by_side,
)
from jaxcnn.transform.substitution.problem import Problem

_MAX_SAMPLES = 6000
"""Largest number of sampled positions of a layer, in all calibration inputs together."""
_SAMPLES_PER_WEIGHT = 60
"""Samples for each weight of an output feature: depthwise kernels have few weights, and patches of many features."""


class Calibration:
    """Responses of the layers of a problem to some inputs.

    Args:
      problem: function and its layers.
      batches: inputs, each a tuple of the arguments after the parameters.
      seed: seed for the sampled positions.
      advance: function that is called with the number of finished layers, or parts of one.
    """

    def __init__(
        self, problem: Problem, batches: Sequence[tuple[Any, ...]], seed: int, advance: Callable[[float], None]
    ) -> None:
        self.problem, self.seed, self.advance = problem, seed, advance
        self.traces = []
        for batch in batches:
            signature, arrays = flatten_call("substitute", (problem.params, *batch), {})
            if any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
                raise TypeError("substitute: calibration must hold arrays, got a jax.ShapeDtypeStruct")
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
            self.traces.append((closed, kernels, arrays))

    @cached_property
    def uses(self) -> Counter[tuple[int, int]]:
        """Number of uses of each kernel, by layer and position in the layer's stack."""
        number_of_uses: Counter[tuple[int, int]] = Counter()

        def count(stops: list[Stop]) -> None:
            number_of_uses[_kernel_key(stops)] += 1

        run_in_step(self._walks({}, self.problem.open), count)
        return number_of_uses

    def _walks(self, chains: Mapping[int, KernelChain], indices: Container[int]) -> list[Walk]:
        """Returns walks of all batches that stop at the layers that can be fitted."""
        walks = []
        for closed, kernels, arrays in self.traces:
            fits = {index: uses for index, uses in kernels.items() if index in indices and is_fitted(uses)}
            sites = {site.path: (index, site) for index, uses in fits.items() for site in uses.sites}
            dense = [jnp.asarray(array) for array in arrays]
            substituted = list(dense)
            for index, chain in chains.items():
                if index not in fits:
                    substituted[index] = self.problem.layers[index].array(chain)
            for index, uses in fits.items():
                if uses.placement.stack:
                    substituted[index] = kernel_numbers(uses.placement, dense[index])
            walks.append(side_by_side(closed, dense, substituted, sites))
        return walks

    def judge(self) -> None:
        """Replaces the errors of the weights in the layers' options by errors of responses."""
        pool = _SamplePool(self.seed, self.uses)

        def visit(stops: list[Stop]) -> None:
            index, number = _kernel_key(stops)
            layer = self.problem.layers[index]
            responses = pool.responses(stops, layer)
            if responses is not None:
                layer.judge(number, stops[0].site, responses)
                self.advance(1 / len(layer.kernels))

        run_in_step(self._walks({}, self.problem.open), visit)

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
        refits, refit_errors = self._fit_once(
            chosen, {**chains, **{i: fits[i] for i in shared}}, chains.keys() - shared
        )
        return refits, errors | refit_errors

    def _fit_once(
        self, chosen: Mapping[int, Option], chains: Mapping[int, KernelChain], indices: Container[int]
    ) -> tuple[dict[int, KernelChain], dict[int, float]]:
        """Fits the chains of some layers in one walk; returns all chains, and the errors of those that were fitted."""
        layers, pool = self.problem.layers, _SamplePool(self.seed, self.uses)
        parts = {index: layers[index].unstack(chain) for index, chain in chains.items()}
        errors: dict[int, list[float]] = {}

        def visit(stops: list[Stop]) -> KernelChain:
            index, number = _kernel_key(stops)
            layer, site = layers[index], stops[0].site
            responses = pool.responses(stops, layer)
            if responses is not None:
                parts[index][number], error = layer.fit(number, site, chosen[index], responses)
                errors.setdefault(index, []).append(error)
                self.advance(1 / len(layer.kernels))
            return layer.links(site, parts[index][number])

        run_in_step(self._walks(chains, indices), visit)
        fits = {index: layers[index].stack(parts[index]) if index in errors else chains[index] for index in chains}
        return fits, {index: float(np.sqrt(np.square(of_uses).mean())) for index, of_uses in errors.items()}


def _kernel_key(stops: Sequence[Stop]) -> tuple[int, int]:
    return stops[0].index, stops[0].number


class _SamplePool:
    """The samples of kernels, each gathered from all of its uses.

    Args:
      seed: seed for the sampled positions.
      uses: number of uses of each kernel.
    """

    def __init__(self, seed: int, uses: Mapping[tuple[int, int], int]) -> None:
        self.seed, self.uses = seed, uses
        self.pieces: dict[tuple[int, int], list[tuple[np.ndarray, ...]]] = {}

    def responses(self, stops: Sequence[Stop], layer: Layer) -> Responses | None:
        """Returns the samples of a layer's kernel after the stops at its last use, else None.

        Also None if all responses are equal, as those to images of zeros, since every chain would fit them.
        """
        kernel = _kernel_key(stops)
        pieces = self.pieces.setdefault(kernel, [])
        generator = np.random.default_rng((self.seed, *kernel, len(pieces)))
        samples_of_kernel = min(_MAX_SAMPLES, _SAMPLES_PER_WEIGHT * layer.weights_of_an_output(stops[0].site))
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
