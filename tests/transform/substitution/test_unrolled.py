"""A function as one row of steps, in a few compiled segments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxcnn.transform.chains.find_kernels import find_kernels
from jaxcnn.transform.substitution.unrolled import Segment, UnrolledProgram, needed_steps
from support.arrays import normal, relative_error
from support.planted import conv

KERNELS = jnp.asarray(normal((2, 3, 3, 4, 4)))
IMAGE = jnp.asarray(normal((2, 8, 8, 4), 9))
SCALES = jnp.asarray(normal((4,), 3))


def in_calls(kernels, x):
    y = jax.jit(lambda x, k: jax.nn.relu(conv(x, k) * SCALES[None, None, None]))(x, kernels[0])
    return lax.scan(lambda c, _: (c * 0.5, c.sum()), y, None, length=3)[0] + conv(y, kernels[1])


def forwards(kernels, x):
    return lax.scan(lambda y, k: (jax.nn.relu(conv(y, k)), y.sum()), x, kernels)


def backwards(kernels, x):
    return lax.scan(lambda y, k: (jnp.tanh(conv(y, k)), y.sum((0, 1))), x, kernels, reverse=True)


def program_of(f):
    closed = jax.make_jaxpr(f)(KERNELS, IMAGE)
    kernels, _ = find_kernels(closed)
    return UnrolledProgram(closed, {site.path: (0, site) for site in kernels[0].sites})


@pytest.mark.parametrize("f", [in_calls, forwards, backwards])
def test_segments_in_a_row_compute_the_function(f):
    program = program_of(f)
    assert [site.index for site in program.sites] == [0, 0]
    values, middle = program.values((KERNELS, IMAGE)), program.sites[1].position
    later = {variable for step in program.steps[middle:] for variable in step.reads} | {*program.outputs}
    for steps, wanted in ((program.steps[:middle], later), (program.steps[middle:], program.outputs)):
        values |= Segment(steps, wanted).run(values)
    for result, expected in zip(program.outputs, jax.tree.leaves(f(KERNELS, IMAGE)), strict=True):
        assert relative_error(values[result], expected) < 1e-6


def test_a_loop_without_sites_is_one_step_and_one_with_sites_is_unrolled():
    assert (
        sum(step.equation is not None and "scan" in str(step.equation.primitive) for step in program_of(in_calls).steps)
        == 1
    )
    assert not any(
        step.equation is not None and "scan" in str(step.equation.primitive) for step in program_of(forwards).steps
    )


def test_a_segment_computes_only_what_is_wanted():
    program = program_of(in_calls)
    response = program.response(program.sites[0])
    steps = needed_steps(program.steps, [response])
    assert steps[-1].results == (response,)
    assert len(steps) < len(program.steps) / 2
    segment = Segment(program.steps, [response])
    assert list(segment.results) == [response]
    expected = conv(IMAGE, KERNELS[0])
    assert relative_error(segment.run(program.values((KERNELS, IMAGE)))[response], expected) < 1e-6


def test_constants_are_no_part_of_a_program():
    program = program_of(in_calls)
    assert any(value is SCALES for value in program.constants.values())
    assert set(program.constants) <= set(Segment(program.steps, program.outputs).reads)
