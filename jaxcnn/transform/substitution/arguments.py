"""Checks of the arguments of `substitute` and of its result's methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

from jaxcnn.factorization.numerics.ranks import check_number as check_float
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.geometry import whole_number

_MAX_NAMES_SHOWN = 5
"""Largest number of layers that a text names."""

Names = str | Sequence[str]
"""One name, or several."""


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Limits that a result must meet, all of them; None sets no limit.

    Args:
      tolerance: relative error of the results.
      macs: share of the multiply-accumulates.
      speedup: ratio of the time of a call before to that after.
      parameter_bytes: bytes of all parameters.
      budget: loss of the user's score.
    """

    tolerance: float | None = None
    macs: float | None = None
    speedup: float | None = None
    parameter_bytes: int | None = None
    budget: float | None = None

    @classmethod
    def of(cls, operation: str, **limits: Any) -> Budgets:
        """Returns the limits of a call as numbers, or says which is none."""
        return cls(
            **{name: check_number(operation, name, limit) for name, limit in limits.items() if limit is not None}
        )

    @property
    def limits(self) -> dict[str, float]:
        """Limits that are set, by name."""
        return {name: limit for name, limit in dataclasses.asdict(self).items() if limit is not None}

    @property
    def costs(self) -> dict[str, float]:
        """Limits of what a call costs, by name; the others are of what the results lose."""
        return {name: limit for name, limit in self.limits.items() if name in ("macs", "speedup", "parameter_bytes")}


def check_number(operation: str, name: str, number: Any) -> Any:
    """Returns a budget as a number, or says why it is none."""
    if name == "parameter_bytes":
        return whole_number(f"{operation}: {name}", number)
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


def check_weight(operation: str, name: str, number: Any) -> float:
    """Returns a weight in a loss, or says why it is none."""
    value = float(check_float(f"{operation}: {name}", number))
    if not 0 <= value < math.inf:
        raise ValueError(f"{operation}: {name} must be at least 0 and finite, got {value:g}")
    return value


def trained_predicate(train: str | Callable[[str], bool]) -> Callable[[str, bool], bool]:
    """Returns the function of a name, and whether it is a chain, to whether the parameter is trained."""
    if callable(train):
        return lambda name, is_chain: bool(train(name))
    if train not in ("chains", "all"):
        raise ValueError(f"distill: train must be 'chains', 'all' or a function of a parameter's name, got {train!r}")
    return lambda name, is_chain: is_chain or train == "all"


def check_rank(rank: Any, schemes: Sequence[str], name: str = "rank") -> int | tuple[int, ...]:
    """Returns a rank as the one scheme's function takes it, or says why it is none."""
    if len(schemes) != 1:
        raise ValueError(f"substitute: {name} is that of one scheme's chains, but schemes={schemes!r}; give one")
    (scheme,) = schemes
    if not isinstance(rank, (tuple, list)):
        return whole_number(f"substitute: {name}", rank)
    ranks = tuple(whole_number(f"substitute: each of {name}", number) for number in rank)
    if not ranks:
        raise ValueError(f"substitute: {name} must hold at least one number, got {rank!r}")
    if len(ranks) > 1 and not SCHEMES[scheme].several_ranks:
        raise ValueError(f"substitute: {scheme!r} has one rank, got {name}={rank!r}")
    return ranks[0] if len(ranks) == 1 else ranks


def ranks_by_name(
    ranks: Mapping[str, Any] | None, schemes: Callable[[str], tuple[str, ...]]
) -> Callable[[str], int | tuple[int, ...] | None]:
    """Returns the function of a layer's name to its rank; None for a layer that `ranks` does not name."""
    if ranks is not None and not isinstance(ranks, Mapping):
        raise TypeError(f"substitute: ranks must be a dictionary of ranks by layer name, got {ranks!r}; see also rank")

    def rank_of(name: str) -> int | tuple[int, ...] | None:
        pattern = first_match(ranks or {}, name)
        return None if pattern is None else check_rank((ranks or {})[pattern], schemes(name), f"ranks[{pattern!r}]")

    return rank_of


def schemes_by_name(schemes: Names | Mapping[str, Names] | None) -> Callable[[str], tuple[str, ...]]:
    """Returns the function of a layer's name to the names of the schemes to choose from."""
    if not isinstance(schemes, Mapping):
        names = scheme_names(schemes)
        return lambda name: names
    by_pattern, default = {pattern: scheme_names(names) for pattern, names in schemes.items()}, scheme_names(None)

    def schemes_of(name: str) -> tuple[str, ...]:
        pattern = first_match(by_pattern, name)
        return default if pattern is None else by_pattern[pattern]

    return schemes_of


def scheme_names(schemes: Names | None) -> tuple[str, ...]:
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


def skip_predicate(skip: Names | Callable[[str], bool] | None) -> Callable[[str], bool]:
    """Returns the function of a name to whether the parameter stays dense."""
    if callable(skip):
        return skip
    patterns = () if skip is None else _texts("skip", skip)
    return lambda name: first_match(patterns, name) is not None


def first_match(patterns: Iterable[str], name: str) -> str | None:
    """Returns the first of some patterns that is a part of a name, or that the name matches by `*`, `?` and `[...]`."""
    return next((p for p in patterns if p and (p in name or fnmatchcase(name, p))), None)


def check_patterns(keyword: str, patterns: Any, names: Sequence[str]) -> None:
    """Refuses a dictionary with a pattern that matches the name of no layer."""
    for pattern in patterns if isinstance(patterns, Mapping) else ():
        if not any(first_match((pattern,), name) for name in names):
            raise ValueError(
                f"substitute: {keyword} has {pattern!r}, which matches no layer; there are {listed(names)}"
            )


def listed(names: Sequence[str]) -> str:
    """Returns the first few names as text."""
    return ", ".join(names[:_MAX_NAMES_SHOWN]) + ", ..." * (len(names) > _MAX_NAMES_SHOWN)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Returns an option that is a text, or a sequence of texts, as a tuple."""
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"substitute: {name} must be a text or a sequence of texts, got {value!r}")
    return texts


def check_batches(batches: Sequence[tuple[Any, ...]]) -> None:
    """Raises a TypeError for an item of calibration inputs that holds no array."""
    for batch in batches:
        if not any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(batch)):
            raise TypeError(f"substitute: an item of calibration must hold arrays, got {batch!r}")
