"""The command line: `raylm`."""

from raylm.cli.main import main

__all__ = ["main"]
