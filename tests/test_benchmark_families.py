"""The seeded families of layers, and what their layers are in each library."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.choice import beside_torch
from benchmarks.choice.families import BATCHES, FAMILIES, MACS, MAX_ELEMENTS, NARROW_MACS, ROLES, family, macs
from benchmarks.choice.torch_layers import as_lax, torch_function
from benchmarks.common import relative_error
from jaxcnn.lowering.choice import METHODS, choose
from jaxcnn.lowering.spec import ConvSpec, conv_spec, spec_from_plain, spec_to_plain

COUNT = 60


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_a_family_are_convolutions_within_the_limits(name):
    for spec in family(name, 0, COUNT):
        lhs, rhs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in spec.operand_shapes)
        again = conv_spec(
            lhs,
            rhs,
            role=spec.role,
            stacked=False,
            strides=spec.strides,
            padding=spec.padding,
            input_dilation=spec.input_dilation,
            kernel_dilation=spec.kernel_dilation,
            feature_group_count=spec.feature_group_count,
            precision=None,
            preferred_element_type=np.dtype(np.float32),
            input_size=spec.input_shape[1:-1],
            window=spec.window,
        )
        assert spec == again == spec_from_plain(spec_to_plain(spec))
        assert jax.eval_shape(beside_torch.lax_function(spec), lhs, rhs).shape == spec.result_shape
        assert min(MACS[0], NARROW_MACS[0]) <= macs(spec) <= MACS[1]
        assert max(map(math.prod, (spec.input_shape, spec.kernel_shape, spec.output_shape))) <= MAX_ELEMENTS
        assert spec.feature_group_count * spec.kernel_shape[-2] == spec.input_shape[-1]
        assert METHODS[choose(spec, "auto", "cpu").method].supports(spec) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_its_seed(name):
    layers = family(name, 0, COUNT)
    assert layers == family(name, 0, COUNT)
    assert family(name, 0, 5) == layers[:5]
    assert not set(layers) & set(family(name, 1, COUNT))
    assert len(set(layers)) == COUNT
    assert {(spec.role, spec.input_shape[0]) for spec in layers} == set(itertools.product(ROLES, BATCHES))
    assert {spec.role for spec in family(name, 0, 4, ("kernel",))} == {"kernel"}


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_and_images_are_not_all_round(name):
    layers = family(name, 0, COUNT)
    channels = [n for spec in layers for n in (spec.input_shape[-1], spec.output_shape[-1])]
    assert COUNT / 4 < sum(n % 16 == 0 for n in channels) < 2 * COUNT - COUNT / 4
    assert any(n % 4 for n in channels)
    assert any(spec.output_shape[1] % 2 for spec in layers)


def _kinds(name):
    """What makes a layer one of its family."""
    specs = family(name, 0, COUNT)
    return {
        "depthwise": all(spec.kernel_shape[-2] == 1 < spec.feature_group_count for spec in specs),
        "grouped": all(1 < spec.feature_group_count < spec.input_shape[-1] for spec in specs),
        "dense": all(spec.feature_group_count == 1 == max(spec.strides) < max(spec.window) for spec in specs),
        "pointwise": all(spec.window == (1, 1) for spec in specs),
        "one_dimensional": all(min(spec.window) == 1 < max(spec.window) for spec in specs),
        "strided": all(min(spec.strides) > 1 for spec in specs),
        "dilated": all(min(spec.kernel_dilation) > 1 for spec in specs),
        "one_axis": all(spec.rank == 1 for spec in specs),
        "three_axes": all(spec.rank == 3 for spec in specs),
        "transposed": all(
            min(spec.strides) > 1 and spec.input_shape[1] == spec.strides[0] * spec.output_shape[1] for spec in specs
        ),
    }[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_holds_what_its_name_says(name):
    assert _kinds(name)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of depthwise, .*, got 'pool'"):
        family("pool", 0, 1)


def _spec(role, window, strides, dilation, groups, pads, sizes, channels=(4, 6)):
    shape = (2, *sizes, channels[0])
    kernel = (*window, channels[0] // groups, channels[1])
    single = np.dtype(np.float32)
    y = [
        (n + 2 * pad - (w - 1) * d - 1) // s + 1
        for n, w, s, d, pad in zip(sizes, window, strides, dilation, pads, strict=True)
    ]
    padding = tuple((pad, pad) for pad in pads)
    shapes = (shape, kernel, (2, *y, channels[1]))
    ones = (1,) * len(window)
    return ConvSpec(
        role, *shapes, strides, padding, ones, dilation, groups, single, single, single, precision=None, stacked=None
    )


SMALL = [
    ((5,), (2,), (1,), 1, (2,), (17,)),
    ((3, 2), (2, 2), (1, 1), 1, (1, 0), (8, 6)),
    ((3, 3), (1, 1), (2, 2), 2, (2, 0), (9, 8)),
    ((2, 3, 1), (1, 2, 1), (1, 1, 1), 1, (0, 1, 0), (4, 6, 5)),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("options", SMALL, ids=str)
def test_layers_of_all_libraries_are_the_same(options, role, transposed, standard_promotion):
    pytest.importorskip("torch")
    spec = _spec(role, *options)
    lhs, rhs = beside_torch.operands(spec)
    expected = jax.jit(beside_torch.lax_function(spec))(lhs, rhs)
    assert expected.shape == spec.result_shape
    assert relative_error(jax.jit(beside_torch.jaxcnn_function(spec))(lhs, rhs), expected) < 1e-5
    result = as_lax(spec, torch_function(spec, lhs, rhs, transposed=transposed)())
    assert relative_error(result, expected) < 1e-5
