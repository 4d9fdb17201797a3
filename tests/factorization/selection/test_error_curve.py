"""`curve` against chains that are really made."""

import dataclasses

import pytest

import jaxcnn
from jaxcnn import RankCurve, conv_cost, curve
from jaxcnn.factorization.schemes.registry import SCHEMES
from support.arrays import normal
from support.schemes import ROUNDING, error_of, falling


@pytest.mark.parametrize("name", list(SCHEMES))
def test_a_curve_is_of_chains_that_are_made(name, rng):
    kernel = falling(rng, (5, 5, 4, 6))
    image = (1, 12, 12, kernel.shape[-2])
    result = curve(kernel, name, points=4, input_shape=image, strides=2)
    assert result.scheme == name
    assert 2 <= len(result.ranks) <= 4
    assert result.dense_macs == conv_cost(image, kernel.shape, strides=2).macs
    assert list(result.macs) == sorted(result.macs)
    assert result.macs[-1] <= result.dense_macs
    assert list(result.errors) == sorted(result.errors, reverse=True)
    function, option = (
        (lambda kernel, **o: jaxcnn.stack(kernel, **o), "features")
        if name == "stack"
        else (None, SCHEMES[name].rank_option)
    )
    function = function or getattr(jaxcnn, name)
    for rank, macs, error in zip(result.ranks, result.macs, result.errors, strict=True):
        chain = function(kernel, **{option: rank})
        assert conv_cost(image, chain, strides=2).macs == macs
        assert error_of(chain, kernel) == pytest.approx(error, abs=ROUNDING)


def test_a_curve_without_an_image_counts_weights(rng):
    kernel = normal((3, 3, 4, 6), rng)
    result = curve(kernel, "low_rank", points=100)
    assert result.macs == tuple(rank * (9 * 4 + 6) for rank in result.ranks)
    assert result.ranks == (1, 2, 3, 4, 5)
    assert result.shares == tuple(macs / 216 for macs in result.macs)
    assert dataclasses.is_dataclass(RankCurve)


def test_a_curve_has_one_point_at_least(rng):
    result = curve(normal((3, 3, 1, 1), rng), "tucker2")
    assert result.ranks == ((1, 1),)
    assert result.macs == (11,)
    assert result.dense_macs == 9


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("svd", {}, "curve: a scheme must be one of 'separable'"),
        ("stack", {}, r"curve: 'stack' cannot represent this kernel: it needs a window of odd sizes, .* \(3, 3\)"),
        ("low_rank", {"points": 0}, "curve: points must be at least 1, got 0"),
        ("low_rank", {"strides": 2}, "curve: the cost of a chain with strides depends on the image"),
    ],
)
def test_errors_of_curve(scheme, options, message, rng):
    with pytest.raises(ValueError, match=message):
        curve(normal((3, 3, 2, 2), rng), scheme, **options)
