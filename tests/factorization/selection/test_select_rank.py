"""`select_rank` against chains of the rank that it finds, and of the next one."""

import numpy as np
import pytest

import jaxcnn
from jaxcnn import select_rank
from jaxcnn.factorization.schemes.registry import SCHEMES
from support.arrays import normal
from support.counting import loop_compose
from support.schemes import FAST, error_of, falling


@pytest.mark.parametrize("name", list(SCHEMES))
def test_the_smallest_rank_within_an_error(name, rng):
    kernel = falling(rng, (5, 5, 2, 3) if SCHEMES[name].is_search else (5, 5, 4, 6))
    rank = select_rank(kernel, name, tolerance=0.5)
    option = SCHEMES[name].rank_option
    assert error_of(getattr(jaxcnn, name)(kernel, **{option: rank}), kernel) <= 0.5
    if isinstance(rank, int) and rank > 1:
        assert error_of(getattr(jaxcnn, name)(kernel, **{option: rank - 1}), kernel) > 0.5
    if name in FAST:
        assert select_rank(kernel, name, energy=0.75) == rank, "1 - 0.5^2"


@pytest.mark.parametrize("name", FAST)
def test_the_largest_rank_within_a_share_of_the_macs(name, rng):
    kernel = falling(rng, (3, 3, 8, 12))
    rank = select_rank(kernel, name, macs=0.4)
    chain = getattr(jaxcnn, name)(kernel, **{SCHEMES[name].rank_option: rank})
    assert chain.num_params <= 0.4 * kernel.size
    if isinstance(rank, int):
        larger = getattr(jaxcnn, name)(kernel, **{SCHEMES[name].rank_option: rank + 1})
        assert larger.num_params > 0.4 * kernel.size
    assert np.min(select_rank(kernel, name, macs=1e-6)) == 1


def test_the_largest_rank_within_a_time(fake_clock, rng):
    kernel = normal((3, 3, 16, 16), rng)
    rank = select_rank(kernel, "low_rank", milliseconds=3.0, input_shape=(1, 8, 8, 16))
    assert rank == 1000 // (9 * 16 + 16)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_rank_above_noise(groups, rng):
    links = [normal((3, 3, 8, 3 * groups), rng), normal((1, 1, 3, 24 * groups), rng)]
    columns = np.split(links[0], groups, -1), np.split(links[1], groups, -1)
    kernel = np.concatenate([loop_compose(list(pair), [1, 1]) for pair in zip(*columns, strict=True)], axis=-1)
    kernel = (kernel + 0.1 * normal(kernel.shape, rng)).astype(np.float32)
    assert select_rank(kernel, "low_rank", feature_group_count=groups) == 3
    assert select_rank(kernel, "low_rank", feature_group_count=groups, multiple=8) == 8
    assert select_rank(kernel, "low_rank", feature_group_count=groups, multiple=100) == 24
    assert select_rank(normal((3, 3, 8, 24), rng), "low_rank") == 1, "noise alone, and at least 1"


def test_both_ranks_of_tucker_above_noise(rng):
    links = [normal((1, 1, 16, 2), rng), normal((3, 3, 2, 3), rng), normal((1, 1, 3, 24), rng)]
    kernel = loop_compose(links, [1, 1, 1])
    kernel = (kernel + 0.1 * normal(kernel.shape, rng)).astype(np.float32)
    assert select_rank(kernel, "tucker2") == (2, 3)
    assert select_rank(kernel, "tucker2", multiple=4) == (4, 4)
    assert select_rank(kernel, "tucker2", multiple=20) == (16, 20)


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("cp", {}, "select_rank: 'cp' truncates no matrix whose noise could be told; give tolerance, energy, macs"),
        ("low_rank", {"energy": 0.5, "macs": 0.5}, "select_rank: give one rule, got energy and macs"),
        ("low_rank", {"energy": 1.5}, r"select_rank: energy must be between 0 and 1, got 1\.5"),
        ("low_rank", {"multiple": 0}, "select_rank: multiple must be at least 1, got 0"),
        ("low_rank", {"milliseconds": 1.0}, "select_rank: milliseconds are measured on an image"),
        ("low_rank", {"tolerance": -1.0}, "select_rank: tolerance must not be negative"),
        ("low_rank", {"macs": 50}, r"select_rank: macs must be a share in \(0, 1\], got 50"),
        ("low_rank", {"macs": float("nan")}, r"select_rank: macs must be a share in \(0, 1\], got nan"),
    ],
)
def test_errors_of_select_rank(scheme, options, message, rng):
    with pytest.raises(ValueError, match=message):
        select_rank(normal((3, 3, 2, 2), rng), scheme, **options)


def test_a_multiple_is_an_int(rng):
    with pytest.raises(TypeError, match=r"select_rank: multiple must be an int, got 2\.5"):
        select_rank(normal((3, 3, 2, 2), rng), "low_rank", multiple=2.5)


def test_a_share_of_the_macs_is_rounded_down_to_a_multiple(rng):
    kernel = falling(rng, (3, 3, 16, 24))
    most = select_rank(kernel, "low_rank", macs=0.9)
    assert most == int(0.9 * kernel.size / (9 * 16 + 24)) == 18
    assert select_rank(kernel, "low_rank", macs=0.9, multiple=8) == 16
    assert select_rank(kernel, "low_rank", macs=0.01, multiple=8) == 8, "one multiple at least"
    first, second = select_rank(kernel, "tucker2", macs=0.5, multiple=8)
    assert first % 8 == second % 8 == 0
    assert jaxcnn.tucker2(kernel, ranks=(first, second)).num_params <= 0.5 * kernel.size


def test_the_rank_of_three_axes_within_an_error(rng):
    kernel = falling(rng, (3, 3, 3, 4, 4), 1.0)
    rank = select_rank(kernel, "separable", tolerance=0.3)
    assert error_of(jaxcnn.separable(kernel, rank=rank), kernel) <= 0.3
    assert error_of(jaxcnn.separable(kernel, rank=tuple(one - 1 for one in rank)), kernel) > 0.3
