"""A model artifact in, a smaller one out, accepted only by what was measured."""
