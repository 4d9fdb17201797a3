"""Clocks for the tests of transformations, and what computes fused convolutions, for the tests that ask for them."""

from __future__ import annotations

import pytest

from jaxcnn.transform.substitution import layer as layers
from jaxcnn.transform.substitution import search as searching
from support import fusing
from support.planted import clock_by_arithmetic, clock_by_layer


@pytest.fixture(params=["separate", "reference", "native"])
def fusion(request, monkeypatch):
    """Fusing switched on, its result computed in each of three ways; the stand-in for the kernels."""
    reference = fusing.use(monkeypatch, request.param)
    if reference is None:
        pytest.skip("there are no native kernels")
    return reference


@pytest.fixture
def fusing_on(monkeypatch):
    """Fusing switched on, computed by a stand-in for the kernels, which is the value."""
    return fusing.use(monkeypatch, "reference")


@pytest.fixture
def no_long_clock(monkeypatch):
    """Times a whole function for no longer than it takes to run it."""
    monkeypatch.setattr(searching, "_TIMING_SECONDS", 0.01)


@pytest.fixture
def two_ranks_judged(monkeypatch):
    """Tries the responses of a scheme at two ranks, each of which is a program to compile, and not at seven."""
    monkeypatch.setattr(layers, "_MAX_RANKS_TRIED", 2)


@pytest.fixture
def clock_of_macs(monkeypatch, no_long_clock):
    """A device on which a layer takes as long as it has multiply-accumulates."""
    clock_by_arithmetic(monkeypatch)


@pytest.fixture
def chains_twice_as_fast(monkeypatch, no_long_clock):
    """A device on which every chain takes half of its kernel's time."""
    clock_by_layer(monkeypatch, lambda name: 0.5)
