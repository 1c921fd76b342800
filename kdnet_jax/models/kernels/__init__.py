"""Convolution and normalisation of the U-Net on a CPU, by oneDNN through XLA's foreign functions.

`ops` holds the functions, `build` compiles `kernels.cc` once per machine.
"""
