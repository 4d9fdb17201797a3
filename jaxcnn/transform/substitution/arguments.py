"""Checks of the arguments of `substitute` and of its result's methods."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxcnn.factorization.numerics.ranks import check_count
from jaxcnn.factorization.numerics.ranks import check_number as check_float
from jaxcnn.factorization.schemes.registry import SCHEMES


def check_number(operation: str, name: str, number: Any) -> float:
    """Returns a budget as a float, or says why it is none."""
    value = check_float(f"{operation}: {name}", number)
    if name == "max_error":
        is_valid, requirement = value >= 0, "be at least 0"
    elif name in ("tolerance", "budget"):
        is_valid, requirement = 0 <= value < math.inf, "be at least 0"
    elif name == "speedup":
        is_valid, requirement = 0 < value < math.inf, "be positive"
    else:
        is_valid, requirement = 0 < value <= 1, "be a share in (0, 1]"
    if not is_valid:
        finite = "" if math.isfinite(value) else " and finite"
        raise ValueError(f"{operation}: {name} must {requirement}{finite}, got {value:g}")
    return value


def check_steps(steps: Any) -> int:
    """Returns the number of steps, or says why it is none."""
    try:
        count = operator.index(steps)
    except TypeError:
        raise TypeError(f"distill: steps must be a whole number, got {steps!r}") from None
    if count < 1:
        raise ValueError(f"distill: steps must be at least 1, got {count}")
    return count


def trained_predicate(train: str | Callable[[str], bool]) -> Callable[[str, bool], bool]:
    """Returns the function of a name, and whether it is a chain, to whether the parameter is trained."""
    if callable(train):
        return lambda name, is_chain: bool(train(name))
    if train not in ("chains", "all"):
        raise ValueError(f"distill: train must be 'chains', 'all' or a function of a parameter's name, got {train!r}")
    return lambda name, is_chain: is_chain or train == "all"


def check_rank(rank: Any, schemes: Sequence[str]) -> int | tuple[int, ...]:
    """Returns the rank as one scheme's function takes it, or says why it is none."""
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


def scheme_names(schemes: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of the schemes to choose from."""
    if schemes is None:
        return tuple(name for name, scheme in SCHEMES.items() if not scheme.is_search)
    names = _texts("schemes", schemes)
    if not names:
        raise ValueError("substitute: schemes must hold at least one scheme, got none")
    unknown = [name for name in names if name not in SCHEMES]
    if unknown:
        schemes = ", ".join(map(repr, SCHEMES))
        raise ValueError(f"substitute: a scheme must be one of {schemes}, got {unknown[0]!r}")
    return names


def skip_predicate(skip: str | Sequence[str] | Callable[[str], bool] | None) -> Callable[[str], bool]:
    """Returns the function of a name to whether the parameter stays dense."""
    if callable(skip):
        return skip
    parts = () if skip is None else _texts("skip", skip)
    return lambda name: any(part and part in name for part in parts)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Returns an option that is a text, or a sequence of texts, as a tuple."""
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"substitute: {name} must be a text or a sequence of texts, got {value!r}")
    return texts


def check_seed(seed: Any) -> int:
    """Returns a seed as an int, or says why it is none."""
    return check_count("substitute: seed", seed, 0)


def check_batches(batches: Sequence[tuple[Any, ...]]) -> None:
    """Raises a TypeError for an item of calibration inputs that holds no array."""
    for batch in batches:
        if not any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(batch)):
            raise TypeError(f"substitute: an item of calibration must hold arrays, got {batch!r}")
