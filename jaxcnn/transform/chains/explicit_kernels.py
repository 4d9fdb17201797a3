"""Parameters in which computed kernels stand beside, or in place of, the arrays from which they are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from jaxcnn.chain import KernelChain
from jaxcnn.checkpoints import register_state
from jaxcnn.transform.chains.computed_kernels import (
    KernelComputation,
    evaluate_with_kernels,
    find_computed_kernels,
)
from jaxcnn.transform.chains.known_values import compute_for_all_steps
from jaxcnn.transform.jaxpr.equations import consts_of, inner_jaxpr
from jaxcnn.transform.jaxpr.signature import Signature, flatten_call, is_parameter, short_name


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class ComputedKernels:
    """Holds the kernels that a function computes from a parameter, in this parameter's place.

    Where a kernel is not the parameter itself but computed from it, as in weight normalization, its chain stands for
    the computed kernel: the function reads the chain, and computes the kernel no more. So it is the links of the chain
    that train. A kernel that is computed from several parameters is in the place of the largest.

    Args:
      parameter: parameter, or the chain in its own place; None if the function reads it for nothing but these kernels.
      kernels: chain or array of each kernel that is computed from the parameter, in the order of their use; None for
        one that the function still computes.
      shape: shape of the parameter.
      dtype: name of the parameter's dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> def model(params, x):                                # whose kernel has a mean of zero
      ...     return jaxcnn.conv(x, params["kernel"] - params["kernel"].mean())
      >>> ramp = jnp.arange(1.0, 6.0)
      >>> params = {"kernel": jnp.ones((5, 5, 8, 8)) * jnp.outer(ramp, ramp)[:, :, None, None]}
      >>> substitution = jaxcnn.substitute(model, params, jnp.ones((1, 16, 16, 8)), rank=2, schemes="separable")
      >>> node = substitution.params["kernel"]
      >>> type(node).__name__, node.parameter, node.kernels[0].windows
      ('ComputedKernels', None, ((5, 1), (1, 5)))

    References:
      Salimans and Kingma, "Weight normalization", 2016; Miyato et al., "Spectral normalization for generative
      adversarial networks", 2018: kernels that are computed from parameters.
    """

    parameter: Any
    kernels: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: str

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Returns the parameter and the kernels as children, and the rest as static structure."""
        keys = jax.tree_util.GetAttrKey("parameter"), jax.tree_util.GetAttrKey("kernels")
        return tuple(zip(keys, (self.parameter, self.kernels), strict=True)), (self.shape, self.dtype)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> ComputedKernels:
        """Inverts `tree_flatten_with_keys`."""
        return cls(*children, *static)


register_state(
    ComputedKernels,
    lambda node: {"parameter": node.parameter, "kernels": node.kernels},
    lambda node, state: dataclasses.replace(node, **state),
)


class _Trace:
    """A function traced for some arguments, with the kernels that it computes from its parameters.

    Args:
      f: function.
      signature: signature of the call.
      values: arrays of the arguments, or shapes of them.
    """

    def __init__(self, f: Callable[..., Any], signature: Signature, values: Sequence[Any]) -> None:
        self.paths = signature.paths()
        self.values = values
        self.closed, self.outputs = jax.make_jaxpr(signature.flat(f), return_shape=True)(*values)
        parameters = {position for position, path in enumerate(self.paths) if is_parameter(path)}
        self.computations = find_computed_kernels(self.closed, parameters)

    def compute(self, arguments: Sequence[Any]) -> list[jax.Array]:
        """Returns the kernels for some arguments, of which only those that are parameters are read."""
        used = sorted(frozenset().union(*(computation.value.sources for computation in self.computations)))

        @jax.jit
        def run(arrays: Sequence[Any]) -> list[Any]:
            by_position: list[Any] = [None] * len(arguments)
            for position, array in zip(used, arrays, strict=True):
                by_position[position] = array
            return [compute_for_all_steps(computation.value, by_position, {}) for computation in self.computations]

        return run([arguments[position] for position in used])

    def with_kernels(self, kernels: Sequence[tuple[KernelComputation, Any]]) -> tuple[Any, list[bool], list[bool]]:
        """Returns the jaxpr with some kernels as further arguments, without what nothing reads, and what it reads.

        Returns:
          The jaxpr, and whether each constant and each argument is read.
        """
        computations = [computation for computation, _ in kernels]

        def run(arrays: Sequence[Any], arrays_of_kernels: Sequence[Any]) -> Any:
            return evaluate_with_kernels(self.closed, arrays, list(zip(computations, arrays_of_kernels, strict=True)))

        closed = jax.make_jaxpr(run)(self.values, [array for _, array in kernels])
        jaxpr = inner_jaxpr(closed)
        read, constants, arguments = partial_eval.dce_jaxpr_consts(jaxpr, [True] * len(jaxpr.outvars))
        return read, [array for array, is_read in zip(consts_of(closed), constants, strict=True) if is_read], arguments


