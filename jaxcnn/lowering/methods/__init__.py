"""Methods of computing a convolution, one file each."""
