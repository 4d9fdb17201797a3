"""Pictures of pools: what they show is what the library computes."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

import jaxcnn
from jaxcnn.drawing import _canvas, draw_pooling

IMAGE = np.random.default_rng(0).integers(-9, 10, (5, 6))


def texts(figure):
    """Everything that is written in a picture."""
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("kind", ["max", "min", "avg", "sum"])
@pytest.mark.parametrize(
    "options",
    [{}, {"strides": 2, "padding": "SAME"}, {"strides": 2, "ceil_mode": True}, {"window_dilation": 2, "padding": 1}],
)
def test_each_step_has_the_librarys_value(kind, options):
    answers = np.asarray(getattr(jaxcnn, f"{kind}_pool")(jnp.asarray(IMAGE)[..., None], (3, 2), **options)).ravel()
    for step, answer in enumerate(answers):
        written = texts(draw_pooling(IMAGE, (3, 2), kind=kind, step=step, **options))
        totals = [text for text in written if text.startswith(f"{kind} = ") or " / " in text]
        assert totals[0].endswith(f"= {_canvas.number(answer)}")
        assert len(totals) == 1


def test_an_average_divides_by_the_pixels_that_count():
    options = {"kind": "avg", "padding": 1, "strides": 2, "step": 0}
    whole, inside = (draw_pooling([[9, 3], [4, 2]], 2, count_include_pad=count, **options) for count in (True, False))
    assert "9 / 4 = 2.25" in texts(whole)
    assert "9 / 1 = 9" in texts(inside)
    # The padding's zeros are written only where they count.
    assert texts(whole).count("0") > texts(inside).count("0") == 0


def test_all_places_in_one_picture():
    figure = draw_pooling([[1, 5], [3, 2]], 2)
    assert texts(figure)[:5] == ["1", "5", "3", "2", "5"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: draw_pooling((4, 4), 2, kind="median"),
            "kind must be one of 'max', 'min', 'avg', 'sum', got 'median'",
        ),
        (lambda: draw_pooling((4, 4, 4), 2), "x must have one or two spatial axes, got (4, 4, 4)"),
        (lambda: draw_pooling((4, 4), (2,)), "window_shape must have 2 spatial axes as x, got (2,)"),
        (lambda: draw_pooling((1, 1), 2), "the window is larger than its padded input"),
        (
            lambda: draw_pooling((10**6, 10**6), 2, step=0),
            "a picture shows at most 100000 pixels, the image with its padding has shape (1000000, 1000000)",
        ),
        (
            lambda: draw_pooling(100_001, 2, animate=True),
            "a picture shows at most 100000 pixels, the image with its padding has shape (100001,)",
        ),
        (
            lambda: draw_pooling((22, 22), 2, path="a.gif", animate=True),
            "an animation has at most 400 steps, these sizes make 441",
        ),
        (lambda: draw_pooling(3, 2, padding=10**9), "has shape (2000000003,)"),
        (lambda: draw_pooling((4, 4), 2, step=99), "step must be from 0 to 8, as there are 9, got 99"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert message in str(raised.value)
    assert str(raised.value).startswith("draw_pooling: ")
