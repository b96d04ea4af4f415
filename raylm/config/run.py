"""RunConfig: everything that one file says about a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raylm.config.cluster import ClusterConfig
from raylm.config.compress import CompressConfig
from raylm.config.data import DataConfig
from raylm.config.deploy import DeployConfig
from raylm.config.engine import EngineConfig
from raylm.config.evaluate import EvaluateConfig
from raylm.config.model import ModelConfig
from raylm.config.section import OUTSIDE_KEY, Section
from raylm.config.serve import ServeConfig
from raylm.config.train import TrainConfig


class RunConfig(Section):
    """Everything that one file says about a run."""

    name: str = Field("run", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Names the run and what comes of it: lower case, digits, dot, dash, underscore."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides the split, the first weights and the order of samples."""
    store: Annotated[str | None, OUTSIDE_KEY] = None
    """Folder of artifacts and runs, or an s3:// or gs:// URL of artifacts; None takes
    $RAYLM_STORE or ~/.raylm."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compress: CompressConfig = CompressConfig()
    engine: EngineConfig = EngineConfig()
    serve: ServeConfig = ServeConfig()
    cluster: Annotated[ClusterConfig, OUTSIDE_KEY] = ClusterConfig()
    deploy: Annotated[DeployConfig, OUTSIDE_KEY] = DeployConfig()

    @model_validator(mode="after")
    def _context_holds_a_sequence(self) -> RunConfig:
        limit = self.model.max_context_tokens
        if limit is not None and limit < self.data.seq_len:
            raise ValueError(
                f"model.max_context_tokens={limit} is less than data.seq_len={self.data.seq_len}"
            )
        return self
