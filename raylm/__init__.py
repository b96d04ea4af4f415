"""raylm: train, compress and serve language models on Ray, from one file."""

__version__ = "0.1.0"
