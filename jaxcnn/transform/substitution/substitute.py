"""`substitute` replaces the trained kernels of any JAX function by chains within budgets."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from jaxcnn.chain import KernelChain
from jaxcnn.geometry import whole_number
from jaxcnn.processes import decided_by_first
from jaxcnn.transform.chains.explicit_kernels import (
    keep_what_is_read,
    make_kernels_explicit,
    with_explicit_kernels,
)
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.progress import Progress, bar
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
)
from jaxcnn.transform.substitution.batches import batches_of
from jaxcnn.transform.substitution.calibration import Calibration
from jaxcnn.transform.substitution.held_out import Score, Verification, split_held_out
from jaxcnn.transform.substitution.placing import gathered, params_with, placed_like_parameters, replacements
from jaxcnn.transform.substitution.problem import Problem, bytes_of
from jaxcnn.transform.substitution.report import MAX_ERROR, LayerReport, SubstitutionReport
from jaxcnn.transform.substitution.result import Solve, Substitution
from jaxcnn.transform.substitution.search import Count, Search, Solution


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
        layers that save the most, by the clock; `"macs"` if multiply-accumulates alone are what counts. A function
        whose kernels take less than 0.1 ms together is treated like `"macs"`, since any call takes about as long.
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
