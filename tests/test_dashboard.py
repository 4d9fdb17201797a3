"""Tests of the parts of the pages: records read from asv's results, asv's threshold, and the table of what moved."""

from __future__ import annotations

import json
import math
import re
import urllib.request
from threading import Thread

import pytest

from benchmarks.asv import tracked
from benchmarks.substitution_page import records
from support import asv_results

NEWEST = len(asv_results.SUBJECTS) - 1


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A repository with results; tests that change it change a copy of its numbers only."""
    root = tmp_path_factory.mktemp("repository")
    return root, asv_results.write_results(root)


def read(root):
    return records.read_records(root / "benchmarks/results", records.subjects(root))


def change(root, commit, edit, machine=asv_results.MACHINE):
    """Edits the results of a commit."""
    (path,) = (root / "benchmarks/results" / machine).glob(f"{commit[:8]}-*.json")
    content = json.loads(path.read_text())
    edit(content["results"])
    path.write_text(json.dumps(content))


def series(machine, name):
    (one,) = [one for one in machine["series"] if one["name"] == name]
    return one


def test_records_hold_every_tracked_value_in_the_order_of_commits(written):
    root, commits = written
    (machine,) = read(root)
    assert [commit["hash"] for commit in machine["commits"]] == [commit[:8] for commit in commits]
    by_kind = {"scheme": tracked.Schemes, "layer": tracked.Layers, "network": tracked.Accelerated}
    for cls in (*by_kind.values(), tracked.Substituted, tracked.Compilation):
        quantities = [name.removeprefix("track_") for name in dir(cls) if name.startswith("track_")]
        result = [one for one in machine["series"] if sorted(one["values"]) == sorted(quantities)]
        assert len(result) >= len(cls.params[0])
    low_rank = series(machine, "3x3 by low_rank")
    expected = [
        asv_results.value(tracked.Schemes, "track_error", "3x3 by low_rank", commit) for commit in range(NEWEST + 1)
    ]
    assert low_rank["values"]["error"] == pytest.approx(expected, rel=1e-4)


def test_what_a_commit_lacks_is_none(written):
    (machine,) = read(written[0])
    first = asv_results.GAPS["Substituted"]
    errors = series(machine, "four layers by substitute")["values"]["error"]
    assert errors[:first] == [None] * first
    assert all(error is not None for error in errors[first:])


def test_commits_are_named_by_their_labels_or_their_subjects(written):
    root, commits = written
    (machine,) = read(root)
    expected = [label or subject for label, subject in zip(asv_results.LABELS, asv_results.SUBJECTS, strict=True)]
    assert [commit["label"] for commit in machine["commits"]] == expected
    assert [commit["subject"] for commit in machine["commits"]] == list(asv_results.SUBJECTS)
    (unnamed,) = records.read_records(root / "benchmarks/results", {})
    assert unnamed["commits"][2]["label"] == commits[2][:8]


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("scheme", "3x3 by cp", {"name": "3x3 by cp", "layer": "3x3", "scheme": "cp", "macs": None}),
        (
            "scheme",
            "11x11 filter as 11x1, 1x11: 121 to 22",
            {
                "name": "11x11 filter as 11x1, 1x11",
                "layer": "11x11 filter",
                "scheme": "11x1, 1x11",
                "macs": [121, 22],
            },
        ),
        ("network", "four layers", {"name": "four layers by substitute", "network": "four layers", "layer": None}),
        ("scheme", "another", {"name": "another", "layer": None, "scheme": "substitute"}),
    ],
)
def test_names_say_by_what_a_substitution_is_filtered(kind, name, expected):
    described = records.describe(kind, name, is_substitution=True)
    assert described["kind"] == "substitution"
    assert {key: described[key] for key in expected} == expected


def test_layers_and_networks_by_exact_methods():
    layer = records.describe("layer", "1x1", is_substitution=False)
    assert (layer["kind"], layer["layer"], layer["scheme"], layer["network"]) == ("layer", "1x1", "exact methods", None)
    network = records.describe("network", "ResNet-50", is_substitution=False)
    assert (network["kind"], network["name"], network["layer"]) == ("network", "ResNet-50 by accelerate", None)


def test_values_of_another_version_of_a_benchmark_are_left_out(tmp_path):
    commits = asv_results.write_results(tmp_path)

    def edit(results):
        results["tracked.Schemes.track_error"][2] = "0"

    change(tmp_path, commits[1], edit)
    (machine,) = read(tmp_path)
    errors = series(machine, "3x3 by cp")["values"]["error"]
    assert errors[1] is None
    assert errors[0] is not None


def test_failures_and_empty_records(tmp_path):
    commits = asv_results.write_results(tmp_path)

    def fail(results):
        results["tracked.Schemes.track_error"][0] = None
        results["tracked.Layers.track_time_over_lax"][0] = [math.nan] * len(tracked.Layers.params[0])

    change(tmp_path, commits[1], fail)
    change(tmp_path, commits[2], dict.clear)
    (machine,) = read(tmp_path)
    assert [commit["hash"] for commit in machine["commits"]] == [
        commit[:8] for commit in commits if commit != commits[2]
    ]
    assert series(machine, "3x3 by cp")["values"]["error"][1] is None
    assert series(machine, "1x1")["values"]["time_over_lax"][1] is None


def test_each_machine_has_its_own_records(tmp_path):
    asv_results.write_results(tmp_path)
    other = tmp_path / "benchmarks/results/another-machine"
    (tmp_path / "benchmarks/results" / asv_results.MACHINE).rename(other)
    asv_results.write_results(tmp_path)
    assert [machine["machine"] for machine in read(tmp_path)] == ["another-machine", asv_results.MACHINE]


def test_no_results_are_no_records(tmp_path):
    assert records.read_records(tmp_path, {}) == []
    assert records.subjects(tmp_path / "missing") == {}


def test_the_page_is_self_contained(written, tmp_path):
    pytest.importorskip("plotly", reason="plotly is not installed")
    from benchmarks.substitution_page.page import write_page

    root, _ = written
    hostile = dict.fromkeys(records.subjects(root), "</script><b>")
    (root / "benchmarks/results" / records.LABELS).write_text(json.dumps(hostile))
    write_page(tmp_path / "page.html", root / "benchmarks/results", root)
    text = (tmp_path / "page.html").read_text()
    assert not re.search(
        r"<(script|img|iframe)[^>]+src=|<link[^>]+href=\"(?!data:)|@import|\{\{", text.partition("plotly.js")[0]
    )
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data)[0]["commits"][0]["label"] == "</script><b>"


class TestWithAsv:
    """Tests that need asv itself."""

    @pytest.fixture
    def asv(self):
        return pytest.importorskip("benchmarks.dashboard", reason="asv-tachyon or plotly is not installed")

    def test_a_regression_counts_from_a_quarter(self, asv, tmp_path):
        commits = asv_results.write_results(tmp_path)
        for commit, factor in zip(commits, [1] * 8 + [1.3] * 4, strict=True):

            def edit(results, factor=factor):
                for row in results.values():
                    row[0] = [1.0] * len(row[0])
                results["tracked.Schemes.track_error"][0][0] = factor
                results["tracked.Schemes.track_error"][0][1] = 1 + (factor - 1) * 0.8

            change(tmp_path, commit, edit)
        pages = asv.write_pages(tmp_path / "asv.conf.json")
        regressions = json.loads((pages / "regressions.json").read_text())["regressions"]
        name = f"tracked.Schemes.track_error({tracked.Schemes.params[0][0]!r})"
        assert [regression[0] for regression in regressions] == [name]

    def test_settings_of_the_repository_and_of_the_page_name_the_same_threshold(self):
        from benchmarks import compare

        settings = (records.ROOT / "asv.conf.json").read_text()
        assert re.search(r'"regressions_thresholds": \{"\.\*": ([\d.]+)\}', settings)[1] == f"{compare.FACTOR - 1}"
        script = (records.ROOT / "benchmarks/substitution_page/content.js").read_text()
        assert f"const STEP = {compare.FACTOR};" in script

    def test_pages_say_that_less_is_better(self, asv, tmp_path):
        index = tmp_path / "index.json"
        index.write_text(json.dumps({"benchmarks": {"a": {"type": "track"}}}))
        asv.say_what_is_better(index)
        assert json.loads(index.read_text()) == {"benchmarks": {"a": {"type": "track", "less_is_better": True}}}

    def test_pages_are_served_to_this_machine(self, asv, tmp_path, capsys):
        (tmp_path / "index.json").write_text("[1]")
        Thread(target=asv.serve, args=(tmp_path, 0), daemon=True).start()
        printed = ""
        while printed.count("\n") < 2:
            printed += capsys.readouterr().out
        address, page = printed.split()
        assert address.startswith("http://127.0.0.1:")
        assert page == f"{address}substitutions.html"
        with urllib.request.urlopen(f"{address}index.json") as answer:
            assert json.loads(answer.read()) == [1]

    def compare(self, root, *arguments):
        from benchmarks import compare

        compare.main([*arguments, "--machine", asv_results.MACHINE], root, root / "benchmarks/results")

    def test_what_moved_is_printed(self, asv, tmp_path, capsys):
        commits = asv_results.write_results(tmp_path)

        def edit(results):
            row = results["tracked.Schemes.track_time_over_lax"][0]
            row[0], row[1] = 1.3 * row[0] / 0.95, 1.2 * row[1] / 0.95

        change(tmp_path, commits[1], edit)
        asv_results.git(tmp_path, "reset", "--quiet", "--hard", commits[1])
        asv_results.git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "The record of the commit before")
        self.compare(tmp_path)
        printed = capsys.readouterr().out
        assert f"{commits[0][:8]} before, {commits[1][:8]} after" in printed
        rows = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines() if "tracked." in line]
        name = tracked.Schemes.params[0][0]
        assert [(row[1], row[4], row[5]) for row in rows] == [
            ("+", "1.3", f"tracked.Schemes.track_time_over_lax({name!r})")
        ]
        self.compare(tmp_path, commits[1])
        assert "No value moved" in capsys.readouterr().out

    def test_a_commit_without_a_record_is_refused(self, asv, tmp_path):
        asv_results.write_results(tmp_path)
        with pytest.raises(SystemExit, match="there is no commit missing"):
            self.compare(tmp_path, "missing")
        first = asv_results.git(tmp_path, "rev-list", "--max-parents=0", "HEAD")
        next((tmp_path / "benchmarks/results" / asv_results.MACHINE).glob(f"{first[:8]}-*")).unlink()
        with pytest.raises(SystemExit, match=f"neither {first} nor a commit before it has a record"):
            self.compare(tmp_path, first)
