"""Second part of the demo: EfficientNet-Lite0 names a photograph, in plain JAX and accelerated.

`jaxcnn.accelerate` is applied to a function in plain JAX, and to its training gradient. The longer form of the demo
adds a substitution that gains nothing, and says so: the depthwise 5x5 kernels as pairs of 5x1 and 1x5.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
import sklearn.datasets

import jaxcnn
from jaxcnn.demo import images, lite0, pairs, timing
from jaxcnn.demo.report import Picture, Section, Table, steps
from jaxcnn.norms import relative_error
from jaxcnn.timing import median_seconds

#: Photograph to name, unless the user has another.
DEFAULT = "coffee"

#: Photographs that come with scikit-image and are named too.
PHOTOGRAPHS = ("coffee", "chelsea", "motorcycle", "rocket", "astronaut", "camera")

#: Other photographs of scikit-image. Pairs are fitted to the network's responses to them and to two of scikit-learn.
CALIBRATION = ("coins", "hubble_deep_field", "immunohistochemistry", "retina")

#: Number of the most probable classes that are listed.
BEST = 5

#: Names of the ways to compute the network.
PLAIN, ACCELERATED, PAIRS = "plain", "accelerated", "pairs"

DEFINITIONS = (
    (
        "Plain and accelerated",
        "One function in jax.lax and jax.numpy alone: compiled by jax.jit, and by jaxcnn.accelerate. No kernel is "
        "replaced: the convolutions are the same, computed by other methods.",
    ),
    (
        "Training gradient",
        "The gradient of the cross-entropy for one photograph and the class that it is given, with respect to every "
        "kernel, scale and bias; the statistics of the batch normalizations are those of training. Its difference is "
        "norm(accelerated - plain) / norm(plain) over all of it: both are float32, and each has rounding errors of its "
        "own.",
    ),
    (
        "First call",
        "Seconds for the first call of a function, which traces and compiles it; later calls take the time above.",
    ),
)


def load_photographs(name: str | None, *, long_side: int) -> dict[str, np.ndarray]:
    """Returns the photograph to name, or the default, followed by the other `PHOTOGRAPHS`.

    Raises:
      DemoError: if there is no such picture, or the file is not a picture.
    """
    chosen = name or DEFAULT
    photographs = {Path(chosen).name: images.load_image(chosen, long_side=long_side)}
    for other in PHOTOGRAPHS:
        if other not in photographs:
            photographs[other] = images.load_image(other, long_side=long_side)
    return photographs


def calibration_photographs(judged: Collection[str]) -> list[np.ndarray]:
    """Returns photographs that come with packages, other than the `judged` ones."""
    bundled = [images.load_image(name) for name in CALIBRATION if name not in judged]
    return [*bundled, *sklearn.datasets.load_sample_images().images]


def run_naming(
    photographs: Mapping[str, np.ndarray],
    network: lite0.Network,
    *,
    bars: rich.progress.Progress,
    rounds: int = 9,
    seed: int = 0,
    with_pairs: bool = False,
) -> Section:
    """Names the first photograph by the plain and the accelerated network, and reports answers and times.

    Args:
      photographs: photographs by name, uint8 RGB of shape (height, width, 3).
      network: layers, from `lite0.load_network`.
      bars: progress bars.
      rounds: number of blocks of calls for each timing of the forward pass; the slow gradient gets a third of them.
      seed: seed for the parts of photographs to which the pairs are fitted.
      with_pairs: flag that adds the network with pairs for its depthwise 5x5 kernels, and names all photographs by it.
    """
    name, photograph = next(iter(photographs.items()))
    squares = {other: lite0.central_square(pixels) for other, pixels in photographs.items()}
    inputs = {other: lite0.preprocess(square) for other, square in squares.items()}
    x = inputs[name]
    plain, accelerated = jax.jit(lite0.class_scores), jaxcnn.accelerate(lite0.class_scores)
    forward = {
        PLAIN: lambda: plain(network, x),
        ACCELERATED: lambda: accelerated(network, x),
    }
    first, seconds, scores = _measure("the network", forward, rounds, bars)
    probabilities = {way: np.asarray(jax.nn.softmax(score)[0]) for way, score in scores.items()}

    label = jnp.argmax(scores[PLAIN], axis=-1)
    gradient = jax.grad(lite0.cross_entropy)
    plain_gradient, accelerated_gradient = jax.jit(gradient), jaxcnn.accelerate(gradient)
    backward = {
        PLAIN: lambda: plain_gradient(network, x, label),
        ACCELERATED: lambda: accelerated_gradient(network, x, label),
    }
    first_gradient, seconds_gradient, gradients = _measure("the gradient", backward, -(-rounds // 3), bars)

    dense = _class_probabilities(accelerated, network, inputs)
    tables = [_answer_table(name, probabilities), _time_table((first, seconds), (first_gradient, seconds_gradient))]
    if with_pairs:
        calibration = calibration_photographs(photographs)
        tables.append(
            _compare_pairs(
                network, inputs, dense, forward[ACCELERATED], calibration, bars=bars, rounds=rounds, seed=seed
            )
        )

    height, width = photograph.shape[:2]
    return Section(
        title="EfficientNet-Lite0 naming a photograph",
        text=(
            "EfficientNet-Lite0, trained on ImageNet and written in plain jax.lax and jax.numpy, names what is in "
            f"{name} ({height} x {width} pixels, of which it sees the central square): as jax.jit compiles it, and "
            "through jaxcnn.accelerate, one line around the same function. Nothing of the network is changed."
        ),
        figures=(
            ("Naming a photograph, accelerated: times faster", f"{seconds[PLAIN] / seconds[ACCELERATED]:.1f}x"),
            (
                "Its training gradient, accelerated: times faster",
                f"{seconds_gradient[PLAIN] / seconds_gradient[ACCELERATED]:.1f}x",
            ),
            _content_figure(name, probabilities),
            (
                "Largest difference of the probabilities",
                f"{np.abs(probabilities[ACCELERATED] - probabilities[PLAIN]).max():.1e}",
            ),
            (
                "Relative difference of the gradient",
                f"{relative_error(gradients[ACCELERATED], gradients[PLAIN]):.1e}",
            ),
        ),
        pictures=tuple(
            Picture(f"{other}: {_answer(dense[other])}", images.to_png(square)) for other, square in squares.items()
        ),
        tables=tuple(tables),
    )


def _class_probabilities(f: Callable[..., Any], layers: Any, inputs: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Returns the probabilities of the classes for each photograph, from the scores that a function computes."""
    return {name: np.asarray(jax.nn.softmax(f(layers, x)[0])) for name, x in inputs.items()}


