import numpy as np

import jaxcnn
from jaxcnn.demo import chains


def test_shapes_without_numbers_are_those_of_the_factorizations():
    kernel = np.random.default_rng(0).normal(size=(5, 5, 4, 6)).astype(np.float32)
    for shapes, chain in (
        (chains.chain_shapes("separable", (5, 5, 4, 6), 3), jaxcnn.separable(kernel, rank=3)),
        (chains.chain_shapes("stack", (5, 5, 4, 6), 2), jaxcnn.stack(kernel, features=2)),
        (
            chains.chain_shapes("separable", (5, 5, 4, 6), 3, groups=2),
            jaxcnn.separable(kernel, rank=3, feature_group_count=2),
        ),
    ):
        assert [link.shape for link in shapes.kernels] == [link.shape for link in chain.kernels]
        assert shapes.feature_group_counts == chain.feature_group_counts


def test_the_widest_within_a_budget():
    assert [chains.widest_within(lambda width: 10 * width + 5, budget) for budget in (14, 15, 24, 25, 1005)] == [
        0,
        1,
        1,
        2,
        100,
    ]
