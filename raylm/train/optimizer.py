"""The optimizer of a training: which parameters follow what, at which share of the rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raylm.config.train import TrainConfig
from raylm.train.lora import head_layers
from raylm.train.muon import Orthogonal


def make_optimizer(model: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon and AdamW, with decay on matrices only.

    AdamW's step is torch's fused one: on a CPU core the same figures but for the last bit, in a
    ninth of the time and without temporaries. Every group has its peak rate in `peak_lr`.
    """
    options = config.optimizer
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = hidden_matrices(model) if options.name == "muon" else []
    orthogonal = {id(p) for p in hidden}
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in trained if p.ndim >= 2 and id(p) not in orthogonal],
            "weight_decay": options.weight_decay,
            "peak_lr": options.lr,
        },
        {
            "params": [p for p in trained if p.ndim < 2],
            "weight_decay": 0.0,
            "peak_lr": options.lr,
        },
    ]
    more: dict[str, Any] = {
        # The rate of a step is set before it; none must move a weight before the first.
        "lr": 0.0, "betas": (options.beta1, options.beta2), "eps": options.eps,
        "fused": True,
    }  # fmt: skip
    if options.name == "adamw":
        return torch.optim.AdamW(groups, **more)
    muon = {
        "params": hidden,
        "shapes": [tuple(p.shape) for p in hidden],
        "weight_decay": options.weight_decay,
        "momentum": options.muon_momentum,
        "peak_lr": options.muon_lr or options.lr,
    }
    return Orthogonal([*groups, muon], config.zero, **more)


def hidden_matrices(model: Any) -> list[nn.Parameter]:
    """The trained matrices that are neither an embedding nor a head, in the model's order."""
    heads = set(head_layers(model))
    outside = {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or name in heads
        for parameter in module.parameters(recurse=False)
    }
    return [
        p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in outside
    ]
