"""One YAML file describes a run; `load_config` reads it and refuses what it does not know."""

from raylm.config.load import Loaded, load_config
from raylm.config.run import RunConfig

__all__ = ["Loaded", "RunConfig", "load_config"]
