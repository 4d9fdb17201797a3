"""The tracked set, its records across commits, and the pages made of them."""

from __future__ import annotations

import json
import math
import types
import urllib.request
from threading import Thread

import pytest

from benchmarks import record
from benchmarks.asv import tracked
from benchmarks.shared import environment

COMMITS = {"old": "a" * 40, "new": "b" * 40}


def test_a_value_that_a_commit_lacks_is_a_gap(monkeypatch):
    monkeypatch.setattr(environment, "jaxcnn", types.SimpleNamespace())
    schemes = tracked.Schemes()
    monkeypatch.setattr(schemes, "seconds", 0.0)
    values = tracked.measured(schemes.values, ["3x3 by cp"])
    assert values == {"3x3 by cp": {}}
    assert math.isnan(schemes.track_error(values, "3x3 by cp"))
    assert schemes.track_error({"3x3 by cp": {"error": 0.5}}, "3x3 by cp") == 0.5


def test_the_clock_agrees_with_the_arithmetic_where_their_shares_are_equal(monkeypatch):
    monkeypatch.setattr(
        tracked.timer, "median_seconds", lambda calls, seconds: {"chain": 1.0, "lax": 8.0, "exact": 4.0}
    )
    values = tracked.substitution_values({}, 0.25, 0.0, 1.0)
    assert values == {
        "time_over_lax": 0.125,
        "time_over_exact": 0.25,
        "clock_over_arithmetic": 1.0,
        "macs_share": 0.25,
        "error": tracked.LEAST_ERROR,
    }


class Asv:
    """An asv that measures one value more each time, and writes it as asv does."""

    def __init__(self, results):
        self.results, self.measured = results, []

    def __call__(self, command, *arguments):
        assert command == "run"
        commit = arguments[-1].removesuffix("^!")
        self.measured.append(commit)
        rows = {
            "tracked.A.track_x": [[float(len(self.measured)), math.nan], [], "1"],
            "bench_b.B.time_y": [[1.0], [], "2"],
        }
        self.results.joinpath("machine").mkdir(exist_ok=True)
        path = self.results / "machine" / f"{commit[:8]}-env.json"
        path.write_text(json.dumps({"results": rows, "commit_hash": commit}))
        listed = {name: {"code": "def f(): ...", "version": row[2]} for name, row in rows.items()} | {"version": 2}
        (self.results / "benchmarks.json").write_text(json.dumps(listed))
        return 0


@pytest.fixture
def asv(monkeypatch, tmp_path):
    """A stand-in for asv that measures commits named in `COMMITS`."""
    asv = Asv(tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "ROUNDS_KEPT", tmp_path / "rounds")
    monkeypatch.setattr(record, "run_asv", asv)
    monkeypatch.setattr(record, "commit_hash", COMMITS.__getitem__)
    return asv


def values(asv, commit):
    content = json.loads((asv.results / "machine" / f"{COMMITS[commit][:8]}-env.json").read_text())
    return content["results"]["tracked.A.track_x"][0]


def test_a_record_is_the_median_over_rounds_of_commits_in_shuffled_order(asv):
    record.main(["old", "new", "--machine", "machine", "--rounds", "3"])
    rounds = [asv.measured[2 * number : 2 * number + 2] for number in range(3)]
    assert all(set(commits) == set(COMMITS.values()) for commits in rounds)
    assert len(set(map(tuple, rounds))) == 2
    for name, commit in COMMITS.items():
        expected = sorted(2 * number + commits.index(commit) + 1 for number, commits in enumerate(rounds))[1]
        assert values(asv, name)[0] == expected
        assert math.isnan(values(asv, name)[1])
    assert not list((asv.results / "rounds/machine").iterdir())


def test_an_interrupted_run_goes_on_where_it_stopped(asv, monkeypatch):
    def interrupted(*arguments):
        if len(asv.measured) == 3:
            raise KeyboardInterrupt
        return asv(*arguments)

    monkeypatch.setattr(record, "run_asv", interrupted)
    arguments = ["old", "new", "--machine", "machine"]
    with pytest.raises(KeyboardInterrupt):
        record.main(arguments)
    monkeypatch.setattr(record, "run_asv", asv)
    record.main(arguments)
    assert len(asv.measured) == 4
    assert sorted(asv.measured) == sorted(2 * list(COMMITS.values()))


def test_a_commit_that_cannot_be_measured_is_left_out(asv, monkeypatch, capsys):
    def failing(*arguments):
        return 1 if COMMITS["old"] in arguments[-1] else asv(*arguments)

    monkeypatch.setattr(record, "run_asv", failing)
    record.main(["old", "new", "--machine", "machine"])
    assert asv.measured == 2 * [COMMITS["new"]]
    assert "aaaaaaaa is not measured: asv ended with 1" in capsys.readouterr().err


def test_the_list_of_benchmarks_holds_no_source_text(asv):
    record.main(["new", "--machine", "machine", "--rounds", "1"])
    listed = json.loads((asv.results / "benchmarks.json").read_text())
    assert listed == {"tracked.A.track_x": {"code": "", "version": "1"}, "version": 2}


def test_pages_say_that_less_is_better_and_are_served_to_this_machine(tmp_path, capsys, monkeypatch):
    dashboard = pytest.importorskip("benchmarks.dashboard", reason="asv-tachyon is not installed", exc_type=ImportError)
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"benchmarks": {"a": {"type": "track"}}}))
    dashboard.say_what_is_better(index)
    content = json.loads(index.read_text())
    assert content == {"benchmarks": {"a": {"type": "track", "less_is_better": True}}}
    Thread(target=dashboard.serve, args=(tmp_path, 0), daemon=True).start()
    while not (printed := capsys.readouterr().out):
        pass
    assert printed.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{printed.strip()}index.json") as answer:
        assert json.loads(answer.read()) == content
