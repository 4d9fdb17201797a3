"""Arguments of a transformed function: arrays, which are traced, and static leaves, which stay as they are."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

import jax
import numpy as np

from jaxcnn.errors import is_of_torch, no_array

_PROGRAM_CACHE_SIZE = 256
"""Largest number of programs that a function keeps, one for each signature."""

_ARRAY_TYPES = (jax.Array, jax.core.Tracer, np.ndarray, np.generic, jax.ShapeDtypeStruct)


@lru_cache(maxsize=1024)
def _static_positions(types: tuple[type, ...]) -> tuple[int, ...]:
    """Returns the positions of the leaves that are not arrays, by the types of all leaves."""
    return tuple(
        index
        for index, kind in enumerate(types)
        if not (issubclass(kind, _ARRAY_TYPES) or hasattr(kind, "__jax_array__"))
    )


@lru_cache(maxsize=1024)
def _is_any_traced(types: tuple[type, ...]) -> bool:
    return any(issubclass(kind, jax.core.Tracer) for kind in types)


def has_tracer(arrays: Sequence[Any]) -> bool:
    """Returns whether any of some arrays is a tracer."""
    # The answer is cached by type, since `accelerate` asks for all arrays of every call.
    return _is_any_traced(tuple(map(type, arrays)))


def has_split_array(arrays: Sequence[Any]) -> bool:
    """Returns whether any of some arrays lies on several devices."""
    shardings = (getattr(array, "sharding", None) for array in arrays)
    return any(sharding is not None and sharding.num_devices > 1 for sharding in shardings)


def compile_uncached(operation: str, f: Callable[..., Any], arrays: Sequence[Any]) -> Any:
    """Returns the compiled program of a function of arrays, never from a cache.

    XLA splits operations over devices only while it compiles, so a cached program would record none of them.

    Args:
      operation: name of the transformation, for errors.
      f: function.
      arrays: arguments, or their types.

    Raises:
      ValueError: an argument is split over an abstract mesh.
    """
    meshes = (getattr(getattr(array, "sharding", None), "mesh", None) for array in arrays)
    if abstract := next((mesh for mesh in meshes if isinstance(mesh, jax.sharding.AbstractMesh)), None):
        raise ValueError(
            f"{operation}: an argument is split over {abstract}, which has no devices, and XLA splits programs only "
            "for devices that are there; use a Mesh, if need be of the devices that "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={abstract.size} makes of a CPU"
        )

    def program(*values: Any) -> Any:
        return f(*values)

    program.__name__ = f"program_{os.getpid()}_{time.time_ns()}"
    return jax.jit(program).lower(*arrays).compile()


class _StaticLeaf:
    """A leaf that is not an array, as part of a key: 1, 1.0 and True differ, as do 0.0 and -0.0; NaN equals itself."""

    __slots__ = ("_key", "value")

    def __init__(self, operation: str, value: Any) -> None:
        self.value = value
        self._key = type(value), repr(value) if isinstance(value, float | complex) else value
        try:
            hash(self._key)
        except TypeError:
            raise TypeError(
                f"{operation}: an argument that is not an array must be hashable, got {value!r} of type "
                f"{type(value).__name__}"
            ) from None

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _StaticLeaf) and self._key == other._key


@dataclasses.dataclass(frozen=True)
class Signature:
    """The arguments of a call without its arrays. Calls with equal signatures share one trace.

    Args:
      structure: pytree of positional and keyword arguments.
      statics: leaves that are not arrays, by position.
    """

    structure: Any
    statics: tuple[tuple[int, _StaticLeaf], ...]

    def paths(self) -> list[str]:
        """Returns the path of each array as text, such as `argument 0['conv']['kernel']`."""
        return [_path_text(path) for path in self.key_paths()]

    def key_paths(self) -> list[tuple[Any, ...]]:
        """Returns the path of each array as JAX's keys: of positional or keyword arguments, of the argument, inside."""
        leaves = jax.tree.unflatten(self.structure, range(self.structure.num_leaves))
        static_positions = {index for index, _ in self.statics}
        paths = jax.tree_util.tree_flatten_with_path(leaves)[0]
        return [path for index, (path, _) in enumerate(paths) if index not in static_positions]

    def unflatten(self, arrays: Sequence[Any]) -> Any:
        """Returns the positional and keyword arguments that hold these arrays."""
        values: list[Any] = [None] * self.structure.num_leaves
        for index, static in self.statics:
            values[index] = static.value
        static_positions = {index for index, _ in self.statics}
        array_positions = (index for index in range(len(values)) if index not in static_positions)
        for index, array in zip(array_positions, arrays, strict=True):
            values[index] = array
        return jax.tree.unflatten(self.structure, values)

    def flat(self, f: Callable[..., Any]) -> Callable[..., Outputs]:
        """Returns f as a function of the arrays alone."""

        def flat(*arrays: Any) -> Outputs:
            args, kwargs = self.unflatten(arrays)
            return Outputs.of(f(*args, **kwargs))

        return flat


