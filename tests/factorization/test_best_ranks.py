"""The best rank of all, by what it costs where it is used, after rounding, and by what the clock likes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn import conv_cost, factorize, select_rank, separable
from jaxcnn.factorization._family import Family, Subject
from jaxcnn.factorization._usage import Usage
from support.arrays import normal
from support.schemes import FAST, ROUNDING, error_of, falling


@pytest.fixture
def clock_of_multiples(monkeypatch):
    """A device on which widths that are no multiples of 8 take three times as long."""

    def milliseconds(usage, chain):
        widths = [link.shape[-1] for link in chain.kernels[:-1]]
        return chain.num_params / 1000 * (1.0 if all(width % 8 == 0 for width in widths) else 3.0)

    monkeypatch.setattr(Usage, "milliseconds", milliseconds)


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


@pytest.mark.parametrize("strides", [1, 2, 3])
def test_pairs_of_ranks_are_in_the_order_of_what_they_cost_where_they_are_used(strides, rng):
    kernel = falling(rng, (3, 3, 8, 12))
    usage = Usage("test", (1, 24, 24, 8), strides, "SAME", 1, None)
    family = Family(Subject("test", kernel, 1, None), "tucker2", usage.macs)
    macs = [usage.macs(family.chain(index)) for index in range(len(family.ranks))]
    assert macs == sorted(macs)
    assert (np.diff(family.errors) < 0).all()
    dense = usage.macs(family.subject.dense)
    for share in (0.3, 0.6, 0.9):
        chain = factorize(kernel, cost=share * dense, input_shape=(1, 24, 24, 8), strides=strides, schemes="tucker2")
        assert usage.macs(chain) <= share * dense


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


def test_errors_of_chains_are_those_of_the_loops(rng):
    for name, groups in itertools.product(FAST, (1, 2)):
        kernel = normal((3, 5, 4, 6), rng)
        subject = Subject("test", kernel, groups, None)
        chain = Family(subject, name).fit(index=1)
        assert subject.error(chain) == pytest.approx(error_of(chain, kernel, groups), rel=1e-9)
    kernel = normal((3, 2, 3), rng) + 1j * normal((3, 2, 3), rng)
    subject = Subject("test", kernel.astype(np.complex64), 1, None)
    assert 0.1 < subject.error(Family(subject, "low_rank").fit(index=0)) < 1.0


def test_kernels_that_have_no_values_are_refused(rng):
    kernel = normal((3, 3, 2, 2), rng)
    with pytest.raises(TypeError, match="low_rank: kernel is traced by jit, vmap or grad"):
        jax.jit(lambda kernel: jaxcnn.low_rank(kernel, rank=1))(kernel)
    with pytest.raises(TypeError, match="factorize: kernel is a KernelChain already"):
        factorize(jaxcnn.KernelChain((kernel,)), tolerance=0.1)
    with pytest.raises(TypeError, match=r"factorize: feature_group_count must be an int, got 2\.0"):
        factorize(kernel, tolerance=0.1, feature_group_count=2.0)


# Three window axes


@pytest.mark.parametrize("groups", [1, 2])
def test_three_axes_leave_out_what_the_singular_values_say(groups, rng):
    """The tensor train by NumPy: bases stay orthonormal, so that the squares of what the gaps leave out add up."""
    kernel = rng.standard_normal((3, 2, 3, 4, 6)).astype(np.float32) * np.arange(6.0, 0.0, -1.0, dtype=np.float32)
    left_out = 0.0
    for block in np.split(kernel.astype(np.float64), groups, axis=-1):
        rest, width = np.moveaxis(block, -2, 0), 4
        for size, rank in zip((3, 2), (3, 2), strict=True):
            _, values, right = np.linalg.svd(rest.reshape(width * size, -1), full_matrices=False)
            left_out += np.square(values[rank:]).sum()
            rest, width = values[:rank, None] * right[:rank], rank
    chain = separable(kernel, rank=(3, 2), feature_group_count=groups)
    expected = np.sqrt(left_out) / np.linalg.norm(kernel)
    assert float(chain.relative_error(jnp.asarray(kernel))) == pytest.approx(expected, rel=1e-5)
    norms = [float(jnp.linalg.norm(link.ravel())) for link in chain.kernels]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_what_the_first_gap_does_not_use_of_the_error_goes_to_the_second(rng):
    kernel = rng.standard_normal((1, 3, 3, 1, 6)).astype(np.float32)
    column = np.ones((3, 1, 1, 1, 1), np.float32)  # all windows alike along the first axis: its gap leaves nothing out
    for tolerance in (0.3, 0.4, 0.5, 0.6, 0.7):
        chain, second = separable(column * kernel, tolerance=tolerance), separable(kernel[0], tolerance=tolerance)
        assert chain.kernels[1].shape[-1] == second.kernels[0].shape[-1]
