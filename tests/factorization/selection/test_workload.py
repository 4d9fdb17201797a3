"""Tests of a chain's cost where it is used: MACs by formula, milliseconds by the timer."""

import re
from functools import partial

import pytest

import jaxcnn
from jaxcnn.factorization.selection import workload as workload_module
from jaxcnn.factorization.selection.workload import Workload
from support.arrays import normal

WORKLOAD = Workload("test", (1, 9, 9, 4), 2, "SAME", 1, None)
CHAIN = jaxcnn.KernelChain((normal((3, 1, 4, 2)), normal((1, 3, 2, 4))))


def test_milliseconds_are_the_timers_median(monkeypatch):
    monkeypatch.setattr(workload_module, "median_seconds", lambda functions, seconds: dict.fromkeys(functions, 0.002))
    assert WORKLOAD.milliseconds(CHAIN) == pytest.approx(2.0)


def test_the_clock_runs_the_chain_on_the_image(monkeypatch):
    shapes = []

    def conv(x, chain, **options):
        shapes.append((x.shape, [link.shape for link in chain.kernels], options["strides"]))
        return jaxcnn.conv(x, chain, **options)

    monkeypatch.setattr(workload_module, "conv", conv)
    monkeypatch.setattr(workload_module, "_CLOCK_SECONDS", 0.0)
    assert WORKLOAD.milliseconds(CHAIN) > 0
    assert shapes == [((1, 9, 9, 4), [(3, 1, 4, 2), (1, 3, 2, 4)], 2)]


def test_macs_are_those_of_conv_cost_or_the_weights():
    assert WORKLOAD.macs(CHAIN) == jaxcnn.conv_cost((1, 9, 9, 4), CHAIN, strides=2).macs
    assert Workload("test", None, 1, "SAME", 1, None).macs(CHAIN) == CHAIN.num_params
    with pytest.raises(ValueError, match="milliseconds are measured on an image"):
        Workload("test", None, 1, "SAME", 1, None).milliseconds(CHAIN)


@pytest.mark.parametrize("padding", ["VALID", 1, ((1, 1), (0, 0)), "no such padding"])
@pytest.mark.parametrize(
    "call", [partial(jaxcnn.factorize, tolerance=0.1), partial(jaxcnn.select_rank, scheme="separable", tolerance=0.1)]
)
def test_a_padding_needs_an_image(call, padding):
    message = (
        f"{call.func.__name__}: without input_shape costs are those of one output pixel, whatever the padding, so "
        f"padding={padding!r} needs input_shape"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(normal((3, 3, 2, 2)), padding=padding)
    assert call(normal((3, 3, 2, 2)), padding="same")