def _path_text(path: Sequence[Any]) -> str:
    """Returns a path as text: `argument 0['conv']['kernel']`, or `name=['conv']['kernel']` of a keyword argument."""
    kind, first, *rest = path
    keyword = kind.idx == 1
    start = f"{first.key}=" if keyword else f"argument {first.idx}"
    return start + jax.tree_util.keystr(tuple(rest))


def is_parameter(path: str) -> bool:
    """Returns whether a path leads into the first argument, which holds the parameters."""
    return re.match(r"argument 0(\W|$)", path) is not None


def short_name(path: str) -> str:
    """Returns a parameter's path in short form: `conv/kernel` of `argument 0['conv']['kernel']`."""
    parts = path.removeprefix("argument 0").removesuffix(".parameter")
    return "/".join(re.findall(r"[^\[\].'\"]+", parts)) or "params"


def _whole_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def flatten_call(
    operation: str, args: Sequence[Any], kwargs: dict[str, Any], kinds: tuple[type, ...] = ()
) -> tuple[Signature, list[Any]]:
    """Returns the signature of a call and its arrays; objects of the further `kinds` count as arrays.

    Raises:
      TypeError: an argument that is no array is not hashable, or is a tensor of PyTorch, whose values would become
        constants of a program.
    """
    if kinds:
        leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=lambda node: isinstance(node, kinds))
        positions = _static_positions(tuple(jax.Array if isinstance(leaf, kinds) else type(leaf) for leaf in leaves))
    else:  # `accelerate` flattens at each call, and a test of each node would take longer
        leaves, structure = jax.tree.flatten((args, kwargs))
        positions = _static_positions(tuple(map(type, leaves)))
    if not positions:
        return Signature(structure, ()), leaves
    for index in positions:
        kind = _whole_name(type(leaves[index]))
        if is_of_torch(kind):
            whole = jax.tree.unflatten(structure, range(len(leaves)))
            path, _ = jax.tree_util.tree_flatten_with_path(whole)[0][index]
            raise TypeError(f"{operation}: {no_array(_path_text(path), kind)}")
    statics = tuple((index, _StaticLeaf(operation, leaves[index])) for index in positions)
    static_positions = set(positions)
    return Signature(structure, statics), [leaf for index, leaf in enumerate(leaves) if index not in static_positions]


class _Programs:
    """A cache of programs by signature, each with its jitted form. Its pickle is empty, like that of `jax.jit`."""

    def __init__(self, program_of: Callable[[Signature], Callable[..., Outputs]]) -> None:
        self._program_of = program_of
        self._cached = lru_cache(maxsize=_PROGRAM_CACHE_SIZE)(self._make)

    def _make(self, signature: Signature) -> tuple[Callable[..., Outputs], Callable[..., Outputs]]:
        program = self._program_of(signature)
        return program, jax.jit(program)

    def __call__(self, signature: Signature) -> tuple[Callable[..., Outputs], Callable[..., Outputs]]:
        return self._cached(signature)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Programs, (self._program_of,)


def cache_programs(
    operation: str,
    f: Callable[..., Any],
    program_of: Callable[[Signature], Callable[..., Outputs]],
    kinds: tuple[type, ...] = (),
) -> Callable[..., Any]:
    """Returns a function with the arguments of f that runs a cached program on their arrays.

    The program is jitted unless the call is traced.

    Args:
      operation: name of the transformation, for errors.
      f: user's function, which gives the result its name and docstring.
      program_of: function from a signature to the program.
      kinds: further classes whose objects count as arrays.
    """

    programs = _Programs(program_of)

    @wraps(f, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        signature, arrays = flatten_call(operation, args, kwargs, kinds)
        program, compiled = programs(signature)
        inside = has_tracer(jax.tree.leaves(arrays) if kinds else arrays)
        return (program if inside else compiled)(*arrays).results()

    return run


@jax.tree_util.register_pytree_node_class
class Outputs:
    """The results of a function as a pytree: its leaves are the arrays, its structure holds all other values."""

    def __init__(self, arrays: Sequence[Any], structure: Any, statics: tuple[tuple[int, Any], ...]) -> None:
        self.arrays, self.structure, self.statics = arrays, structure, statics

    @classmethod
    def of(cls, results: Any) -> Outputs:
        """Returns a pytree of results as `Outputs`."""
        leaves, structure = jax.tree.flatten(results)
        static_positions = _static_positions(tuple(map(type, leaves)))
        statics = tuple((index, leaves[index]) for index in static_positions)
        return cls([leaf for index, leaf in enumerate(leaves) if index not in static_positions], structure, statics)

    def results(self) -> Any:
        """Returns the pytree of results."""
        leaves = list(self.arrays)
        for index, value in self.statics:
            leaves.insert(index, value)
        return jax.tree.unflatten(self.structure, leaves)

    def tree_flatten(self) -> tuple[Sequence[Any], Any]:
        """Returns the arrays, then structure and static leaves."""
        return self.arrays, (self.structure, self.statics)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Sequence[Any]) -> Outputs:
        """Inverts `tree_flatten`."""
        return cls(children, *aux)
