"""The computation on a CPU, in Numba. The functions of the folder above fill its records."""
