"""The networks of the demo with few layers and channels, in files laid out as the real ones, and where to report."""

from __future__ import annotations

import contextlib
import io

import h5py
import numpy as np
import rich.console

from jaxcnn.demo import hed, report

#: The blocks of a tiny EfficientNet: stride, window, and channels that leave; at stride 1 as many leave as enter.
LITE0_STRIDES, LITE0_WINDOWS, LITE0_WIDTHS = (2, 1), (3, 5), (4, 4)
LITE0_WIDE, LITE0_CLASSES = 12, 10

#: Channels of each block of a tiny edge detector.
HED_WIDTHS = (4, 4, 6, 6, 6)


@contextlib.contextmanager
def quiet_bars():
    """Progress bars that nobody sees, and what is printed above them."""
    with report.progress_bars(rich.console.Console(file=io.StringIO(), width=80)) as bars:
        yield bars


def write_hed(path, convolutions=hed.CONVOLUTIONS):
    """Writes an edge detector of so many convolutions in each block."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:

        def write(group, *shape):
            file[f"{group}/vars/0"] = (random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
            file[f"{group}/vars/1"] = random.normal(size=shape[-1:]).astype(np.float32)

        channels = 3
        for block, (count, width) in enumerate(zip(convolutions, HED_WIDTHS, strict=False), 1):
            for i in range(count):
                write(f"block{block}/layers/conv2d" + (f"_{i}" if i else ""), 3, 3, channels, width)
                channels = width
            write(f"dsn{block}", 1, 1, width, 1)
        write("fuse", 1, 1, len(convolutions), 1)


def lite0_tensors():
    """Tensors named as EfficientNet-Lite0's, of few blocks and channels."""
    random = np.random.default_rng(0)
    tensors = {}

    def layer(kernel, norm, features, channels, size):
        scale = np.sqrt(channels * size * size)
        tensors[f"{kernel}.weight"] = (random.normal(size=(features, channels, size, size)) / scale).astype(np.float32)
        for part in ("weight", "running_var"):
            tensors[f"{norm}.{part}"] = random.uniform(0.5, 2, features).astype(np.float32)
        for part in ("bias", "running_mean"):
            tensors[f"{norm}.{part}"] = random.normal(size=features).astype(np.float32)

    layer("_conv_stem", "_bn0", LITE0_WIDE, 3, 3)
    channels = LITE0_WIDE
    for block, (window, width) in enumerate(zip(LITE0_WINDOWS, LITE0_WIDTHS, strict=True)):
        prefix = f"_blocks.{block}."
        if block > 0:
            layer(f"{prefix}_expand_conv", f"{prefix}_bn0", LITE0_WIDE, channels, 1)
        layer(f"{prefix}_depthwise_conv", f"{prefix}_bn1", LITE0_WIDE, 1, window)
        layer(f"{prefix}_project_conv", f"{prefix}_bn2", width, LITE0_WIDE, 1)
        channels = width
    layer("_conv_head", "_bn1", LITE0_WIDE, channels, 1)
    tensors["_fc.weight"] = random.normal(size=(LITE0_CLASSES, LITE0_WIDE)).astype(np.float32)
    tensors["_fc.bias"] = random.normal(size=LITE0_CLASSES).astype(np.float32)
    return tensors
