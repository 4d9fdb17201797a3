"""Draws the pictures of the documentation. `python docs/make_pictures.py` draws them by itself."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import jaxcnn
from jaxcnn import FieldLayer
from jaxcnn.drawing import draw_arrays, draw_convolution, draw_curves, draw_pooling, draw_receptive_field

IMAGE = np.array([[1, 2, 0, 1, 3], [0, 1, 2, 2, 1], [1, 0, 1, 3, 0], [2, 1, 0, 1, 2], [0, 2, 1, 0, 1]])
EDGES = np.array([[1, 0, -1]] * 3)


def conv(image, kernel, **options):
    """The convolution of one plane with one kernel, as a NumPy array."""
    result = jaxcnn.conv(jnp.asarray(image)[..., None], jnp.asarray(kernel)[..., None, None], **options)
    return np.asarray(result)[..., 0]


def first_pixels(folder):
    """A 3x3 kernel on the 5x5 image, and 3x3 pools of it."""
    draw_convolution(IMAGE, EDGES, padding="VALID", path=folder / "stride_1.svg")
    draw_convolution(IMAGE, EDGES, padding="VALID", animate=True, path=folder / "stride_1_steps.svg")
    draw_convolution(IMAGE, EDGES, strides=2, path=folder / "stride_2.svg")
    draw_convolution(IMAGE, EDGES, strides=2, animate=True, path=folder / "stride_2_steps.svg")
    draw_pooling(IMAGE, 3, path=folder / "max_pool.svg")
    draw_pooling(IMAGE, 3, animate=True, path=folder / "max_pool_steps.svg")
    draw_pooling(IMAGE, 3, kind="sum", path=folder / "avg_pool.svg")
    transposed = {"transposed": True, "strides": 2, "padding": "VALID"}
    draw_convolution(IMAGE[:2, :2], EDGES, animate=True, path=folder / "transposed_steps.svg", **transposed)


def channels(folder):
    """Three kernels on an image of two channels."""
    tens, ones = np.full((5, 5), 10), np.ones((3, 3), int)
    sums = conv(IMAGE, ones, padding="SAME") + conv(tens, ones, padding="SAME")
    two, square = np.stack([IMAGE, tens], axis=-1), np.ones((3, 3, 2, 1), int)
    draw_convolution(two, square, step=0, path=folder / "same.svg")
    inner = IMAGE[1:4, 1:4]
    draw_arrays(
        *(IMAGE, "and", tens, "make", inner + 10, ",", conv(IMAGE, EDGES, padding="VALID"), ",", sums[1:4, 1:4]),
        titles=["input 0", "input 1", "output 0", "output 1", "output 2"],
        path=folder / "channels.svg",
    )


def kernels(folder):
    """Large kernels and the small ones that they are made of."""
    ramp = np.array([1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1])
    draw_arrays(
        *(np.outer(ramp, ramp), "=", ramp[:, None], "\N{MULTIPLICATION SIGN}", ramp[None]),
        titles=["121 weights", "11", "11"],
        path=folder / "eleven.svg",
    )
    plus, square = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]), np.ones((3, 3), int)
    five = np.asarray(jaxcnn.compose(*(jnp.asarray(k)[..., None, None] for k in (plus, square))))[..., 0, 0]
    draw_arrays(
        *(plus, "then", square, "=", five), titles=["9 weights", "9 weights", "25 weights"], path=folder / "compose.svg"
    )
    numbered = np.arange(1, 10).reshape(3, 3)
    rows = [conv(unit.reshape(5, 5), numbered, padding="VALID").ravel() for unit in np.eye(25, dtype=int)]
    draw_arrays(np.stack(rows, axis=1), path=folder / "matrix.svg")
    column, row = EDGES[:, :1], EDGES[:1]
    draw_arrays(EDGES, "=", column, "\N{MULTIPLICATION SIGN}", row, path=folder / "rank_one.svg")
    left, right = np.array([[0], [1], [0]]), np.array([[1, -4, 1]])
    ends, middle = np.array([[1], [0], [1]]), np.array([[0, 1, 0]])
    draw_arrays(
        *(left @ right + ends @ middle, "=", left, "\N{MULTIPLICATION SIGN}", right),
        *("+", ends, "\N{MULTIPLICATION SIGN}", middle),
        path=folder / "rank_two.svg",
    )


def ranks(folder):
    """Relative error of separable pairs against their number."""
    noise = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)
    places = np.arange(5) - 2.0
    ring = np.exp(-((np.hypot(places[:, None], places) - 1.5) ** 2)).astype(np.float32)
    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, kernel, style in (("random", noise, "o-"), ("smooth ring", ring, "s--")):
        chains = [jaxcnn.separable(kernel.reshape(5, 5, 1, 1), rank=rank) for rank in range(1, 6)]
        errors = [float(chain.relative_error(jnp.asarray(kernel.reshape(5, 5, 1, 1)))) for chain in chains]
        axes.plot(range(1, 6), errors, style, label=name)
    axes.set(xlabel="pairs of 5\N{MULTIPLICATION SIGN}1 and 1\N{MULTIPLICATION SIGN}5", ylabel="relative error")
    axes.set(xticks=range(1, 6), ylim=(-0.03, 0.85))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "ranks.svg", metadata={"Date": None})


def curves(folder):
    """What each scheme leaves of a kernel whose channels are of unequal strength."""
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((5, 5, 8, 16))
    for axis in (2, 3):
        size = kernel.shape[axis]
        basis = np.linalg.qr(generator.standard_normal((size, size)))[0]
        mixing = (basis / np.arange(1, size + 1)) @ basis.T
        kernel = np.moveaxis(np.moveaxis(kernel, axis, -1) @ mixing, -1, axis)
    kernel = jnp.asarray(kernel, jnp.float32)
    schemes = ("separable", "low_rank", "tucker2", "depthwise_separable", "cp")
    draw_curves(*(jaxcnn.curve(kernel, scheme, points=12) for scheme in schemes), path=folder / "curves.svg")


def fields(folder):
    """Receptive fields, and windows with dilation and causal padding."""
    draw_receptive_field([FieldLayer(3)] * 2, path=folder / "two_threes.svg")
    draw_receptive_field([FieldLayer(3)] * 5, path=folder / "five_threes.svg")
    draw_receptive_field(
        [FieldLayer(3, padding=1), FieldLayer(2, 2), FieldLayer(3, padding=1)], path=folder / "field.svg"
    )
    alexnet = [
        FieldLayer(11, 4),
        FieldLayer(3, 2),
        FieldLayer(5, 1, 2),
        FieldLayer(3, 2),
        *[FieldLayer(3, 1, 1)] * 3,
        FieldLayer(3, 2),
    ]
    draw_receptive_field(alexnet, path=folder / "alexnet.svg")
    draw_convolution((7, 7), (3, 3), padding="VALID", kernel_dilation=2, path=folder / "dilation.svg")
    draw_convolution(8, 3, padding="CAUSAL", path=folder / "causal.svg")


def main(folder):
    """Draws every picture into the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (first_pixels, channels, kernels, ranks, curves, fields):
        draw(folder)


if __name__ == "__main__":
    main(Path(__file__).parent / "_build" / "pictures")
