"""The squared error that a fit minimises, and its derivatives."""

import numpy as np
import pytest

from jaxcnn import KernelChain
from jaxcnn.factorization.responses.samples import Responses, Samples
from jaxcnn.factorization.responses.square_error import SquareError
from support.arrays import normal

CHAINS = {
    "separable": (((3, 1, 4, 3), (1, 3, 3, 5)), (1, 1)),
    "separable, groups": (((3, 1, 2, 4), (1, 3, 2, 6)), (2, 2)),
    "separable, depthwise": (((3, 1, 1, 8), (1, 3, 2, 12)), (4, 4)),
    "separable, 3-D": (((2, 1, 1, 2, 3), (1, 2, 1, 3, 3), (1, 1, 2, 3, 4)), (1, 1, 1)),
    "low_rank, 1-D": (((5, 4, 2), (1, 2, 6)), (1, 1)),
    "tucker2": (((1, 1, 6, 3), (3, 3, 3, 2), (1, 1, 2, 6)), (1, 1, 1)),
    "depthwise_separable, groups": (((3, 3, 1, 8), (1, 1, 4, 6)), (4, 2)),
    "cp": (((1, 1, 4, 3), (3, 1, 1, 3), (1, 3, 1, 3), (1, 1, 3, 5)), (1, 3, 3, 1)),
    "stack": (((3, 3, 2, 3), (3, 3, 3, 3)), (1, 1)),
    "stack with groups between": (((3, 2, 4), (2, 2, 4), (2, 4, 3)), (1, 2, 1)),
}


def objective(name, weight):
    """A chain, samples with limits, and the squared error with a weight of the distance to another kernel."""
    shapes, counts = CHAINS[name]
    chain = KernelChain(tuple(normal(shape, seed) for seed, shape in enumerate(shapes)), counts)
    groups = chain.feature_group_count
    patches = normal((40, *chain.shape[:-2], chain.shape[-2] * groups), 7)
    features = chain.shape[-1]
    targets = 3 * normal((40, *[1] * (patches.ndim - 2), features), 8)
    responses = Responses(patches, targets, low=np.full(features, -2.0), high=normal(features, 9) + 4)
    centre = normal(chain.shape, 10)
    return chain, responses, centre, SquareError(Samples(responses, groups), counts, centre, weight)


@pytest.mark.parametrize("name", CHAINS)
def test_the_value_is_that_of_its_definition(name):
    chain, responses, centre, error = objective(name, 0.7)
    links = [np.asarray(link) for link in chain.kernels]
    dense, groups = np.asarray(chain.dense(), np.float64), chain.feature_group_count
    parts = zip(np.split(responses.patches, groups, -1), np.split(dense, groups, -1), strict=True)
    answers = [part.reshape(40, -1) @ block.reshape(-1, block.shape[-1]) for part, block in parts]
    clipped, wanted = (
        np.clip(r, responses.low, responses.high)
        for r in (np.concatenate(answers, 1), responses.targets.reshape(40, -1))
    )
    expected = np.square(clipped - wanted).sum() + 0.7 * np.square(dense - centre).sum()
    assert error.value_and_gradient(links)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weight", [0.0, 5.0])
@pytest.mark.parametrize("name", CHAINS)
def test_the_gradient_is_the_slope_along_each_link(name, weight):
    chain, _, _, error = objective(name, weight)
    links = [np.asarray(link, np.float32) for link in chain.kernels]
    _, gradient = error.value_and_gradient(links)
    for index, link in enumerate(links):
        direction = normal(link.shape, 20 + index)
        step = np.float32(1e-3)
        values = [
            error.value_and_gradient([*links[:index], link + sign * step * direction, *links[index + 1 :]])[0]
            for sign in (1, -1)
        ]
        slope = (values[0] - values[1]) / (2 * step)
        expected = float(np.vdot(gradient[index], direction))
        scale = np.linalg.norm(gradient[index]) * np.linalg.norm(direction)
        assert abs(slope - expected) < 0.02 * scale
