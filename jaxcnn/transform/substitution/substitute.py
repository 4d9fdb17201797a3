"""`substitute` replaces the trained kernels of any JAX function by chains within budgets."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax

from jaxcnn.chain import KernelChain
from jaxcnn.geometry import whole_number
from jaxcnn.norms import relative_error
from jaxcnn.processes import decided_by_first
from jaxcnn.transform.chains.explicit_kernels import (
    keep_what_is_read,
    make_kernels_explicit,
    with_explicit_kernels,
)
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.chains.with_chains import apply_with_chains
from jaxcnn.transform.progress import Progress, bar
from jaxcnn.transform.substitution import files as saving
from jaxcnn.transform.substitution.arguments import (
    Budgets,
    Names,
    check_batches,
    check_number,
    check_patterns,
    check_rank,
    listed,
    ranks_by_name,
    schemes_by_name,
    skip_predicate,
    trained_predicate,
)
from jaxcnn.transform.substitution.batches import batches_of
from jaxcnn.transform.substitution.calibration import Calibration
from jaxcnn.transform.substitution.distillation import Loss, Training, squared_error
from jaxcnn.transform.substitution.distillation import train as train_chains
from jaxcnn.transform.substitution.held_out import Score, Verification, split_held_out
from jaxcnn.transform.substitution.placing import gathered, params_with, placed_like_parameters, replacements
from jaxcnn.transform.substitution.problem import Problem, bytes_of, floats
from jaxcnn.transform.substitution.report import MAX_ERROR, LayerReport, SubstitutionReport
from jaxcnn.transform.substitution.search import Count, Search, Solution
from jaxcnn.transform.substitution.tradeoff import TradeOff


@dataclasses.dataclass(frozen=True)
class Substitution:
    """A function with chains in place of kernels.

    Args:
      f: function as it was.
      params: parameters of f, with `KernelChain`s in place of kernels, and `ComputedKernels` in place of parameters
        from which f computes kernels; train them, or replace some.
      report: report on each layer and on the whole; `print` shows a table.
      placements: axes of each kernel in its parameter, by the parameter's path.
      solve: function from other budgets, and the largest error accepted, to their substitution. It holds the dense
        parameters; None after `release`, and for a substitution that was loaded.
      origin: dense parameters, and the arguments on which the result was verified; None where `solve` is None.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> def model(params, x):
      ...     return jaxcnn.conv(x, params["kernel"])
      >>> ramp = jnp.outer(jnp.arange(1.0, 6.0), jnp.arange(1.0, 6.0))
      >>> params, x = {"kernel": jnp.broadcast_to(ramp[..., None, None], (5, 5, 8, 8))}, jnp.ones((1, 16, 16, 8))
      >>> small = jaxcnn.substitute(model, params, x, rank=1, schemes="separable")
      >>> small.params["kernel"].windows
      ((5, 1), (1, 5))
      >>> bool(jnp.allclose(small.apply(small.params, x), model(params, x), rtol=1e-3))
      True
    """

    f: Callable[..., Any]
    params: Any = dataclasses.field(repr=False)
    report: SubstitutionReport
    placements: Mapping[str, Placement] = dataclasses.field(repr=False)
    solve: Solve | None = dataclasses.field(default=None, repr=False, compare=False)
    origin: tuple[Any, tuple[Any, ...]] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the fields of a pickle, which has no `solve` and no `origin`, like a saved substitution."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "solve": None, "origin": None}

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    @cached_property
    def apply(self) -> Callable[..., Any]:
        """Pure function f of parameters with chains: `apply(params, *args)`."""
        return apply_with_chains(with_explicit_kernels(self.f), self.placements)

    def curve(self, shares: Sequence[float] = (0.7, 0.5, 0.35, 0.25, 0.18)) -> TradeOff:
        """Returns times and errors for several shares of the multiply-accumulates.

        Every share is solved, verified and timed by itself, as this substitution was.
        `jaxcnn.drawing.draw_tradeoff` draws the result.

        Args:
          shares: shares of the multiply-accumulates that may stay; those that no choice of chains meets are left out.

        Raises:
          ValueError: the substitution was loaded or released, or a share is not in (0, 1].
        """
        if self.solve is None:
            raise ValueError(
                "curve: a substitution that was loaded or released knows its own point only; substitute again"
            )
        for share in shares:
            check_number("curve", "each of shares", share)
        reports = []
        for share in shares:
            try:
                reports.append(self.solve(Budgets(macs=share), math.inf).report)
            except ValueError:
                continue
        reports = sorted((*reports, self.report), key=lambda report: report.macs_share, reverse=True)
        scores = tuple(report.score_after for report in reports if report.score_after is not None)
        return TradeOff(
            tuple((report.macs_share, report.speedup, report.error) for report in reports),
            tuple(report.ms_after for report in reports),
            scores if len(scores) == len(reports) else (),
        )

    def with_budget(
        self,
        *,
        tolerance: float | None = None,
        macs: float | None = None,
        speedup: float | None = None,
        parameter_bytes: int | None = None,
        budget: float | None = None,
        max_error: float | None = None,
    ) -> Substitution:
        """Returns the substitution of the same dense network for other budgets, with what this search has measured.

        The layers are judged, weighed and timed once for all budgets, and the chains are fitted anew. Ranks by layer
        name stay as they were; chains that were trained by `distill` are not taken over.

        Args:
          tolerance, macs, speedup, parameter_bytes, budget: Limits as in `substitute`, all of which are met.
          max_error: Largest error of the results that is accepted, as in `substitute`. None: that of the first call.

        Raises:
          ValueError: the substitution was loaded or released; no budget, or budgets that are not met together.

        Example:
          >>> import jax.numpy as jnp
          >>> import jaxcnn
          >>> def model(params, x):
          ...     return jaxcnn.conv(x, params["kernel"])
          >>> ramp = jnp.outer(jnp.arange(1.0, 6.0), jnp.arange(1.0, 6.0))
          >>> params = {"kernel": jnp.broadcast_to(ramp[..., None, None], (5, 5, 8, 8))}
          >>> small = jaxcnn.substitute(model, params, jnp.ones((1, 16, 16, 8)), macs=0.5, count="macs")
          >>> smaller = small.with_budget(macs=0.3, parameter_bytes=1000)
          >>> smaller.report.macs_share <= 0.3, smaller.report.parameter_bytes_after <= 1000
          (True, True)
        """
        if self.solve is None:
            raise ValueError(
                "with_budget: a substitution that was loaded or released does not hold the dense parameters; "
                "substitute again"
            )
        budgets = Budgets.of(
            "with_budget",
            tolerance=tolerance,
            macs=macs,
            speedup=speedup,
            parameter_bytes=parameter_bytes,
            budget=budget,
        )
        if not budgets.limits:
            raise ValueError("with_budget: give tolerance, macs, speedup, parameter_bytes or budget, got none")
        return self.solve(budgets, None if max_error is None else check_number("with_budget", "max_error", max_error))

    def release(self) -> Substitution:
        """Returns this substitution without the dense parameters and the search, which `solve` keeps in memory."""
        return dataclasses.replace(self, solve=None, origin=None)

    def distill(
        self,
        inputs: Any,
        *,
        steps: int = 200,
        optimizer: Any = None,
        loss: Loss = squared_error,
        train: str | Callable[[str], bool] = "chains",
        dense_params: Any = None,
        test_args: tuple[Any, ...] | None = None,
        progress: Progress = False,
    ) -> Substitution:
        r"""Returns this substitution with its chains trained to the dense network's own results; no labels are needed.

        Each step takes one batch and makes the squared relative error of the results smaller,
        $\lVert f_\text{small}(x) - f_\text{dense}(x) \rVert^2 / \lVert f_\text{dense}(x) \rVert^2$. Both networks are
        computed through `accelerate`.

        Args:
          inputs: inputs such as the function will meet: a list of batches, each a tuple of the arguments after params
            or one array, which is repeated from its start; or an iterator of at least `steps` batches, of which one is
            held at a time.
          steps: number of updates.
          optimizer: optax transformation, such as `optax.sgd(0.01)`. By default Adam, with a rate that falls from 0.001
            to zero along a cosine; it needs optax.
          loss: function of the small and of the dense network's results to a number, for example the cross entropy of
            their classes.
          train: `"chains"` to train the links and keep all else, `"all"` to train every floating parameter, or a
            function of a parameter's name to whether it is trained.
          dense_params: dense parameters; needed where the substitution was loaded or released.
          test_args: arguments after params on which the error is measured; by default those that `substitute` got.
          progress: flag to show a bar, or a function of the steps done and their total, as in `substitute`.

        Returns:
          A `Substitution` of the same structure. `report.error` is the error after training, and
          `report.error_before_training` that before. The layers' own errors are those before; the error on held-out
          inputs and the scores are left out.

        Raises:
          ValueError: the dense parameters or the arguments of the test are unknown; no inputs or too few; nothing to
            train; a loss that is not finite, with the step at which it happened.

        Example:
          >>> import jax.numpy as jnp
          >>> import numpy as np
          >>> import jaxcnn
          >>> def model(params, x):
          ...     return jaxcnn.conv(x, params["kernel"])
          >>> params = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 4, 4)), jnp.float32)}
          >>> x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8, 4)), jnp.float32)
          >>> small = jaxcnn.substitute(model, params, x, rank=3, schemes="low_rank")
          >>> trained = small.distill([x], steps=20)
          >>> trained.report.error < trained.report.error_before_training
          True

        References:
          Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
        """
        dense, arguments = self.origin or (None, None)
        dense = dense if dense_params is None else dense_params
        arguments = arguments if test_args is None else test_args
        if dense is None or arguments is None:
            raise ValueError(
                "distill: a substitution that was loaded or released knows neither its dense parameters nor arguments "
                "to verify it on; give dense_params= and test_args="
            )
        steps = whole_number("distill: steps", steps)
        training = Training(steps, optimizer, loss, trained_predicate(train))
        batches = inputs if isinstance(inputs, Iterator) else batches_of(inputs, 0)

        def teacher(*batch: Any) -> Any:
            return self.f(dense, *batch)

        with bar("Training small kernels", steps, progress) as advance:
            params = train_chains(self.apply, self.params, teacher, batches, training, advance)
        expected = floats(jax.jit(teacher)(*arguments))
        errors = [
            relative_error(floats(jax.jit(self.apply)(values, *arguments)), expected)
            for values in (self.params, params)
        ]
        before, after = errors
        if after > before:
            warnings.warn(
                f"distill: the error of the results grew from {before:.4f} to {after:.4f}; take more inputs, which are "
                "like those of the test, or a lower rate",
                stacklevel=2,
            )
        report = dataclasses.replace(
            self.report,
            error=after,
            error_before_training=before,
            held_out_error=None,
            score_before=None,
            score_after=None,
        )
        return dataclasses.replace(self, params=params, report=report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes parameters, chains and report to one `.npz` file: arrays, and their structure as JSON; no pickle."""
        saving.save(path, self.params, self.placements, self.report)

    @classmethod
    def load(cls, path: str | os.PathLike[str], f: Callable[..., Any], params: Any) -> Substitution:
        """Returns the substitution that `save` wrote.

        Args:
          path: path of the file.
          f: function that `substitute` got.
          params: parameters of the same structure as for `substitute`; the file's arrays replace theirs.

        Raises:
          ValueError: the file is of another format, or of parameters of another structure.
        """
        return cls(f, *saving.load(path, params))


