import jax
import numpy as np
import pytest

import jaxcnn
from jaxcnn.demo import chains, digits, lenet, report
from jaxcnn.demo.network import Layer, plain_convolution
from support import demo_networks, terminal_tables


@pytest.fixture(scope="module")
def real_digits():
    return digits.load_digits(0)


def test_real_digits(real_digits):
    train, test = real_digits
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10


def test_the_next_beyond_the_widest_saves_nothing():
    for scheme in ("stack", "separable"):
        for name, (_, shape, _) in lenet.CONVOLUTIONS.items():
            dense, widest = lenet.convolution_macs(name, shape), digits.widest_saving(name, scheme)
            assert lenet.convolution_macs(name, chains.chain_shapes(scheme, shape, widest)) < dense
            assert lenet.convolution_macs(name, chains.chain_shapes(scheme, shape, widest + 1)) >= dense
    assert digits.widest_saving("conv1", "stack") == 2
    assert digits.widest_saving("conv1", "separable") == 4


def convolution_macs(network):
    kernels = {name: network[name].kernel for name in lenet.CONVOLUTIONS}
    return sum(
        lenet.convolution_macs(name, kernel if isinstance(kernel, jaxcnn.KernelChain) else kernel.shape)
        for name, kernel in kernels.items()
    )


@pytest.mark.slow
@pytest.mark.optimized
def test_substituted_within_the_share():
    network, images = lenet.initialize(0), jax.random.uniform(jax.random.key(1), (4, 28, 28, 1))
    small = digits.substitute(network, images, "separable", 0)
    assert convolution_macs(small) <= digits.SHARE * convolution_macs(network)
    dense = {
        name: Layer(k.dense() if isinstance(k := layer.kernel, jaxcnn.KernelChain) else k, layer.bias)
        for name, layer in small.items()
    }
    expected = lenet.scores(dense, images, convolution=plain_convolution)
    np.testing.assert_allclose(lenet.scores(small, images), expected, rtol=1e-4, atol=1e-4)


def test_substitution_is_within_the_share_and_fitted_to_one_half_of_the_images(monkeypatch):
    asked = {}

    def substitute(f, params, x, **options):
        asked.update(options, verified=x)
        return real(f, params, x, rank=2, schemes=options["schemes"])

    real = jaxcnn.substitute
    monkeypatch.setattr(jaxcnn, "substitute", substitute)
    network, images = lenet.initialize(0), np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((28, 28, 1))
    small = digits.substitute(network, images.astype(np.float32), "separable", 7)
    assert (asked["macs"], asked["schemes"], asked["seed"]) == (digits.SHARE, "separable", 7)
    assert asked["calibration"][:, 0, 0, 0].tolist() == [0, 1]
    assert asked["verified"][:, 0, 0, 0].tolist() == [2, 3]
    assert isinstance(small["conv2"].kernel, jaxcnn.KernelChain)


@pytest.fixture
def few_digits(real_digits):
    """Ten of each digit to train on, five to test with."""
    train, test = real_digits

    def first(data, count):
        rows = np.concatenate([np.flatnonzero(data.labels == digit)[:count] for digit in range(10)])
        return lenet.Digits(data.images[rows], data.labels[rows])

    return first(train, 10), first(test, 5)


def check(section, small_kernels):
    widths, results = section.tables
    assert [row[0] for row in results.rows] == ["dense 5x5", digits.EXACT, *small_kernels]
    assert all(len(row) == len(results.columns) for row in results.rows)
    terminal_tables.assert_whole(
        widths, ("conv2, 6->16", "3x3 after 3x3", "2,400", "198F", "F <= 10", "F = 10", "100%")
    )
    terminal_tables.assert_whole(
        results, ("dense, jaxcnn.conv", "100.0%", "100.0%", "1,416,520", "161,706", "1125.74", "111.98x")
    )
    macs = [int(row[3].replace(",", "")) for row in results.rows]
    assert macs[0] == macs[1] == 416_520  # the same network, computed in two ways
    assert max(macs[2:]) < macs[0]
    report.render_html(report.Report("title", "machine", (section,), digits.DEFINITIONS))
    return widths, results


def quick_substitute(network, images, scheme, seed, progress):
    """Chains of the weights at a rank, instead of a search."""
    chain = {"separable": lambda kernel: jaxcnn.separable(kernel, rank=3)}[scheme]
    progress(1, 1)
    return {
        name: layer._replace(kernel=chain(layer.kernel)) if name in lenet.CONVOLUTIONS else layer
        for name, layer in network.items()
    }


def test_whole_part_on_few_digits(few_digits, monkeypatch):
    """One epoch, and chains that no search has found."""
    monkeypatch.setattr(digits, "substitute", quick_substitute)
    monkeypatch.setattr(digits, "TIMED_BATCH", 8)
    train, test = few_digits
    with demo_networks.quiet_bars() as bars:
        section = digits.run_digits(
            train,
            test,
            epochs=20,
            fine_tuning_epochs=1,
            seed=0,
            bars=bars,
            small_kernels=("1x5 after 5x1",),
            calibration_images=2,
            rounds=1,
        )
    widths, results = check(section, ["1x5 after 5x1"])
    assert [row[2:6] for row in widths.rows] == [
        ("150", "35R", "R <= 4", "R = 3"),
        ("2,400", "110R", "R <= 19", "R = 3"),
    ]
    assert float(results.rows[0][2].rstrip("%")) > 30  # of ten digits it has learned something
    assert "trained for 20 epochs on 100" in section.text
    assert "trained further: 1 more" in section.text


@pytest.mark.slow
@pytest.mark.optimized
def test_small_kernels_read_digits_as_well(real_digits):
    train, test = real_digits
    with demo_networks.quiet_bars() as bars:
        section = digits.run_digits(
            train, test, epochs=4, fine_tuning_epochs=2, seed=0, bars=bars, calibration_images=64, rounds=1
        )
    widths, results = check(section, [*digits.SCHEMES])
    assert [row[3] for row in widths.rows] == ["63F", "35R", "198F", "110R"]
    assert [row[2] for row in widths.rows] == ["150", "150", "2,400", "2,400"]
    accuracies = [[float(cell.rstrip("%")) for cell in row[1:3]] for row in results.rows]
    dense = accuracies[0]
    assert dense[1] > 95
    for substituted, tuned in accuracies[2:]:
        assert substituted > dense[0] - 5
        assert tuned > dense[1] - 2
