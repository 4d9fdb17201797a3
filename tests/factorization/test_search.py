"""`factorize`, `curve` and `select_rank` against trying everything, and against chains that are really made."""

import dataclasses
import itertools

import numpy as np
import pytest

import jaxcnn
from jaxcnn import Curve, conv, conv_cost, curve, factorize, select_rank
from jaxcnn.factorization._family import Family, Subject, count_while
from jaxcnn.factorization._schemes import SCHEMES
from jaxcnn.factorization._usage import Usage
from support.arrays import normal
from support.counting import loop_compose
from support.schemes import FAST, ROUNDING, error_of, falling


def all_chains(kernel, schemes=FAST):
    """Every chain of the schemes without a search: of every rank, and every pair of ranks."""
    in_features, out_features = kernel.shape[-2:]
    taps = kernel.size // (in_features * out_features)
    makers = {
        "separable": lambda: (
            jaxcnn.separable(kernel, rank=r) for r in range(1, 3 * min(in_features, out_features) + 1)
        ),
        "low_rank": lambda: (jaxcnn.low_rank(kernel, rank=r) for r in range(1, out_features + 1)),
        "tucker2": lambda: (
            jaxcnn.tucker2(kernel, ranks=pair)
            for pair in itertools.product(range(1, in_features + 1), range(1, out_features + 1))
        ),
        "depthwise_separable": lambda: (
            jaxcnn.depthwise_separable(kernel, multiplier=r) for r in range(1, min(taps, out_features) + 1)
        ),
    }
    return [chain for scheme in schemes for chain in makers[scheme]()]


# The form that all schemes have


@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize(
    ("shape", "groups"), [((5, 5, 3, 4), 1), ((5, 5, 2, 8), 2), ((3, 3, 5, 2, 3), 1), ((5, 1, 3, 4), 1)]
)
def test_shapes_known_beforehand_are_those_of_the_chains_made(name, shape, groups, rng):
    family = Family(Subject("test", normal(shape, rng), groups, None), name).require()
    count = len(family.ranks)
    for index in sorted({0, min(1, count - 1), min(4, count - 1)}):
        made, known = family.fit(index=index), family.chain(index)
        assert [link.shape for link in made.kernels] == [link.shape for link in known.kernels]
        assert made.feature_group_counts == known.feature_group_counts


@pytest.mark.parametrize("name", list(SCHEMES))
def test_ranks_rise_in_weights(name, rng):
    family = Family(Subject("test", normal((5, 5, 4, 6), rng), 1, None), name)
    weights = [family.chain(index).num_params for index in range(len(family.ranks))]
    assert weights == sorted(weights)
    if family.errors is not None:
        assert (np.diff(family.errors) <= 0).all()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("groups", [1, 2])
def test_errors_known_beforehand_are_those_of_the_chains_made(name, groups, rng):
    kernel = normal((3, 3, 3, 6), rng)
    family = Family(Subject("test", kernel, groups, None), name)
    for index in range(0, len(family.ranks), 2):
        made = error_of(family.fit(index=index), kernel, groups)
        assert made <= family.errors[index] + ROUNDING
        if not family.scheme.pairs:
            assert made == pytest.approx(family.errors[index], abs=ROUNDING)


def test_count_while():
    for size, limit in itertools.product(range(6), range(7)):
        assert count_while(size, lambda index, limit=limit: index < limit) == min(size, limit)


# factorize


@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.3, 0.6, 0.95])
def test_the_cheapest_chain_within_the_error(tolerance, rng):
    kernel = falling(rng, (3, 3, 6, 8))
    chain = factorize(kernel, tolerance=tolerance, schemes=FAST)
    assert error_of(chain, kernel) <= tolerance + ROUNDING
    meeting = [other.num_params for other in all_chains(kernel) if error_of(other, kernel) <= tolerance]
    # tucker2 finds its pair by the start's errors, so a pair that only the iteration brings within may be cheaper.
    assert chain.num_params <= 1.1 * min([*meeting, kernel.size])
    single = [jaxcnn.separable, jaxcnn.low_rank, jaxcnn.tucker2, jaxcnn.depthwise_separable]
    assert chain.num_params == min([kernel.size, *(f(kernel, tolerance=tolerance).num_params for f in single)])


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.95])
def test_the_most_exact_chain_within_the_cost(share, rng):
    kernel = falling(rng, (3, 3, 6, 8))
    cost = share * kernel.size
    chain = factorize(kernel, cost=cost, schemes=FAST)
    assert chain.num_params <= cost
    errors = [error_of(other, kernel) for other in all_chains(kernel) if other.num_params <= cost]
    assert error_of(chain, kernel) <= min(errors) + 0.01
    # In multiply-accumulates of an image without borders that is the same choice.
    macs = 400 * cost
    assert (
        factorize(kernel, cost=macs, input_shape=(1, 22, 22, 6), padding="VALID", schemes="tucker2").num_params <= cost
    )