Solve = Callable[[Budgets, float | None], Substitution]
"""Function from budgets and the largest error accepted, None for that of the first call, to a substitution."""


def substitute(
    f: Callable[..., Any],
    params: Any,
    *args: Any,
    tolerance: float | None = None,
    macs: float | None = None,
    speedup: float | None = None,
    parameter_bytes: int | None = None,
    rank: int | tuple[int, ...] | None = None,
    ranks: Mapping[str, int | tuple[int, ...]] | None = None,
    calibration: Any = None,
    schemes: Names | Mapping[str, Names] | None = None,
    skip: Names | Callable[[str], bool] | None = None,
    dense: bool = False,
    count: Count = "time",
    max_error: float = MAX_ERROR,
    measure: Score | None = None,
    budget: float | None = None,
    on_layer: Callable[[LayerReport], Any] | None = None,
    progress: Progress = False,
    seed: int = 0,
) -> Substitution:
    r"""Returns a function with chains in place of its trained kernels, within budgets for all of them.

    f is traced for its arguments, and every kernel is found that depends on params alone: a parameter, also through
    casts, transpositions, reshapes and loops, or what f computes from parameters. Each is a layer with many possible
    chains: the schemes' at their ranks. All start dense, and the layer gives way that loses the least for each
    multiply-accumulate saved,
    $\sum_l w_l(e_l) e_l^2$ being the loss: $e_l$ is a layer's relative error and $w_l$ the part of it that reaches the
    results, measured at two of its errors. Only chains that are faster than their kernels are options, by the cost
    model of `auto`; those that save the most time are timed, and stay dense if the clock says otherwise. With
    `count="macs"` all chains are options. With `rank` every layer takes the chain of that rank. At last the whole
    function is run on `args`, as it was and with the chains: `report.error` and the times are those of that run. Of
    three calibration inputs or more a fifth is held out, and `report.held_out_error` is the error there.

    Chains and all other parameters lie on the devices on which the parameters lay: a chain's first link is split along
    its input features and its last link along its output features as the kernel was, and all else is on each device. In
    a program of several processes all call `substitute`. The first process reads all parameters and arguments, decides
    alone, and the others get its decision; there f must not name devices itself.

    Args:
      f: function `f(params, *args)` of pytrees of arrays; other leaves are treated as by `accelerate`.
      params: trained parameters of f; kernels as in Flax, Haiku, Keras, Equinox or plain JAX.
      *args: other arguments of f, by which layers are weighed and on which the result is verified; best none of the
        calibration inputs. Of a `jax.ShapeDtypeStruct` random numbers are drawn.
      tolerance: relative error of the results allowed, norm(after - before) / norm(before). Of this, `macs`, `speedup`,
        `parameter_bytes` and `budget` give one or several, all of which are met, or give ranks.
      macs: share of the multiply-accumulates of all convolutions that may stay, the report's `macs_share`.
      speedup: ratio of the time of jitted f to that of a call with chains, measured on this device.
      parameter_bytes: bytes that all parameters may have together, those that are no kernels included.
      rank: rank of the chain of every layer, in each group, as the one scheme's own function takes it: a number, or one
        for each rank of the scheme. A layer with a lower full rank takes the full one. `schemes` must be one scheme;
        neither multiply-accumulates nor times affect the result, and no budget is given.
      ranks: ranks by layer name, such as `{"conv4/*": 32}`, for layers of one scheme. The other layers have `rank`, or
        are chosen by the budgets, or stay dense without either. A name is given as for `skip`; the first that matches
        counts, and one that matches no layer is an error.
      calibration: inputs such as the function will meet: a list or generator of batches, each a tuple of the arguments
        after params, or one array. Of a generator of more than 16 batches a random 16 are used, and no more are held,
        since each layer is fitted to what all of them make of the layers before. With them the error of each layer is
        that of its responses behind its nonlinearity, and its chain is fitted to the dense network's responses, given
        the chains before it. A handful of photographs does. A kernel that is used several times is fitted to all its
        uses together; one in a `while` or a branch, one used in both directions and one whose responses are all equal
        keep the chain of their weights.
      schemes: names of the schemes to choose from; by default `"separable"`, `"low_rank"`, `"tucker2"` and
        `"depthwise_separable"`. `"cp"` and `"stack"` are searches, which take minutes for large kernels. A dictionary
        gives schemes by layer name, such as `{"conv4/*": "tucker2"}`, and leaves the others the default.
      skip: parameters that stay dense: a part of their names (such as `conv1/kernel`), a pattern of the whole name with
        `*` and `?`, several, or a function of the name. A warning says if no layer has such a name.
      dense: flag to replace dense layers, products with a matrix of params, by pairs of products, too. They then count
        among the convolutions, with kernels of one tap.
      count: `"time"` to take no chain that is slower than its kernel on this device, by the cost model and, for the
        layers that save the most, by the clock; `"macs"` if multiply-accumulates alone are what counts.
      max_error: largest error of the results that is accepted of a calibrated substitution under a budget of `macs`,
        `speedup` or `parameter_bytes`, for `args` and for held-out calibration inputs; infinity accepts all. Without
        calibration, the report says in its first line that the error is large.
      measure: your own score of the function, such as its accuracy: a function that is called with the function of
        the arguments after params and returns a number, the larger the better. With `budget` it is the loss allowed in
        this score that is the budget; with other budgets the score is reported.
      budget: loss of the score allowed: the result has the fewest multiply-accumulates that a bisection finds.
      on_layer: function that is called with the `LayerReport` of a layer: when its chain is fitted to responses, which
        may be several times, and at the end with each row of the report.
      progress: flag to show a progress bar on a terminal, which needs rich; or a function `progress(done, total)` of
        the number of steps done and their total, such as one that moves a bar of your own. A function of three
        arguments is also told, as text, what is being done and about how long the rest will take.
      seed: seed for the positions at which responses are taken, and for random arguments.

    Returns:
      A `Substitution`: `.apply(params, *args)`, `.params`, `.report`, `.with_budget(...)`, `.curve()`, `.save(path)`.

    Raises:
      ValueError: no budget; budgets that no choice of chains meets, or none that is faster; results that differ by more
        than `max_error`; an unknown scheme or none; ranks for layers of several schemes; names that no layer has;
        params that hold chains already, or no convolution's kernel (kernels that f closes over are not found); no
        calibration inputs, or some of which a layer makes NaN; results without floating numbers, by which layers are
        weighed.
      TypeError: f, `measure` or `on_layer` is no function, a budget no number, `dense` no bool.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> def model(params, x):
      ...     return jax.nn.relu(jaxcnn.conv(x, params["conv"]["kernel"]) + params["conv"]["bias"][None, None, None])
      >>> ramp = jnp.arange(1.0, 6.0)
      >>> kernel = jnp.ones((5, 5, 8, 8)) * jnp.outer(ramp, ramp)[:, :, None, None]  # of rank one
      >>> params = {"conv": {"kernel": kernel, "bias": jnp.zeros(8)}}
      >>> substitution = jaxcnn.substitute(model, params, jnp.ones((1, 32, 32, 8)), macs=0.5, count="macs")
      >>> report = substitution.report
      >>> report.rows[0].name, report.macs_share <= 0.5, report.error < 1e-4
      ('conv/kernel', True, True)

    References:
      Zhang, Zou, He and Sun, "Accelerating very deep convolutional networks for classification and detection", 2015:
      responses instead of weights, one budget for all layers. Kim et al., "Compression of deep convolutional neural
      networks for fast and low power mobile applications", 2016.
    """
    seed = whole_number("substitute: seed", seed, 0)
    batches = batches_of(calibration, seed)
    check_batches(batches)
    options: dict[str, Any] = {
        "tolerance": tolerance,
        "macs": macs,
        "speedup": speedup,
        "parameter_bytes": parameter_bytes,
        "rank": rank,
        "ranks": ranks,
        "calibration": batches,
        "schemes": schemes,
        "skip": skip,
        "dense": dense,
        "count": count,
        "max_error": max_error,
        "measure": measure,
        "budget": budget,
        "on_layer": on_layer,
        "progress": progress,
        "seed": seed,
    }
    if jax.process_count() == 1:
        return _substitute(f, params, args, **options)
    options["calibration"] = gathered(options["calibration"])
    return _decided_by_first(f, params, partial(_substitute, f, gathered(params), gathered(args), **options))


