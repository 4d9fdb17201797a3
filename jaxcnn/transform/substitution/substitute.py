"""`substitute` replaces the trained kernels of any JAX function by chains within one budget."""

from __future__ import annotations

import dataclasses
import importlib
import math
import operator
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.schemes.registry import SCHEMES
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
from jaxcnn.transform.substitution.batches import batches_of
from jaxcnn.transform.substitution.calibration import Calibration
from jaxcnn.transform.substitution.placing import gathered, params_with, placed_like_parameters, replacements
from jaxcnn.transform.substitution.problem import Problem
from jaxcnn.transform.substitution.report import SubstitutionReport
from jaxcnn.transform.substitution.search import Search, Solution

_MAX_NAMES_SHOWN = 5
"""Largest number of layers that a warning names."""


@dataclasses.dataclass(frozen=True)
class TradeOff:
    """Gains and costs of several substitutions of one function; `plot` draws them.

    Args:
      points: (share of multiply-accumulates, speedup, relative error) of each substitution.

    Example:
      >>> tradeoff = TradeOff(((0.5, 1.6, 0.02), (0.25, 2.9, 0.06)))
      >>> [share for share, speedup, error in tradeoff.points if error < 0.05]
      [0.5]
    """

    points: tuple[tuple[float, float, float], ...]

    def plot(self, *, path: str | os.PathLike[str] | None = None) -> Any:
        """Draws the error of the results against the gain of time, as `jaxcnn.drawing.draw_tradeoff` does.

        Args:
          path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

        Returns:
          The `matplotlib.figure.Figure`.

        Raises:
          ImportError: matplotlib is not installed.
        """
        return importlib.import_module("jaxcnn.drawing").draw_tradeoff(self, path=path)


@dataclasses.dataclass(frozen=True)
class Substitution:
    """A function with chains in place of kernels.

    Args:
      f: function as it was.
      params: parameters of f, with `KernelChain`s in place of kernels, and `ComputedKernels` in place of parameters
        from which f computes kernels; train them, or replace some.
      report: report on each layer and on the whole; `print` shows a table.
      placements: axes of each kernel in its parameter, by the parameter's path.
      solve: function from another share of multiply-accumulates to its substitution. It holds the dense parameters;
        None after `release`, and for a substitution that was loaded.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> def model(params, x):
      ...     return jaxcnn.conv(x, params["kernel"])
      >>> ramp = jnp.outer(jnp.arange(1.0, 6.0), jnp.arange(1.0, 6.0))
      >>> params = {"kernel": jnp.broadcast_to(ramp[..., None, None], (5, 5, 8, 8))}
      >>> substitution = jaxcnn.substitute(model, params, jnp.ones((1, 16, 16, 8)), macs=0.5)
      >>> substitution.report.macs_share <= 0.5, substitution.report.error < 1e-5
      (True, True)
    """

    f: Callable[..., Any]
    params: Any = dataclasses.field(repr=False)
    report: SubstitutionReport
    placements: Mapping[str, Placement] = dataclasses.field(repr=False)
    solve: Callable[[float], Substitution] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the fields of a pickle, which has no `solve`, like a saved substitution."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "solve": None}

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
            _check_number("curve", "each of shares", share)
        reports = []
        for share in shares:
            try:
                reports.append(self.solve(share).report)
            except ValueError:
                continue
        points = [(report.macs_share, report.speedup, report.error) for report in (*reports, self.report)]
        return TradeOff(tuple(sorted(points, reverse=True)))

    def release(self) -> Substitution:
        """Returns this substitution without `solve`, which keeps the dense parameters and the search in memory."""
        return dataclasses.replace(self, solve=None)

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


