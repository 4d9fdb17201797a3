"""First calls of the demo's functions."""

from jaxcnn.demo import timing
from support import demo_networks
from support.clocks import Clock


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
