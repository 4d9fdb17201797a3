"""Files of substitutions: what comes back, and what is refused."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.transform.substitution import search as searching
from support.arrays import normal
from support.planted import clock_by_arithmetic, conv, planted
from support.substitutions import PARAMS, F, X, substituted

pytestmark = pytest.mark.usefixtures("clock_of_macs")


def test_saved_and_loaded(tmp_path):
    smaller = substituted(macs=0.3)
    path = tmp_path / "network.npz"
    smaller.save(path)
    loaded = jaxcnn.Substitution.load(path, F, PARAMS)
    assert loaded.report == smaller.report
    np.testing.assert_array_equal(loaded.apply(loaded.params, X), smaller.apply(smaller.params, X))
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype.kind != "O" for name in file.files)
    with pytest.raises(ValueError, match="parameters of another structure"):
        jaxcnn.Substitution.load(path, F, {**PARAMS, "more": X})
    with pytest.raises(ValueError, match="knows its own point only"):
        loaded.curve()
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="no substitution that was saved"):
        jaxcnn.Substitution.load(tmp_path / "other.npz", F, PARAMS)


def test_a_released_substitution_keeps_no_dense_parameters():
    params, x = {"kernel": planted(5, 5, 4, 4, 1)}, jnp.asarray(normal((1, 8, 8, 4)))
    dense = weakref.ref(params["kernel"])
    smaller = jaxcnn.substitute(lambda params, x: conv(x, params["kernel"]), params, x, macs=0.6, schemes="separable")
    del params
    gc.collect()
    assert dense() is not None
    smaller = smaller.release()
    gc.collect()
    assert dense() is None
    assert smaller.report.macs_share <= 0.6
    with pytest.raises(ValueError, match="knows its own point only"):
        smaller.curve()


def test_sixteen_bits_are_saved(tmp_path):
    kernel = planted(5, 5, 8, 8, 2).astype(jnp.bfloat16)
    x = jnp.asarray(normal((1, 12, 12, 8))).astype(jnp.bfloat16)
    smaller = jaxcnn.substitute(lambda k, x: conv(x, k[0]) * k[1], (kernel, jnp.asarray(2, jnp.bfloat16)), x, macs=0.5)
    smaller.save(tmp_path / "network.npz")
    loaded = jaxcnn.Substitution.load(tmp_path / "network.npz", smaller.f, (kernel, jnp.asarray(0, jnp.bfloat16)))
    assert loaded.params[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded.apply(loaded.params, x), smaller.apply(smaller.params, x))


@pytest.fixture(scope="module")
def small():
    """A substitution of one layer, quick to find: (found, f, params, x)."""
    params, x = {"kernel": planted(5, 5, 4, 4, 1), "bias": jnp.zeros(4)}, jnp.asarray(normal((1, 8, 8, 4)))

    def f(params, x):
        return conv(x, params["kernel"]) + params["bias"][None, None, None]

    with pytest.MonkeyPatch.context() as patch:
        clock_by_arithmetic(patch)
        patch.setattr(searching, "_TIMING_SECONDS", 0.01)
        return jaxcnn.substitute(f, params, x, macs=0.6, schemes="separable"), f, params, x


def test_random_keys_are_saved(small, tmp_path):
    _, f, params, x = small
    params = {**params, "key": jax.random.key(3, impl="rbg")}
    smaller = jaxcnn.substitute(f, params, x, macs=0.6, schemes="separable")
    smaller.save(tmp_path / "network.npz")
    loaded = jaxcnn.Substitution.load(tmp_path / "network.npz", f, {**params, "key": jax.random.key(0)})
    assert loaded.params["key"] == params["key"]


def test_shapes_alone_do_for_loading(small, tmp_path):
    result, f, params, x = small
    result.save(tmp_path / "no_suffix")
    loaded = jaxcnn.Substitution.load(tmp_path / "no_suffix", f, jax.eval_shape(lambda: params))
    np.testing.assert_array_equal(loaded.apply(loaded.params, x), result.apply(result.params, x))


def test_another_model_is_refused(small, tmp_path):
    result, f, params, _ = small
    path = tmp_path / "network.npz"
    result.save(path)
    with pytest.raises(ValueError, match=r"another model: kernel is \(5, 5, 4, 4\) there, in params \(3, 3, 4, 4\)"):
        jaxcnn.Substitution.load(path, f, {**params, "kernel": params["kernel"][1:4, 1:4]})
    with pytest.raises(ValueError, match=r"another model: bias is \(4,\) there, in params \(5,\)"):
        jaxcnn.Substitution.load(path, f, {**params, "bias": jnp.zeros(5)})
    with pytest.raises(ValueError, match="another structure: bias"):
        jaxcnn.Substitution.load(path, f, {"kernel": params["kernel"]})
    # Its own parameters, chains and all, are of its structure.
    assert jaxcnn.Substitution.load(path, f, result.params).report == result.report


def test_half_a_file_and_foreign_files_are_refused(small, tmp_path):
    result, f, params, _ = small
    path = tmp_path / "network.npz"
    result.save(path)
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    contents = [b"", whole[:3], whole[: len(whole) // 2], whole[:-10], b"text", (tmp_path / "array.npy").read_bytes()]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"network.npz is no substitution that was saved, or not all of it"):
            jaxcnn.Substitution.load(path, f, params)


def test_exported_and_read_again(small):
    pytest.importorskip("flatbuffers")
    result, _, _, x = small
    exported = jax.export.export(jax.jit(result.apply))(result.params, x)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(result.params, x), result.apply(result.params, x), rtol=0, atol=1e-6)