def test_searches_are_tried_for_small_kernels_and_win_where_they_should(rng):
    small = loop_compose([normal((3, 3, 2, 2), rng), normal((3, 3, 2, 3), rng)], [1, 1]).astype(np.float32)
    chain = factorize(small, tolerance=1e-3)
    assert chain.windows == ((3, 3), (3, 3))
    vectors = [normal((size, 2), rng) for size in (5, 5, 6, 6)]
    product = np.einsum("az,bz,cz,dz->abcd", *vectors)
    chain = factorize(product, tolerance=1e-3)
    assert chain.windows == ((1, 1), (5, 1), (1, 5), (1, 1))
    assert chain.num_params == 2 * (5 + 5 + 6 + 6)
    assert factorize(product, cost=50, schemes=("cp", "stack")).num_params == 44


def test_the_kernel_itself_where_nothing_is_better(rng):
    kernel = normal((3, 3, 4, 4), rng)
    for options in (
        {"tolerance": 0},
        {"tolerance": 1e-6},
        {"cost": 144},
        {"cost": 1e9, "input_shape": (1, 8, 8, 4)},
        {"tolerance": 0.9, "schemes": "stack"},  # which needs a window of 5 or more
        {"cost": 1e9, "unit": "ms", "input_shape": (1, 8, 8, 4)},
    ):
        chain = factorize(kernel, **options)
        assert len(chain.kernels) == 1
        np.testing.assert_array_equal(chain.kernels[0], kernel)
    x = normal((1, 6, 6, 8), rng)
    dense = factorize(kernel, tolerance=0, feature_group_count=2)
    np.testing.assert_array_equal(conv(x, dense), conv(x, kernel, feature_group_count=2))
    assert factorize(kernel.transpose(3, 2, 0, 1), tolerance=0, layout="NCHW").shape == (3, 3, 4, 4)


def test_strides_make_chains_dearer_and_none_is_dearer_than_the_kernel(rng):
    kernel = falling(rng, (3, 3, 8, 8))
    changed = 0
    for strides, tolerance in itertools.product((1, 2, 3), (0.05, 0.2, 0.5, 0.8)):
        options = {"input_shape": (1, 16, 16, 8), "strides": strides}
        chain = factorize(kernel, tolerance=tolerance, schemes=FAST, **options)
        macs = conv_cost((1, 16, 16, 8), chain, strides=strides).macs
        dense = conv_cost((1, 16, 16, 8), kernel.shape, strides=strides).macs
        assert macs < dense or len(chain.kernels) == 1
        changed += chain.windows != factorize(kernel, tolerance=tolerance, schemes=FAST).windows
    assert changed, "some choice depends on the stride"


def test_groups_and_depthwise_kernels(rng):
    column, row = normal((5, 1, 1, 8), rng), normal((1, 5, 1, 8), rng)
    kernel = column * row
    chain = factorize(kernel, tolerance=1e-3, feature_group_count=8)
    assert chain.windows == ((5, 1), (1, 5))
    assert chain.feature_group_counts == (8, 8)
    assert error_of(chain, kernel, 8) < ROUNDING


def test_one_and_three_axes(rng):
    kernel = falling(rng, (5, 8, 8))
    chain = factorize(kernel, tolerance=0.3, schemes=FAST)
    assert len(chain.kernels) > 1
    assert error_of(chain, kernel) <= 0.3
    kernel = falling(rng, (3, 3, 3, 4, 4))
    chain = factorize(kernel, tolerance=0.3, schemes=FAST)
    assert len(chain.kernels) > 1
    assert error_of(chain, kernel) <= 0.3
    chain = factorize(kernel, cost=200, schemes="separable")
    assert chain.num_params <= 200


