"""torch.compile of a model's layers: all layers share one compiled graph."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from raylm.config.train import TrainConfig
from raylm.errors import HostError


def compile_layers(model: Any) -> int:
    """Have every layer compiled at its first call; names and weights stay as they are.

    Layers are what transformers never splits over devices. Embedding, head and loss stay eager:
    the loss goes through the head by blocks (`raylm.train.fused_loss`).

    Returns:
        The number of layers.

    Raises:
        HostError: there is no C++ compiler, which torch needs for it.
    """
    names = os.environ.get("CXX"), "g++", "clang++", "c++"
    if not any(shutil.which(name) for name in names if name):
        raise HostError(
            "train.compile needs a C++ compiler on every node of the training, and there is none",
            code="no-compiler",
            hint="install g++ (Debian: apt-get install g++), or set train.compile: false",
        )
    # One graph is nothing to share out, and helper processes would outlive a killed rank.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers: list[nn.Module] = [m for m in model.modules() if type(m).__name__ in kinds]
    for layer in layers:
        # Shapes change with uneven shares alone; one graph of each keeps a resumed run the same.
        layer.compile(dynamic=False)
    return len(layers)


def uncompiled(config: TrainConfig) -> AbstractContextManager[object]:
    """Within, layers run as they are: what is done once is not worth a graph of its own."""
    if not config.compile:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
