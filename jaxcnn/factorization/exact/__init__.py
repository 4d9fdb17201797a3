"""The same function with other kernels, exactly."""
