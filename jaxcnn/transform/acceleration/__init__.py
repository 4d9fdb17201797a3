"""`accelerate`: any JAX function with its convolutions and pools computed by jaxcnn."""
