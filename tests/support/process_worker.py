"""One process of a program of several: `process_worker.py TASK RANK COUNT PORT FOLDER`. Results go to FOLDER."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // int(sys.argv[3])}"

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn import native, processes
from jaxcnn.lowering.tuning_table import Measurement, TuningTable, device_kind

HEARTBEAT_SECONDS = 30
STEPS = 3


def mesh():
    return jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))


def placed(array, spec):
    """An array over all processes, of which each gives its own part."""
    sharding = NamedSharding(mesh(), spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def network(params, x):
    """Dense, depthwise (a compiled kernel where there is one), pooled, and a last convolution."""
    x = jax.nn.relu(jaxcnn.conv(x, params["first"]))
    x = jax.nn.relu(jaxcnn.depthwise_conv(x, params["depthwise"]))
    x = jaxcnn.max_pool(x, 2, strides=2)
    return jaxcnn.conv(x, params["last"]).mean((1, 2))


def data():
    rng = np.random.default_rng(0)
    shapes = {"first": (5, 5, 4, 16), "depthwise": (3, 3, 16, 1), "last": (5, 5, 16, 8)}
    params = {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    return params, rng.standard_normal((8, 12, 12, 4)).astype(np.float32)


def train(apply, params, x):
    """Parameters after a few steps of gradient descent, as host arrays."""

    def loss(params, x):
        return (apply(params, x) ** 2).mean()

    step = jax.jit(lambda params, x: jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, x)))
    for _ in range(STEPS):
        params = step(params, x)
    return [np.asarray(processes.whole(leaf)) for leaf in jax.tree.leaves(params)]


def everywhere(params):
    return jax.tree.map(lambda array: placed(np.asarray(array), P()), params)


def trained(place_params, place_batch):
    """Parameters of the accelerated network, and of the substituted one, after training."""
    params, x = data()
    accelerated = train(jaxcnn.accelerate(network), place_params(params), place_batch(x))
    placed_params = place_params(params)
    substitution = jaxcnn.substitute(network, placed_params, place_batch(x), rank=2, schemes="separable")
    return {
        **{f"accelerated_{n}": array for n, array in enumerate(accelerated)},
        **{
            f"substituted_{n}": array
            for n, array in enumerate(train(substitution.apply, substitution.params, place_batch(x)))
        },
    }


def table(method):
    (spec,) = (entry.spec for entry in _MEASURED.entries)
    return TuningTable(
        (Measurement(spec, method, (("direct", 1.0), (method, 0.5))),),
        "cpu",
        device_kind(jax.devices()[0]),
        _MEASURED.jaxlib_version,
    )


def main(task, rank, count, port, folder):
    global _MEASURED
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    seconds = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": HEARTBEAT_SECONDS}
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank, **seconds)
    if task == "train":
        results = trained(everywhere, lambda x: placed(x, P("d")))
        text = jax.jit(network).lower(everywhere(data()[0]), placed(data()[1], P("d"))).compile().as_text()
        results["native"] = np.asarray("jaxcnn" in text and native.is_available())
        np.savez(folder / f"{rank}.npz", **results)
    elif task == "decide":
        params, x = data()
        substitution = jaxcnn.substitute(network, everywhere(params), placed(x, P("d")), macs=0.5, count="macs")
        leaves = jax.tree.leaves(substitution.params)
        assert all(leaf.sharding.is_equivalent_to(NamedSharding(mesh(), P()), leaf.ndim) for leaf in leaves)
        (folder / f"{rank}.json").write_text(substitution.report.to_json())
        np.savez(folder / f"{rank}.npz", *(np.asarray(processes.whole(leaf)) for leaf in leaves))
        try:
            jaxcnn.substitute(network, everywhere(params), placed(x, P("d")), macs=1e-9, count="macs")
        except ValueError as error:
            (folder / f"{rank}.txt").write_text(str(error))
    elif task in ("tables", "one_table"):
        conv, x, kernel = jaxcnn.conv, np.ones((1, 8, 8, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
        _MEASURED = jaxcnn.tune(conv, x, kernel, seconds=0.01, progress=False)
        with table("matmul"):  # of all processes
            pass
        if task == "one_table":
            processes.AGREEMENT_SECONDS = 5.0
        if task == "one_table" and rank:
            time.sleep(6 * HEARTBEAT_SECONDS)
        try:
            table("matmul" if rank else "shift").install()
        except ValueError as error:
            (folder / f"{rank}.txt").write_text(str(error))
            raise
    elif task == "die":
        params, x = everywhere(data()[0]), placed(data()[1], P("d"))
        step = jax.jit(jax.grad(lambda params, x: (network(params, x) ** 2).mean()))
        jax.block_until_ready(step(params, x))
        (folder / f"{rank}.txt").write_text("ready")
        if rank == count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            jax.block_until_ready(step(params, x))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
