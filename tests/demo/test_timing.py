import pytest

from jaxcnn.demo import timing
from support import demo_networks


class Clock:
    """A clock that only the functions under test advance."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, *seconds):
        """A function whose successive calls take these times, the last one for ever."""
        left = list(seconds)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_median_seconds_of_each_function():
    clock = Clock()
    # Two calls before the measurement, then three rounds of one call each: the median of 3, 100 and 4 is 4.
    functions = {"slow": clock.takes(50.0, 9.0, 3.0, 100.0, 4.0), "fast": clock.takes(50.0, 9.0, 1.0, 1.0, 2.0)}
    medians = timing.compare(functions, rounds=3, block_seconds=0.1, clock=clock)
    assert medians == {"slow": 4.0, "fast": 1.0}
    assert list(medians) == ["slow", "fast"]


def test_a_block_has_as_many_calls_as_fill_it():
    clock, calls = Clock(), []

    def call():
        calls.append(None)
        clock.now += 0.25

    assert timing.compare({"f": call}, rounds=2, block_seconds=1.0, clock=clock) == {"f": 0.25}
    assert len(calls) == 2 + 2 * 4


def test_what_is_compiled_is_called_once_before_the_measurement():
    clock = Clock()
    medians = timing.compare({"f": clock.takes(9.0, 3.0, 5.0)}, rounds=1, clock=clock, compiled=True)
    assert medians == {"f": 3.0}


def test_blocks_alternate_and_every_other_round_is_reversed():
    clock, order = Clock(), []

    def named(name):
        def call():
            order.append(name)
            clock.now += 1.0

        return call

    rounds = []
    timing.compare(
        {"a": named("a"), "b": named("b")}, rounds=3, clock=clock, after_round=lambda: rounds.append(len(order))
    )
    assert order[4:] == ["a", "b", "b", "a", "a", "b"]
    assert rounds == [6, 8, 10]


def test_no_rounds_is_refused():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        timing.compare({"f": lambda: None}, rounds=0)


def test_first_calls_are_timed_and_counted(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    with demo_networks.quiet_bars() as bars:
        bars.get_time = clock
        first, results = timing.compile_all(
            {"a": clock.takes(3.0, 1.0), "b": lambda: clock.takes(5.0)() or 7}, bars, "two functions"
        )
        (task,) = bars.tasks
    assert first == {"a": 3.0, "b": 5.0}
    assert results == {"a": None, "b": 7}
    assert (task.description, task.completed, task.total) == ("Compiling two functions", 2, 2)
