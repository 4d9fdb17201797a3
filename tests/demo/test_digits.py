import jax
import numpy as np
import pytest
import rich.console

import jaxcnn
from jaxcnn.demo import chains, digits, lenet, report
from jaxcnn.demo.network import Layer, plain_convolution


def test_split_is_stratified_and_seeded():
    images, labels = np.arange(50 * 784).reshape(50, 784) % 256, np.repeat(np.arange(5), 10)
    train, test = lenet.split_digits(images, labels, test_share=0.2, seed=3)
    assert train.images.shape == (40, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [8] * 5
    assert np.bincount(test.labels).tolist() == [2] * 5
    assert train.images.dtype == np.float32
    assert 0 <= train.images.min() < train.images.max() <= 1
    again, _ = lenet.split_digits(images, labels, test_share=0.2, seed=3)
    other, _ = lenet.split_digits(images, labels, test_share=0.2, seed=4)
    np.testing.assert_array_equal(train.images, again.images)
    assert not np.array_equal(train.images, other.images)


@pytest.fixture(scope="module")
def real_digits():
    return digits.load_digits(0)


def test_real_digits(real_digits):
    train, test = real_digits
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10


def test_costs_by_hand():
    network = lenet.initialize(0)
    # 28*28*25*6 and 10*10*25*6*16, then the full layers.
    assert lenet.convolution_macs("conv1", (5, 5, 1, 6)) == 117_600
    assert lenet.convolution_macs("conv2", (5, 5, 6, 16)) == 240_000
    assert lenet.network_macs(network) == 117_600 + 240_000 + 48_000 + 10_080 + 840
    assert lenet.num_params(network) == 156 + 2_416 + 48_120 + 10_164 + 850
    # conv2 without padding: 3x3 to F channels on 12x12 pixels, then 3x3 to 16 on 10x10.
    chain = chains.stack_shapes((5, 5, 6, 16), 6)
    assert lenet.convolution_macs("conv2", chain) == 144 * 9 * 6 * 6 + 100 * 9 * 6 * 16
    chain = chains.separable_shapes((5, 5, 6, 16), 10)
    assert lenet.convolution_macs("conv2", chain) == 140 * 5 * 6 * 10 + 100 * 5 * 10 * 16


def test_the_next_beyond_the_widest_saves_nothing():
    for scheme in (chains.stack_shapes, chains.separable_shapes):
        for name, (_, shape, _) in lenet.CONVOLUTIONS.items():
            dense, widest = lenet.convolution_macs(name, shape), digits.widest_saving(name, scheme)
            assert lenet.convolution_macs(name, scheme(shape, widest)) < dense
            assert lenet.convolution_macs(name, scheme(shape, widest + 1)) >= dense
    assert digits.widest_saving("conv1", chains.stack_shapes) == 2
    assert digits.widest_saving("conv1", chains.separable_shapes) == 4


def test_substituted_within_the_share():
    network, images = lenet.initialize(0), jax.random.uniform(jax.random.key(1), (4, 28, 28, 1))
    small = digits.substitute(network, images, "separable", 0)
    macs = [
        sum(
            lenet.convolution_macs(name, k if isinstance(k := each[name].kernel, jaxcnn.KernelChain) else k.shape)
            for name in lenet.CONVOLUTIONS
        )
        for each in (small, network)
    ]
    assert macs[0] <= digits.SHARE * macs[1]
    kernels = {name: layer.kernel for name, layer in small.items()}
    dense = {
        name: Layer(k.dense() if isinstance(k, jaxcnn.KernelChain) else k, small[name].bias)
        for name, k in kernels.items()
    }
    expected = lenet.scores(dense, images, convolution=plain_convolution)
    np.testing.assert_allclose(lenet.scores(small, images), expected, rtol=1e-4, atol=1e-4)


def test_training_is_seeded_and_counts_its_steps():
    random = np.random.default_rng(0)
    data = lenet.Digits(random.random((120, 28, 28, 1), np.float32), np.arange(120, dtype=np.int32) % 10)
    steps = []
    start = lenet.initialize(0)
    trained = lenet.train(start, data, epochs=2, learning_rate=1e-3, seed=5, after_step=lambda: steps.append(None))
    assert len(steps) == lenet.steps_in(data, 2) == 4  # 120 digits are two whole batches of 50
    assert not np.array_equal(trained["conv1"].kernel, start["conv1"].kernel)
    np.testing.assert_array_equal(start["conv1"].kernel, lenet.initialize(0)["conv1"].kernel)
    orders = [np.concatenate(list(lenet._batches(120, 2, seed))).tolist() for seed in (5, 5, 6)]
    assert orders[0] == orders[1] != orders[2]


@pytest.fixture
def few_digits(real_digits):
    """Ten of each digit to train on, five to test with."""
    train, test = real_digits

    def first(data, count):
        rows = np.concatenate([np.flatnonzero(data.labels == digit)[:count] for digit in range(10)])
        return lenet.Digits(data.images[rows], data.labels[rows])

    return first(train, 10), first(test, 5)


def test_whole_part_on_few_digits(few_digits):
    train, test = few_digits
    with report.progress_bars(rich.console.Console(quiet=True)) as bars:
        section = digits.run_digits(train, test, epochs=8, seed=0, bars=bars, rounds=1)
    widths, results = section.tables
    assert [row[0] for row in results.rows] == ["dense 5x5", digits.EXACT, "3x3 after 3x3", "1x5 after 5x1"]
    assert all(len(row) == len(results.columns) for row in results.rows)
    assert [row[3] for row in widths.rows] == ["63F", "35R", "198F", "110R"]
    assert [row[2] for row in widths.rows] == ["150", "150", "2,400", "2,400"]
    macs = [int(row[3].replace(",", "")) for row in results.rows]
    assert macs[0] == macs[1] == 416_520  # the same network, computed in two ways
    assert max(macs[2:]) < macs[0]
    assert float(results.rows[0][2].rstrip("%")) > 20  # it has learned something
    report.render_html(report.Report("title", "machine", (section,), digits.DEFINITIONS))
