"""Benchmarks of jaxcnn for airspeed velocity: `make bench` runs them, `make dashboard` shows the results."""
