"""Clocks for the tests of factorizations: the device's own is no part of them."""

import pytest

from jaxcnn.factorization.selection.workload import Workload


@pytest.fixture
def fake_clock(monkeypatch):
    """A device on which a call costs 1 ms for each link and 1 microsecond for each weight; what it was asked for."""
    asked = []

    def milliseconds(workload, chain):
        asked.append(chain)
        return len(chain.kernels) + chain.num_params / 1000

    monkeypatch.setattr(Workload, "milliseconds", milliseconds)
    return asked


@pytest.fixture
def clock_of_multiples(monkeypatch):
    """A device on which widths that are no multiples of 8 take three times as long."""

    def milliseconds(workload, chain):
        widths = [link.shape[-1] for link in chain.kernels[:-1]]
        return chain.num_params / 1000 * (1.0 if all(width % 8 == 0 for width in widths) else 3.0)

    monkeypatch.setattr(Workload, "milliseconds", milliseconds)
