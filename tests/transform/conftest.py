"""What computes fused convolutions, for the tests that ask for it."""

from __future__ import annotations

import fusing
import pytest


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
