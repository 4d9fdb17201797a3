"""Kernels of a function that chains may replace, and these chains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import dense_blocks, merged_kernel
from jaxcnn.factorization.responses.fit import refit
from jaxcnn.factorization.responses.samples import Responses, response_error
from jaxcnn.factorization.responses.start import ResponseFits, response_start, solve_last_link
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.schemes.scheme import RankTable, first_channels
from jaxcnn.factorization.selection.candidates import FAST_MULTIPLES, GivenKernel, SchemeCandidates, count_while
from jaxcnn.transform.chains.convolve import as_patches_see_it, convolve_with_chain, direction, macs_with_chain
from jaxcnn.transform.chains.find_kernels import KernelUses, Site
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.convolutions import option
from jaxcnn.transform.jaxpr.equations import avals

_MAX_RANKS_PER_SCHEME = 24
"""Largest number of options of a scheme, evenly spread in the logarithm of their cost."""
_MAX_OPTION_SHARE = 0.95
"""Largest share of the kernel's multiply-accumulates that an option takes; beyond, no chain is worth its error."""
_RANK_SEARCH_RADIUS = 40
"""Largest distance to a rank whose features are multiples of 8, which devices compute faster, counted in ranks."""
_MAX_RANKS_TRIED = 5
"""Largest number of ranks of a scheme whose chains are computed for a layer's responses."""
_RANKS_BEFORE_COSTLY = 2
"""Number of these ranks, the cheapest, by which a scheme is compared with those before it."""
_TYPICAL_ERRORS = (0.2, 0.6)
"""Relative errors of a layer at which its effect on the results is measured."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A way to compute a layer.

    Args:
      scheme: name of the scheme, or "dense".
      rank: rank as the scheme's function takes it.
      macs: multiply-accumulates of all executions.
      error: relative error of the kernel, or of the responses where they are known.
      parameter_bytes: bytes of the kernels or chains of all of the parameter.
    """

    scheme: str
    rank: Any
    macs: int
    error: float
    parameter_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class _Judgement:
    """Errors of the options for one kernel by its responses.

    Args:
      number: number of the kernel in the parameter's stack.
      errors: error of each option of the layer.
      weighing: options that measure the effect of the layer's error on the results.
      probes: chain and error of each of these options.
    """

    number: int
    errors: Sequence[float]
    weighing: Sequence[Option]
    probes: Sequence[tuple[KernelChain, float]]


