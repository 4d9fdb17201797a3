"""The search of `substitute`: which chains meet the budget, fitted, timed and verified."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.timing import median_seconds
from jaxcnn.transform.chains.with_chains import evaluated
from jaxcnn.transform.substitution.calibration import Calibration
from jaxcnn.transform.substitution.layer import Option
from jaxcnn.transform.substitution.problem import Problem, floats, relative
from jaxcnn.transform.substitution.report import LayerReport, Report

_STEPS = 7
"""Halvings of the interval in which the logarithm of the share of multiply-accumulates is searched."""
_FEW_STEPS = 4
"""The same where each step compiles and times the function, or fits its chains to responses."""
_SLOWER = 0.95
"""A chain must take less than this share of the dense kernel's time: two runs differ by as much."""
_DEARER = 1.1
"""By how many times the error may grow so that no chain is slower than its kernel. Where the clock had the last word an
edge detector at a quarter of its multiply-accumulates erred by 0.47, and by 0.29 where it had no say."""
_NOTHING = 1e-2
"""An error of the results below which growth does not matter."""
_SECONDS = 0.5
"""How long the whole function is timed."""

Choice = dict[int, Option]
Chains = dict[int, KernelChain]
Solution = tuple[Chains, Report]


class Search:
    """The chains for a problem's layers, for one budget.

    Args:
      problem: the function and its layers.
      calibration: fits the chains to responses; None fits them to the weights.
      advance: told of each layer that is weighed.
    """

    def __init__(self, problem: Problem, calibration: Calibration | None, advance: Callable[[float], None]) -> None:
        self.problem, self.calibration, self.advance = problem, calibration, advance
        # Layers whose chain is slower than their kernel: by how many times, and the reason in words.
        self._slow: dict[int, tuple[float, str]] = {}

    def at_share(self, share: float) -> Solution:
        """About the least error within a share of the multiply-accumulates, with no slower layers than that takes."""
        self._weigh()
        self._slow = {}
        lost = self.problem.lost(self._choose(share))
        chosen, _ = self._settled(partial(self._choose, share, _DEARER**2 * max(lost, _NOTHING**2)))
        return self._solved(chosen)

    def within_tolerance(self, tolerance: float) -> Solution:
        """The fewest multiply-accumulates within an error of the results."""
        if not any(output.any() for output in self.problem.outputs):
            raise ValueError(
                "substitute: tolerance is an error relative to the results, which for the given arguments are all zero"
            )
        self._weigh()

        def cheapest() -> Choice:
            def meets(share: float) -> Choice | None:
                chosen = self._choose(share)
                return chosen if self.problem.error(self.problem.chains(chosen)) <= tolerance else None

            return _bisected(meets, self.problem.least_share(self._slow), 1.0, _STEPS) or {}

        chosen, chains = self._settled(cheapest)
        if self.calibration is None:
            return self._solved(chosen)
        # Fitted to responses, fewer multiply-accumulates make the same error.
        share = self.problem.macs(chains) / self.problem.total_macs

        def fitted(share: float) -> Solution | None:
            solution = self._solved(self._settled(partial(self._choose, share))[0])
            return solution if solution[1].error <= tolerance else None

        lowest = max(self.problem.least_share(self._slow), share / 3)
        found = _bisected(fitted, lowest, share, _FEW_STEPS)
        return self._solved(chosen, fit=False) if found is None else found

    def at_speedup(self, speedup: float) -> Solution:
        """The least error at a measured speed-up."""
        self._weigh()
        best = 0.0

        def fast(share: float) -> Choice | None:
            nonlocal best
            chosen, chains = self._settled(partial(self._choose, share))
            before, after = self._clock(chains, self._run(chains))
            best = max(best, before / after)
            # Dense against itself is as fast, whatever two measurements of it say.
            return chosen if before / after >= speedup and (chosen or speedup <= 1) else None

        # Of the shares that are fast enough the largest is wanted; the smallest is the fastest.
        chosen = _bisected(fast, 1.0, self.problem.least_share(self._slow), _FEW_STEPS)
        if chosen is None:
            raise ValueError(f"substitute: speedup={speedup:g} is not reached: the fastest chains make it {best:.2f}")
        return self._solved(chosen)

    def of_rank(self, rank: Any) -> Solution:
        """One rank for all layers, whatever that costs."""
        found = {index: layer.at_rank(rank) for index, layer in self.problem.open.items()}
        chosen = {index: option for index, option in found.items() if option is not None}
        if not chosen:
            reasons = "; ".join(f"{layer.name}: {layer.why_dense}" for layer in list(self.problem.layers.values())[:3])
            raise ValueError(f"substitute: no layer can take a chain of rank {rank}: {reasons}")
        return self._solved(chosen)

    def _weigh(self) -> None:
        """Finds, once, what each layer's error does."""
        if not self.problem.harms:
            if self.calibration is not None:
                self.calibration.judge()
            self.problem.weigh(self.advance)

    def _choose(self, share: float, most: float = math.inf) -> Choice:
        """The options within a share, without the layers whose chains are slow as far as it can do without them.

        It can where there are such options, and all of them together lose at most so much.
        """
        while True:
            found = self.problem.choose(share, self._slow)
            if found is not None and (not self._slow or self.problem.lost(found) <= most):
                return found
            if not self._slow:
                least = self.problem.least_share(())
                refused = [layer for layer in self.problem.layers.values() if layer.refusal]
                raise ValueError(
                    f"substitute: macs={share:.4g} is not met by any choice of chains, the least is {least:.4g}"
                    + "".join(f"; {layer.name} stays dense: {layer.refusal}" for layer in refused[:3])
                )
            # The budget comes first: the layer goes back whose chain is the least slow.
            del self._slow[min(self._slow, key=lambda index: self._slow[index][0])]

    def _settled(self, choose: Callable[[], Choice]) -> tuple[Choice, Chains]:
        """The options and their chains, after each layer that the clock is against was left alone once."""
        asked: set[int] = set(self._slow)
        while True:
            chosen = choose()
            chains = self.problem.chains(chosen)
            slow = {}
            for index in chains.keys() - asked:
                before, after = self.problem.milliseconds(index, chains[index])
                if after > _SLOWER * before:
                    option = chosen[index]
                    rank = "x".join(map(str, np.atleast_1d(option.rank)))
                    text = f"{option.scheme} of rank {rank} takes {after:.3f} ms, the kernel {before:.3f}"
                    slow[index] = after / before, text
            if not slow:
                return chosen, chains
            asked |= slow.keys()
            self._slow.update(slow)

    # What comes of a choice

    def _solved(self, chosen: Choice, fit: bool = True) -> Solution:
        """The chains of a choice, fitted, and the report of the whole function run with them."""
        problem = self.problem
        chains, errors = problem.chains(chosen), {index: option.error for index, option in chosen.items()}
        if self.calibration is not None and fit:
            chains, fitted = self.calibration.fitted(chosen, chains)
            errors |= fitted
        run = self._run(chains)
        outputs = floats(run(*self.problem.values(chains)))
        if not all(np.isfinite(output).all() for output in outputs) and all(
            np.isfinite(output).all() for output in problem.outputs
        ):
            raise ValueError("substitute: the results with chains are not finite, though they were before")
        before, after = self._clock(chains, run)
        rows = [
            self._row(index, chosen.get(index), chains.get(index), errors.get(index, 0.0)) for index in problem.layers
        ]
        report = Report(
            tuple(rows), problem.total_macs, problem.macs(chains), before, after, relative(outputs, problem.outputs)
        )
        return chains, report

    def _row(self, index: int, option: Option | None, chain: KernelChain | None, error: float) -> LayerReport:
        layer = self.problem.layers[index]
        if chain is not None:
            reason = ""
        elif index in self._slow:
            reason = self._slow[index][1]
        else:
            reason = layer.why_dense or "the budget is met without it"
        before, after = (None, None) if chain is None else self.problem.milliseconds(index, chain)
        if before is not None and after is not None and after > before:
            reason = "its chain is slower than the kernel, and there because the budget asks for it"
        return LayerReport(
            name=layer.name,
            kernel=layer.placement.kernel_shape,
            groups=layer.groups,
            scheme="dense" if option is None else option.scheme,
            rank=None if option is None else option.rank,
            macs_before=layer.dense.macs,
            macs_after=layer.dense.macs if option is None else option.macs,
            ms_before=before,
            ms_after=after,
            error=error,
            reason=reason,
        )

    def _run(self, chains: Chains) -> Callable[..., Any]:
        """The function with the chains, jitted."""
        problem = self.problem
        known = {problem.paths[index]: problem.layers[index].placement for index in chains}
        traced = jax.make_jaxpr(problem.flat, return_shape=True)
        return jax.jit(lambda *values: evaluated(traced, problem.paths, values, known, False))

    def _clock(self, chains: Chains, run: Callable[..., Any]) -> tuple[float, float]:
        """Milliseconds of a call of the function as it was and of `run`, with the chains."""
        plain, values = self.problem.plain, self.problem.values(chains)
        calls = {"kernels": lambda: plain(*self.problem.arrays), "chains": lambda: run(*values)}
        times = median_seconds(calls, _SECONDS)
        return 1e3 * times["kernels"], 1e3 * times["chains"]


def _bisected(meets: Callable[[float], Any | None], wanted: float, last: float, steps: int) -> Any | None:
    """What `meets` gives for the share nearest to the wanted one that it gives anything for.

    Tried are the wanted share, the last one to fall back on, and if only this does, some between; None if neither does.
    """
    for share in (wanted, last):
        found = meets(share)
        if found is not None:
            break
    if found is None or share == wanted:
        return found
    refused, met = math.log(wanted), math.log(last)
    for _ in range(steps):
        middle = (refused + met) / 2
        better = meets(math.exp(middle))
        if better is None:
            refused = middle
        else:
            found, met = better, middle
    return found
