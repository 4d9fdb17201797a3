"""The form that all schemes have: ranks, shapes and errors known before a chain is made."""

import itertools

import jax
import numpy as np
import pytest

import jaxcnn
from jaxcnn import factorize
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.selection.candidates import Family, Subject, count_while
from jaxcnn.factorization.selection.workload import Usage
from support.arrays import normal
from support.schemes import FAST, ROUNDING, error_of, falling

# A search takes the longer, the higher its rank.
ALL_INDICES = [(name, (0,) if scheme.searches else (0, 1, 4)) for name, scheme in SCHEMES.items()]
ALL_INDICES += [
    pytest.param(name, (1, 4), marks=pytest.mark.slow) for name, scheme in SCHEMES.items() if scheme.searches
]


@pytest.mark.parametrize(("name", "indices"), ALL_INDICES)
@pytest.mark.parametrize(
    ("shape", "groups"), [((5, 5, 3, 4), 1), ((5, 5, 2, 8), 2), ((3, 3, 5, 2, 3), 1), ((5, 1, 3, 4), 1)]
)
def test_shapes_known_beforehand_are_those_of_the_chains_made(name, indices, shape, groups, rng):
    family = Family(Subject("test", normal(shape, rng), groups, None), name).require()
    for index in {min(index, len(family.ranks) - 1) for index in indices}:
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
