"""Kernels of a function in whose place chains may be, and these chains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import dense_blocks, merged_link
from jaxcnn.factorization.responses.fit import refit
from jaxcnn.factorization.responses.samples import Responses, response_error
from jaxcnn.factorization.responses.start import ResponseFits, last_link_solved, response_start
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.schemes.scheme import first_channels
from jaxcnn.factorization.selection.candidates import FAST_MULTIPLES, GivenKernel, SchemeCandidates, count_while
from jaxcnn.transform.chains.convolve import as_patches_see_it, convolve_with_chain, direction, macs_with_chain
from jaxcnn.transform.chains.find_kernels import KernelUses, Site
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.convolutions import option
from jaxcnn.transform.jaxpr.equations import avals

_MAX_RANKS_PER_SCHEME = 40
"""Most ranks of a scheme that are considered, evenly spread in the logarithm of their cost."""
_RANK_SEARCH_RADIUS = 40
"""Ranks to each side of one among which a multiple of 8 is looked for, which devices compute faster."""
_MAX_RANKS_TRIED = 7
"""Ranks of a scheme whose chains are tried on a layer's responses."""
_TYPICAL_ERRORS = (0.2, 0.5, 0.8)
"""Relative errors of a layer at which its effect on the results is probed."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A way to compute a layer.

    Args:
      scheme: name of the scheme, or "dense".
      rank: rank as the scheme's function takes it.
      macs: multiply-accumulates of all executions.
      error: relative error of the kernel, or of the responses where they are known.
    """

    scheme: str
    rank: Any
    macs: int
    error: float


