"""Kernels of our own, for what speculative decoding does most and libraries do least well."""