def test_zero_kernels():
    chain = factorize(np.zeros((3, 3, 4, 4), np.float32), tolerance=0, schemes=FAST)
    assert len(chain.kernels) > 1
    assert not np.asarray(chain.dense()).any()


def test_terms_that_cancel_are_not_offered(monkeypatch):
    kernel = np.einsum(
        "az,bz,cz,dz->abcd", *(np.random.default_rng(0).standard_normal((size, 2)) for size in (5, 5, 6, 6))
    )
    assert len(factorize(kernel, tolerance=1e-3, schemes="cp").kernels) == 4
    monkeypatch.setattr("jaxcnn.factorization._family.CANCELLING", 0.0)
    assert len(factorize(kernel, tolerance=1e-3, schemes="cp").kernels) == 1


@pytest.fixture
def fake_clock(monkeypatch):
    """A device on which a call costs 1 ms for each link and 1 microsecond for each weight; what it was asked for."""
    asked = []

    def milliseconds(usage, chain):
        asked.append(chain)
        return len(chain.kernels) + chain.num_params / 1000

    monkeypatch.setattr(Usage, "milliseconds", milliseconds)
    return asked


def test_milliseconds_decide_when_they_are_the_unit(fake_clock, rng):
    kernel = falling(rng, (3, 3, 16, 16))  # 2304 weights: 3.304 ms
    options = {"unit": "ms", "input_shape": (1, 8, 8, 16), "schemes": FAST}
    chain = factorize(kernel, tolerance=0.5, **options)
    assert len(chain.kernels) == 2, "three links cost a millisecond more"
    assert factorize(kernel, tolerance=0.5, schemes="tucker2").num_params < chain.num_params
    assert len(factorize(kernel, tolerance=0.01, **options).kernels) == 1, "as many weights in two links are slower"
    cheap = factorize(kernel, cost=2.5, **options)
    assert len(cheap.kernels) + cheap.num_params / 1000 <= 2.5
    expected = [
        error_of(other, kernel) for other in all_chains(kernel, ("separable", "low_rank")) if other.num_params <= 500
    ]
    assert error_of(cheap, kernel) == pytest.approx(min(expected), abs=1e-3)
    assert len(fake_clock) < 60


def test_no_chain_dearer_than_the_kernel_even_if_the_clock_likes_it(monkeypatch, rng):
    monkeypatch.setattr(Usage, "milliseconds", lambda usage, chain: 1e6 / chain.num_params)
    kernel = falling(rng, (3, 3, 8, 8))
    options = {"unit": "ms", "input_shape": (1, 8, 8, 8), "schemes": FAST, "padding": "VALID"}
    assert jaxcnn.separable(kernel, tolerance=0.01).num_params > kernel.size
    for tolerance in (0.01, 0.3):
        assert factorize(kernel, tolerance=tolerance, **options).num_params <= kernel.size


def test_milliseconds_are_measured(rng):
    usage = Usage("test", (1, 64, 64, 8), 1, "SAME", 1, None)
    small, large = (jaxcnn.KernelChain((normal((*window, 8, 8), rng),)) for window in ((1, 1), (15, 15)))
    assert 0 < usage.milliseconds(small) < usage.milliseconds(large) < 1e4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"factorize: give either tolerance or cost, got None and None"),
        ({"tolerance": 0.1, "cost": 5}, r"factorize: give either tolerance or cost, got 0\.1 and 5"),
        ({"tolerance": -1}, r"factorize: tolerance must not be negative, got -1"),
        (
            {"cost": 10},
            r"factorize: nothing costs 10 macs or less: the kernel costs 144, the cheapest chain of .* costs 14",
        ),
        ({"cost": 1, "schemes": "stack"}, r"the cheapest chain of no scheme"),
        ({"cost": 10, "unit": "flops"}, r"factorize: unit must be 'macs' or 'ms', got 'flops'"),
        (
            {"cost": 10, "unit": "ms"},
            r"factorize: milliseconds are measured on an image, so unit='ms' needs input_shape",
        ),
        ({"tolerance": 0.1, "strides": (2, 1)}, r"strides=\(2, 1\) needs input_shape"),
        ({"tolerance": 0.1, "schemes": "svd"}, r"factorize: a scheme must be one of 'separable', .*, got 'svd'"),
        ({"tolerance": 0.1, "input_shape": (1, 8, 8, 3)}, r"conv_cost: x has 3 channels .* got 4"),
    ],
)
def test_errors_of_factorize(options, message, rng):
    with pytest.raises(ValueError, match=message):
        factorize(normal((3, 3, 4, 4), rng), **options)