def _compare_pairs(
    network: lite0.Network,
    inputs: Mapping[str, jax.Array],
    dense: Mapping[str, np.ndarray],
    accelerated: Callable[[], Any],
    calibration: list[np.ndarray],
    *,
    bars: rich.progress.Progress,
    rounds: int,
    seed: int,
) -> Table:
    """Makes pairs from the weights and pairs fitted to responses, and returns the table of both beside the network.

    The pairs fitted to responses are timed beside the accelerated network.

    Args:
      network: layers.
      inputs: preprocessed photographs by name; the calls that are timed take the first one.
      dense: probabilities of the classes by the network as it was, by photograph.
      accelerated: call of the accelerated network for the first photograph.
      calibration: photographs; the second pairs are fitted to the network's responses to them.
      bars: progress bars.
      rounds: number of blocks of calls for each timing.
      seed: seed for the parts of photographs to which the pairs are fitted.
    """
    x = next(iter(inputs.values()))
    with steps(bars, "Taking pairs of the weights") as progress:
        of_weights = pairs.find_pairs(network, x, calibration=(), seed=seed, progress=progress)
    with steps(bars, "Fitting pairs to responses") as progress:
        fitted = pairs.find_pairs(network, x, calibration=calibration, seed=seed, progress=progress)
    paired = jaxcnn.accelerate(fitted.apply)
    calls = {ACCELERATED: accelerated, PAIRS: lambda: paired(fitted.params, x)}
    _, seconds, _ = _measure("the pairs", calls, rounds, bars)
    with_pairs = (
        _class_probabilities(jaxcnn.accelerate(of_weights.apply), of_weights.params, inputs),
        _class_probabilities(paired, fitted.params, inputs),
    )
    return _pair_table(dense, with_pairs, seconds, fitted.report.macs_share)


def _measure(
    label: str, calls: Mapping[str, Callable[[], Any]], rounds: int, bars: rich.progress.Progress
) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """Returns, for each function, seconds of its first call, seconds of a later call, and the result."""
    first, results = timing.compile_all(calls, bars, label)
    task = bars.add_task(f"Timing {label}", total=rounds)
    seconds = median_seconds(calls, rounds=rounds, after_round=lambda: bars.advance(task))
    return first, seconds, results


