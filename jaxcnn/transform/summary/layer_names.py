"""Names of layers by their weights, for models whose library names no scopes, as Flax nnx does not."""

from __future__ import annotations

import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.transform.jaxpr.equations import shape_of

_WRAPPER_KEYS = {"value", "raw_value"}
"""Last keys of a path that lead into the object around a parameter."""

_CLASS_PREFIX = "eqx.nn."
"""First letters of the scopes that Equinox sets, which are classes and no names."""

_TRANSFORMATIONS = re.compile(r"(?:\w+\()*")
"""Pattern of the transformations at the start of a name stack, such as `transpose(jvp(`."""


def layer_of(path: Sequence[Any]) -> str:
    """Returns the layer that holds the parameter at a path, such as `blocks/0/conv`; empty if none holds it."""
    keys = re.findall(r"[^\[\].'\"]+", jax.tree_util.keystr(tuple(path)))
    while keys and keys[-1] in _WRAPPER_KEYS:
        keys.pop()
    return "/".join(keys[:-1])


def root_of_constant(array: Any) -> Hashable:
    """Returns the root of a constant, which is the same for the same array in several jaxprs."""
    return "constant", id(array)


def layers_of_constants(f: Callable[..., Any]) -> dict[Hashable, str]:
    """Returns the layers whose parameters a function reads without an argument, by the roots of the parameters.

    These are parameters of pytrees: of a module that is called, whose method is called, that the function closes over,
    or that is a global variable of it.
    """
    layers: dict[Hashable, str] = {}
    for tree in _trees_of(f):
        try:
            leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        except (TypeError, ValueError):
            continue  # an object that JAX cannot flatten, such as a dictionary of keys that have no order
        for path, leaf in leaves:
            if isinstance(leaf, jax.Array | np.ndarray) and layer_of(path):
                layers[root_of_constant(leaf)] = layer_of(path)
    return layers


def _trees_of(f: Callable[..., Any]) -> Iterable[Any]:
    f = inspect.unwrap(f)
    if isinstance(f, functools.partial):
        return [*_trees_of(f.func), *f.args, *f.keywords.values()]
    if inspect.ismethod(f):
        return [f.__self__]
    if not inspect.isfunction(f):
        return [f]
    try:
        variables = inspect.getclosurevars(f)
    except ValueError:  # a variable that has no value yet
        return []
    return [*variables.nonlocals.values(), *variables.globals.values()]


class LayerNames:
    """The names of the layers of a function, from the scopes or else from the weights.

    Args:
      layers: layer by the root of a weight, see `Value`.
    """

    def __init__(self, layers: Mapping[Hashable, str]) -> None:
        self._layers = layers
        self._layers_of_calls: defaultdict[Hashable, set[str]] = defaultdict(set)

    def name(self, scopes: str, line: str, equation: JaxprEqn, roots: Iterable[Hashable]) -> str:
        """Returns the name of an equation's layer.

        The gradient of a weight does not depend on the weight. It has the name of the layer that is called in the same
        line with arrays of the same sizes, if this is one layer.

        Args:
          scopes: name stack of the equation.
          line: user's line that makes the call.
          equation: equation of a convolution, a pool or a product.
          roots: roots of its weight.
        """
        parts = re.sub(r"\w+\(|\)", "", scopes).split("/")
        if any(part and not part.startswith(_CLASS_PREFIX) for part in parts):
            return scopes
        layers = {self._layers.get(_whole(root), "") for root in roots} - {""}
        call = line, tuple(sorted(tuple(sorted(map(str, shape_of(atom)))) for atom in _arrays(equation)))
        if len(layers) == 1:
            self._layers_of_calls[call] |= layers
        else:
            layers = self._layers_of_calls.get(call, set())
        if len(layers) != 1:
            return scopes
        (layer,) = layers
        transformations = "".join(_TRANSFORMATIONS.findall(scopes)[:1])
        return transformations + layer + ")" * transformations.count("(")


def _arrays(equation: JaxprEqn) -> list[Any]:
    """Returns the two operands and the result of an equation."""
    return [*equation.invars[:2], *equation.outvars]


def _whole(root: Hashable) -> Hashable:
    """Returns the argument or the constant of which a root is a slice."""
    while isinstance(root, tuple) and root[0] != "constant":
        root = root[0]
    return root