@dataclasses.dataclass(frozen=True)
class _Judged:
    """Errors of the options for one kernel by its responses, and chains by which the layer is weighed."""

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
      name: path in the parameters, for the reader.
      uses: convolutions that use the kernel.
      parameter: values of the parameter.
      schemes: names of the schemes to choose from.
      refusal: reason why the kernel stays dense, or "".
    """

    index: int
    path: str
    name: str
    uses: KernelUses
    parameter: Any
    schemes: Sequence[str]
    refusal: str = ""
    _judged: list[_Judged] = dataclasses.field(default_factory=list)
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
        """Number of groups of the convolution."""
        return int(option(self.sites[0].equation, "feature_group_count"))

    @cached_property
    def kernels(self) -> list[np.ndarray]:
        """Kernels, `(*window, I / groups, O)`: one, or as many as the parameter stacks."""
        kernel = np.asarray(self.placement.kernel(jnp.asarray(self.parameter)))
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
        """Chains that there are for each kernel, by scheme."""
        families = {}
        subjects = [GivenKernel("substitute", kernel, self.groups, None) for kernel in self.kernels]
        blocks = np.concatenate([subject.blocks for subject in subjects])
        for scheme in self.schemes:
            if SCHEMES[scheme].refusal(subjects[0].blocks.shape) is None:
                # Of stacked kernels one rank must do for all, so they share the ranks and errors of all together.
                family = SchemeCandidates(subjects[0], scheme, self.macs, table=SCHEMES[scheme].ranks(blocks))
                families[scheme] = [family.for_kernel(subject) for subject in subjects]
        return families

    def weights_of_an_output(self, site: Site) -> int:
        """Returns the number of weights that make up one output feature of a convolution."""
        *window, inputs, outputs = self.placement.kernel_shape
        backward, _ = direction(site, self.placement)
        return math.prod(window) * (outputs // self.groups if backward else inputs)

    def links(self, site: Site, chain: KernelChain) -> KernelChain:
        """Returns the chain, or the shapes of one, with which a convolution computes."""
        if not site.use.flipped and site.use.placement == self.placement:
            return chain
        links = jax.eval_shape if isinstance(chain.kernels[0], jax.ShapeDtypeStruct) else _called
        return links(lambda chain: site.use.links(chain, self.placement), chain)

    def macs(self, chain: KernelChain) -> int:
        """Returns the multiply-accumulates of all convolutions with a chain."""
        return sum(site.count * macs_with_chain(site.equation, self.links(site, chain)) for site in self.sites)

    @cached_property
    def dense(self) -> Option:
        """Option to leave the kernel as it is."""
        shape = jax.ShapeDtypeStruct(self.placement.kernel_shape, self.kernels[0].dtype)
        return Option("dense", None, self.macs(KernelChain((shape,), (self.groups,))), 0.0)

    @cached_property
    def options(self) -> list[Option]:
        """Options: the kernel as it is, and chains with fewer multiply-accumulates."""
        options = [self.dense]
        for scheme, families in self.families.items():
            family = families[0]
            for index in self._indices(family):
                macs = self.macs(family.shapes_at(index))
                options.append(Option(scheme, family.ranks[index], macs, self._error(scheme, index)))
        return options

    def at_rank(self, rank: Any) -> Option | None:
        """Returns the chain of the first scheme that can represent the kernel, at a rank or at the full one.

        It may have more multiply-accumulates than the kernel. None if no scheme does.
        """
        for scheme, families in self.families.items():
            allowed = families[0].clipped(rank)
            return Option(scheme, allowed, self.macs(families[0].shapes(allowed)), self._fit_error(scheme, allowed))
        return None

    def _indices(self, family: SchemeCandidates) -> list[int]:
        """Returns the positions of ranks with fewer multiply-accumulates than the kernel, spread over their cost."""

        def up_to(macs: float, count: int) -> int:
            return count_while(count, lambda index: self.macs(family.shapes_at(index)) <= macs)

        count = up_to(self.dense.macs - 1, len(family.ranks))
        if count == 0:
            return []
        # A search has no errors beforehand, and takes long: few of its ranks.
        points = 6 if family.scheme.is_search else _MAX_RANKS_PER_SCHEME
        ends = [self.macs(family.shapes_at(index)) for index in (0, count - 1)]
        wanted = np.linspace(np.log(ends[0]), np.log(ends[1]), points)
        return sorted({self._suited(family, max(up_to(np.exp(macs) + 0.5, count) - 1, 0), count) for macs in wanted})

    def _suited(self, family: SchemeCandidates, index: int, count: int) -> int:
        """Returns a near rank whose features are multiples of 8, if its cost is within an eighth of this one's."""
        macs = self.macs(family.shapes_at(index))
        nearby = range(max(index - _RANK_SEARCH_RADIUS, 0), min(index + _RANK_SEARCH_RADIUS + 1, count))
        for near in sorted(nearby, key=lambda n: abs(n - index)):
            chain = family.shapes_at(near)
            multiples = all(link.shape[-1] % FAST_MULTIPLES[0] == 0 for link in chain.kernels[:-1])
            if multiples and abs(self.macs(chain) - macs) <= macs / 8:
                return near
        return index

    def _error(self, scheme: str, index: int) -> float:
        """Returns the relative error of all kernels together."""
        family = self.families[scheme][0]
        return (
            float(family.errors[index]) if family.errors is not None else self._fit_error(scheme, family.ranks[index])
        )

    def _fit_error(self, scheme: str, rank: Any) -> float:
        families = self.families[scheme]
        norms = [float(np.linalg.norm(kernel)) for kernel in self.kernels]
        errors = [family.error(self._fit(family, number, rank)) for number, family in enumerate(families)]
        return float(np.linalg.norm(np.multiply(errors, norms)) / (np.linalg.norm(norms) or 1.0))

    def judge(self, number: int, site: Site, responses: Responses) -> None:
        """Takes the responses of one kernel, of those that the parameter stacks, into account.

        Once all were, the errors of responses stand in place of the kernel's in the options.
        """
        solved = self._solver(number, site, responses)
        # Each rank is a program to compile, so only a few are tried; the logarithms of errors are interpolated.
        errors: list[float] = [self.dense.error]
        for scheme in self.families:
            options = [option for option in self.options if option.scheme == scheme]
            few = sorted(
                {round(place) for place in np.linspace(0, len(options) - 1, min(_MAX_RANKS_TRIED, len(options)))}
            )
            if few:  # some rank of the scheme has fewer multiply-accumulates
                tried = np.maximum([solved(options[place])[1] for place in few], 1e-12)
                errors += np.exp(np.interp(range(len(options)), few, np.log(tried))).tolist()
        judged = [dataclasses.replace(option, error=error) for option, error in zip(self.options, errors, strict=True)]
        # All kernels are weighed by the options that do for the first.
        weighing = self._judged[0].weighing if self._judged else _typical(judged)
        solutions = map(solved, weighing)
        probes = [(as_patches_see_it(site, chain, self.placement), error) for chain, error in solutions]
        self._judged.append(_Judged(number, errors, weighing, probes))
        if len(self._judged) == len(self.kernels):
            together = np.sqrt(np.square([judged.errors for judged in self._judged]).mean(0))
            self.options = [dataclasses.replace(o, error=float(e)) for o, e in zip(self.options, together, strict=True)]
            ordered = sorted(self._judged, key=lambda judged: judged.number)
            # Their own errors, for those of the options may lie between two that were tried.
            self.probes = [
                (self.stack([chain for chain, _ in each]), float(np.sqrt(np.square([e for _, e in each]).mean())))
                for each in zip(*(judged.probes for judged in ordered), strict=True)
            ]

    def _solver(self, number: int, site: Site, responses: Responses) -> Callable[[Option], tuple[KernelChain, float]]:
        """Returns a function from an option to (chain, error), the chain's last link refitted to `responses`."""
        if self._is_plain(site):
            fits = ResponseFits(self.kernels[number], responses, feature_group_count=self.groups)
            return lambda option: fits.at(option.scheme, option.rank)

        def solved(option: Option) -> tuple[KernelChain, float]:
            chain = last_link_solved(self._seen_fit(number, site, option), responses)
            return chain, response_error(chain, responses)

        return solved

    def _is_plain(self, site: Site) -> bool:
        """Returns whether a convolution's patches meet the kernel as it is."""
        return direction(site, self.placement) == (False, ())

    def _seen_fit(self, number: int, site: Site, option: Option) -> KernelChain:
        return as_patches_see_it(
            site, self._fit(self.families[option.scheme][number], number, option.rank), self.placement
        )

    @cached_property
    def probes(self) -> list[tuple[KernelChain, float]]:
        """Chains by which the layer is weighed, each with its error; none if no chain makes an error."""
        return [(self.chain(option), option.error) for option in _typical(self.options)]

    def fit(self, number: int, site: Site, option: Option, responses: Responses) -> tuple[KernelChain, float]:
        """Returns the chain of an option for one kernel, fitted to responses, and its error."""
        scheme, rank, kernel = option.scheme, option.rank, self.kernels[number]
        if self._is_plain(site):
            start = response_start(kernel, scheme, rank, responses, feature_group_count=self.groups)
        else:
            # The schemes start in the metric of the kernel's inputs, which here are what leaves.
            start = self._seen_fit(number, site, option)
        (dense,) = as_patches_see_it(site, KernelChain((kernel,), (self.groups,)), self.placement).kernels
        chain = refit(start, responses, kernel=dense)
        return as_patches_see_it(site, chain, self.placement), response_error(chain, responses)

    def stack(self, chains: Sequence[KernelChain]) -> KernelChain:
        """Returns the chains of all kernels as one, its links stacked as the parameter stacks kernels."""
        stack = [self.placement.shape[axis] for axis in self.placement.stack]
        if not stack:
            return chains[0]
        return jax.tree.map(lambda *links: jnp.stack(links).reshape(*stack, *links[0].shape), *chains)

    def unstack(self, chain: KernelChain) -> list[KernelChain]:
        """Returns the chains of all kernels from one with stacked links."""
        if not self.placement.stack:
            return [chain]
        lead = len(self.placement.stack)
        flat = jax.tree.map(lambda link: link.reshape(-1, *link.shape[lead:]), chain)
        return [jax.tree.map(lambda link, number=number: link[number], flat) for number in range(len(self.kernels))]

    def chain(self, option: Option) -> KernelChain:
        """Returns the chain of an option, its links stacked as the parameter stacks kernels."""
        families = self.families[option.scheme]
        return self.stack([self._fit(family, number, option.rank) for number, family in enumerate(families)])

    def _fit(self, family: SchemeCandidates, number: int, rank: Any) -> KernelChain:
        # One decomposition, at full rank, serves all ranks of a scheme that can be sliced.
        is_sliceable = family.scheme.is_sliceable(family.kernel.shape)
        key = family.name, number, None if is_sliceable else rank
        if key not in self._fits:
            self._fits[key] = family.fit(rank=family.ranks[-1] if is_sliceable else rank)
        return first_channels(self._fits[key], rank) if is_sliceable else self._fits[key]

    def shapes(self, chain: KernelChain) -> KernelChain:
        """Returns the shapes of the chain of one kernel."""
        lead = len(self.placement.stack)
        links = (jax.ShapeDtypeStruct(link.shape[lead:], link.dtype) for link in chain.kernels)
        return KernelChain(tuple(links), chain.feature_group_counts)

    def array(self, chain: KernelChain) -> jax.Array:
        """Returns the parameter that holds a chain's dense kernels."""
        if self.placement.stack:
            return self.placement.holding(chain)
        # In NumPy: in JAX each rank would be a program to compile.
        return jnp.asarray(self.placement.parameter(merged_link(dense_blocks(chain), chain.dtype)))

    def calls(self, chain: KernelChain | None) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
        """Returns for each convolution a function that computes it, with a chain or as it was, and its operands."""
        calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        for site in self.sites:
            image, kernel = (_random(aval) for aval in avals(site.equation)[:2])
            if chain is None:
                calls.append((_as_it_was(site.equation), (image, kernel)))
            else:
                one = jax.tree.map(lambda link: link[(0,) * len(self.placement.stack)], chain)
                calls.append((_jitted_with_chain(site.equation), (image, self.links(site, one))))
        return calls


def _typical(options: Sequence[Option]) -> list[Option]:
    """Returns the chains whose errors are nearest to the typical ones; none if no chain makes an error."""
    chains = [option for option in options[1:] if 0 < option.error < np.inf]
    nearest = (min(chains, key=lambda o: abs(o.error - error), default=None) for error in _TYPICAL_ERRORS)
    return [option for option in dict.fromkeys(nearest) if option is not None]


def _called(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _random(aval: Any) -> jax.Array:
    values = np.random.default_rng(0).standard_normal(aval.shape).astype(np.float32)
    return jnp.asarray(values).astype(aval.dtype)


def _as_it_was(equation: JaxprEqn) -> Callable[..., Any]:
    params = equation.primitive.get_bind_params(equation.params)
    return jax.jit(lambda image, kernel: equation.primitive.bind(image, kernel, **params))


def _jitted_with_chain(equation: JaxprEqn) -> Callable[..., Any]:
    return jax.jit(lambda image, chain: convolve_with_chain(equation, image, chain))
