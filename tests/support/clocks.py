"""A clock that only the functions under test advance."""

from __future__ import annotations


class Clock:
    """Seconds that pass while a function under test is called."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def takes(self, *seconds, name=None):
        """Returns a function whose successive calls take these times, the last one for ever."""
        times = list(seconds)

        def call():
            self.calls.append(name)
            self.now += times.pop(0) if len(times) > 1 else times[0]

        return call
