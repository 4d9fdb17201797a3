"""Pictures of convolutions: what they show is what the library computes."""

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

pytest.importorskip("matplotlib")

import jaxcnn
from jaxcnn import conv_output_shape, extract_patches
from jaxcnn.drawing import _canvas, _sliding, draw_convolution
from jaxcnn.options import ConvOptions

CASES = [(6, 3, 2, 1), (7, 3, 2, 1), (6, 2, 3, 1), (7, 3, 3, 2), (6, 3, 1, 2)]  # size, window, stride, dilation
PADDINGS = ["VALID", "SAME", "same_lower", 0, 2, (1, 0), ((2, 1), (0, 3)), ((-1, 0), (0, -2))]


def texts(figure):
    """Everything that is written in a picture."""
    return [text.get_text() for text in figure.axes[0].texts]


def outlines(figure):
    """(row, column, height, width) of each outlined window or output, by colour."""
    outlined = {}
    for patch in figure.axes[0].patches:
        if patch.get_linewidth() > 2:
            x, y = patch.get_xy()
            place = (round(float(y), 1), round(float(x), 1), round(patch.get_height(), 1), round(patch.get_width(), 1))
            colour = matplotlib.colors.to_hex(patch.get_edgecolor())
            outlined.setdefault(colour, []).append(place)
    return outlined


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_padding_is_what_the_library_pads(padding):
    for size, window, stride, dilation in CASES:
        options = {"strides": (stride, 1), "padding": padding}
        taps, gaps = (window, 2), (dilation, 1)
        outputs = conv_output_shape((size, 5, 1), (*taps, 1, 1), kernel_dilation=gaps, **options)[:2]
        geometry = ConvOptions.of(kernel_dilation=gaps, **options).geometry((1, size, 5, 1), (*taps, 1, 1))
        slide = _sliding.Sliding.of(geometry)
        (low, high), (left, right) = slide.padding
        extents = slide.extents
        assert slide.outputs == outputs
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
    slide = _sliding.Sliding.of(ConvOptions.of(padding="causal").geometry((1, 8, 1), (3, 1, 1)))
    assert slide.padding == ((0, 0), (2, 0))


def test_three_windows_and_their_outputs():
    figure = draw_convolution((5, 5), (3, 3), strides=2, padding="SAME")
    first, second, last = _canvas.WINDOWS
    outlined = outlines(figure)
    assert set(outlined) == {first, second, last}
    (top, left, height, width), _ = outlined[first]
    assert (height, width) == (3, 3)
    assert outlined[last][0] == (round(top + 4, 1), round(left + 4, 1), 3, 3)
    assert outlined[second][0][0] == pytest.approx(top, abs=0.15)
    assert outlined[second][0][1] == pytest.approx(left + 2, abs=0.15)
    (row, column, *_), (last_row, last_column, *_) = outlined[first][1], outlined[last][1]
    assert (round(last_row - row, 1), round(last_column - column, 1)) == (2, 2)


def test_numbers_and_sizes_are_written():
    figure = draw_convolution([[1, 2, 3], [4, 5, -6]], [[1, 1], [1, 1]], padding="VALID")
    assert texts(figure)[:6] == ["1", "2", "3", "4", "5", "\N{MINUS SIGN}6"]
    assert {"12", "input 2×3", "output 1×2"} < set(texts(figure))  # noqa: RUF001


def test_one_axis_is_one_row():
    figure = draw_convolution(8, 3, padding="CAUSAL")
    assert texts(figure)[:2] == ["input 8", "output 8"]
    assert {place[2] for places in outlines(figure).values() for place in places} <= {1, 0.8}


def test_a_single_output_has_one_window():
    assert set(outlines(draw_convolution((3, 3), (3, 3), padding="VALID"))) == {_canvas.WINDOWS[0]}


