"""Fits of chains to the responses of a layer to calibration inputs."""
