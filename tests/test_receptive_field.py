"""Receptive fields against the set of pixels that a loop sees, and against published figures."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxcnn import FieldLayer, ReceptiveField, receptive_field
from support.counting import seen_field

ALEXNET = [
    ("conv1", FieldLayer(11, strides=4), 11),
    ("pool1", FieldLayer(3, strides=2), 19),
    ("conv2", FieldLayer(5, padding=2), 51),
    ("pool2", FieldLayer(3, strides=2), 67),
    ("conv3", FieldLayer(3, padding=1), 99),
    ("conv4", FieldLayer(3, padding=1), 131),
    ("conv5", FieldLayer(3, padding=1), 163),
    ("pool5", FieldLayer(3, strides=2), 195),
]


def test_alexnet_layer_by_layer():
    fields = [receptive_field([layer for _, layer, _ in ALEXNET[: n + 1]]) for n in range(len(ALEXNET))]
    assert [field.size for field in fields] == [(size,) for _, _, size in ALEXNET]
    assert [field.stride[0] for field in fields] == [4, 8, 8, 16, 16, 16, 16, 32]
    assert [field.offset[0] for field in fields] == [0, 0, 16, 16, 32, 48, 64, 64]


def test_vgg16():
    layers = []
    for convolutions in (2, 2, 3, 3, 3):
        layers += [FieldLayer((3, 3), padding="SAME")] * convolutions + [FieldLayer((2, 2), strides=2)]
    assert len(layers) == 18
    assert receptive_field(layers) == ReceptiveField(size=(212, 212), stride=(32, 32), offset=(90, 90))


def drawn_layer():
    return st.tuples(st.integers(1, 5), st.just(1), st.integers(0, 3), st.integers(1, 3))


def drawn_layers():
    strided = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(-1, 3), st.integers(1, 3))
    # Branches of one stride; the third kind holds a block of branches inside a branch.
    branch = st.lists(st.one_of(drawn_layer(), st.lists(st.lists(drawn_layer(), max_size=2), min_size=1, max_size=2)))
    block = st.lists(branch.map(lambda layers: layers[:3]), min_size=1, max_size=3)
    return st.lists(st.one_of(strided, strided, block), max_size=5)


def as_layers(items):
    return [
        [as_layers(branch) for branch in item]
        if isinstance(item, list)
        else FieldLayer(item[0], item[1], item[2], item[3])
        for item in items
    ]


@settings(max_examples=200)
@given(drawn_layers())
def test_receptive_field_is_the_set_of_pixels_that_are_seen(items):
    field = receptive_field(as_layers(items))
    assert (field.size[0], field.stride[0], field.offset[0]) == seen_field(items)


def test_a_residual_block():
    block = [[FieldLayer(3, padding=1), FieldLayer(3, padding=1)], []]
    assert receptive_field([block]) == ReceptiveField((5,), (1,), (2,))
    assert receptive_field([FieldLayer(7, 2, 3), FieldLayer(3, 2, 1), block, block]) == ReceptiveField(
        (43,), (4,), (21,)
    )
    assert seen_field([(7, 2, 3, 1), (3, 2, 1, 1)] + [[[(3, 1, 1, 1)] * 2, []]] * 2) == (43, 4, 21)


def test_a_strided_residual_block_with_a_projection():
    block = [[FieldLayer(3, 2, 1), FieldLayer(3, 1, 1)], [FieldLayer(1, 2)]]
    assert receptive_field([block]) == ReceptiveField((7,), (2,), (3,))
    assert seen_field([[[(3, 2, 1, 1), (3, 1, 1, 1)], [(1, 2, 0, 1)]]]) == (7, 2, 3)


def test_an_inception_block_is_as_wide_as_its_widest_branch():
    block = [
        [FieldLayer(1)],
        [FieldLayer(1), FieldLayer(3, padding=1)],
        [FieldLayer(1), FieldLayer(5, padding=2)],
        [FieldLayer(3, padding=1), FieldLayer(1)],
    ]
    assert receptive_field([block]) == ReceptiveField((5,), (1,), (2,))


def test_branches_that_lie_apart_are_joined():
    left, right = FieldLayer(3, padding=4), FieldLayer(3, padding=-2)  # pixels -4 to -2, and 2 to 4
    assert receptive_field([[[left], [right]]]) == ReceptiveField((9,), (1,), (4,))
    assert seen_field([[[(3, 1, 4, 1)], [(3, 1, -2, 1)]]]) == (9, 1, 4)


def test_axes_are_separate():
    layers = [
        FieldLayer((3, 5), strides=(1, 2), padding=((1, 1), (0, 2))),
        FieldLayer(3, strides=2),
        FieldLayer((1, 3), dilation=(4, 2)),
    ]
    rows = [(3, 1, 1, 1), (3, 2, 0, 1), (1, 1, 0, 4)]
    columns = [(5, 2, 0, 1), (3, 2, 0, 1), (3, 1, 0, 2)]
    expected = [seen_field(rows), seen_field(columns)]
    assert expected == [(5, 2, 1), (25, 4, 0)]
    assert receptive_field(layers) == ReceptiveField(*zip(*expected, strict=True))


@pytest.mark.parametrize("where", ["window", "strides", "padding", "dilation"])
def test_any_argument_sets_the_number_of_axes(where):
    options = {"window": 3, "strides": 1, "padding": 1, "dilation": 1}
    options[where] = (options[where],) * 3
    assert receptive_field([FieldLayer(2), FieldLayer(**options)]) == ReceptiveField((4,) * 3, (1,) * 3, (1,) * 3)


@pytest.mark.parametrize(("window", "stride"), list(itertools.product(range(1, 7), range(1, 5))))
def test_named_padding_of_a_layer_is_that_of_an_input_of_a_multiple_of_the_stride(window, stride):
    for name in ("SAME", "same_lower"):
        ((low, _),) = lax.padtype_to_pads((12 * stride,), (window,), (stride,), name.upper())
        assert receptive_field([FieldLayer(window, stride, name)]).offset == (low,)
    assert receptive_field([FieldLayer(window, stride, "VALID")]).offset == (0,)


def test_no_layers_see_one_pixel():
    assert receptive_field([]) == ReceptiveField((1,), (1,), (0,))


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([FieldLayer((3, 3)), FieldLayer((3, 3, 3))], ValueError, r"different numbers of spatial axes: \[1, 2, 3\]"),
        (
            [[[FieldLayer(3, 2)], [FieldLayer(3)]]],
            ValueError,
            r"must have the same stride, got \[\(1,\), \(2,\)\]",
        ),
        ([[]], ValueError, r"receptive_field: a list of parallel branches is empty"),
        (
            [[FieldLayer(3), FieldLayer(3)]],
            TypeError,
            r"branch must be a sequence of layers, got FieldLayer\(window=3",
        ),
        (FieldLayer(3), TypeError, r"receptive_field: layers must be a sequence of layers, got FieldLayer\(window=3"),
        ([3], TypeError, r"what is not a FieldLayer must be a sequence of parallel branches, got 3"),
        (["ab"], TypeError, r"what is not a FieldLayer must be a sequence of parallel branches, got 'ab'"),
        ([["ab"]], TypeError, r"a branch must be a sequence of layers, got 'ab'"),
        ([FieldLayer(0)], ValueError, r"receptive_field: window must be at least 1 on every axis, got 0"),
        ([FieldLayer(3, strides=0)], ValueError, r"receptive_field: strides must be at least 1 on every axis, got 0"),
        ([FieldLayer(3, dilation=0)], ValueError, r"receptive_field: dilation must be at least 1 on every axis, got 0"),
        ([FieldLayer(3, padding="FULL")], ValueError, r"receptive_field: padding must be one of 'SAME'"),
        ([FieldLayer((3, 3), padding="CAUSAL")], ValueError, r"'CAUSAL' is for one spatial axis, but there are 2"),
    ],
)
def test_receptive_field_errors(layers, error, message):
    with pytest.raises(error, match=message):
        receptive_field(layers)
