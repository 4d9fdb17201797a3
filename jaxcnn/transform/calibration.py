"""The layers of a function judged by their responses to some inputs, and their chains fitted to these."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.response import Responses, refit, response_error
from jaxcnn.transform.arguments import split
from jaxcnn.transform.discovery import kernels_of
from jaxcnn.transform.layers import Option
from jaxcnn.transform.problem import Problem
from jaxcnn.transform.side_by_side import Stop, Walk, is_fitted, samples, side_by_side, together

_SAMPLES = 6000
"""Positions of all calibration inputs together at which a layer's responses are taken."""


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
            closed = jax.make_jaxpr(signature.flat(problem.f))(*arrays)
            self.traces.append((closed, kernels_of(closed)[0], arrays))

    def _walks(self, chains: Mapping[int, KernelChain], indices: Container[int]) -> list[Walk]:
        """Walks of all batches that stop at those of the layers that can be fitted."""
        walks = []
        for closed, found, arrays in self.traces:
            fits = {i: each for i, each in found.items() if i in indices and not each.refusal and is_fitted(each.sites)}
            sites = {id(each.sites[0].equation): index for index, each in fits.items()}
            dense = [jnp.asarray(array) for array in arrays]
            other = list(dense)
            for index, chain in chains.items():
                if index not in fits:
                    other[index] = self.problem.layers[index].array(chain)
            walks.append(side_by_side(closed, dense, other, sites))
        return walks

    def _responses(self, stops: Sequence[Stop]) -> Responses:
        generator = np.random.default_rng((self.seed, stops[0].index))
        pieces = [samples(stop, _SAMPLES // len(stops), generator) for stop in stops]
        patches, targets = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return Responses(patches, targets, stops[0].low, stops[0].high)

    def judge(self) -> None:
        """Puts the errors of responses in place of the kernels' in the layers' options."""

        def visit(stops: list[Stop]) -> None:
            layer = self.problem.layers[stops[0].index]
            layer.judge(self._responses(stops))
            self.advance(1)

        together(self._walks({}, self.problem.open), visit)

    def fitted(
        self, chosen: Mapping[int, Option], chains: Mapping[int, KernelChain]
    ) -> tuple[dict[int, KernelChain], dict[int, float]]:
        """The chains of options fitted layer by layer, given those before, and their errors of responses.

        Those that cannot be fitted stay the `chains` of the weights.
        """
        found, errors = dict(chains), {}

        def visit(stops: list[Stop]) -> KernelChain:
            index = stops[0].index
            layer, responses = self.problem.layers[index], self._responses(stops)
            chain = refit(layer.start(chosen[index], responses), responses, kernel=layer.kernels[0])
            found[index], errors[index] = chain, response_error(chain, responses)
            self.advance(1)
            return chain

        together(self._walks(chains, chains.keys()), visit)
        return found, errors
