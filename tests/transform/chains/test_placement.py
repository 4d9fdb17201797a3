"""Where a kernel may lie in the parameter that holds it."""

from __future__ import annotations

import numpy as np
import pytest

import jaxcnn
from jaxcnn.transform.chains.placement import Placement, guesses


@pytest.mark.parametrize("order", range(3))
def test_a_kernel_and_the_parameter_that_holds_it(order):
    chain = jaxcnn.KernelChain((np.zeros((3, 1, 1, 8)), np.zeros((1, 2, 2, 12))), (4, 4))
    (placement,) = list(guesses([chain]))[order]
    kernel = np.arange(3 * 2 * 12).reshape(3, 2, 1, 12)
    parameter = placement.parameter(kernel)
    expected = (kernel, kernel.transpose(3, 2, 0, 1), kernel.reshape(3, 2, 4, 3))[order]
    np.testing.assert_array_equal(parameter, expected)
    np.testing.assert_array_equal(placement.kernel(parameter), kernel)
    assert placement.covers()
    assert placement.kernel_shape == (3, 2, 1, 12)


def test_the_kernel_from_outputs_to_inputs():
    own = Placement((3, 4, 6), (((0, 1, 3),),), ((1, 1, 4),), ((2, 1, 6),))
    assert own.exchange(1) == Placement((3, 4, 6), (((0, 1, 3),),), ((2, 1, 6),), ((1, 1, 4),))
    assert own.exchange(2) == Placement((3, 4, 6), (((0, 1, 3),),), ((2, 1, 3),), ((2, 3, 2), (1, 1, 4)))
    assert own.exchange(6).exchange(6) == own
    merged_features = Placement((3, 4, 6), (((0, 1, 3),),), (), ((1, 1, 4), (2, 1, 6)))
    assert merged_features.exchange(3) is None  # a group would be one and a third of the channels


def test_a_placement_that_leaves_something_out_covers_not():
    assert not Placement((3, 4, 6), (((0, 1, 3),),), ((1, 1, 4),), ((2, 1, 3),)).covers()
    assert not Placement((3, 4, 4), (((0, 1, 3),),), ((1, 1, 4),), ((1, 1, 4),)).covers()
