"""The simulator: NumPy and SciPy only."""
