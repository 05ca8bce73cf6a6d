"""Benchmarks of speed and memory: python -m dnrt_jax.benchmark --help."""
