"""Local steps against gradients at every step, on slow networks: ``python -m benchmarks.network --help``."""
