import numpy as np

from jaxcnn.demo import chains, lenet


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


def test_costs_by_hand():
    network = lenet.initialize(0)
    # 28*28*25*6 and 10*10*25*6*16, then the full layers.
    assert lenet.convolution_macs("conv1", (5, 5, 1, 6)) == 117_600
    assert lenet.convolution_macs("conv2", (5, 5, 6, 16)) == 240_000
    assert lenet.network_macs(network) == 117_600 + 240_000 + 48_000 + 10_080 + 840
    assert lenet.num_params(network) == 156 + 2_416 + 48_120 + 10_164 + 850
    # conv2 without padding: 3x3 to F channels on 12x12 pixels, then 3x3 to 16 on 10x10.
    chain = chains.chain_shapes("stack", (5, 5, 6, 16), 6)
    assert lenet.convolution_macs("conv2", chain) == 144 * 9 * 6 * 6 + 100 * 9 * 6 * 16
    chain = chains.chain_shapes("separable", (5, 5, 6, 16), 10)
    assert lenet.convolution_macs("conv2", chain) == 140 * 5 * 6 * 10 + 100 * 5 * 10 * 16


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