def _decided_by_first(f: Callable[..., Any], params: Any, substitute: Callable[[], Substitution]) -> Substitution:
    """Returns on all processes the substitution that a function returns on the first one.

    Args:
      f: user's function.
      params: parameters of f, which may lie on several processes.
      substitute: function that returns a substitution of the parameters as a whole.
    """
    first: list[Substitution] = []

    def decide() -> tuple[dict[int, Any], dict[str, Placement], SubstitutionReport]:
        first.append(substitute())
        return replacements(first[0].params), dict(first[0].placements), first[0].report

    replaced, placements, report = decided_by_first(decide)

    def solve(budgets: Budgets, max_error: float | None) -> Substitution:
        return _decided_by_first(f, params, lambda: _solver(first[0])(budgets, max_error))

    return Substitution(f, params_with(params, replaced, placements), report, placements, solve)


def _solver(substitution: Substitution) -> Solve:
    if substitution.solve is None:
        raise ValueError("substitute: a substitution that was released has no other solutions")
    return substitution.solve


def _substitute(
    f: Callable[..., Any],
    params: Any,
    args: Sequence[Any],
    *,
    rank: Any,
    ranks: Any,
    calibration: Any,
    schemes: Any,
    skip: Any,
    dense: bool,
    count: Count,
    max_error: Any,
    measure: Score | None,
    on_layer: Callable[[LayerReport], Any] | None,
    progress: Progress,
    seed: int,
    **limits: Any,
) -> Substitution:
    """Returns the substitution of parameters that this process holds as a whole; the arguments are `substitute`'s."""
    if not callable(f):
        raise TypeError(f"substitute: f must be a function, got {f!r}")
    if measure is not None and not callable(measure):
        raise TypeError(f"substitute: measure must be a function, got {measure!r}")
    if on_layer is not None and not callable(on_layer):
        raise TypeError(f"substitute: on_layer must be a function, got {on_layer!r}")
    if not isinstance(dense, bool):
        raise TypeError(f"substitute: dense must be True or False, got {dense!r}")
    if limits["budget"] is not None and measure is None:
        raise ValueError(f"substitute: budget={limits['budget']!r} is the loss allowed in a score, so give measure too")
    budgets = Budgets.of("substitute", **limits)
    if not budgets.limits and rank is None and ranks is None:
        raise ValueError(
            "substitute: give one or several of tolerance, macs, speedup, parameter_bytes, and budget with measure; or "
            "rank or ranks; got none"
        )
    if budgets.limits and rank is not None:
        raise ValueError(
            f"substitute: rank={rank!r} decides on every layer, so give no budget with it, got {budgets.limits}; ranks "
            "by layer name go with budgets"
        )
    if any(isinstance(leaf, KernelChain) for leaf in jax.tree.leaves(params, is_leaf=_is_chain)):
        raise ValueError("substitute: params hold chains already; give the dense parameters")
    if count not in ("time", "macs"):
        raise ValueError(f"substitute: count must be 'time' or 'macs', got {count!r}")
    schemes_of = schemes_by_name(schemes)
    rank_of = ranks_by_name(ranks, schemes_of)
    max_error = check_number("substitute", "max_error", max_error)
    batches, held_out = split_held_out(calibration)
    explicit, is_skipped = make_kernels_explicit(f, params, args), skip_predicate(skip)
    problem = Problem(
        with_explicit_kernels(f), explicit, args, schemes_of, is_skipped, seed, dense, rank_of, bytes_of(params)
    )
    _check_layers(problem, schemes, ranks, skip)
    for layer in problem.open.values():
        if rank is not None and layer.rank is None:
            rank = check_rank(rank, layer.schemes)
    problem.check_outputs()
    needs_weighing, needs_fitting = bool(budgets.limits), bool(batches)
    needs_judging = needs_weighing and needs_fitting
    work = len(problem.open) * (needs_judging + needs_weighing + needs_fitting) + 1

    def substitution_of(solution: Solution) -> Substitution:
        chains, report = solution
        placements = {problem.paths[index]: problem.layers[index].placement for index in chains}
        with_chains = keep_what_is_read(f, params, problem.params_with(chains), args)
        result = placed_like_parameters(with_chains, params, placements)
        size = bytes_of(result)
        report = dataclasses.replace(report, parameter_bytes_before=problem.total_bytes, parameter_bytes_after=size)
        return Substitution(f, result, report, placements, solve, (params, tuple(problem.args)))

    def solve(budgets: Budgets, largest_error: float | None) -> Substitution:
        substitution = substitution_of(search.within(budgets))
        size, allowed = substitution.report.parameter_bytes_after, budgets.parameter_bytes
        if allowed is not None and size > allowed:
            raise ValueError(
                f"substitute: parameter_bytes={allowed} is not met: {size} bytes are left, since parameters from which "
                "f computes kernels are still read"
            )
        if batches and budgets.costs:
            _check_error(search, budgets, substitution.report, max_error if largest_error is None else largest_error)
        return substitution

    with bar("Substituting kernels", work, progress) as advance:
        responses = Calibration(problem, batches, seed, advance) if batches else None
        search = Search(problem, responses, advance, Verification(problem, held_out, measure), count, on_layer)
        substitution = solve(budgets, None) if budgets.limits else substitution_of(search.of_rank(rank))
        advance(1)
    return substitution