def substitute(
    f: Callable[..., Any],
    params: Any,
    *args: Any,
    tolerance: float | None = None,
    macs: float | None = None,
    speedup: float | None = None,
    rank: int | tuple[int, ...] | None = None,
    calibration: Any = None,
    schemes: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | Callable[[str], bool] | None = None,
    dense: bool = False,
    progress: Progress = False,
    seed: int = 0,
) -> Substitution:
    r"""Returns a function with chains in place of its trained kernels, within one budget for all of them.

    f is traced for its arguments, and every kernel is found that depends on params alone: a parameter, also through
    casts, transpositions, reshapes and loops, or what f computes from parameters. Each is a layer with many possible
    chains: the schemes' at their ranks. All start dense, and the layer gives way that loses the least for each
    multiply-accumulate saved,
    $\sum_l w_l(e_l) e_l^2$ being the loss: $e_l$ is a layer's relative error and $w_l$ the part of it that reaches the
    results, measured at three of its errors. A layer whose chain is not faster than its dense kernel on this device's
    clock stays dense as long as the budget can be met without its chain. With a budget of `macs` the error expected of
    the results must also stay below 0.011 or grow by a tenth at most; else the least slow layer gets its chain back.
    With `rank` every layer takes the chain of that rank. At last the whole function is run on `args`, as it was and
    with the chains: `report.error` and the times are those of that run.

    Chains and all other parameters lie on the devices on which the parameters lay: a chain's first link is split along
    its input features and its last link along its output features as the kernel was, and all else is on each device. In
    a program of several processes all call `substitute`. The first process reads all parameters and arguments, decides
    alone, and the others get its decision; there f must not name devices itself.

    Args:
      f: function `f(params, *args)` of pytrees of arrays; other leaves are treated as by `accelerate`.
      params: trained parameters of f; kernels as in Flax, Haiku, Keras, Equinox or plain JAX.
      *args: other arguments of f, by which layers are weighed and on which the result is verified; best none of the
        calibration inputs. Of a `jax.ShapeDtypeStruct` random numbers are drawn.
      tolerance: relative error of the results allowed, norm(after - before) / norm(before). Give this, `macs`,
        `speedup` or `rank`.
      macs: share of the multiply-accumulates of all convolutions that may stay, the report's `macs_share`.
      speedup: ratio of the time of jitted f to that of a call with chains, measured on this device.
      rank: rank of the chain of every layer, in each group, as the one scheme's own function takes it: a number, or one
        for each rank of the scheme. A layer with a lower full rank takes the full one. `schemes` must be one scheme;
        neither multiply-accumulates nor times affect the result.
      calibration: inputs such as the function will meet: a list or generator of batches, each a tuple of the
        arguments after params, or one array. Of a generator of more than 16 batches a random 16 are used, and no more
        are held. With them the error of each layer is that of its responses behind its
        nonlinearity, and its chain is fitted to the dense network's responses, given the chains before it. A handful of
        photographs does. A kernel that is used several times is fitted to all its uses together; one in a `while` or a
        branch, one used in both directions and one whose responses are all equal keep the chain of their weights.
      schemes: names of the schemes to choose from; by default `"separable"`, `"low_rank"`, `"tucker2"` and
        `"depthwise_separable"`. `"cp"` and `"stack"` are searches, which take minutes for large kernels.
      skip: parameters that stay dense: a part of their names (such as `conv1/kernel`), several, or a function of the
        name. A warning says if no layer has such a name.
      dense: flag to replace dense layers, products with a matrix of params, by pairs of products, too. They then count
        among the convolutions, with kernels of one tap.
      progress: flag to show a progress bar on a terminal, which needs rich; or a function `progress(done, total)` of
        the number of steps done and their total, such as one that moves a bar of your own.
      seed: seed for the positions at which responses are taken, and for random arguments.

    Returns:
      A `Substitution`: `.apply(params, *args)`, `.params`, `.report`, `.curve()`, `.save(path)`.

    Raises:
      ValueError: no budget or more than one; one that no choice of chains meets; an unknown scheme or none; `rank` with
        several schemes; params that hold chains already, or no convolution's kernel (kernels that f closes over are not
        found); no calibration inputs, or some of which a layer makes NaN; results without floating numbers, by which
        layers are weighed.
      TypeError: f is no function, the budget no number.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> def model(params, x):
      ...     return jax.nn.relu(jaxcnn.conv(x, params["conv"]["kernel"]) + params["conv"]["bias"][None, None, None])
      >>> ramp = jnp.arange(1.0, 6.0)
      >>> kernel = jnp.ones((5, 5, 8, 8)) * jnp.outer(ramp, ramp)[:, :, None, None]  # of rank one
      >>> params = {"conv": {"kernel": kernel, "bias": jnp.zeros(8)}}
      >>> substitution = jaxcnn.substitute(model, params, jnp.ones((1, 32, 32, 8)), macs=0.5)
      >>> report = substitution.report
      >>> report.rows[0].name, report.macs_share <= 0.5, report.error < 1e-4
      ('conv/kernel', True, True)

    References:
      Zhang, Zou, He and Sun, "Accelerating very deep convolutional networks for classification and detection", 2015:
      responses instead of weights, one budget for all layers. Kim et al., "Compression of deep convolutional neural
      networks for fast and low power mobile applications", 2016.
    """
    options: dict[str, Any] = {
        "tolerance": tolerance,
        "macs": macs,
        "speedup": speedup,
        "rank": rank,
        "calibration": batches_of(calibration, seed),
        "schemes": schemes,
        "skip": skip,
        "dense": dense,
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

    def solve(share: float) -> Substitution:
        return _decided_by_first(f, params, lambda: _solver(first[0])(share))

    return Substitution(f, params_with(params, replaced, placements), report, placements, solve)


def _solver(substitution: Substitution) -> Callable[[float], Substitution]:
    if substitution.solve is None:
        raise ValueError("substitute: a substitution that was released has no other solutions")
    return substitution.solve


def _substitute(
    f: Callable[..., Any],
    params: Any,
    args: Sequence[Any],
    *,
    tolerance: float | None,
    macs: float | None,
    speedup: float | None,
    rank: int | tuple[int, ...] | None,
    calibration: Any,
    schemes: str | Sequence[str] | None,
    skip: str | Sequence[str] | Callable[[str], bool] | None,
    dense: bool,
    progress: Progress,
    seed: int,
) -> Substitution:
    """Returns the substitution of parameters that this process holds as a whole; the arguments are `substitute`'s."""
    if not callable(f):
        raise TypeError(f"substitute: f must be a function, got {f!r}")
    budgets = {"tolerance": tolerance, "macs": macs, "speedup": speedup, "rank": rank}
    budget = {name: limit for name, limit in budgets.items() if limit is not None}
    if len(budget) != 1:
        raise ValueError(f"substitute: give one of tolerance, macs, speedup and rank, got {budgets}")
    if any(isinstance(leaf, KernelChain) for leaf in jax.tree.leaves(params, is_leaf=_is_chain)):
        raise ValueError("substitute: params hold chains already; give the dense parameters")
    ((kind, value),) = budget.items()
    names = _scheme_names(schemes)
    limit = _check_number("substitute", kind, value) if rank is None else _check_rank(rank, names)
    batches = calibration
    explicit = make_kernels_explicit(f, params, args)
    problem = Problem(with_explicit_kernels(f), explicit, args, names, _skip_predicate(skip), seed, dense)
    if not problem.convolutions:
        raise ValueError("substitute: f has no convolution")
    if not problem.layers:
        raise ValueError(
            f"substitute: of the {len(problem.convolutions)} convolutions of f none has its kernel from params; "
            "kernels that f closes over, or takes as another argument, must be part of params"
        )
    layers = [layer.name for layer in problem.layers.values()]
    if skip and not callable(skip) and not any(map(_skip_predicate(skip), layers)):
        ellipsis = ", ..." if len(layers) > _MAX_NAMES_SHOWN else ""
        warnings.warn(
            f"substitute: skip={skip!r} is no layer; there are {', '.join(layers[:_MAX_NAMES_SHOWN])}{ellipsis}",
            stacklevel=3,
        )
    problem.check_outputs()
    needs_weighing, needs_fitting = rank is None, bool(batches)
    needs_judging = needs_weighing and needs_fitting
    work = len(problem.open) * (needs_judging + needs_weighing + needs_fitting) + 1
    with bar("Substituting kernels", work, progress) as advance:
        calibration = Calibration(problem, batches, seed, advance) if batches else None
        search = Search(problem, calibration, advance)
        solvers: dict[str, Callable[[Any], Solution]] = {
            "tolerance": search.within_tolerance,
            "macs": search.at_share,
            "speedup": search.at_speedup,
            "rank": search.of_rank,
        }
        solution = solvers[kind](limit)
        advance(1)

    def substitution_of(solution: Solution) -> Substitution:
        chains, report = solution
        placements = {problem.paths[index]: problem.layers[index].placement for index in chains}
        with_chains = keep_what_is_read(f, params, problem.params_with(chains), args)
        return Substitution(
            f,
            placed_like_parameters(with_chains, params, placements),
            report,
            placements,
            lambda share: substitution_of(search.at_share(share)),
        )

    return substitution_of(solution)


def _is_chain(node: Any) -> bool:
    return isinstance(node, KernelChain)


def _check_number(operation: str, name: str, number: Any) -> float:
    try:
        value = float(number)
    except (TypeError, ValueError):
        raise TypeError(f"{operation}: {name} must be a number, got {number!r}") from None
    if name == "tolerance":
        is_valid, requirement = 0 <= value < math.inf, "be at least 0"
    elif name == "speedup":
        is_valid, requirement = 0 < value < math.inf, "be positive"
    else:
        is_valid, requirement = 0 < value <= 1, "be a share in (0, 1]"
    if not is_valid:
        finite = "" if math.isfinite(value) else " and finite"
        raise ValueError(f"{operation}: {name} must {requirement}{finite}, got {value:g}")
    return value


def _check_rank(rank: Any, schemes: Sequence[str]) -> int | tuple[int, ...]:
    if len(schemes) != 1:
        raise ValueError(f"substitute: rank is that of one scheme's chains, but schemes={schemes!r}; give one")
    (scheme,) = schemes
    try:
        ranks = tuple(map(operator.index, rank)) if isinstance(rank, (tuple, list)) else (operator.index(rank),)
    except TypeError:
        raise TypeError(f"substitute: rank must be a whole number, or a tuple of them, got {rank!r}") from None
    if not ranks or min(ranks) < 1:
        raise ValueError(f"substitute: rank must be at least 1, got {rank!r}")
    if len(ranks) > 1 and not SCHEMES[scheme].several_ranks:
        raise ValueError(f"substitute: {scheme!r} has one rank, got rank={rank!r}")
    return ranks[0] if len(ranks) == 1 else ranks


def _scheme_names(schemes: str | Sequence[str] | None) -> tuple[str, ...]:
    if schemes is None:
        return tuple(name for name, scheme in SCHEMES.items() if not scheme.is_search)
    names = (schemes,) if isinstance(schemes, str) else tuple(schemes)
    if not names:
        raise ValueError("substitute: schemes must hold at least one scheme, got none")
    unknown = [name for name in names if name not in SCHEMES]
    if unknown:
        schemes = ", ".join(map(repr, SCHEMES))
        raise ValueError(f"substitute: a scheme must be one of {schemes}, got {unknown[0]!r}")
    return names


def _skip_predicate(skip: str | Sequence[str] | Callable[[str], bool] | None) -> Callable[[str], bool]:
    if callable(skip):
        return skip
    parts = (skip,) if isinstance(skip, str) else tuple(skip or ())
    return lambda name: any(part and part in name for part in parts)
