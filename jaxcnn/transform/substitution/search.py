"""The search of `substitute` for chains that meet the budget; the chains are fitted, timed and verified."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Literal

import jax
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.norms import relative_error
from jaxcnn.timing import median_seconds
from jaxcnn.transform.chains.with_chains import evaluate_with_chains
from jaxcnn.transform.progress import Advance
from jaxcnn.transform.substitution.arguments import Budgets
from jaxcnn.transform.substitution.calibration import Calibration
from jaxcnn.transform.substitution.held_out import Verification
from jaxcnn.transform.substitution.layer import Option
from jaxcnn.transform.substitution.problem import Problem, floats
from jaxcnn.transform.substitution.report import LayerReport, SubstitutionReport

_BISECTION_STEPS = 7
"""Halvings of the interval in which the logarithm of the share of multiply-accumulates is searched."""
_COSTLY_BISECTION_STEPS = 4
"""Halvings in a search whose steps compile and time the function, or fit chains to responses."""
_MAX_TIME_RATIO = 0.95
"""Largest ratio of a chain's time to the dense kernel's; less than 1, since two timings of one function differ."""
_MIN_MILLISECONDS = 0.1
"""Time of all layers below which the clock decides nothing, because a call of any program takes about as long."""
_MAX_LAYERS_CLOCKED = 10
"""Largest number of kinds of layers that are timed; each takes two programs to compile."""
_NUM_EXPECTED_ERRORS = 5
"""Number of shares for which an error text names the error to be expected."""
_TIMING_SECONDS = 0.5
"""Duration of a measurement of the whole function."""

Count = Literal["time", "macs"]
"""Requirement beside the budget: "time" takes no chain that is slower than its kernel, "macs" takes any."""

Choice = dict[int, Option]
Chains = dict[int, KernelChain]
Fit = tuple[Choice, Chains, dict[int, float]]
"""Options, their fitted chains, and the error of each layer."""

Solution = tuple[Chains, SubstitutionReport]


class Search:
    """The search for chains of a problem's layers that meet budgets.

    Args:
      problem: function and its layers.
      calibration: responses to which chains are fitted; None to fit them to the weights.
      advance: function that is called with 1 for each weighed layer.
      verification: held-out inputs and the user's score.
      count: requirement beside the budgets, see `Count`.
      on_layer: user's function of a layer's report, called when the layer is fitted and when it is decided; or None.
    """

    def __init__(
        self,
        problem: Problem,
        calibration: Calibration | None,
        advance: Advance,
        verification: Verification,
        count: Count = "time",
        on_layer: Callable[[LayerReport], Any] | None = None,
    ) -> None:
        self.problem, self.calibration, self.advance, self.count = problem, calibration, advance, count
        self.verification, self.on_layer = verification, on_layer
        self._parameter_bytes = math.inf
        # The reason in words, of layers whose chain is measured to be slower than their kernel.
        self._slow: dict[int, str] = {}
        self._clocked: dict[str, tuple[float, float]] = {}

    @cached_property
    def _max_time_ratio(self) -> float:
        """Largest ratio of a chain's time to its kernel's: infinite where the clock decides nothing."""
        if self.count == "macs":
            return math.inf
        milliseconds = self.problem.dense_milliseconds()
        return math.inf if milliseconds is not None and milliseconds < _MIN_MILLISECONDS else _MAX_TIME_RATIO

    def within(self, budgets: Budgets) -> Solution:
        """Returns chains that meet all budgets.

        Budgets of cost are met with about the least error, and the result is refused if that is above the other
        budgets. Without one, the result has the fewest multiply-accumulates that meet the others.
        """
        if budgets.budget is not None:
            self._dense_score()
        self._weigh()
        self._slow, self._parameter_bytes = {}, math.inf if budgets.parameter_bytes is None else budgets.parameter_bytes
        if not budgets.costs:
            if budgets.budget is not None:
                return self._within_loss(budgets.budget, budgets.tolerance)
            return self._within_tolerance(budgets.limits["tolerance"])
        if budgets.speedup is not None:
            solution = self._at_speedup(budgets.speedup, 1.0 if budgets.macs is None else budgets.macs)
        else:
            solution = self._at_share(math.inf if budgets.macs is None else budgets.macs)
        self._check_losses(budgets, solution[1])
        return solution

    def _dense_score(self) -> float:
        score = self.verification.dense_score
        if score is None:
            raise ValueError("substitute: budget is the loss allowed in a score, and substitute was given no measure")
        return score

    def _at_share(self, share: float) -> Solution:
        """Returns chains of about the least error within a share of the multiply-accumulates."""
        settled = self._settle(partial(self._choose, share))
        if settled is None:
            raise ValueError(self._why_unmet(share))
        return self._solve(settled[0])

    def _within_tolerance(self, tolerance: float) -> Solution:
        """Returns chains with the fewest multiply-accumulates whose error of the results is at most `tolerance`.

        All layers stay dense if no chains meet the tolerance.
        """
        if not any(output.any() for output in self.problem.outputs):
            raise ValueError(
                "substitute: tolerance is an error relative to the results, which for the given arguments are all zero"
            )

        def choose_cheapest() -> Choice | None:
            def meets(share: float) -> Choice | None:
                chosen = self._choose(share)
                if chosen is None or self.problem.error(self.problem.chains(chosen)) > tolerance:
                    return None
                return chosen

            return _bisect(meets, self._least_share, 1.0, _BISECTION_STEPS)

        settled = self._settle(choose_cheapest)
        chosen, chains = settled or ({}, {})
        if self.calibration is None:
            return self._solve(chosen) if settled else self._solve_dense("tolerance", tolerance)
        # Fitted to responses, fewer multiply-accumulates make the same error.
        share = self.problem.macs(chains) / self.problem.total_macs

        def fit(share: float) -> Fit | None:
            fit = self._fit_share(share)
            return fit if fit is not None and self.problem.error(fit[1]) <= tolerance else None

        lowest = max(self._least_share, share / 3)
        best_fit = _bisect(fit, lowest, share, _COSTLY_BISECTION_STEPS)
        if best_fit is not None:
            return self._report(*best_fit)
        return self._solve(chosen, fit=False) if settled else self._solve_dense("tolerance", tolerance)

    def _at_speedup(self, speedup: float, share: float) -> Solution:
        """Returns chains of about the least error that make the whole function `speedup` times as fast, as measured.

        Args:
          speedup: ratio of the time of a call before to that after.
          share: share of the multiply-accumulates that may stay.

        Raises:
          ValueError: no chains reach the speed-up.
        """
        best = 0.0

        def choose_fast(share: float) -> Choice | None:
            nonlocal best
            settled = self._settle(partial(self._choose, share))
            if settled is None:
                return None
            chosen, chains = settled
            before, after = self._clock(chains, self._run(chains))
            best = max(best, before / after)
            # Without chains the speed-up is 1, whatever two measurements of the same function say.
            return chosen if before / after >= speedup and (chosen or speedup <= 1) else None

        # The result is the largest share that is fast enough; the smallest share is the fastest.
        chosen = _bisect(choose_fast, share, min(share, self._least_share), _COSTLY_BISECTION_STEPS)
        if chosen is None and not best:
            raise ValueError(self._why_unmet(share))
        if chosen is None:
            raise ValueError(f"substitute: speedup={speedup:g} is not reached: the fastest chains make it {best:.2f}")
        return self._solve(chosen)

    def _within_loss(self, loss: float, tolerance: float | None) -> Solution:
        """Returns chains with the fewest multiply-accumulates that leave the user's score within a loss.

        With a tolerance they leave the error of the results within this, too.
        """
        before = self._dense_score()

        def fit(share: float) -> Fit | None:
            fit = self._fit_share(share)
            if fit is None or (tolerance is not None and self.problem.error(fit[1]) > tolerance):
                return None
            score = self.verification.score(fit[1])
            return fit if score is not None and before - score <= loss else None

        best_fit = _bisect(fit, self._least_share, 1.0, _COSTLY_BISECTION_STEPS)
        return self._report(*best_fit) if best_fit is not None else self._solve_dense("budget", loss)

    def expected_errors(self, share: float, error: float) -> list[tuple[float, float]]:
        """Returns pairs of a share, from this one up, and the error of the results to be expected at the share.

        Args:
          share: share of the multiply-accumulates that some chains have.
          error: measured error of the results with these chains, to which the expected errors are scaled.
        """
        scale = 0.0
        points = []
        for other in np.geomspace(share, 1.0, _NUM_EXPECTED_ERRORS + 1)[:-1]:
            chosen = self._choose(float(other))
            expected = math.sqrt(self.problem.lost(chosen)) if chosen else 0.0
            scale = scale or error / (expected or 1.0)
            points.append((float(other), scale * expected))
        return points

    def of_rank(self, rank: Any) -> Solution:
        """Returns chains of the ranks that the user set, regardless of cost.

        Args:
          rank: rank of all layers that have none of their own; None to leave them dense.
        """
        ranks = {index: rank if layer.rank is None else layer.rank for index, layer in self.problem.open.items()}
        options = {i: self.problem.layers[i].at_rank(rank) for i, rank in ranks.items() if rank is not None}
        chosen = {index: option for index, option in options.items() if option is not None}
        if not chosen:
            layers = [self.problem.layers[index] for index in options] or list(self.problem.layers.values())
            reasons = "; ".join(f"{layer.name}: {layer.why_dense}" for layer in layers[:3])
            of_rank = "its rank" if rank is None else f"rank {rank}"
            raise ValueError(f"substitute: no layer can take a chain of {of_rank}: {reasons}")
        return self._solve(chosen)

    def _weigh(self) -> None:
        """Measures how much each layer's error harms the results, once for each problem.

        With calibration inputs the options first get the errors of their responses.
        """
        if not self.problem.harms:
            if self.calibration is not None:
                self.calibration.judge()
            self.problem.weigh(self.advance)

    @property
    def _least_share(self) -> float:
        """Least share of the multiply-accumulates that any choice meets."""
        return self.problem.least_share(self._slow, self._max_time_ratio)

    def _choose(self, share: float) -> Choice | None:
        """Returns the best options within a share, or None if there are none.

        Unless multiply-accumulates are all that counts, none is slower than its kernel.
        """
        return self.problem.choose(share, self._slow, self._max_time_ratio, self._parameter_bytes)

    def _fit_share(self, share: float) -> Fit | None:
        """Returns the fitted chains within a share; None if no choice meets the share."""
        settled = self._settle(partial(self._choose, share))
        return None if settled is None else (settled[0], *self._fit(settled[0]))

    def _check_losses(self, budgets: Budgets, report: SubstitutionReport) -> None:
        """Refuses results that lose more than the budgets allow beside those of cost."""
        costs = " and ".join(f"{name}={limit:g}" for name, limit in budgets.costs.items())
        if budgets.tolerance is not None and report.error > budgets.tolerance:
            raise ValueError(
                f"substitute: {costs} and tolerance={budgets.tolerance:g} are not met together: chains that cost no "
                f"more leave an error of the results of {report.error:.2g}"
            )
        if budgets.budget is not None and report.score_before is not None and report.score_after is not None:
            loss = report.score_before - report.score_after
            if loss > budgets.budget:
                raise ValueError(
                    f"substitute: {costs} and budget={budgets.budget:g} are not met together: with chains that cost no "
                    f"more the score is {report.score_after:.6g}, {loss:.2g} less than before"
                )

    def _why_unmet(self, share: float) -> str:
        """Returns the text of the error about a share that no choice meets."""
        least_bytes = self.problem.least_bytes(self._slow, self._max_time_ratio)
        if least_bytes > self._parameter_bytes:
            least_of_all_bytes = self.problem.least_bytes(())
            return (
                f"substitute: parameter_bytes={self._parameter_bytes} is not met by any choice of chains, the least of "
                f"{self.problem.total_bytes} bytes is {least_bytes}"
                + (
                    f', and {least_of_all_bytes} with count="macs", for which slower chains are taken too'
                    if least_of_all_bytes < least_bytes
                    else ""
                )
                + self._refusals()
            )
        least, least_of_all = self._least_share, self.problem.least_share(())
        if least <= share and math.isfinite(self._parameter_bytes):
            return (
                f"substitute: macs={share:.4g} and parameter_bytes={self._parameter_bytes} are not met together; the "
                f"least of each alone are macs={least:.4g} and parameter_bytes={least_bytes}{self._refusals()}"
            )
        if least_of_all <= share:
            slow = [layer.name for index, layer in self.problem.layers.items() if index in self._slow]
            return (
                f"substitute: macs={share:.4g} is not met by chains that are faster than their kernels on this device; "
                f"the least share at which the clock still gains is {least:.4g}, and "
                f'{least_of_all:.4g} can be met with count="macs", for which slower chains are taken too'
                + (f"; measured to be slower: {', '.join(slow[:3])}" if slow else "")
            )
        return (
            f"substitute: macs={share:.4g} is not met by any choice of chains, the least is {least_of_all:.4g}"
            + self._refusals()
        )

    def _refusals(self) -> str:
        """Returns the reasons of the first layers that stay dense, as the end of a text."""
        refused = [layer for layer in self.problem.layers.values() if layer.refusal]
        return "".join(f"; {layer.name} stays dense: {layer.refusal}" for layer in refused[:3])

    def _settle(self, choose: Callable[[], Choice | None]) -> tuple[Choice, Chains] | None:
        """Returns options and their chains, chosen again until no chain is newly measured as slower than its kernel.

        None if `choose` returns None.
        The chains that save the most time by the estimate are timed; the others are left to the estimate.
        """
        while True:
            self.advance(0, "Timing layers")
            chosen = choose()
            if chosen is None:
                return None
            chains = self.problem.chains(chosen)
            if self._max_time_ratio == math.inf:
                return chosen, chains
            slow = {}
            timed = [index for index in chains if self.problem.layers[index].rank is None]
            for index in sorted(timed, key=lambda index: -self._estimated_savings(index, chosen[index])):
                times = self._milliseconds(index, chains[index])
                if times is not None and times[1] > _MAX_TIME_RATIO * times[0]:
                    option = chosen[index]
                    rank = "x".join(map(str, np.atleast_1d(option.rank)))
                    slow[index] = f"{option.scheme} of rank {rank} takes {times[1]:.3f} ms, the kernel {times[0]:.3f}"
            if not slow:
                return chosen, chains
            self._slow.update(slow)

    def _estimated_savings(self, index: int, option: Option) -> float:
        """Returns the milliseconds that an option saves, or multiply-accumulates where there is no estimate."""
        times = self.problem.estimated_milliseconds(
            index, self.problem.layers[index].families[option.scheme][0].shapes(option.rank)
        )
        return float(self.problem.layers[index].dense.macs - option.macs) if times is None else times[0] - times[1]

    def _milliseconds(self, index: int, chain: KernelChain) -> tuple[float, float] | None:
        """Returns the measured milliseconds of a layer, dense and as a chain; None for one too many to be timed."""
        clocked = self._clocked
        key = self.problem.clock_key(index, chain)
        if key not in clocked and len(clocked) < _MAX_LAYERS_CLOCKED:
            clocked[key] = self.problem.milliseconds(index, chain)
        return clocked.get(key)

    # Solution of a choice.

    def _solve_dense(self, name: str, limit: float) -> Solution:
        """Returns the function without chains, which loses nothing, and refuses a limit if the user set ranks."""
        ranked = [layer.name for layer in self.problem.open.values() if layer.rank is not None]
        if ranked:
            raise ValueError(
                f"substitute: {name}={limit:g} is not met with the chains of ranks, of {', '.join(ranked[:3])}, even "
                "where all other layers stay dense"
            )
        return self._solve({})

    def _solve(self, chosen: Choice, fit: bool = True) -> Solution:
        """Returns the fitted chains of a choice, and the report of a run of the whole function with them."""
        return self._report(chosen, *self._fit(chosen, fit))

    def _fit(self, chosen: Choice, fit: bool = True) -> tuple[Chains, dict[int, float]]:
        """Returns the chains of a choice, fitted to responses if there are some and `fit`, and their errors."""
        chains, errors = self.problem.chains(chosen), {index: option.error for index, option in chosen.items()}
        if self.calibration is not None and fit:
            chains, fitted = self.calibration.fit(chosen, chains, partial(self._tell_of_fit, chosen))
            errors |= fitted
        return chains, errors

    def _tell_of_fit(self, chosen: Choice, index: int, chain: KernelChain, error: float) -> None:
        if self.on_layer is not None:
            self.on_layer(self._row(index, chosen[index], chain, error))

    def _report(self, chosen: Choice, chains: Chains, errors: dict[int, float]) -> Solution:
        """Returns the chains and the report of a run of the whole function with them."""
        problem, run = self.problem, self._run(chains)
        self.advance(0, "Running the function with the chains")
        outputs = floats(run(*problem.values(chains)))
        if not all(np.isfinite(output).all() for output in outputs) and all(
            np.isfinite(output).all() for output in problem.outputs
        ):
            raise ValueError("substitute: the results with chains are not finite, though they were before")
        before, after = self._clock(chains, run)
        rows = [
            self._row(index, chosen.get(index), chains.get(index), errors.get(index, 0.0)) for index in problem.layers
        ]
        if self.on_layer is not None:
            for row in rows:
                self.on_layer(row)
        report = SubstitutionReport(
            tuple(rows),
            problem.total_macs,
            problem.macs(chains),
            before,
            after,
            relative_error(outputs, problem.outputs),
            held_out_error=self.verification.error(chains),
            score_before=self.verification.dense_score,
            score_after=self.verification.score(chains),
        )
        return chains, report

    def _row(self, index: int, option: Option | None, chain: KernelChain | None, error: float) -> LayerReport:
        """Returns the line of the report on a layer, with the reason if it stays dense."""
        layer = self.problem.layers[index]
        if chain is not None:
            reason = ""
        elif index in self._slow:
            reason = self._slow[index]
        else:
            reason = layer.why_dense or "the budget is met without it"
        before, after = (None, None) if chain is None else self._times(index, chain)
        if before is not None and after is not None and after > before:
            reason = "its chain is slower than the kernel"
            if self.count == "macs":
                reason += ', and there because of count="macs"'
            elif self._max_time_ratio == math.inf:
                reason += f", but all layers together take less than {_MIN_MILLISECONDS:g} ms"
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

    def _times(self, index: int, chain: KernelChain) -> tuple[float, float] | tuple[None, None]:
        """Returns the milliseconds of a layer, measured or estimated."""
        times = self._milliseconds(index, chain)
        return (
            times
            or self.problem.estimated_milliseconds(index, self.problem.layers[index].shapes(chain))
            or (None, None)
        )

    def _run(self, chains: Chains) -> Callable[..., Any]:
        """Returns the jitted function of the arguments' arrays, with chains in the place of some kernels.

        Only the positions in `chains` count here: the caller passes the chains themselves, by `Problem.values`.
        """
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
