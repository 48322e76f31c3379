"""The results of papers, each as one command; see ``python -m benchmarks.papers --help``."""
