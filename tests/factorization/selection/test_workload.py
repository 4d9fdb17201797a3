"""Tests of a chain's cost where it is used: MACs by formula, milliseconds by a clock that the calls move."""

import jax
import pytest

import jaxcnn
from jaxcnn.factorization.selection import workload as workload_module
from jaxcnn.factorization.selection.workload import Workload
from support.arrays import normal

WORKLOAD = Workload("test", (1, 9, 9, 4), 2, "SAME", 1, None)
CHAIN = jaxcnn.KernelChain((normal((3, 1, 4, 2)), normal((1, 3, 2, 4))))


def test_milliseconds_are_the_least_mean_of_several_blocks(monkeypatch):
    """After a call that compiles and one that says how many a block of 20 ms takes there are five blocks of ten."""
    now, calls = 0.0, 0
    milliseconds = [6.0, 2.0, 4.0, 14.0, 10.0]  # of a call in each block: what else runs only ever adds to a time

    def wait(value):
        nonlocal now, calls
        now += (milliseconds[(calls - 2) // 10] if calls >= 2 else 2.0) / 1000
        calls += 1
        return value

    monkeypatch.setattr(workload_module.time, "perf_counter", lambda: now)
    monkeypatch.setattr(jax, "block_until_ready", wait)
    assert WORKLOAD.milliseconds(CHAIN) == pytest.approx(2.0)
    assert calls == 52


def test_the_clock_runs_the_chain_on_the_image(monkeypatch):
    shapes = []

    def conv(x, chain, **options):
        shapes.append((x.shape, [link.shape for link in chain.kernels], options["strides"]))
        return jaxcnn.conv(x, chain, **options)

    monkeypatch.setattr(workload_module, "conv", conv)
    monkeypatch.setattr(workload_module, "_BLOCK_SECONDS", 0.001)
    assert WORKLOAD.milliseconds(CHAIN) > 0
    assert shapes == [((1, 9, 9, 4), [(3, 1, 4, 2), (1, 3, 2, 4)], 2)]


def test_macs_are_those_of_conv_cost_or_the_weights():
    assert WORKLOAD.macs(CHAIN) == jaxcnn.conv_cost((1, 9, 9, 4), CHAIN, strides=2).macs
    assert Workload("test", None, 1, "SAME", 1, None).macs(CHAIN) == CHAIN.num_params
    with pytest.raises(ValueError, match="milliseconds are measured on an image"):
        Workload("test", None, 1, "SAME", 1, None).milliseconds(CHAIN)
