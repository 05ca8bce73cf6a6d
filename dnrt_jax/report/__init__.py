"""Figures of runs, and a page that compares them: python -m dnrt_jax.report --help."""
