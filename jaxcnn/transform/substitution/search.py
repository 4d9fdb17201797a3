"""The search of `substitute` for chains that meet the budget; the chains are fitted, timed and verified."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.norms import relative_error
from jaxcnn.timing import median_seconds
from jaxcnn.transform.chains.with_chains import evaluate_with_chains
from jaxcnn.transform.substitution.calibration import Calibration
from jaxcnn.transform.substitution.layer import Option
from jaxcnn.transform.substitution.problem import Problem, floats
from jaxcnn.transform.substitution.report import LayerReport, SubstitutionReport

_BISECTION_STEPS = 7
"""Halvings of the interval in which the logarithm of the share of multiply-accumulates is searched."""
_COSTLY_BISECTION_STEPS = 4
"""Halvings in a search whose steps compile and time the function, or fit chains to responses."""
_MAX_TIME_RATIO = 0.95
"""Largest ratio of a chain's time to the dense kernel's; the margin is the difference of two runs."""
_MAX_ERROR_GROWTH = 1.1
"""Largest ratio by which the error may grow so that slow layers stay dense."""
_NEGLIGIBLE_ERROR = 1e-2
"""Error of the results that counts in place of a smaller one for `_MAX_ERROR_GROWTH`."""
_TIMING_SECONDS = 0.5
"""Duration of a measurement of the whole function."""

Choice = dict[int, Option]
Chains = dict[int, KernelChain]
Solution = tuple[Chains, SubstitutionReport]


class Search:
    """The chains for a problem's layers, for one budget.

    Args:
      problem: function and its layers.
      calibration: responses to which chains are fitted; None to fit them to the weights.
      advance: function that is called with 1 for each weighed layer.
    """

    def __init__(self, problem: Problem, calibration: Calibration | None, advance: Callable[[float], None]) -> None:
        self.problem, self.calibration, self.advance = problem, calibration, advance
        # The ratio of times, and the reason in words, of layers whose chain is slower than their kernel.
        self._slow: dict[int, tuple[float, str]] = {}

    def at_share(self, share: float) -> Solution:
        """Returns chains of about the least error within a share of the multiply-accumulates.

        Layers whose chains are slower than their kernels stay dense, unless the budget needs them.
        """
        self._weigh()
        self._slow = {}
        lost = self.problem.lost(self._choose(share))
        chosen, _ = self._settle(partial(self._choose, share, _MAX_ERROR_GROWTH**2 * max(lost, _NEGLIGIBLE_ERROR**2)))
        return self._solve(chosen)

    def within_tolerance(self, tolerance: float) -> Solution:
        """Returns chains with the fewest multiply-accumulates within an error of the results."""
        if not any(output.any() for output in self.problem.outputs):
            raise ValueError(
                "substitute: tolerance is an error relative to the results, which for the given arguments are all zero"
            )
        self._weigh()

        def choose_cheapest() -> Choice:
            def meets(share: float) -> Choice | None:
                chosen = self._choose(share)
                return chosen if self.problem.error(self.problem.chains(chosen)) <= tolerance else None

            return _bisect(meets, self.problem.least_share(self._slow), 1.0, _BISECTION_STEPS) or {}

        chosen, chains = self._settle(choose_cheapest)
        if self.calibration is None:
            return self._solve(chosen)
        # Fitted to responses, fewer multiply-accumulates make the same error.
        share = self.problem.macs(chains) / self.problem.total_macs

        def solve_fitted(share: float) -> Solution | None:
            solution = self._solve(self._settle(partial(self._choose, share))[0])
            return solution if solution[1].error <= tolerance else None

        lowest = max(self.problem.least_share(self._slow), share / 3)
        return _bisect(solve_fitted, lowest, share, _COSTLY_BISECTION_STEPS) or self._solve(chosen, fit=False)

    def at_speedup(self, speedup: float) -> Solution:
        """Returns chains of the least error at a measured speed-up."""
        self._weigh()
        best = 0.0

        def choose_fast(share: float) -> Choice | None:
            nonlocal best
            chosen, chains = self._settle(partial(self._choose, share))
            before, after = self._clock(chains, self._run(chains))
            best = max(best, before / after)
            # Without chains the speed-up is 1, whatever two measurements of the same function say.
            return chosen if before / after >= speedup and (chosen or speedup <= 1) else None

        # The result is the largest share that is fast enough; the smallest share is the fastest.
        chosen = _bisect(choose_fast, 1.0, self.problem.least_share(self._slow), _COSTLY_BISECTION_STEPS)
        if chosen is None:
            raise ValueError(f"substitute: speedup={speedup:g} is not reached: the fastest chains make it {best:.2f}")
        return self._solve(chosen)

    def of_rank(self, rank: Any) -> Solution:
        """Returns chains of one rank for all layers, regardless of cost."""
        options = {index: layer.at_rank(rank) for index, layer in self.problem.open.items()}
        chosen = {index: option for index, option in options.items() if option is not None}
        if not chosen:
            reasons = "; ".join(f"{layer.name}: {layer.why_dense}" for layer in list(self.problem.layers.values())[:3])
            raise ValueError(f"substitute: no layer can take a chain of rank {rank}: {reasons}")
        return self._solve(chosen)

    def _weigh(self) -> None:
        """Measures the harm of each layer's error to the results, unless that is known."""
        if not self.problem.harms:
            if self.calibration is not None:
                self.calibration.judge()
            self.problem.weigh(self.advance)

    def _choose(self, share: float, max_loss: float = math.inf) -> Choice:
        """Returns the best options within a share.

        Layers whose chains are slower than their kernels stay dense, unless the budget cannot be met that way or more
        than `max_loss` would be lost. Then they are admitted again, the least slow first.
        """
        while True:
            chosen = self.problem.choose(share, self._slow)
            if chosen is not None and (not self._slow or self.problem.lost(chosen) <= max_loss):
                return chosen
            if not self._slow:
                least = self.problem.least_share(())
                refused = [layer for layer in self.problem.layers.values() if layer.refusal]
                raise ValueError(
                    f"substitute: macs={share:.4g} is not met by any choice of chains, the least is {least:.4g}"
                    + "".join(f"; {layer.name} stays dense: {layer.refusal}" for layer in refused[:3])
                )
            del self._slow[min(self._slow, key=lambda index: self._slow[index][0])]

    def _settle(self, choose: Callable[[], Choice]) -> tuple[Choice, Chains]:
        """Returns options and their chains, chosen again until no chain is newly measured as slower than its kernel."""
        clocked: set[int] = set(self._slow)
        while True:
            chosen = choose()
            chains = self.problem.chains(chosen)
            slow = {}
            for index in chains.keys() - clocked:
                before, after = self.problem.milliseconds(index, chains[index])
                if after > _MAX_TIME_RATIO * before:
                    option = chosen[index]
                    rank = "x".join(map(str, np.atleast_1d(option.rank)))
                    text = f"{option.scheme} of rank {rank} takes {after:.3f} ms, the kernel {before:.3f}"
                    slow[index] = after / before, text
            if not slow:
                return chosen, chains
            clocked |= slow.keys()
            self._slow.update(slow)

    # Solution of a choice.

    def _solve(self, chosen: Choice, fit: bool = True) -> Solution:
        """Returns the fitted chains of a choice, and the report of a run of the whole function with them."""
        problem = self.problem
        chains, errors = problem.chains(chosen), {index: option.error for index, option in chosen.items()}
        if self.calibration is not None and fit:
            chains, fitted = self.calibration.fit(chosen, chains)
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
        report = SubstitutionReport(
            tuple(rows),
            problem.total_macs,
            problem.macs(chains),
            before,
            after,
            relative_error(outputs, problem.outputs),
        )
        return chains, report

    def _row(self, index: int, option: Option | None, chain: KernelChain | None, error: float) -> LayerReport:
        """Returns the line of the report on a layer, with the reason if it stays dense."""
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
        """Returns the function with the chains, jitted."""
        problem = self.problem
        known_placements = {problem.paths[index]: problem.layers[index].placement for index in chains}
        traced = jax.make_jaxpr(problem.flat, return_shape=True)
        return jax.jit(lambda *values: evaluate_with_chains(traced, problem.paths, values, known_placements, False))

    def _clock(self, chains: Chains, run: Callable[..., Any]) -> tuple[float, float]:
        """Returns the milliseconds of a call of the function as it was, and of `run` with the chains."""
        plain, values = self.problem.plain, self.problem.values(chains)
        calls = {"kernels": lambda: plain(*self.problem.arrays), "chains": lambda: run(*values)}
        times = median_seconds(calls, _TIMING_SECONDS)
        return 1e3 * times["kernels"], 1e3 * times["chains"]


def _bisect(meets: Callable[[float], Any | None], first: float, last: float, steps: int) -> Any | None:
    """Returns the result of `meets` for the share nearest to the first one for which that is not None.

    The first share is tried, then the last one. If only the last one has a result, some shares between follow. None if
    neither has one.
    """
    for share in (first, last):
        best = meets(share)
        if best is not None:
            break
    if best is None or share == first:
        return best
    failing, passing = math.log(first), math.log(last)
    for _ in range(steps):
        middle = (failing + passing) / 2
        better = meets(math.exp(middle))
        if better is None:
            failing = middle
        else:
            best, passing = better, middle
    return best
