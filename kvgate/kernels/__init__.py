"""Kernels that move KV on a GPU, each beside the NumPy twin that defines it. Needs CuPy only where one is launched."""
