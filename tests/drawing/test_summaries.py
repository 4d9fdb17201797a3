"""Pictures of what a network costs."""

import jax
import pytest

pytest.importorskip("matplotlib")

import jaxcnn
from jaxcnn.drawing import draw_summary


def summary(count=3):
    """A summary of convolutions of 9, 18, 27, ... thousand multiply-accumulates."""

    def net(x, kernels):
        return [jaxcnn.conv(x, kernel) for kernel in kernels]

    struct = jax.ShapeDtypeStruct
    kernels = [struct((3, 3, 1, features), "float32") for features in range(1, count + 1)]
    return jaxcnn.summarize(net, struct((1, 10, 100, 1), "float32"), kernels)


def test_each_layer_is_a_bar_of_its_macs():
    axes = draw_summary(summary()).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [9000, 18000, 27000]
    assert [text.get_text() for text in axes.texts] == ["17 %", "33 %", "50 %"]
    assert axes.get_xlabel() == "multiply-accumulates, of 54,000 in all"


def test_the_smallest_layers_are_put_together():
    axes = draw_summary(summary(6), max_rows=4).axes[0]
    assert sorted(bar.get_width() for bar in axes.patches) == [36000, 45000, 54000, 54000]
    assert axes.get_yticklabels()[-1].get_text() == "3 smaller layers"


def test_summary_plot_saves_the_same_picture(tmp_path):
    draw_summary(summary(), path=tmp_path / "a.svg")
    summary().plot(path=tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_errors():
    empty = jaxcnn.summarize(lambda x: x + 1, jax.ShapeDtypeStruct((3,), "float32"))
    with pytest.raises(ValueError, match="the summary has no convolution, pool or product with multiply-accumulates"):
        draw_summary(empty)
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        draw_summary(summary(), max_rows=0)
