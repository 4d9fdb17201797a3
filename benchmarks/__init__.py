"""Benchmarks of jaxcnn: `asv/` across commits, `peers/` beside other libraries, `choice/` behind the cost model."""
