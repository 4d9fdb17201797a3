"""Pictures: what they show is what the library computes, and the same call gives the same file."""

import subprocess
import sys

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxcnn import Layer, RankCurve, TradeOff, conv_output_shape, extract_patches
from jaxcnn.drawing import arithmetic, draw_arrays, draw_convolution, draw_curves, draw_receptive_field, draw_tradeoff

CASES = [(6, 3, 2, 1), (7, 3, 2, 1), (6, 2, 3, 1), (7, 3, 3, 2), (6, 3, 1, 2)]  # size, window, stride, dilation
PADDINGS = ["VALID", "SAME", "same_lower", 0, 2, (1, 0), ((2, 1), (0, 3)), ((-1, 0), (0, -2))]


def texts(figure):
    """Everything that is written in a picture."""
    return [text.get_text() for text in figure.axes[0].texts]


def outlines(figure):
    """(row, column, height, width) of each outlined window or output, by colour."""
    found = {}
    for patch in figure.axes[0].patches:
        if patch.get_linewidth() > 2:
            x, y = patch.get_xy()
            place = (round(float(y), 1), round(float(x), 1), round(patch.get_height(), 1), round(patch.get_width(), 1))
            colour = matplotlib.colors.to_hex(patch.get_edgecolor())
            found.setdefault(colour, []).append(place)
    return found


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_padding_is_what_the_library_pads(padding):
    for size, window, stride, dilation in CASES:
        options = {"strides": (stride, 1), "padding": padding}
        taps, gaps = (window, 2), (dilation, 1)
        outputs = conv_output_shape((size, 5, 1), (*taps, 1, 1), kernel_dilation=gaps, **options)[:2]
        extents = tuple((k - 1) * d + 1 for k, d in zip(taps, gaps, strict=True))
        (low, high), (left, right) = arithmetic._resolved_padding((size, 5), outputs, extents, options)
        # An image of the numbers from 1 shows where each window stands; padding reads 0.
        image = jnp.arange(1, size * 5 + 1).reshape(size, 5, 1)
        read = np.asarray(extract_patches(image, taps, window_dilation=gaps, **options)).reshape(*outputs, *taps)
        padded = np.zeros((size + 40, 45), int)
        padded[20 : 20 + size, 20:25] = np.asarray(image)[..., 0]
        for row, column, a, b in np.ndindex(*read.shape):
            at = padded[20 + row * stride - low + a * dilation, 20 + column - left + b]
            assert read[row, column, a, b] == at
        assert (outputs[0] - 1) * stride + extents[0] <= size + low + high
        assert outputs[1] - 1 + extents[1] == 5 + left + right


def test_causal_padding_is_all_before():
    assert arithmetic._resolved_padding((8,), (8,), (3,), {"padding": "causal", "strides": (1,)}) == [(2, 0)]


def test_three_windows_and_their_outputs():
    figure = draw_convolution((5, 5), (3, 3), strides=2, padding="SAME")
    first, second, last = arithmetic.WINDOWS
    found = outlines(figure)
    assert set(found) == {first, second, last}
    (top, left, height, width), _ = found[first]
    assert (height, width) == (3, 3)
    assert found[last][0] == (round(top + 4, 1), round(left + 4, 1), 3, 3)
    assert found[second][0][0] == pytest.approx(top, abs=0.15)
    assert found[second][0][1] == pytest.approx(left + 2, abs=0.15)
    (row, column, *_), (last_row, last_column, *_) = found[first][1], found[last][1]
    assert (round(last_row - row, 1), round(last_column - column, 1)) == (2, 2)


def test_numbers_and_sizes_are_written():
    figure = draw_convolution((2, 3), (2, 2), values=[[1, 2, 3], [4, 5, -6]], results=[[12, 4]])
    assert texts(figure)[:6] == ["1", "2", "3", "4", "5", "\N{MINUS SIGN}6"]
    assert {"12", "input 2×3", "output 1×2"} < set(texts(figure))  # noqa: RUF001