def step_numbers(figure):
    """The numbers of a picture of one step, in the order in which they are written."""
    minus = "\N{MINUS SIGN}"
    return [
        float(text.replace(minus, "-")) for text in texts(figure) if text.replace(minus, "").replace(".", "").isdigit()
    ]


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"padding": "VALID"}, {"kernel_dilation": 2, "padding": 1}])
def test_a_step_shows_products_whose_sum_is_the_librarys(rank, options):
    rng = np.random.default_rng(0)
    x, kernel = rng.integers(-3, 4, (6, 7)[:rank]), rng.integers(-3, 4, (3, 2)[:rank])
    answers = np.asarray(jaxcnn.conv(jnp.asarray(x)[..., None], jnp.asarray(kernel)[..., None, None], **options))
    for step in (0, answers.size // 2, -1):
        figure = draw_convolution(x, kernel, step=step, **options)
        answer = answers.ravel()[step]
        assert f"sum = {_canvas.number(answer)}" in texts(figure)
        numbers = step_numbers(figure)
        made = answers.size if step < 0 else step + 1
        # Written in this order: the image with its padding, the kernel, the products, the outputs so far.
        products = numbers[-made - kernel.size : -made]
        assert sum(products) == answer
        assert numbers[-made - 2 * kernel.size : -made - kernel.size] == kernel.ravel().tolist()
        assert numbers[-made:] == answers.ravel()[:made].tolist()


def test_a_step_of_several_channels_adds_up_all_of_a_group():
    rng = np.random.default_rng(1)
    x, kernel = rng.integers(-3, 4, (4, 4, 4)), rng.integers(-3, 4, (3, 3, 2, 6))
    answers = np.asarray(jaxcnn.conv(jnp.asarray(x), jnp.asarray(kernel), feature_group_count=2))
    for step in range(0, answers.size, 7):
        channel, pixel = divmod(step, 16)
        figure = draw_convolution(x, kernel, feature_group_count=2, step=step)
        assert f"sum = {_canvas.number(answers[..., channel].ravel()[pixel])}" in texts(figure)
        # Two of the four channels are read, so two signs of a product.
        assert texts(figure).count(_canvas.TIMES) == 2
        assert {"input 4×4, 4 channels", "output 4×4, 6 channels"} < set(texts(figure))  # noqa: RUF001


@pytest.mark.parametrize("options", [{"strides": 2}, {"padding": "VALID"}, {"padding": 2, "kernel_dilation": 2}])
def test_the_last_step_of_a_transposed_convolution_has_its_result(options):
    rng = np.random.default_rng(2)
    x, kernel = rng.integers(-3, 4, (3, 4)), rng.integers(-3, 4, (3, 3))
    answers = jaxcnn.conv_transpose(jnp.asarray(x)[..., None], jnp.asarray(kernel)[..., None, None], **options)
    figure = draw_convolution(x, kernel, transposed=True, step=-1, **options)
    numbers = step_numbers(figure)[x.size :]
    # The output is written before the kernel and the products.
    assert numbers[: answers.size] == np.asarray(answers).ravel().tolist()
    assert numbers[-9:] == (kernel * x[-1, -1]).ravel().tolist()


def test_channels_of_a_transposed_convolution():
    rng = np.random.default_rng(3)
    x, kernel = rng.integers(-3, 4, (2, 2, 4)), rng.integers(-3, 4, (2, 2, 3, 4))
    answers = np.asarray(jaxcnn.conv_transpose(jnp.asarray(x), jnp.asarray(kernel), feature_group_count=2))
    figure = draw_convolution(x, kernel, transposed=True, feature_group_count=2, step=-1)
    numbers = step_numbers(figure)
    # The last input channel alone has its numbers; the first group's outputs stand first.
    assert numbers[:4] == x[..., 3].ravel().tolist()
    assert numbers[4:16] == np.moveaxis(answers, -1, 0)[:3].ravel().tolist()


def test_shapes_alone_draw_the_same_numbers_each_time():
    first, again, other = (texts(draw_convolution((4, 4), (2, 2), step=0, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_convolution((5, 5, 5), (3, 3, 3, 1, 1)), "kernel must have one or two spatial axes"),
        (lambda: draw_convolution((5, 5), (3, 3, 3)), "draw_convolution: x has 5 channels"),
        (
            lambda: draw_convolution(5, (3, 1, 1)),
            "x must have shape (*spatial, C_in) with 1 spatial axes, as the kernel",
        ),
        (lambda: draw_convolution((5, 5, 1), (3, 3)), "as the kernel's shape is (3, 3), got (5, 5, 1)"),
        (lambda: draw_convolution(2, 3, padding="VALID"), "the window is larger than its padded input"),
        (lambda: draw_convolution(2, 3, padding="sum"), "draw_convolution: padding"),
        (lambda: draw_convolution((3, 3), (3, 3), strides=(1, 2, 3)), "strides"),
        (lambda: draw_convolution((3, 3, 2), (3, 3, 3, 4)), "draw_convolution: x has 2 channels"),
        (
            lambda: draw_convolution((3, 3, 2), (3, 3, 2, 4), transposed=True),
            "x has 2 channels, so kernel must have 2 output channels, got 4",
        ),
        (lambda: draw_convolution((3, 3), (3, 3), step=9), "step must be from 0 to 8, as there are 9, got 9"),
        (lambda: draw_convolution((3, 0), (3, 3)), "x must have sizes of at least 1, got (3, 0)"),
        (lambda: draw_convolution((10**6, 10**6), (3, 3)), "at most 100000 pixels, x has shape (1000000, 1000000)"),
        (lambda: draw_convolution((3, 3), (400, 400)), "at most 100000 pixels, kernel has shape (400, 400)"),
        (
            lambda: draw_convolution(3, 3, padding=10**5),
            "a picture shows at most 100000 pixels, the image with its padding has shape (200003,)",
        ),
        (
            lambda: draw_convolution((3, 3), (3, 3), padding=10**6),
            "a picture shows at most 100000 pixels, the image with its padding has shape (2000003, 2000003)",
        ),
        (lambda: draw_convolution((300, 300), (3, 3), transposed=True, strides=99), "has shape (29700, 29700)"),
        (lambda: draw_convolution((3, 3), (3, 3), animate=True), "an animation needs a path"),
        (lambda: draw_convolution((30, 30), (3, 3), path="a.gif"), "at most 400 steps, these sizes make 900"),
        (lambda: draw_convolution(3, 3, path="a.png", animate=True), "must be a .gif or .svg file, got 'a.png'"),
        (lambda: draw_convolution(3, 3, path="a.gif", milliseconds=1), "milliseconds must be at least 20, got 1"),
        (lambda: draw_convolution(3, 3, path="a.gif", animate=True, step=1), "an animation shows all steps"),
    ],
)
def test_errors(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert message in str(raised.value)
    assert str(raised.value).startswith("draw_convolution: ")
    assert not list(tmp_path.iterdir())
