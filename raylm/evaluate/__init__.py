"""Held-out text in, figures out; and `compare`, the gate that every later stage uses."""
