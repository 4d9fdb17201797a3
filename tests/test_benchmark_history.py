"""The history of records: which commits it has, what it leaves out, which steps are the largest."""

import json
import math

import pytest

from benchmarks import history

OLD, NEW, BARE = "a" * 40, "b" * 40, "c" * 40
LAX, ERROR = "tracked.Layers.track_time_over_lax", "tracked.Schemes.track_error"
LAYERS = ["'1x1'", "'3x3'"]


@pytest.fixture
def results(tmp_path):
    """Records of two of three labelled commits, and of one without a label."""
    labels = {OLD: "first", BARE: "not measured", NEW: "tiles"}
    (tmp_path / "capabilities.json").write_text(json.dumps(labels))
    (tmp_path / "machine").mkdir()
    values = {OLD: [[1.0, 0.8], 0.5], NEW: [[math.nan, 0.2], 0.05], "d" * 40: [[9.0, 9.0], 9.0]}
    for commit, (layers, error) in values.items():
        content = {"results": {LAX: [layers, [LAYERS], "1"], ERROR: [[error], [["'3x3 by cp'"]], "1"]}}
        (tmp_path / f"machine/{commit[:8]}-env.json").write_text(json.dumps(content))
    return tmp_path


def test_records_are_those_of_labelled_commits_in_the_order_of_the_labels(results):
    old, new = history.records(results, "machine")
    assert (old.commit, old.label, new.commit, new.label) == (OLD, "first", NEW, "tiles")
    assert old.values["Layers.track_time_over_lax", "1x1"] == 1.0
    assert ("Layers.track_time_over_lax", "1x1") not in new.values


def test_a_mean_is_geometric_and_missing_where_a_name_is(results):
    old, new = history.records(results, "machine")
    assert old.mean("Layers.track_time_over_lax", ["1x1", "3x3"]) == pytest.approx(math.sqrt(0.8))
    assert new.mean("Layers.track_time_over_lax", ["1x1", "3x3"]) is None
    assert new.mean("Layers.track_time_over_lax", ["3x3"]) == pytest.approx(0.2)
    assert new.mean("Accelerated.track_time_over_lax", []) is None


def test_steps_are_those_of_times_between_values_that_both_commits_have(results):
    ((times, record, key, before, after),) = history.largest_steps(history.records(results, "machine"))
    assert (record.label, key, before, after) == ("tiles", ("Layers.track_time_over_lax", "3x3"), 0.8, 0.2)
    assert times == pytest.approx(4)


def test_the_table_names_commits_by_what_they_brought(results):
    head, _, *rows = history.table(history.records(results, "machine")).splitlines()
    assert head.startswith("| commit | what it brought | layers / lax |")
    assert rows == [
        "| `aaaaaaaa` | first | 0.89 |  |  |  |  |  |  |",
        "| `bbbbbbbb` | tiles |  |  |  |  |  |  |  |",
    ]
