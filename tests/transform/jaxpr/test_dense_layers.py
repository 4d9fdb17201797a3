"""Products with a matrix as convolutions with a kernel of one tap."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.transform.jaxpr.convolutions import is_convolution
from jaxcnn.transform.jaxpr.dense_layers import as_one_tap_convolution, one_tap_convolution_on
from support.arrays import jax_normal

PRODUCTS = {
    "rows": ("nhi,io->nho", (2, 3, 4), (4, 5)),
    "columns": ("in,io->no", (4, 2), (4, 5)),
    "heads": ("nti,iho->ntho", (2, 3, 4), (4, 2, 5)),
    "two axes summed": ("nhi,hio->no", (2, 3, 4), (3, 4, 5)),
    "one vector": ("i,io->o", (4,), (4, 5)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("position", [0, 1])
def test_the_same_values(name, position):
    formula, x_shape, matrix_shape = PRODUCTS[name]
    operands, terms = [jax_normal(x_shape), jax_normal(matrix_shape, 1)], formula.split("->")[0].split(",")
    if position == 0:
        operands, terms = operands[::-1], terms[::-1]
    summed = [letter for letter in terms[0] if letter in terms[1]]
    numbers = tuple(tuple(term.index(letter) for letter in summed) for term in terms), ((), ())
    (equation,) = jax.make_jaxpr(lambda a, b: jax.lax.dot_general(a, b, numbers))(*operands).eqns
    closed = as_one_tap_convolution(equation, position)
    (result,) = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *operands)
    np.testing.assert_allclose(result, jax.lax.dot_general(*operands, numbers), rtol=1e-4, atol=1e-5)
    assert sum(map(is_convolution, closed.jaxpr.eqns)) == 1
    assert as_one_tap_convolution(equation, position) is closed


def test_other_equations():
    (batched,) = jax.make_jaxpr(lambda a, b: jax.lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,)))))(
        jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    ).eqns
    (summed,) = jax.make_jaxpr(lambda a, b: jax.lax.dot_general(a, b, (((0,), (0,)), ((), ()))))(
        jnp.ones(3), jnp.ones(3)
    ).eqns
    (added,) = jax.make_jaxpr(jnp.add)(jnp.ones(3), jnp.ones(3)).eqns
    for equation in (batched, summed, added):
        assert as_one_tap_convolution(equation, 1) is None


def test_the_convolution_that_a_path_leads_into():
    product, added = jax.make_jaxpr(lambda a, b: a @ b + 1)(jnp.ones((2, 2)), jnp.ones((2, 2))).eqns
    place = (1, id(product))
    for position in (0, 1):
        closed = as_one_tap_convolution(product, position)
        (conv,) = filter(is_convolution, closed.jaxpr.eqns)
        assert one_tap_convolution_on(product, place, [(5, 6), (*place, id(conv))]) is closed
    assert one_tap_convolution_on(product, place, [(5, 6), place]) is None
    assert one_tap_convolution_on(added, place, [(*place, 3)]) is None
