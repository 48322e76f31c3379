"""Side-by-side speed of bare PyTorch, fedlearn and other frameworks: ``python -m benchmarks.speed --help``."""
