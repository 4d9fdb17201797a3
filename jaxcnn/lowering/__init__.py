"""The ways of computing one convolution or pool, and the choice among them."""
