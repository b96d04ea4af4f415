"""Low-rank adapters (LoRA, arXiv 2106.09685): two small matrices beside a linear layer's own.

A layer keeps the names of its weight and bias; the matrices are `lora_a` and `lora_b` beside
them. The written model has them added in and is a plain one; `raylm.train.adapter` writes them
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from raylm.config.train import LoraConfig
from raylm.errors import ConfigError


class LoraLinear(nn.Linear):
    """x W' + b + alpha / rank * dropout(x) A' B', with W and b as they were.

    B starts as zeros, so that nothing changes at first.
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.dropout, self.enabled = config.alpha / config.rank, config.dropout, True
        options: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_a = nn.Parameter(torch.empty(config.rank, self.in_features, **options))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, config.rank, **options))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)
        self.train(linear.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        result = F.linear(input, self.weight, self.bias)
        if not self.enabled:
            return result
        low = F.linear(F.dropout(input, self.dropout, self.training), self.lora_a)
        return result + self.scale * F.linear(low, self.lora_b)


def add_adapters(model: Any, config: LoraConfig) -> list[str]:
    """Freeze a model and give it adapters; a classifier's head goes on being trained whole.

    Returns:
        Names of the layers that have one.

    Raises:
        ConfigError: a target names no linear layer, or the head, which may share its weight.
    """
    head = set(head_layers(model))
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen = {
        name: module
        for name, module in linear.items()
        if name not in head and (not config.targets or _ends(name, config.targets))
    }
    for target in config.targets:
        if not any(_ends(name, (target,)) for name in chosen):
            endings = sorted({name.rpartition(".")[2] for name in linear if name not in head})
            raise ConfigError(
                f"train.lora.targets: no linear layer but the head ends with {target!r}",
                code="lora-target",
                hint=f"the model has {', '.join(endings)}",
            )
    model.requires_grad_(False)
    for name, module in chosen.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoraLinear(module, config))
    if hasattr(model, "classifier") or hasattr(model, "score"):
        for name in head:
            model.get_submodule(name).requires_grad_(True)
    return list(chosen)


def head_layers(model: Any) -> Iterator[str]:
    """Linear layers outside the base model, and its pooler."""
    base = f"{model.base_model_prefix}." if model.base_model is not model else ""
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        outside = not name.startswith(base) or ".pooler." in name
        if isinstance(module, nn.Linear) and (outside or module is output):
            yield name


def _ends(name: str, targets: tuple[str, ...]) -> bool:
    return any(f".{name}".endswith(f".{target}") for target in targets)


def has_adapters(model: Any) -> bool:
    """Whether `add_adapters` was called on the model."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Within, the model is what it was without its adapters."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def merged_state(model: Any) -> dict[str, torch.Tensor]:
    """The model's state with the adapters added to the weights, under the plain names."""
    state: dict[str, torch.Tensor] = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            low, high = (state.pop(f"{name}.{part}").float() for part in ("lora_a", "lora_b"))
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = (weight.float() + module.scale * high @ low).to(weight.dtype)
    return state
