"""`with_chains`: any JAX function, with chains in place of the kernels among its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxcnn.chain import KernelChain
from jaxcnn.transform.chains.axis_views import View
from jaxcnn.transform.chains.chain_walker import ChainError, ChainWalker, TracedChain
from jaxcnn.transform.chains.explicit_kernels import with_explicit_kernels
from jaxcnn.transform.chains.placement import Placement, guesses
from jaxcnn.transform.jaxpr.signature import Outputs, Signature, cache_programs


def with_chains(f: Callable[..., Any], *, materialize: bool = False) -> Callable[..., Any]:
    """Returns a function of arguments in which kernels have been replaced by `KernelChain`s.

    f is traced as if it got the chains' dense kernels, and each chain is carried to the convolutions that take it,
    lax's or jaxcnn's, which are computed link by link: the dense kernel is never made. On the way a chain passes
    through casts, axis permutations, reversed window axes, reshapes between (..., C, M) and (..., 1, C * M), products
    with a number or with one number for each output feature, and slices of stacked kernels; into `jit`, `scan`,
    `while_loop`, `cond`, `checkpoint` and functions with custom derivatives, which are inlined (their derivative is
    then that of their operations).

    Chains train: under `jax.grad` the links get the gradients. f may be a model or a loss, and `with_chains` works
    inside and outside of `jax.jit`, `jax.vmap` and `accelerate`.

    Args:
      f: function of pytrees of arrays; other leaves of its arguments are treated as by `accelerate`.
      materialize: flag, True to give the dense kernel to an operation that takes arrays only, such as a penalty on the
        weights. By default that is an error.

    Returns:
      A function of the same arguments. A chain stands for a kernel in the order in which f has it: HWIO as in JAX's
      libraries, OIHW as in Equinox, or a depthwise (*window, C, M) as in Keras; the first that f takes for all of
      them. A chain whose links have one more axis in front, all of one size, stands for stacked kernels.
      A parameter that f returns, scaled or cast but not moved, is a chain among the results.

    Raises:
      ValueError: when called, a chain that reaches any other operation; the message names both.
      TypeError: f is no function; when called, an argument that is neither an array nor hashable.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> def model(params, x):
      ...     numbers = ("NHWC", "HWIO", "NHWC")
      ...     return jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=numbers)
      >>> x, kernel = jnp.ones((1, 8, 8, 1)), jnp.ones((5, 5, 1, 1))
      >>> chain = jaxcnn.separable(kernel, rank=1)            # 25 weights as 5 + 5
      >>> y = with_chains(model)({"kernel": chain}, x)
      >>> bool(jnp.allclose(y, model({"kernel": kernel}, x), atol=1e-4))
      True

    References:
      Equals f of the chains' dense kernels. Like `jax.grad`, it transforms functions and not modules.
    """
    if not callable(f):
        raise TypeError(f"with_chains: f must be a function, got {f!r}")
    return apply_with_chains(with_explicit_kernels(f), None, materialize)


def apply_with_chains(
    f: Callable[..., Any],
    known_placements: Mapping[str, Placement] | None,
    materialize: bool = False,
    with_images: bool = False,
) -> Callable[..., Any]:
    """Returns f as a function of chains.

    Args:
      f: user's function.
      known_placements: placements of kernels by path; None to try the usual orders of axes.
      materialize: flag, True to give the dense kernel to operations that take no chain.
      with_images: flag, True to return a pair of the results and the list of the images that the convolutions with
        chains take, in their order; without those in loops and branches.
    """

    def program_of(signature: Signature) -> Callable[..., Outputs]:
        traced, paths = jax.make_jaxpr(signature.flat(f), return_shape=True), signature.paths()
        return lambda *values: evaluate_with_chains(traced, paths, values, known_placements, materialize, with_images)

    return cache_programs("with_chains", f, program_of, (KernelChain,))


def evaluate_with_chains(
    traced: Callable[..., Any],
    paths: Sequence[str],
    values: Sequence[Any],
    known_placements: Mapping[str, Placement] | None,
    materialize: bool,
    with_images: bool = False,
) -> Outputs:
    """Returns the results of a function for arrays and chains.

    Args:
      traced: function from arrays to the jaxpr of the user's function and the shapes of its results.
      paths: path of each value in the arguments.
      values: arrays and chains.
      known_placements: placements of kernels by path; None to try the usual orders.
      materialize: flag, True to give the dense kernel to operations that take no chain.
      with_images: flag, True to return a pair of the results and the images of the convolutions with chains.
    """
    chains = [index for index, value in enumerate(values) if isinstance(value, KernelChain)]
    errors: list[Exception] = []
    for placements in _placements(
        [values[index] for index in chains], [paths[index] for index in chains], known_placements
    ):
        try:
            placed = dict(zip(chains, placements, strict=True))
            return _evaluate(traced, paths, values, placed, materialize, with_images)
        except Exception as error:  # libraries have error classes of their own
            errors.append(error)
    # A `ChainError` says more than an error about shapes, which may come from an order of axes that f does not have.
    chosen = next((error for error in errors if isinstance(error, ChainError)), errors[0])
    if len(errors) > 1 and not isinstance(chosen, ChainError):
        chosen.add_note(
            "with_chains: f has this error with the chains' kernels in the order HWIO, and others if all are OIHW, "
            "or (*window, C, M) where they are depthwise"
        )
    raise chosen


def _placements(
    chains: Sequence[KernelChain], paths: Sequence[str], known_placements: Mapping[str, Placement] | None
) -> Iterable[list[Placement]]:
    if not chains:
        return [[]]
    if known_placements is not None and known_placements.keys() >= set(paths):
        return [[known_placements[path] for path in paths]]
    return guesses(chains)


def _evaluate(
    traced: Callable[..., Any],
    paths: Sequence[str],
    values: Sequence[Any],
    placements: dict[int, Placement],
    materialize: bool,
    with_images: bool,
) -> Outputs:
    operands, shapes = list(values), list(values)
    for index, placement in placements.items():
        chain = values[index]
        operands[index] = TracedChain(chain, View.whole(placement.shape), placement, paths[index])
        shapes[index] = jax.ShapeDtypeStruct(placement.shape, chain.dtype)
    jaxpr, outputs = traced(*shapes)
    walker = ChainWalker(materialize=materialize, images=[] if with_images else None)
    results = walker.evaluate(jaxpr, jaxpr.consts, *operands)
    unflat: Outputs = jax.tree.unflatten(
        jax.tree.structure(outputs), [_as_result(walker, result) for result in results]
    )
    return Outputs.of((unflat.results(), walker.images)) if with_images else unflat


def _as_result(walker: Any, result: Any) -> Any:
    """Returns a chain if the result is the parameter itself, perhaps scaled or cast; else an array."""
    if isinstance(result, TracedChain) and result.view == View.whole(result.placement.shape):
        return result.chain
    return walker.array(result)