def _answer(probabilities: np.ndarray) -> str:
    """Returns the most probable class and its probability in words."""
    best = int(probabilities.argmax())
    return f"{lite0.class_name(best)} {probabilities[best]:.1%}"


def _content_figure(name: str, probabilities: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """Returns the label and the value of a headline: the probabilities, and the name of what is in the photograph.

    The value holds two names where the plain and the accelerated network disagree.
    """
    best = {way: int(probabilities[way].argmax()) for way in (PLAIN, ACCELERATED)}
    shares = ", ".join(f"{probabilities[way][number]:.1%} {way}" for way, number in best.items())
    return f"What is in {name}: {shares}", " / ".join(dict.fromkeys(map(lite0.class_name, best.values())))


def _answer_table(name: str, probabilities: Mapping[str, np.ndarray]) -> Table:
    """Returns the table of the plain network's most probable classes, with the probabilities of both ways."""
    plain, accelerated = probabilities[PLAIN], probabilities[ACCELERATED]
    rows = (
        (lite0.class_name(int(number)), str(number), f"{plain[number]:.3%}", f"{accelerated[number]:.3%}")
        for number in plain.argsort()[::-1][:BEST]
    )
    return Table(f"What is in {name}", ("class", "number", "plain", "accelerated"), tuple(rows))


def _time_table(
    forward: tuple[Mapping[str, float], Mapping[str, float]], backward: tuple[Mapping[str, float], Mapping[str, float]]
) -> Table:
    """Returns the table of milliseconds of a call and seconds of the first call, plain and accelerated."""
    rows = []
    for what, (first, seconds) in (("naming it", forward), ("training gradient", backward)):
        rows.append(
            (
                what,
                *(f"{1e3 * seconds[way]:.1f}" for way in (PLAIN, ACCELERATED)),
                f"{seconds[PLAIN] / seconds[ACCELERATED]:.1f}x",
                *(f"{first[way]:.1f}" for way in (PLAIN, ACCELERATED)),
            )
        )
    return Table(
        "One photograph, plain and accelerated",
        ("", "plain\nms", "accelerated\nms", "times\nfaster", "first call\nplain, s", "first call\naccelerated, s"),
        tuple(rows),
        notes=(
            "On CPU most of what is gained is in the depthwise convolutions, which XLA computes slowly there. The "
            "first call traces and compiles.",
        ),
    )


def _pair_table(
    dense: Mapping[str, np.ndarray],
    paired: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    seconds: Mapping[str, float],
    macs: float,
) -> Table:
    """Returns the table of each photograph's name by the dense network and by those of pairs, and of their cost.

    Args:
      dense: probabilities of the classes by the dense network, by photograph.
      paired: probabilities by the network with pairs of the weights, and by that with pairs fitted to responses.
      seconds: time of a call of the accelerated network and of the network with pairs fitted to responses.
      macs: multiply-accumulates of the convolutions with pairs, as a share of those before.
    """
    agreements = [sum(int(dense[name].argmax() == answers[name].argmax()) for name in dense) for answers in paired]
    rows = ((name, _answer(dense[name]), *(_answer(answers[name]) for answers in paired)) for name in dense)
    faster = seconds[ACCELERATED] / seconds[PAIRS]
    return Table(
        f"Its depthwise 5x5 kernels as pairs of rank {pairs.RANK}",
        ("photograph", "5x5", "pairs of\nthe weights", "pairs of\nthe responses"),
        tuple(rows),
        text_columns=4,
        notes=(
            f"Each kernel is replaced by {pairs.RANK} products of a column and a row, nearest to its weights or "
            f"fitted to the responses to other photographs: the same name for {agreements[0]} and {agreements[1]} of "
            f"{len(dense)} photographs, with {macs:.1%} of the MACs of its convolutions.",
            f"{1e3 * seconds[ACCELERATED]:.1f} ms with 5x5, {1e3 * seconds[PAIRS]:.1f} ms with pairs, both by jaxcnn "
            f"({faster:.2f}x). "
            + (
                "Here fewer multiplications are also faster."
                if faster > 1
                else "Fewer multiplications are not faster here: two passes over the image cost more than they save."
            ),
        ),
    )
