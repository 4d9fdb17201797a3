"""Pictures of receptive fields."""

import jax
import pytest

pytest.importorskip("matplotlib")

import jaxcnn
from jaxcnn import FieldLayer
from jaxcnn.drawing import draw_receptive_field


def texts(figure):
    """Everything that is written in a picture."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_receptive_field_says_what_each_layer_sees():
    figure = draw_receptive_field(
        [FieldLayer(3, padding=1), FieldLayer(2, strides=2), FieldLayer(3, padding=1, dilation=2)]
    )
    written = texts(figure)
    assert written[::2] == ["window 3, dilation 2", "window 2, stride 2", "window 3", "input"]
    assert written[1::2] == ["1 pixel", "5 pixels", "10 pixels", "12 pixels"]


def test_of_a_summary_each_layer_is_a_bar_as_long_as_its_field():
    def net(x, first, second):
        return jaxcnn.conv(jaxcnn.max_pool(jaxcnn.conv(x, first), (2, 2), strides=2), second)

    shapes = [(1, 32, 32, 3), (7, 7, 3, 4), (3, 3, 4, 4)]
    figure = draw_receptive_field(jaxcnn.summarize(net, *(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)))
    assert [bar.get_width() for bar in figure.axes[0].patches] == [7, 8, 12]
    assert texts(figure) == ["7 pixels", "8 pixels, every 2", "12 pixels, every 2"]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "conv  7×7"  # noqa: RUF001


def test_a_summary_without_a_known_field():
    summary = jaxcnn.summarize(lambda x: x + 1, jax.ShapeDtypeStruct((3,), "float32"))
    with pytest.raises(ValueError, match="draw_receptive_field: the summary knows no layer's receptive field"):
        draw_receptive_field(summary)


@pytest.mark.parametrize("layers", [[], [[[], []]]])
def test_layers_must_be_layers(layers):
    with pytest.raises(ValueError, match="layers must be one or more `FieldLayer`s in a row, got "):
        draw_receptive_field(layers)
