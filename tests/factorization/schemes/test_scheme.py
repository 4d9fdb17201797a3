"""Tests of what a `Scheme` says of its chains, against chains that are fitted."""

import numpy as np
import pytest

from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.schemes.scheme import first_channels
from jaxcnn.factorization.selection.candidates import GivenKernel, SchemeCandidates
from support.arrays import normal

SLICEABLE = ("separable", "low_rank")


@pytest.mark.parametrize("name", SLICEABLE)
@pytest.mark.parametrize(("shape", "groups"), [((3, 5, 4, 6), 1), ((3, 3, 3, 8), 2)])
def test_a_sliceable_chain_is_the_beginning_of_the_one_at_full_rank(name, shape, groups, rng):
    candidates = SchemeCandidates(GivenKernel("test", normal(shape, rng), groups, None), name)
    assert candidates.scheme.is_sliceable(candidates.kernel.shape)
    full = candidates.fit(rank=candidates.ranks[-1])
    for rank in (1, 3):
        sliced, fitted = first_channels(full, rank), candidates.fit(rank=rank)
        assert sliced.feature_group_counts == fitted.feature_group_counts
        assert [link.shape for link in sliced.kernels] == [link.shape for link in fitted.kernels]
        np.testing.assert_allclose(sliced.dense(), fitted.dense(), atol=1e-5)


def test_chains_of_several_gaps_are_not_sliced():
    assert not SCHEMES["separable"].is_sliceable((1, 3, 3, 3, 2, 2))
    assert SCHEMES["low_rank"].is_sliceable((1, 3, 3, 3, 2, 2))
    assert [name for name, scheme in SCHEMES.items() if scheme.is_sliceable((1, 3, 3, 2, 2))] == list(SLICEABLE)


def test_the_schemes_are_known_by_the_names_of_their_functions():
    assert list(SCHEMES) == ["separable", "low_rank", "tucker2", "depthwise_separable", "cp", "stack"]
    for name, scheme in SCHEMES.items():
        assert scheme.name == name


def test_the_shapes_of_one_rank_for_all_gaps():
    shape = (2, 3, 3, 3, 4, 5)
    of_one_rank, of_two_ranks = (SCHEMES["separable"].shapes(shape, rank) for rank in (3, (3, 3)))
    assert [link.shape for link in of_one_rank.kernels] == [link.shape for link in of_two_ranks.kernels]
    assert [link.shape[-2:] for link in of_one_rank.kernels] == [(4, 6), (3, 6), (3, 10)]