def test_one_axis_is_one_row():
    figure = draw_convolution(8, 3, padding="CAUSAL")
    assert texts(figure)[:2] == ["input 8", "output 8"]
    assert {place[2] for places in outlines(figure).values() for place in places} <= {1, 0.8}


def test_a_single_output_has_one_window():
    assert set(outlines(draw_convolution((3, 3), (3, 3)))) == {arithmetic.WINDOWS[0]}


def test_receptive_field_says_what_each_layer_sees():
    figure = draw_receptive_field([Layer(3, padding=1), Layer(2, strides=2), Layer(3, padding=1, dilation=2)])
    written = texts(figure)
    assert written[::2] == ["window 3, dilation 2", "window 2, stride 2", "window 3", "input"]
    assert written[1::2] == ["1 pixel", "5 pixels", "10 pixels", "12 pixels"]


def test_arrays_in_a_row():
    figure = draw_arrays([[1], [2]], "times", [3, 4.5], titles=["column"])
    assert texts(figure) == ["1", "2", "column", "times", "3", "4.5", ""]


def test_large_arrays_have_no_numbers():
    assert texts(draw_arrays(np.ones((20, 20)))) == [""]


def test_a_tradeoff_is_a_line_of_speedups_and_errors_with_shares():
    axes = draw_tradeoff(TradeOff(((0.5, 1.6, 0.02), (0.25, 2.9, 0.06)))).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1.6, 0.02], [2.9, 0.06]]]
    assert [text.get_text() for text in axes.texts] == ["0.5 of the MACs", "0.25 of the MACs"]


def test_curves_are_lines_of_shares_and_errors():
    curves = [RankCurve("low_rank", (1, 2), (100, 200), (0.5, 0.1), 400), RankCurve("cp", (3,), (50,), (0.7,), 200)]
    lines = draw_curves(*curves).axes[0].lines
    assert [line.get_label() for line in lines] == ["low_rank", "cp"]
    np.testing.assert_array_equal(lines[0].get_xydata(), [[0.25, 0.5], [0.5, 0.1]])
    np.testing.assert_array_equal(lines[1].get_xydata(), [[0.25, 0.7]])


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_call_gives_the_same_file(ending, tmp_path):
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        draw_convolution((5, 5), (3, 3), padding=1, path=path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size > 1000
    other = tmp_path / f"c.{ending}"
    draw_convolution((5, 5), (3, 3), padding=2, path=other)
    assert other.read_bytes() != paths[0].read_bytes()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_convolution((5, 5, 5), (3, 3, 3)), "input_size must have one or two axes, got (5, 5, 5)"),
        (lambda: draw_convolution((5, 5), (3, 3, 3)), "window must be an int or 2 ints, got (3, 3, 3)"),
        (lambda: draw_convolution(5, 3, values=[1, 2]), "values must have shape (5,), got (2,)"),
        (lambda: draw_convolution(5, 3, results=[1]), "results must have shape (3,), got (1,)"),
        (lambda: draw_convolution(2, 3), "the window is larger than its padded input"),
        (lambda: draw_receptive_field([]), "layers must be one or more `Layer`s in a row, got []"),
        (lambda: draw_receptive_field([[[], []]]), "layers must be one or more `Layer`s in a row"),
        (draw_curves, "there must be at least one curve"),
        (draw_tradeoff, "there must be at least one curve"),
        (lambda: draw_arrays("="), "there must be arrays of one or two axes, got shapes []"),
        (lambda: draw_arrays(np.ones((2, 2, 2))), "got shapes [(2, 2, 2)]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert message in str(raised.value)


def test_without_matplotlib_one_line_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; import jaxcnn.drawing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == 'ImportError: jaxcnn.drawing needs matplotlib: pip install "jaxcnn[plot]"'


def test_no_window_and_no_matplotlib_without_a_picture():
    code = (
        "import sys, jaxcnn; before = 'matplotlib' in sys.modules; import jaxcnn.drawing as drawing; "
        "drawing.draw_convolution(5, 3); print(before, 'matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
