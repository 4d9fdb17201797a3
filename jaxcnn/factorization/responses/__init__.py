"""Fits chains to what a layer answers on calibration inputs."""
