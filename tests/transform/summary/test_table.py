"""The table of a summary, as text, HTML and JSON."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn import Cost, native, summarize
from support import architectures


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_without_a_name_the_table_has_the_users_line():
    summary = summarize(lambda x: jaxcnn.max_pool(x, 2), shape(1, 4, 4, 1))
    assert "test_table.py:" in summary.rows[0].source
    assert "test_table.py:" in str(summary)


def test_table_and_json():
    def f(x):
        return architectures.inception_v3(lambda sizes: jnp.zeros(sizes), x)

    summary = summarize(f, shape(1, 299, 299, 3))
    lines = str(summary).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["layer", "kind", "output", "kernel", "MACs", "params", "field", "method"]
    assert "MACs (" in lines[-2]
    assert lines[-1] == summary.native == native.status()
    content = json.loads(summary.to_json())
    assert len(content["rows"]) == len(summary.rows)
    assert Cost(**content["total"]) == summary.total
    text = summary._repr_html_()
    assert text.count("<tr>") == len(summary.rows) + 1
    assert native.status() in text
    assert str(summarize(lambda x: x, 1.0)).splitlines()[-2].startswith("0 MACs")
    assert str(summarize(lambda x: x, 1.0, platform="gpu")).splitlines()[-1].startswith("0 MACs")


def test_long_names_are_cut_from_the_left():
    def f(x):
        with jax.named_scope("a" * 200 + "/layer"):
            return jaxcnn.max_pool(x, 2)

    text = str(summarize(f, shape(1, 4, 4, 1)))
    assert max(map(len, text.splitlines())) <= 100
    assert "aaa/layer" in text