# curve


@pytest.mark.parametrize("name", list(SCHEMES))
def test_a_curve_is_of_chains_that_are_made(name, rng):
    kernel = falling(rng, (5, 5, 4, 6))
    found = curve(kernel, name, points=4, input_shape=(1, 12, 12, 4), strides=2)
    assert found.scheme == name
    assert 2 <= len(found.ranks) <= 4
    assert found.dense_macs == conv_cost((1, 12, 12, 4), kernel.shape, strides=2).macs
    assert list(found.macs) == sorted(found.macs)
    assert found.macs[-1] <= found.dense_macs
    assert list(found.errors) == sorted(found.errors, reverse=True)
    function, option = (
        (lambda kernel, **o: jaxcnn.stack(kernel, **o), "features") if name == "stack" else (None, SCHEMES[name].option)
    )
    function = function or getattr(jaxcnn, name)
    for rank, macs, error in zip(found.ranks, found.macs, found.errors, strict=True):
        chain = function(kernel, **{option: rank})
        assert conv_cost((1, 12, 12, 4), chain, strides=2).macs == macs
        assert error_of(chain, kernel) == pytest.approx(error, abs=ROUNDING)


def test_a_curve_without_an_image_counts_weights(rng):
    kernel = normal((3, 3, 4, 6), rng)
    found = curve(kernel, "low_rank", points=100)
    assert found.macs == tuple(rank * (9 * 4 + 6) for rank in found.ranks)
    assert found.ranks == (1, 2, 3, 4, 5)
    assert found.shares == tuple(macs / 216 for macs in found.macs)
    assert dataclasses.is_dataclass(Curve)


def test_a_curve_has_one_point_at_least(rng):
    found = curve(normal((3, 3, 1, 1), rng), "tucker2")
    assert found.ranks == ((1, 1),)
    assert found.macs == (11,)
    assert found.dense_macs == 9


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("svd", {}, "curve: a scheme must be one of 'separable'"),
        ("stack", {}, r"curve: 'stack' does not do for this kernel: it needs a window of odd sizes, .* \(3, 3\)"),
        ("low_rank", {"points": 0}, "curve: points must be at least 1, got 0"),
        ("low_rank", {"strides": 2}, "curve: the cost of a chain with strides depends on the image"),
    ],
)
def test_errors_of_curve(scheme, options, message, rng):
    with pytest.raises(ValueError, match=message):
        curve(normal((3, 3, 2, 2), rng), scheme, **options)


# select_rank


@pytest.mark.parametrize("name", list(SCHEMES))
def test_the_smallest_rank_within_an_error(name, rng):
    kernel = falling(rng, (5, 5, 4, 6))
    rank = select_rank(kernel, name, tolerance=0.5)
    option = SCHEMES[name].option
    assert error_of(getattr(jaxcnn, name)(kernel, **{option: rank}), kernel) <= 0.5
    if isinstance(rank, int) and rank > 1:
        assert error_of(getattr(jaxcnn, name)(kernel, **{option: rank - 1}), kernel) > 0.5
    if name in FAST:
        assert select_rank(kernel, name, energy=0.75) == rank, "1 - 0.5^2"


@pytest.mark.parametrize("name", FAST)
def test_the_largest_rank_within_a_share_of_the_macs(name, rng):
    kernel = falling(rng, (3, 3, 8, 12))
    rank = select_rank(kernel, name, macs=0.4)
    chain = getattr(jaxcnn, name)(kernel, **{SCHEMES[name].option: rank})
    assert chain.num_params <= 0.4 * kernel.size
    if isinstance(rank, int):
        larger = getattr(jaxcnn, name)(kernel, **{SCHEMES[name].option: rank + 1})
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


def test_no_scheme_is_refused(rng):
    with pytest.raises(ValueError, match="factorize: schemes must hold at least one scheme, got none"):
        factorize(normal((3, 3, 2, 2), rng), tolerance=0.1, schemes=())
