"""Tests of the one relative error."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.norms import relative_error


def test_the_relative_error_is_that_of_all_finite_results_together():
    expected = [np.array([3.0, np.inf], np.float32), np.array(0.0), np.array(4.0)]
    actual = [np.array([3.0, 9.0]), np.array(0.0), np.array(3.0)]
    assert relative_error(actual, expected) == pytest.approx(1 / 5)
    assert relative_error([np.array([np.inf])], [np.ones(1)]) == np.inf
    assert relative_error([np.array([np.nan])], [np.ones(1)]) == np.inf
    assert relative_error([np.ones(1)], [np.zeros(1)]) == np.inf
    assert relative_error([np.zeros(1)], [np.zeros(1)]) == 0
    assert relative_error([], []) == 0


def test_arrays_of_any_dtype_and_pytrees_of_them():
    expected = {"a": jnp.full((2, 2), 1e30, jnp.bfloat16), "b": np.complex64(3 + 4j)}
    assert relative_error(expected, expected) == 0
    assert relative_error(np.complex64(3 - 4j), np.complex64(3 + 4j)) == pytest.approx(8 / 5)
    assert relative_error(np.full(2, 1e-30, np.float32), np.full(2, 2e-30, np.float32)) == pytest.approx(1 / 2)
    assert relative_error(jnp.full(2, 3, jnp.int8), jnp.full(2, -2, jnp.int8)) == pytest.approx(5 / 2)


def test_results_of_another_structure_are_refused():
    with pytest.raises(ValueError, match="argument 2"):
        relative_error([np.ones(1), np.ones(1)], [np.ones(1)])