def _check_layers(problem: Problem, schemes: Any, ranks: Any, skip: Any) -> None:
    """Refuses a function without kernels among its parameters, and names that no layer has."""
    if not problem.convolutions:
        raise ValueError("substitute: f has no convolution")
    if not problem.layers:
        raise ValueError(
            f"substitute: of the {len(problem.convolutions)} convolutions of f none has its kernel from params; "
            "kernels that f closes over, or takes as another argument, must be part of params"
        )
    names = [layer.name for layer in problem.layers.values()]
    check_patterns("schemes", schemes, names)
    check_patterns("ranks", ranks, names)
    if skip and not callable(skip) and not any(map(skip_predicate(skip), names)):
        warnings.warn(f"substitute: skip={skip!r} is no layer; there are {listed(names)}", stacklevel=4)


def _check_error(search: Search, budgets: Budgets, report: SubstitutionReport, max_error: float) -> None:
    """Refuses results that differ from the dense ones by more than the user allows."""
    error = report.largest_error
    if error <= max_error:
        return
    points = search.expected_errors(report.macs_share, error)
    reachable = ", ".join(f"{expected:.2g} at macs={share:.2g}" for share, expected in points)
    inputs = "held-out calibration inputs" if error == report.held_out_error else "the arguments"
    raise ValueError(
        f"substitute: {' and '.join(budgets.costs)} leaves an error of the results of {error:.2g} for {inputs}, above "
        f"max_error={max_error:g}; to be expected is an error of about {reachable}; give calibration inputs or a "
        "larger budget, or max_error=float('inf') to take the result and train it further"
    )


def _is_chain(node: Any) -> bool:
    return isinstance(node, KernelChain)
