"""The form that all schemes have: ranks, shapes and errors known before a chain is made."""

import itertools

import jax
import numpy as np
import pytest

import jaxcnn
from jaxcnn import factorize
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.selection.candidates import GivenKernel, SchemeCandidates, count_while
from jaxcnn.factorization.selection.workload import Workload
from support.arrays import normal
from support.schemes import FAST, ROUNDING, error_of, falling

# A search takes the longer, the higher its rank.
ALL_INDICES = [(name, (0,) if scheme.is_search else (0, 1, 4)) for name, scheme in SCHEMES.items()]
ALL_INDICES += [
    pytest.param(name, (1, 4), marks=pytest.mark.slow) for name, scheme in SCHEMES.items() if scheme.is_search
]


@pytest.mark.parametrize(("name", "indices"), ALL_INDICES)
@pytest.mark.parametrize(
    ("shape", "groups"), [((5, 5, 3, 4), 1), ((5, 5, 2, 8), 2), ((3, 3, 5, 2, 3), 1), ((5, 1, 3, 4), 1)]
)
def test_shapes_known_beforehand_are_those_of_the_chains_made(name, indices, shape, groups, rng):
    candidates = SchemeCandidates(GivenKernel("test", normal(shape, rng), groups, None), name).require()
    for index in {min(index, len(candidates.ranks) - 1) for index in indices}:
        made, known = candidates.fit(rank=candidates.ranks[index]), candidates.shapes_at(index)
        assert [link.shape for link in made.kernels] == [link.shape for link in known.kernels]
        assert made.feature_group_counts == known.feature_group_counts


@pytest.mark.parametrize("name", list(SCHEMES))
def test_ranks_rise_in_weights(name, rng):
    candidates = SchemeCandidates(GivenKernel("test", normal((5, 5, 4, 6), rng), 1, None), name)
    weights = [candidates.shapes_at(index).num_params for index in range(len(candidates.ranks))]
    assert weights == sorted(weights)
    if candidates.errors is not None:
        assert (np.diff(candidates.errors) <= 0).all()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("groups", [1, 2])
def test_errors_known_beforehand_are_those_of_the_chains_made(name, groups, rng):
    kernel = normal((3, 3, 3, 6), rng)
    candidates = SchemeCandidates(GivenKernel("test", kernel, groups, None), name)
    for index in range(0, len(candidates.ranks), 2):
        made = error_of(candidates.fit(rank=candidates.ranks[index]), kernel, groups)
        assert made <= candidates.errors[index] + ROUNDING
        if not candidates.scheme.has_pairs:
            assert made == pytest.approx(candidates.errors[index], abs=ROUNDING)


def test_count_while():
    for size, limit in itertools.product(range(6), range(7)):
        assert count_while(size, lambda index, limit=limit: index < limit) == min(size, limit)


@pytest.mark.parametrize("strides", [1, 2, 3])
def test_pairs_of_ranks_are_in_the_order_of_what_they_cost_where_they_are_used(strides, rng):
    kernel = falling(rng, (3, 3, 8, 12))
    workload = Workload("test", (1, 24, 24, 8), strides, "SAME", 1, None)
    candidates = SchemeCandidates(GivenKernel("test", kernel, 1, None), "tucker2", workload.macs)
    macs = [workload.macs(candidates.shapes_at(index)) for index in range(len(candidates.ranks))]
    assert macs == sorted(macs)
    assert (np.diff(candidates.errors) < 0).all()
    dense = workload.macs(candidates.kernel.dense)
    for share in (0.3, 0.6, 0.9):
        chain = factorize(kernel, cost=share * dense, input_shape=(1, 24, 24, 8), strides=strides, schemes="tucker2")
        assert workload.macs(chain) <= share * dense


def test_errors_of_chains_are_those_of_the_loops(rng):
    for name, groups in itertools.product(FAST, (1, 2)):
        kernel = normal((3, 5, 4, 6), rng)
        given = GivenKernel("test", kernel, groups, None)
        candidates = SchemeCandidates(given, name)
        chain = candidates.fit(rank=candidates.ranks[1])
        assert given.error(chain) == pytest.approx(error_of(chain, kernel, groups), rel=1e-9)
    kernel = normal((3, 2, 3), rng) + 1j * normal((3, 2, 3), rng)
    given = GivenKernel("test", kernel.astype(np.complex64), 1, None)
    assert 0.1 < given.error(SchemeCandidates(given, "low_rank").fit(rank=1)) < 1.0


def test_kernels_that_have_no_values_are_refused(rng):
    kernel = normal((3, 3, 2, 2), rng)
    with pytest.raises(TypeError, match="low_rank: kernel is traced by jit, vmap or grad"):
        jax.jit(lambda kernel: jaxcnn.low_rank(kernel, rank=1))(kernel)
    with pytest.raises(TypeError, match="factorize: kernel is a KernelChain already"):
        factorize(jaxcnn.KernelChain((kernel,)), tolerance=0.1)
    with pytest.raises(TypeError, match=r"factorize: feature_group_count must be an int, got 2\.0"):
        factorize(kernel, tolerance=0.1, feature_group_count=2.0)
