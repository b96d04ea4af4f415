"""Where a configuration runs: the Ray cluster on this machine."""
