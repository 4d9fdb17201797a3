"""The tracked set and its records across commits."""

from __future__ import annotations

import json
import math
import types

import pytest

from benchmarks import airspeed, record
from benchmarks.asv import tracked
from benchmarks.shared import environment

COMMITS = {"old": "a" * 40, "new": "b" * 40}


def test_a_value_that_a_commit_lacks_is_a_gap(monkeypatch):
    monkeypatch.setattr(environment, "jaxcnn", types.SimpleNamespace())
    schemes = tracked.Schemes()
    values = tracked.measured(schemes.case, ["3x3 by cp"])
    assert values == {"3x3 by cp": {}}
    assert math.isnan(schemes.track_error(values, "3x3 by cp"))
    assert schemes.track_error({"3x3 by cp": {"error": 0.5}}, "3x3 by cp") == 0.5


def test_the_clock_agrees_with_the_arithmetic_where_their_shares_are_equal():
    values = tracked.ratios({"chain": 1.0, "lax": 8.0, "exact": 4.0}, 0.25)
    assert values == {"time_over_lax": 0.125, "time_over_exact": 0.25, "clock_over_arithmetic": 1.0}
    assert "clock_over_arithmetic" not in tracked.ratios({"chain": 1.0, "lax": 8.0}, 0.25)
    assert tracked.ratios({"jaxcnn": 3.0, "lax": 4.0}, None) == {"time_over_lax": 0.75}


def test_the_best_block_counts_and_cases_take_turns(monkeypatch):
    blocks = {"a": iter([5.0, 2.0, 3.0, 9.0]), "b": iter([7.0, 8.0, 6.0, 9.0])}
    order = []

    def block_seconds(calls, rounds):
        assert rounds == 1
        order.extend(calls)
        return {form: [next(blocks[form])] for form in calls}

    monkeypatch.setattr(tracked.timer, "block_seconds", block_seconds)
    cases = {"first": tracked.Case({"a": int}), "second": tracked.Case({"b": int}), "untimed": tracked.Case()}
    assert tracked.best_seconds(cases, 0.0) == {"first": {"a": 2.0}, "second": {"b": 6.0}}
    assert order == ["a", "b"] * tracked.MIN_BLOCKS


class Asv:
    """An asv that measures one value more each time, and writes it as asv does."""

    def __init__(self, results):
        self.results, self.installed, self.measured, self.code = results, [], [], 0

    def __call__(self, command, *arguments, under=()):
        assert command == "run"
        commit = arguments[-1].removesuffix("^!")
        if record.INSTALL_ONLY in arguments:
            assert not under, "installing needs no quiet"
            self.installed.append(commit)
            return 0
        assert self.installed[-1] == commit
        self.under = under
        self.measured.append(commit)
        rows = {
            "tracked.A.track_x": [[float(len(self.measured)), math.nan], [], "1"],
            "bench_b.B.time_y": [[1.0], [], "2"],
        }
        self.results.joinpath("machine").mkdir(exist_ok=True)
        path = self.results / "machine" / f"{commit[:8]}-env.json"
        path.write_text(json.dumps({"results": rows, "commit_hash": commit}))
        return self.code


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
    def interrupted(*arguments, **options):
        if len(asv.measured) == 3:
            raise KeyboardInterrupt
        return asv(*arguments, **options)

    monkeypatch.setattr(record, "run_asv", interrupted)
    arguments = ["old", "new", "--machine", "machine"]
    with pytest.raises(KeyboardInterrupt):
        record.main(arguments)
    monkeypatch.setattr(record, "run_asv", asv)
    record.main(arguments)
    assert len(asv.measured) == 4
    assert sorted(asv.measured) == sorted(2 * list(COMMITS.values()))


def test_a_commit_that_cannot_be_measured_is_left_out(asv, monkeypatch, capsys):
    def failing(*arguments, **options):
        return 1 if COMMITS["old"] in arguments[-1] else asv(*arguments, **options)

    monkeypatch.setattr(record, "run_asv", failing)
    record.main(["old", "new", "--machine", "machine"])
    assert asv.measured == 2 * [COMMITS["new"]]
    assert "aaaaaaaa is not measured: asv ended with 1" in capsys.readouterr().err


def test_one_measurement_at_a_time_is_the_same_record(asv):
    arguments = ["old", "new", "--machine", "machine", "--measurements", "1", "--under", "nice -n 5"]
    for count in range(1, 5):
        record.main(arguments)
        assert len(asv.measured) == count
        assert asv.under == ["nice", "-n", "5"]
    assert sorted(asv.measured) == sorted(2 * list(COMMITS.values()))
    for name, commit in COMMITS.items():
        assert values(asv, name)[0] == sum(1 + i for i in range(4) if asv.measured[i] == commit) / 2
    assert not list((asv.results / "rounds/machine").iterdir())


def test_a_commit_of_which_one_benchmark_fails_is_recorded(asv):
    asv.code = record.FAILED_BENCHMARKS
    record.main(["new", "--machine", "machine", "--rounds", "1"])
    assert values(asv, "new")[0] == 1


def test_the_list_of_benchmarks_holds_what_is_recorded_without_source_text(tmp_path):
    airspeed.prune(tmp_path)  # no list: nothing to do
    names = "tracked.A.track_x", "bench_b.B.time_y"
    entry = {"code": "def f(): ...", "setup_cache_key": "tracked:59", "version": "1"}
    (tmp_path / "benchmarks.json").write_text(json.dumps(dict.fromkeys(names, entry) | {"version": 2}))
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine/machine.json").write_text("{}")
    (tmp_path / "machine/aaaaaaaa-env.json").write_text(json.dumps({"results": {names[0]: [[1.0], [], "1"]}}))
    airspeed.prune(tmp_path)
    listed = json.loads((tmp_path / "benchmarks.json").read_text())
    assert listed == {names[0]: {"code": "", "version": "1"}, "version": 2}


def test_what_fails_in_one_layer_leaves_the_others(capsys):
    def case(name):
        if name == "broken":
            raise TypeError("no such option")
        return tracked.Case(values={"error": 0.5})

    measured = tracked.measured(case, ["broken", "whole"])
    assert measured == {"whole": {"error": 0.5}}
    assert "no such option" in capsys.readouterr().err
    with pytest.raises(KeyError):
        tracked.Schemes().track_error(measured, "broken")
