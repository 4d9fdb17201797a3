"""Chains in the files and state dicts of other libraries."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from support.arrays import jax_normal

PARAMS = {
    "conv": jaxcnn.KernelChain((jax_normal((3, 1, 2, 4)), jax_normal((1, 3, 2, 6), 1)), (2, 2)),
    "bias": jnp.arange(6.0),
}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def assert_restored(params):
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


def test_flax():
    serialization = pytest.importorskip("flax.serialization")
    assert_restored(serialization.from_bytes(ZEROS, serialization.to_bytes(PARAMS)))
    state = serialization.to_state_dict(PARAMS)
    assert sorted(state["conv"]) == ["0", "1"]
    assert_restored(serialization.from_state_dict(ZEROS, state))
    assert_restored(serialization.from_state_dict(ZEROS, serialization.msgpack_restore(serialization.to_bytes(PARAMS))))
    with pytest.raises(ValueError, match=r"a KernelChain of the parts \['0', '1'\] cannot be restored from a state of"):
        serialization.from_state_dict(ZEROS, {**state, "conv": {"0": 1.0}})


@pytest.mark.parametrize("first", ["flax.serialization", "jaxcnn"])
def test_flax_before_and_after_jaxcnn(first):
    pytest.importorskip("flax")
    second = ({"flax.serialization", "jaxcnn"} - {first}).pop()
    program = f"""
import sys, {first}
assert {first == "flax.serialization"} or "flax" not in sys.modules
import numpy, jaxcnn, {second}
chain = jaxcnn.KernelChain((numpy.ones((1, 2, 3)),))
state = sys.modules["flax.serialization"].to_state_dict(chain)
assert isinstance(state, dict), state
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_orbax(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", PARAMS)
        checkpointer.wait_until_finished()
        assert_restored(checkpointer.restore(tmp_path / "params", ZEROS))


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.flax")
    names = jax.tree_util.keystr
    arrays = {names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(PARAMS)}
    safetensors.save_file(arrays, tmp_path / "params.safetensors")
    loaded = safetensors.load_file(tmp_path / "params.safetensors")
    assert sorted(loaded) == ["['bias']", "['conv'][0]", "['conv'][1]"]
    assert_restored(jax.tree_util.tree_map_with_path(lambda path, _: loaded[names(path)], ZEROS))
