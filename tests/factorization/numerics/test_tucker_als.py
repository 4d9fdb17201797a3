"""The core of `tucker2` by itself."""

import itertools

import numpy as np
import pytest

from jaxcnn.factorization.numerics.tucker_als import leading_bases, start_errors
from support.arrays import normal
from support.schemes import start_error


def test_errors_of_the_start_at_all_ranks(rng):
    kernel = normal((3, 3, 4, 6), rng)
    tensor = kernel.astype(np.float64).reshape(1, 9, 4, 6)
    errors = np.sqrt(start_errors(tensor, leading_bases(tensor)))
    for first, second in itertools.product(range(1, 5), range(1, 7)):
        assert errors[first - 1, second - 1] == pytest.approx(start_error(kernel, (first, second)), abs=1e-12)
    assert errors[-1, -1] == 0