@dataclasses.dataclass
class Layer:
    """A kernel among the parameters, and the convolutions that use it.

    Args:
      index: position among the arrays of the arguments.
      path: path in the arguments.
      name: path in the parameters in short form, as reports show it.
      uses: convolutions that use the kernel.
      parameter: values of the parameter.
      schemes: names of the schemes to choose from.
      refusal: reason why the kernel stays dense, or "".
      rank: rank that the user set for the layer, or None.
      is_judged: flag, True if the errors of the options will come from `judge`.
    """

    index: int
    path: str
    name: str
    uses: KernelUses
    parameter: Any
    schemes: Sequence[str]
    refusal: str = ""
    rank: Any = None
    is_judged: bool = False
    _judgements: list[_Judgement] = dataclasses.field(default_factory=list)
    _fits: dict[tuple[str, int, Any], KernelChain] = dataclasses.field(default_factory=dict)

    @property
    def placement(self) -> Placement:
        """Axes of the kernel in the parameter."""
        return self.uses.placement

    @property
    def sites(self) -> list[Site]:
        """Convolutions that use the kernel."""
        return self.uses.sites

    @cached_property
    def groups(self) -> int:
        """Number of groups of the kernel."""
        return int(option(self.sites[0].equation, "feature_group_count"))

    @cached_property
    def kernels(self) -> list[np.ndarray]:
        """Kernels, `(*window, I / groups, O)`: one, or all that the parameter stacks."""
        kernel = self.placement.kernel(np.asarray(self.parameter))
        return list(kernel.reshape(-1, *self.placement.kernel_shape))

    @property
    def why_dense(self) -> str:
        """Reason why no chain can take the kernel's place, or ""."""
        if self.refusal or self.families:
            return self.refusal
        *inner, outputs = self.placement.kernel_shape
        blocks = (self.groups, *inner, outputs // self.groups)
        return "; ".join(f"no {scheme} chain: {SCHEMES[scheme].refusal(blocks)}" for scheme in self.schemes)

    @cached_property
    def families(self) -> dict[str, list[SchemeCandidates]]:
        """Candidates for each kernel, by scheme; without schemes that cannot represent the kernel."""
        families = {}
        subjects = [GivenKernel("substitute", kernel, self.groups, None) for kernel in self.kernels]
        blocks = np.concatenate([subject.blocks for subject in subjects])
        for scheme in self.schemes:
            if SCHEMES[scheme].refusal(subjects[0].shape) is None:
                # Stacked kernels need chains of one rank, so they share one table of ranks and errors.
                family = SchemeCandidates(subjects[0], scheme, self.macs, table=self._table(scheme, blocks))
                families[scheme] = [family.for_kernel(subject) for subject in subjects]
        return families

    def _table(self, scheme: str, blocks: np.ndarray) -> RankTable:
        """Returns the ranks of a scheme and the errors of the weights at each, which a judged layer does not need."""
        record = SCHEMES[scheme]
        if not self.is_judged or record.is_search or record.has_pairs or record.start is None:
            return record.ranks(blocks)
        return record.ranks_alone(blocks)

    def weights_of_an_output(self, site: Site) -> int:
        """Returns the number of weights that make up one output feature of a convolution."""
        *window, inputs, outputs = self.placement.kernel_shape
        backward, _ = direction(site, self.placement)
        return math.prod(window) * (outputs // self.groups if backward else inputs)

    def links(self, site: Site, chain: KernelChain) -> KernelChain:
        """Returns the chain with which a convolution computes, or the shapes of this chain if the links are shapes."""
        if not site.use.flipped and site.use.placement == self.placement:
            return chain
        links = jax.eval_shape if isinstance(chain.kernels[0], jax.ShapeDtypeStruct) else _call
        return links(lambda chain: site.use.links(chain, self.placement), chain)

    def macs(self, chain: KernelChain) -> int:
        """Returns the multiply-accumulates of all convolutions with a chain."""
        return sum(site.count * macs_with_chain(site.equation, self.links(site, chain)) for site in self.sites)

    def parameter_bytes(self, chain: KernelChain) -> int:
        """Returns the bytes of the chains of all kernels, from the shapes of one."""
        stacked = math.prod(self.placement.shape[axis] for axis in self.placement.stack)
        return stacked * sum(math.prod(link.shape) * link.dtype.itemsize for link in chain.kernels)

    @cached_property
    def dense(self) -> Option:
        """Option of the dense kernel."""
        return Option("dense", None, self.macs(self.dense_shapes), 0.0, self.parameter_bytes(self.dense_shapes))

    @property
    def dense_shapes(self) -> KernelChain:
        """Shapes of one kernel as a chain of one link."""
        shape = jax.ShapeDtypeStruct(self.placement.kernel_shape, self.kernels[0].dtype)
        return KernelChain((shape,), (self.groups,))

    @cached_property
    def options(self) -> list[Option]:
        """Options: the dense kernel, and chains with fewer multiply-accumulates, or the one of the layer's rank."""
        options = [self.dense]
        if self.rank is not None:
            option = self.at_rank(self.rank)
            return options if option is None else [*options, option]
        for scheme, families in self.families.items():
            family = families[0]
            for index in self._cheaper_indices(family):
                shapes = family.shapes_at(index)
                macs, size = self.macs(shapes), self.parameter_bytes(shapes)
                options.append(Option(scheme, family.ranks[index], macs, self._error(scheme, index), size))
        return options

    def at_rank(self, rank: Any) -> Option | None:
        """Returns the option of the first scheme that can represent the kernel, at a rank or the full one if less.

        The chain may have more multiply-accumulates than the kernel. None if no scheme can represent the kernel.
        """
        for scheme, families in self.families.items():
            allowed = families[0].clip_rank(rank)
            shapes, error = families[0].shapes(allowed), self._weights_error(scheme, allowed)
            return Option(scheme, allowed, self.macs(shapes), error, self.parameter_bytes(shapes))
        return None

    def _cheaper_indices(self, family: SchemeCandidates) -> list[int]:
        """Returns the positions of ranks with fewer multiply-accumulates than the kernel, spread over their cost."""

        macs_at = cache(lambda index: self.macs(family.shapes_at(index)))

        def up_to(macs: float, count: int) -> int:
            return count_while(count, lambda index: macs_at(index) <= macs)

        count = up_to(_MAX_OPTION_SHARE * self.dense.macs, len(family.ranks))
        if count == 0:
            return []
        # A search takes long and gives no errors beforehand, so only few of its ranks are options.
        points = 6 if family.scheme.is_search else _MAX_RANKS_PER_SCHEME
        ends = [macs_at(index) for index in (0, count - 1)]
        log_limits = np.linspace(np.log(ends[0]), np.log(ends[1]), points)
        return sorted(
            {
                self._index_of_fast_rank(family, macs_at, max(up_to(np.exp(limit) + 0.5, count) - 1, 0), count)
                for limit in log_limits
            }
        )

    def _index_of_fast_rank(
        self, family: SchemeCandidates, macs_at: Callable[[int], int], index: int, count: int
    ) -> int:
        """Returns the index of a near rank with multiples of 8 as features, if its cost is within an eighth."""
        macs = macs_at(index)
        nearby = range(max(index - _RANK_SEARCH_RADIUS, 0), min(index + _RANK_SEARCH_RADIUS + 1, count))
        multiples = [near for near in nearby if np.max(np.mod(family.ranks[near], FAST_MULTIPLES[0])) == 0]
        for near in sorted(multiples, key=lambda n: abs(n - index)):
            if abs(macs_at(near) - macs) <= macs / 8:
                return near
        return index

    def _error(self, scheme: str, index: int) -> float:
        """Returns the relative error of all kernels together, for the rank at an index."""
        family = self.families[scheme][0]
        if self.is_judged:
            return math.inf
        return (
            float(family.errors[index])
            if family.errors is not None
            else self._weights_error(scheme, family.ranks[index])
        )

    def weights_error(self, option: Option) -> float:
        """Returns the relative error of the chains of an option, to all kernels together."""
        return self._weights_error(option.scheme, option.rank)

    def _weights_error(self, scheme: str, rank: Any) -> float:
        families = self.families[scheme]
        norms = [float(np.linalg.norm(kernel)) for kernel in self.kernels]
        errors = [family.error(self._fit(family, number, rank)) for number, family in enumerate(families)]
        return float(np.linalg.norm(np.multiply(errors, norms)) / (np.linalg.norm(norms) or 1.0))

    def judge(self, number: int, site: Site, responses: Responses) -> None:
        """Computes the errors of the options for one kernel from its responses.

        After the last kernel of the parameter, these errors replace those of the weights in the options.
        """
        solve = self._solver(number, site, responses)
        errors: list[float] = [self.dense.error]
        for scheme in self.families:
            options = [option for option in self.options if option.scheme == scheme]
            before = zip(self.options[1:], errors[1:], strict=False)
            errors += _judged_errors(options, solve, [dataclasses.replace(o, error=error) for o, error in before])
        options = [dataclasses.replace(option, error=error) for option, error in zip(self.options, errors, strict=True)]
        # The typical options of the first kernel weigh all kernels.
        weighing = self._judgements[0].weighing if self._judgements else _typical_options(options)
        solutions = map(solve, weighing)
        probes = [(as_patches_see_it(site, chain, self.placement), error) for chain, error in solutions]
        self._judgements.append(_Judgement(number, errors, weighing, probes))
        if len(self._judgements) == len(self.kernels):
            mean_errors = np.sqrt(np.square([judgement.errors for judgement in self._judgements]).mean(0))
            self.options = [
                dataclasses.replace(o, error=float(e)) for o, e in zip(self.options, mean_errors, strict=True)
            ]
            in_order = sorted(self._judgements, key=lambda judgement: judgement.number)
            # The probes keep the errors of their own solutions: those of the options may be interpolated.
            self.probes = [
                (self.stack([chain for chain, _ in probe]), float(np.sqrt(np.square([e for _, e in probe]).mean())))
                for probe in zip(*(judgement.probes for judgement in in_order), strict=True)
            ]

    @property
    def has_unjudged_kernels(self) -> bool:
        """Flag of a layer with kernels for which `judge` has not been called."""
        return len(self._judgements) < len(self.kernels)

    def leave_unjudged(self) -> None:
        """Takes the errors of the weights for those of the options, because no responses tell any."""
        self.is_judged = False
        for cached in ("families", "options", "probes"):
            self.__dict__.pop(cached, None)

    def _solver(self, number: int, site: Site, responses: Responses) -> Callable[[Option], tuple[KernelChain, float]]:
        """Returns a function from an option to (chain, error), with the chain's last link refitted to `responses`."""
        if self._meets_kernel_unchanged(site):
            fits = ResponseFits(self.kernels[number], responses, feature_group_count=self.groups)
            return lambda option: fits.at(option.scheme, option.rank)

        return lambda option: solve_last_link(self._fit_for_patches(number, site, option), responses)

    def _meets_kernel_unchanged(self, site: Site) -> bool:
        """Returns whether a convolution multiplies its patches by the kernel, not flipped and not exchanged."""
        return direction(site, self.placement) == (False, ())

    def _fit_for_patches(self, number: int, site: Site, option: Option) -> KernelChain:
        return as_patches_see_it(
            site, self._fit(self.families[option.scheme][number], number, option.rank), self.placement
        )

    @cached_property
    def probes(self) -> list[tuple[KernelChain, float]]:
        """Chains that measure the effect of the layer's error on the results, each with its error; may be none."""
        return [(self.chain(option), option.error) for option in _typical_options(self.options)]

    def fit(self, number: int, site: Site, option: Option, responses: Responses) -> tuple[KernelChain, float]:
        """Returns the chain of an option for one kernel, fitted to responses, and its error.

        The chain of the weights is returned if its error is lower.
        """
        scheme, rank, kernel = option.scheme, option.rank, self.kernels[number]
        start = of_weights = self._fit_for_patches(number, site, option)
        # `response_start` uses the metric of the kernel's inputs, which may be outputs of another convolution.
        if self._meets_kernel_unchanged(site):
            start = response_start(kernel, scheme, rank, responses, feature_group_count=self.groups)
        (dense,) = as_patches_see_it(site, KernelChain((kernel,), (self.groups,)), self.placement).kernels
        chains = (refit(start, responses, kernel=dense), of_weights)
        error, place = min((response_error(chain, responses), place) for place, chain in enumerate(chains))
        return as_patches_see_it(site, chains[place], self.placement), error

    def stack(self, chains: Sequence[KernelChain]) -> KernelChain:
        """Returns the chains of all kernels as one, its links stacked as the parameter stacks kernels."""
        stack = [self.placement.shape[axis] for axis in self.placement.stack]
        if not stack:
            return chains[0]
        # In NumPy, like `unstack`, because JAX would compile programs for each rank.
        links = zip(*(map(np.asarray, chain.kernels) for chain in chains), strict=True)
        stacked = (np.stack(of_kernels).reshape(*stack, *of_kernels[0].shape) for of_kernels in links)
        return KernelChain(tuple(map(jax.device_put, stacked)), chains[0].feature_group_counts)

    def unstack(self, chain: KernelChain) -> list[KernelChain]:
        """Returns the chains of all kernels from one with stacked links."""
        if not self.placement.stack:
            return [chain]
        lead = len(self.placement.stack)
        links = [np.asarray(link).reshape(-1, *link.shape[lead:]) for link in chain.kernels]
        return [
            KernelChain(tuple(jax.device_put(link[number]) for link in links), chain.feature_group_counts)
            for number in range(len(self.kernels))
        ]

    def chain(self, option: Option) -> KernelChain:
        """Returns the chain of an option, its links stacked as the parameter stacks kernels."""
        families = self.families[option.scheme]
        return self.stack([self._fit(family, number, option.rank) for number, family in enumerate(families)])

    def _fit(self, family: SchemeCandidates, number: int, rank: Any) -> KernelChain:
        if not family.scheme.is_sliceable(family.kernel.shape):
            key = family.name, number, rank
            if key not in self._fits:
                self._fits[key] = family.fit(rank=rank)
            return self._fits[key]
        # One decomposition serves all smaller ranks. All of the ranks would take several times the kernel's memory.
        key = family.name, number, None
        if key not in self._fits or family.rank_of(self._fits[key]) < rank:
            self._fits[key] = family.fit(rank=min(2 * rank, family.ranks[-1]))
        return first_channels(self._fits[key], rank)

    def shapes(self, chain: KernelChain) -> KernelChain:
        """Returns the shapes of the chain of one kernel."""
        lead = len(self.placement.stack)
        links = (jax.ShapeDtypeStruct(link.shape[lead:], link.dtype) for link in chain.kernels)
        return KernelChain(tuple(links), chain.feature_group_counts)

    def array(self, chain: KernelChain) -> jax.Array:
        """Returns the parameter that holds a chain's dense kernels."""
        # NumPy computes this, since JAX would compile a program for each rank.
        dense = [merged_kernel(dense_blocks(part)) for part in self.unstack(chain)]
        stack = [self.placement.shape[axis] for axis in self.placement.stack]
        kernels = np.stack(dense).reshape(*stack, *dense[0].shape)
        return jax.device_put(self.placement.parameter(kernels).astype(self.kernels[0].dtype))

    def calls(self, chain: KernelChain | None) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
        """Returns a function and its operands for each convolution, computed with a chain or, for None, as it was."""
        calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        for site in self.sites:
            image, kernel = (_random(aval) for aval in avals(site.equation)[:2])
            if chain is None:
                calls.append((_jit_dense(site.equation), (image, kernel)))
            else:
                one = jax.tree.map(lambda link: np.asarray(link)[(0,) * len(self.placement.stack)], chain)
                calls.append((_jit_with_chain(site.equation), (image, self.links(site, one))))
        return calls


def spread_places(size: int, count: int) -> list[int]:
    """Returns at most `count` of the positions 0, ..., size - 1, evenly spread, with both ends."""
    return sorted({round(place) for place in np.linspace(0, size - 1, min(count, size))})


def _judged_errors(
    options: Sequence[Option], solve: Callable[[Option], tuple[KernelChain, float]], rivals: Sequence[Option]
) -> list[float]:
    """Returns the errors of a scheme's options: a few are solved for, the logarithms of the rivals are interpolated.

    The costly options take the longest. They are left out, and count as no better than the cheaper ones, if each of
    the cheaper ones errs at least as much as another scheme's option that costs no more.

    Args:
      options: options of the scheme, the cheapest first.
      solve: function from an option to its chain and error.
      rivals: options of the schemes before, with their errors.
    """
    places = spread_places(len(options), _MAX_RANKS_TRIED)
    if not places:  # no rank of the scheme has fewer multiply-accumulates
        return []
    cheap_places, costly_places = places[:_RANKS_BEFORE_COSTLY], places[_RANKS_BEFORE_COSTLY:]
    error_at: dict[int, float] = {}

    def is_beaten(place: int) -> bool:
        return any(o.macs <= options[place].macs and o.error <= error_at[place] for o in rivals)

    for part in [cheap_places, costly_places] if rivals else [places]:
        if error_at and all(map(is_beaten, cheap_places)):
            break
        # The largest rank comes first, since it prepares those below.
        error_at |= {place: solve(options[place])[1] for place in part[::-1]}
    known_places = sorted(error_at)
    logarithms = np.log(np.maximum([error_at[place] for place in known_places], 1e-12))
    return [float(error) for error in np.exp(np.interp(range(len(options)), known_places, logarithms))]


def _typical_options(options: Sequence[Option]) -> list[Option]:
    """Returns the chains whose errors are nearest to the typical ones; none if no chain makes an error."""
    chains = [option for option in options[1:] if 0 < option.error < np.inf]
    nearest = (min(chains, key=lambda o: abs(o.error - error), default=None) for error in _TYPICAL_ERRORS)
    return [option for option in dict.fromkeys(nearest) if option is not None]


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _random(aval: Any) -> jax.Array:
    # In NumPy, because JAX would compile a program for each shape.
    return jax.device_put(np.random.default_rng(0).standard_normal(aval.shape).astype(aval.dtype))


def _jit_dense(equation: JaxprEqn) -> Callable[..., Any]:
    params = equation.primitive.get_bind_params(equation.params)
    return jax.jit(lambda image, kernel: equation.primitive.bind(image, kernel, **params))


def _jit_with_chain(equation: JaxprEqn) -> Callable[..., Any]:
    return jax.jit(lambda image, chain: convolve_with_chain(equation, image, chain))