def make_kernels_explicit(f: Callable[..., Any], params: Any, args: Sequence[Any]) -> Any:
    """Returns the parameters of f with `ComputedKernels` in the place of those from which it computes kernels.

    Args:
      f: function of params and args.
      params: parameters of f, arrays.
      args: other arguments of f, arrays or their shapes.
    """
    signature, values = flatten_call("substitute", (params, *args), {})
    trace = _Trace(f, signature, values)
    if not trace.computations:
        return params
    kernels = trace.compute(values)
    explicit = list(values)
    for home in {computation.argument for computation in trace.computations}:
        of_home = (kernel for kernel, owner in zip(kernels, trace.computations, strict=True) if owner.argument == home)
        explicit[home] = _node(values[home], values[home], tuple(of_home))
    return signature.unflatten(explicit)[0][0]


def with_explicit_kernels(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns f as a function whose first argument may hold `ComputedKernels`, which it reads and does not compute."""

    @wraps(f, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        signature, values = flatten_call("substitute", args, kwargs, (ComputedKernels,))
        nodes = {position: value for position, value in enumerate(values) if isinstance(value, ComputedKernels)}
        if not nodes:
            return f(*args, **kwargs)
        for position, node in nodes.items():
            values[position] = (
                jax.ShapeDtypeStruct(node.shape, node.dtype) if node.parameter is None else node.parameter
            )
        trace = _Trace(f, signature, values)
        kernels = _kernels_of(trace, nodes)
        jaxpr, consts, are_read = trace.with_kernels(kernels)
        arguments = [value for value, is_read in zip(values, are_read, strict=False) if is_read]
        missing = [trace.paths[p] for p, node in nodes.items() if node.parameter is None and are_read[p]]
        if missing:
            raise ValueError(
                f"substitute: {short_name(missing[0])} is no longer among the parameters, since f read it for nothing "
                "but kernels that have chains; with these arguments f reads it"
            )
        arguments += [array for (_, array), is_read in zip(kernels, are_read[len(values) :], strict=True) if is_read]
        results = jax.core.eval_jaxpr(jaxpr, consts, *arguments)
        return jax.tree.unflatten(jax.tree.structure(trace.outputs), results).results()

    return run


def _kernels_of(trace: _Trace, nodes: dict[int, ComputedKernels]) -> list[tuple[KernelComputation, Any]]:
    """Returns the kernels that stand in the parameters, each with its computation."""
    kernels = []
    for position, node in nodes.items():
        computations = [computation for computation in trace.computations if computation.argument == position]
        if len(computations) != len(node.kernels) and node.kernels:
            raise ValueError(
                f"substitute: f computes {len(computations)} kernels from {short_name(trace.paths[position])} for "
                f"these arguments, and {len(node.kernels)} for those that it was substituted for"
            )
        pairs = zip(computations, node.kernels, strict=False)
        kernels += [(computation, kernel) for computation, kernel in pairs if kernel is not None]
    return kernels


def keep_what_is_read(f: Callable[..., Any], dense: Any, params: Any, args: Sequence[Any]) -> Any:
    """Returns parameters with chains, without kernels that stay dense and without arrays that nothing reads any more.

    A kernel without a chain is computed from its parameters again, which train as before. If one of these has a chain
    in its own place, the kernel is no longer computed, and its array stays.

    Args:
      f: function of dense and args.
      dense: parameters of f.
      params: parameters as `make_kernels_explicit` returned them, with chains in place of some arrays.
      args: other arguments of f, arrays or their shapes.
    """
    signature, values = flatten_call("substitute", (dense, *args), {})
    leaves = flatten_call("substitute", (params, *args), {}, (ComputedKernels, KernelChain))[1]
    if not any(isinstance(value, ComputedKernels) for value in leaves):
        return params
    trace = _Trace(f, signature, values)
    chained = {position for position, value in enumerate(leaves) if isinstance(_in_own_place(value), KernelChain)}
    nodes = {}
    for position, value in enumerate(leaves):
        if isinstance(value, ComputedKernels):
            computations = [computation for computation in trace.computations if computation.argument == position]
            kernels_kept = tuple(
                kernel if isinstance(kernel, KernelChain) or chained & computation.value.sources else None
                for kernel, computation in zip(value.kernels, computations, strict=True)
            )
            nodes[position] = dataclasses.replace(value, kernels=kernels_kept)
    shapes = dict(zip(map(id, trace.computations), jax.eval_shape(trace.compute, values), strict=True))
    kernels = [(computation, shapes[id(computation)]) for computation, _ in _kernels_of(trace, nodes)]
    are_read = trace.with_kernels(kernels)[2]
    sources = frozenset().union(*(computation.value.sources for computation, _ in kernels))
    for position in nodes.keys() | sources:
        node = nodes.get(position) or _node(values[position], leaves[position], ())
        if not are_read[position]:
            leaves[position] = dataclasses.replace(node, parameter=None)
        elif any(kernel is not None for kernel in node.kernels) or isinstance(node.parameter, KernelChain):
            leaves[position] = node
        else:
            leaves[position] = node.parameter
    return signature.unflatten(leaves)[0][0]


def _in_own_place(value: Any) -> Any:
    """Returns the parameter, or its chain, where its computed kernels may stand beside it."""
    return value.parameter if isinstance(value, ComputedKernels) else value


def _node(array: Any, parameter: Any, kernels: tuple[Any, ...]) -> ComputedKernels:
    return ComputedKernels(parameter, kernels, tuple(np.shape(array)), str(array.dtype))
