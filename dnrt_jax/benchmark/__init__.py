"""What things cost, side by side on the machine at hand: python -m dnrt_jax.benchmark --help."""
