"""Kernels that move and quantise KV, each beside the NumPy twin that defines it. CuPy only where one is launched."""
