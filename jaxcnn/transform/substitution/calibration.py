"""The layers of a function judged by their responses to some inputs, and their chains fitted to these."""

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
from jaxcnn.transform.chains.find_kernels import kernels_of
from jaxcnn.transform.jaxpr.signature import split
from jaxcnn.transform.substitution.layer import Layer, Option
from jaxcnn.transform.substitution.paired_walk import Stop, Walk, is_fitted, numbered, samples, side_by_side, together
from jaxcnn.transform.substitution.problem import Problem

_SAMPLES = 6000
"""Most positions of all calibration inputs together at which a layer's responses are taken."""
_SAMPLES_A_WEIGHT = 60
"""How many of them for each weight of an output feature: depthwise kernels have few, and patches of many features."""


class Calibration:
    """The layers of a problem judged by, and their chains fitted to, responses to some inputs.

    Args:
      problem: the function and its layers.
      batches: inputs, each what follows the parameters.
      seed: of the positions.
      advance: told of each layer that is done.
    """

    def __init__(
        self, problem: Problem, batches: Sequence[tuple[Any, ...]], seed: int, advance: Callable[[float], None]
    ) -> None:
        self.problem, self.seed, self.advance = problem, seed, advance
        self.traces = []
        for batch in batches:
            signature, arrays = split("substitute", (problem.params, *batch), {})
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
            found, _ = kernels_of(closed)
            if not found.keys() & problem.layers.keys():
                raise ValueError(f"substitute: of an item of calibration, of shapes {shapes}, f makes no convolution")
            self.traces.append((closed, found, arrays))

    @cached_property
    def uses(self) -> Counter[tuple[int, int]]:
        """How often each kernel is met."""
        counted: Counter[tuple[int, int]] = Counter()

        def count(stops: list[Stop]) -> None:
            counted[_kernel(stops)] += 1

        together(self._walks({}, self.problem.open), count)
        return counted

    def _walks(self, chains: Mapping[int, KernelChain], indices: Container[int]) -> list[Walk]:
        """Walks of all batches that stop at those of the layers that can be fitted."""
        walks = []
        for closed, found, arrays in self.traces:
            fits = {index: each for index, each in found.items() if index in indices and is_fitted(each)}
            sites = {site.path: (index, site) for index, each in fits.items() for site in each.sites}
            dense = [jnp.asarray(array) for array in arrays]
            other = list(dense)
            for index, chain in chains.items():
                if index not in fits:
                    other[index] = self.problem.layers[index].array(chain)
            for index, each in fits.items():
                if each.placement.stack:
                    other[index] = numbered(each.placement, dense[index])
            walks.append(side_by_side(closed, dense, other, sites))
        return walks

    def judge(self) -> None:
        """Puts the errors of responses in place of the kernels' in the layers' options."""
        pool = _Pool(self.seed, self.uses)

        def visit(stops: list[Stop]) -> None:
            index, number = _kernel(stops)
            layer = self.problem.layers[index]
            responses = pool.responses(stops, layer)
            if responses is not None:
                layer.judge(number, stops[0].site, responses)
                self.advance(1 / len(layer.kernels))

        together(self._walks({}, self.problem.open), visit)

    def fitted(
        self, chosen: Mapping[int, Option], chains: Mapping[int, KernelChain]
    ) -> tuple[dict[int, KernelChain], dict[int, float]]:
        """The chains of options fitted layer by layer, given those before, and their errors of responses.

        Those that cannot be fitted stay the `chains` of the weights.
        """
        found, errors = self._fitted(chosen, chains, chains.keys())
        shared = {index for (index, _), count in self.uses.items() if count > 1 and index in chains}
        if not shared:
            return found, errors
        # The layers after the first use of a kernel saw its chain before it was fitted: again, with the fitted one.
        again, others = self._fitted(chosen, {**chains, **{i: found[i] for i in shared}}, chains.keys() - shared)
        return again, errors | others

    def _fitted(
        self, chosen: Mapping[int, Option], chains: Mapping[int, KernelChain], indices: Container[int]
    ) -> tuple[dict[int, KernelChain], dict[int, float]]:
        layers, pool = self.problem.layers, _Pool(self.seed, self.uses)
        parts = {index: layers[index].apart(chain) for index, chain in chains.items()}
        errors: dict[int, list[float]] = {}

        def visit(stops: list[Stop]) -> KernelChain:
            index, number = _kernel(stops)
            layer, site = layers[index], stops[0].site
            responses = pool.responses(stops, layer)
            if responses is not None:
                parts[index][number], error = layer.fitted(number, site, chosen[index], responses)
                errors.setdefault(index, []).append(error)
                self.advance(1 / len(layer.kernels))
            return layer.links(site, parts[index][number])

        together(self._walks(chains, indices), visit)
        found = {index: layers[index].stacked(parts[index]) if index in errors else chains[index] for index in chains}
        return found, {index: float(np.sqrt(np.square(each).mean())) for index, each in errors.items()}


def _kernel(stops: Sequence[Stop]) -> tuple[int, int]:
    return stops[0].index, stops[0].number


class _Pool:
    """The samples of kernels, each gathered from all of its uses.

    Args:
      seed: of the positions.
      uses: how often each kernel is met.
    """

    def __init__(self, seed: int, uses: Mapping[tuple[int, int], int]) -> None:
        self.seed, self.uses = seed, uses
        self.pieces: dict[tuple[int, int], list[tuple[np.ndarray, ...]]] = {}

    def responses(self, stops: Sequence[Stop], layer: Layer) -> Responses | None:
        """The samples of a layer's kernel, with those of these stops, once they are all.

        None too if they all ask for the same, as of images of zeros: every chain would do.
        """
        kernel = _kernel(stops)
        pieces = self.pieces.setdefault(kernel, [])
        generator = np.random.default_rng((self.seed, *kernel, len(pieces)))
        wanted = min(_SAMPLES, _SAMPLES_A_WEIGHT * layer.weights_of_an_output(stops[0].site))
        count = max(1, wanted // (len(stops) * self.uses[kernel]))
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
        seen = np.clip(targets, low, high)
        if (seen == seen[0]).all():
            return None
        # One limit for all samples is broadcast, which is faster.
        low, high = (limit[0] if (limit == limit[0]).all() else limit for limit in (low, high))
        return Responses(patches, targets, low, high)
