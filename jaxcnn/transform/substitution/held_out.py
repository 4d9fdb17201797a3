"""Verification of chains on what was not fitted: the error on held-out inputs, and the user's own score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.norms import relative_error
from jaxcnn.transform.jaxpr.signature import cache_programs
from jaxcnn.transform.substitution.problem import Problem

_HELD_OUT_SHARE = 0.2
"""Share of the calibration inputs that only verify the result."""
_LEAST_INPUTS = 3
"""Number of calibration inputs from which on some are held out."""

Score = Callable[[Callable[..., Any]], Any]
"""User's function from the function of the arguments after params to a score, the larger the better."""


def split_held_out(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Returns the inputs to fit to, and those that are held out: a fifth of them, evenly spread, if there are three."""
    count = max(1, round(_HELD_OUT_SHARE * len(batches))) if len(batches) >= _LEAST_INPUTS else 0
    held_out = {round(place) for place in np.linspace(len(batches) - 1, 0, count + 1)[:-1]}
    return (
        [batch for number, batch in enumerate(batches) if number not in held_out],
        [batch for number, batch in enumerate(batches) if number in held_out],
    )


class Verification:
    """Measures what chains do to the results of a problem's function for other arguments than the problem's.

    One compiled program serves all chains of one shape of arguments, since each kernel is the dense one of its chain.

    Args:
      problem: function and its layers.
      batches: held-out inputs, each a tuple of the arguments after the parameters.
      measure: user's score, or None.
    """

    def __init__(self, problem: Problem, batches: Sequence[tuple[Any, ...]], measure: Score | None) -> None:
        self.problem, self.batches, self.measure = problem, batches, measure
        # A score is of the user's own program: another one of the same function rounds differently.
        self._run = cache_programs("substitute", problem.f, lambda signature: signature.flat(problem.f))

    def _params(self, chains: Mapping[int, KernelChain]) -> Any:
        arrays = {index: self.problem.layers[index].array(chain) for index, chain in chains.items()}
        return self.problem.params_with(arrays)

    @cached_property
    def _dense_outputs(self) -> list[list[np.ndarray]]:
        return self._outputs({})

    def _outputs(self, chains: Mapping[int, KernelChain]) -> list[list[np.ndarray]]:
        """Returns the results with chains for each held-out input."""
        params = self._params(chains)
        return [self.problem.fast_outputs(params, batch) for batch in self.batches]

    def error(self, chains: Mapping[int, KernelChain]) -> float | None:
        """Returns the relative error of the results for all held-out inputs together; None if there are none."""
        if not self.batches:
            return None
        return relative_error(self._outputs(chains), self._dense_outputs)

    def score(self, chains: Mapping[int, KernelChain]) -> float | None:
        """Returns the user's score of the function with chains; None if there is no score."""
        if self.measure is None:
            return None
        params = self._params(chains)
        score = self.measure(lambda *args: self._run(params, *args))
        try:
            value = float(score)
        except (TypeError, ValueError):
            raise TypeError(f"substitute: measure must return a number, got {score!r}") from None
        if not math.isfinite(value):
            raise ValueError(f"substitute: measure must return a finite number, got {value}")
        return value

    @cached_property
    def dense_score(self) -> float | None:
        """The user's score of the function as it is."""
        return self.score({})
