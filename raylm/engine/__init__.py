"""Engines: a model artifact in, tokens out. The contract is in `protocol`."""
