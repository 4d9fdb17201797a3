"""Tests of drawn cases: a few of them in `make test`, all of them in `make test-slow`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings


def drawn(few: int, many: int, *strategies: Any) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Makes a test of a function of drawn values.

    Args:
      few: number of cases by default.
      many: number of cases of the same test under the marker `slow`.
      *strategies: strategies for the function's arguments.
    """

    def decorate(function: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples: int) -> None:
            settings(max_examples=examples)(given(*strategies)(function))()

        test.__doc__, test.__module__ = function.__doc__, function.__module__
        return test

    return decorate
