"""Another input for one part of a model, within one call of the whole.

A whole call is what ZeRO-3 needs: it gathers weights, and counts micro-batches, by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def first_input(module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within, `module` gets `change(x)` where it is called with `x` as its first argument."""

    def hook(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(arguments[0]), *arguments[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def named_input(module: Any, name: str, value: Any) -> Iterator[None]:
    """Within, `module` gets `value` for its keyword argument `name`."""

    def hook(
        _: Any, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, {**named, name: value}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def inner(model: Any) -> Any:
    """The transformers model itself, which DeepSpeed's engine holds as `module`."""
    return model.module if hasattr(model, "module") else model
