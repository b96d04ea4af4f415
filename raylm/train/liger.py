"""Liger's kernels for GPUs (arXiv 2410.10989), where the package `liger-kernel` is installed.

Norms, rotary positions and gated layers are dozens of small kernels in transformers, each of
which reads and writes all activations; Liger has one for each. Its fused head and loss stay out:
raylm has that already (raylm/train/fused_loss.py).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from raylm.errors import MissingExtra, ModelError

_OURS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def use_liger(model: Any, *, required: bool) -> bool:
    """Replace parts of a transformers model by Liger's; weights and names stay as they are.

    Some are replaced for all models of the kind in this process.

    Args:
        required: whether it is an error that they cannot be had.

    Returns:
        Whether they are used.

    Raises:
        MissingExtra: they are required, and the package is not installed.
        ModelError: they are required, and Liger has none for this kind of model.
    """
    if find_spec("liger_kernel") is None:
        if required:
            raise MissingExtra("liger-kernel", extra="liger")
        return False
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        if required:
            raise ModelError(
                f"Liger has no kernels for a model of type {kind!r}",
                code="no-liger-kernels",
                hint="leave train.liger out: they are taken where there are some",
            )
        return False
    _apply_liger_kernel_to_instance(model=model, **_OURS)
    return True
