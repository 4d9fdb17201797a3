"""`factorize` against trying everything."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn import conv, conv_cost, factorize, select_rank
from jaxcnn.factorization.selection.workload import Workload
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


KERNEL = falling(np.random.default_rng(0), (3, 3, 6, 8))


@pytest.fixture(scope="module")
def weights_and_errors():
    """Weights and error of every chain of that kernel."""
    return [(chain.num_params, error_of(chain, KERNEL)) for chain in all_chains(KERNEL)]


@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.3, 0.6, 0.95])
def test_the_cheapest_chain_within_the_error(tolerance, weights_and_errors):
    chain = factorize(KERNEL, tolerance=tolerance, schemes=FAST)
    assert error_of(chain, KERNEL) <= tolerance + ROUNDING
    meeting = [weights for weights, error in weights_and_errors if error <= tolerance]
    # tucker2 finds its pair by the start's errors, so a pair that only the iteration brings within may be cheaper.
    assert chain.num_params <= 1.1 * min([*meeting, KERNEL.size])
    single = [jaxcnn.separable, jaxcnn.low_rank, jaxcnn.tucker2, jaxcnn.depthwise_separable]
    assert chain.num_params == min([KERNEL.size, *(f(KERNEL, tolerance=tolerance).num_params for f in single)])


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.95])
def test_the_most_exact_chain_within_the_cost(share, weights_and_errors):
    cost = share * KERNEL.size
    chain = factorize(KERNEL, cost=cost, schemes=FAST)
    assert chain.num_params <= cost
    lowest = min(error for weights, error in weights_and_errors if weights <= cost)
    assert error_of(chain, KERNEL) <= lowest + 0.01
    # In multiply-accumulates of an image without borders that is the same choice.
    options = {"cost": 400 * cost, "input_shape": (1, 22, 22, 6), "padding": "VALID", "schemes": "tucker2"}
    assert factorize(KERNEL, **options).num_params <= cost


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
    monkeypatch.setattr("jaxcnn.factorization.schemes.cp.CANCELLING_TERMS_NORM", 0.0)
    assert len(factorize(kernel, tolerance=1e-3, schemes="cp").kernels) == 1


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
    monkeypatch.setattr(Workload, "milliseconds", lambda workload, chain: 1e6 / chain.num_params)
    kernel = falling(rng, (3, 3, 8, 8))
    options = {"unit": "ms", "input_shape": (1, 8, 8, 8), "schemes": FAST, "padding": "VALID"}
    assert jaxcnn.separable(kernel, tolerance=0.01).num_params > kernel.size
    for tolerance in (0.01, 0.3):
        assert factorize(kernel, tolerance=tolerance, **options).num_params <= kernel.size


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


def test_no_scheme_is_refused(rng):
    with pytest.raises(ValueError, match="factorize: schemes must hold at least one scheme, got none"):
        factorize(normal((3, 3, 2, 2), rng), tolerance=0.1, schemes=())


def test_a_wider_chain_is_taken_where_the_device_likes_its_width(clock_of_multiples, rng):
    kernel = falling(rng, (3, 3, 24, 24))
    options = {"unit": "ms", "input_shape": (1, 8, 8, 24)}
    for scheme in ("low_rank", "separable", "tucker2"):
        least = getattr(jaxcnn, scheme)(kernel, tolerance=0.35)
        chain = factorize(kernel, tolerance=0.35, schemes=scheme, **options)
        assert any(link.shape[-1] % 8 for link in least.kernels[:-1]), "else nothing is tested"
        assert all(link.shape[-1] % 8 == 0 for link in chain.kernels[:-1])
        assert chain.num_params < 3 * least.num_params
        assert error_of(chain, kernel) <= 0.35
    # 16 * 240 weights take 3.84 ms; of other widths 5 * 240 at most do.
    assert factorize(kernel, cost=3.9, schemes="low_rank", **options).kernels[0].shape[-1] == 16
    assert select_rank(kernel, "low_rank", milliseconds=3.9, input_shape=(1, 8, 8, 24)) == 16
    assert select_rank(kernel, "low_rank", milliseconds=3.9, multiple=5, input_shape=(1, 8, 8, 24)) == 5


@pytest.mark.parametrize("strides", [1, 2])
def test_the_best_pair_of_ranks_of_all(strides, rng):
    """Against tucker2 at every pair, whose iteration may bring a pair within the error that its start misses."""
    for shape, power in (((3, 6, 5), 0.3), ((3, 1, 7, 4), 1.2), ((3, 3, 5, 8), 0.0)):
        kernel = falling(rng, shape, power)
        image = (1, *(11,) * (len(shape) - 2), shape[-2])
        full = min(shape[-2], 9 * shape[-1]), min(shape[-1], 3 * shape[-2])
        made = []
        for pair in itertools.product(range(1, full[0] + 1), range(1, full[1] + 1)):
            chain = jaxcnn.tucker2(kernel, ranks=pair)
            made.append((conv_cost(image, chain, strides=strides).macs, error_of(chain, kernel)))
        dense = conv_cost(image, kernel.shape, strides=strides).macs
        options = {"input_shape": image, "strides": strides, "schemes": "tucker2"}
        for tolerance in (0.1, 0.3, 0.5, 0.7):
            chain = factorize(kernel, tolerance=tolerance, **options)
            least = min([macs for macs, error in made if error <= tolerance] + [dense])
            assert conv_cost(image, chain, strides=strides).macs == least
        for share in (0.3, 0.7):
            lowest = min([error for macs, error in made if macs <= share * dense], default=None)
            if lowest is not None:
                chain = factorize(kernel, cost=share * dense, **options)
                assert error_of(chain, kernel) <= lowest + ROUNDING


def test_a_chain_that_rounding_takes_out_of_the_error_is_not_offered(rng):
    exact = normal((3, 3, 8, 2), rng) @ normal((2, 12), rng)
    for dtype, tolerance in ((jnp.bfloat16, 1e-3), (np.float16, 1e-5)):
        kernel = jnp.asarray(exact, dtype)
        assert len(factorize(exact, tolerance=tolerance, schemes=FAST).kernels) > 1
        assert len(factorize(kernel, tolerance=tolerance, schemes=FAST).kernels) == 1
        chain = factorize(kernel, tolerance=0.02, schemes=FAST)
        assert len(chain.kernels) > 1
        assert error_of(chain, np.asarray(kernel, np.float64)) <= 0.02
