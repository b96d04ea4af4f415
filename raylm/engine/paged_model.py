"""The compiled OpenVINO model with its paged key-value cache: token arrays in, logits out.

Knows nothing of requests or scheduling. The IR's attention is turned into OpenVINO's
PagedAttention when it is loaded (that operation cannot be stored in a file), and a gather of
the wanted rows is put before the vocabulary product, so that a prompt's tokens cost no
logits but the last one's.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from raylm.config.engine import EngineConfig
from raylm.engine.processor import Precision
from raylm.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

# Positions of PagedAttention's inputs, as its specification numbers them.
_SLIDING_WINDOW_INPUT = 10
_GROUPED_RANK = 3  # integer weights with several scales a row: rows, groups, columns of a group


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The tokens of one step, those of each sequence together.

    With T tokens, S sequences, B blocks and R wanted rows of logits.
    """

    token_ids: NDArray[np.int64]  # [T]
    position_ids: NDArray[np.int64]  # [T]
    past_lens: NDArray[np.int32]  # [S] tokens of each sequence that are in the cache already
    subsequence_begins: NDArray[np.int32]  # [S + 1] offsets into token_ids
    block_indices: NDArray[np.int32]  # [B]
    block_indices_begins: NDArray[np.int32]  # [S + 1] offsets into block_indices
    max_context_len: int  # longest past + new
    rows: NDArray[np.int64]  # [R] offsets into token_ids


class PagedModel:
    """One compiled model; used from one thread at a time."""

    def __init__(self, request: ov.InferRequest, caches: list[ov.Tensor], num_blocks: int) -> None:
        self._request = request
        self._caches = caches  # the request refers to them
        self.num_blocks = num_blocks
        self.block_size = int(caches[1].shape[2])

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Logits [R, vocab_size] of the wanted rows; valid until the next call.

        Keys and values of the batch's tokens are in the cache afterwards.
        """
        request = self._request
        for name, array in (
            ("input_ids", batch.token_ids),
            ("position_ids", batch.position_ids),
            ("past_lens", batch.past_lens),
            ("subsequence_begins", batch.subsequence_begins),
            ("block_indices", batch.block_indices),
            ("block_indices_begins", batch.block_indices_begins),
            ("rows", batch.rows),
        ):
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        request.set_tensor("max_context_len", ov.Tensor(np.array(batch.max_context_len, np.int32)))
        request.infer()
        logits: NDArray[np.float32] = request.get_output_tensor().data
        return logits[:, 0]

    def scrub(self, blocks: list[int]) -> None:
        """Zero blocks: NaNs left in them would pass through a masked product to their next user."""
        for cache in self._caches:
            cache.data[blocks] = 0

    def close(self) -> None:
        """Drop the model and the cache's memory."""
        del self._request
        self._caches.clear()


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """A model that has no memory for keys and values yet."""

    compiled: ov.CompiledModel
    block_bytes: int
    """Memory of one block's keys and values, in all layers."""

    def with_cache(self, num_blocks: int) -> PagedModel:
        """The model with so many blocks."""
        request = self.compiled.create_infer_request()
        tensors = []
        for port in _cache_ports(self.compiled):
            shape = [num_blocks, *(int(size.get_length()) for size in list(port.partial_shape)[1:])]
            tensor = ov.Tensor(port.element_type, shape)
            # Unwritten memory may hold NaNs, which would pass through a masked product.
            tensor.data[:] = 0
            request.set_tensor(port.any_name, tensor)
            tensors.append(tensor)
        log.info("%d blocks of %d bytes", num_blocks, self.block_bytes)
        return PagedModel(request, tensors, num_blocks)


def compile_paged_model(
    xml: Path, config: EngineConfig, precision: Precision, *, sliding_window: int = 0
) -> CompiledModel:
    """Read, transform and compile an IR; about a second for small models.

    Raises:
        ModelError: a layer's attention did not become paged attention.
    """
    core = ov.Core()
    model = core.read_model(xml)
    _to_paged_attention(model, sliding_window)
    _gather_rows(model)
    precision = _with_groups_that_fit(model, precision)
    compiled = core.compile_model(model, "CPU", _properties(config, precision))
    log.info("compiled %s: %s", xml, precision)
    return CompiledModel(compiled, sum(_block_bytes(port) for port in _cache_ports(compiled)))


def num_blocks_in(kv_cache_bytes: int, block_bytes: int) -> int:
    """Blocks that the configured memory holds.

    Raises:
        ConfigError: not a single one.
    """
    num_blocks = kv_cache_bytes // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"engine.kv_cache_bytes={kv_cache_bytes} is less than one block of {block_bytes} bytes",
            code="kv-cache-too-small",
        )
    return num_blocks


def _cache_ports(compiled: ov.CompiledModel) -> list[Any]:
    return [port for port in compiled.inputs if "_cache." in port.any_name]


def _to_paged_attention(model: ov.Model, sliding_window: int) -> None:
    before = _count(model, "ScaledDotProductAttention")
    paged_attention_transformation(model, False, False, False, False, False, False)
    model.validate_nodes_and_infer_types()
    paged = [op for op in model.get_ops() if op.get_type_name() == "PagedAttentionExtension"]
    if len(paged) != before or not paged:
        raise ModelError(
            f"{len(paged)} of {before} attention layers became paged attention",
            code="no-paged-attention",
            hint="use engine.kind=torch for this model",
        )
    if sliding_window:
        for op in paged:
            window = ops.constant(np.array(sliding_window, np.int32))
            op.input(_SLIDING_WINDOW_INPUT).replace_source_output(window.output(0))


def _gather_rows(model: ov.Model) -> None:
    product = model.output("logits").get_node().input_value(0).get_node()
    rows = ops.parameter([-1], ov.Type.i64)
    rows.set_friendly_name("rows")
    rows.output(0).get_tensor().set_names({"rows"})
    model.add_parameters([rows])
    wanted = ops.gather(product.input_value(0), rows, ops.constant(np.int64(0)))
    product.input(0).replace_source_output(wanted.output(0))
    model.validate_nodes_and_infer_types()


def _properties(config: EngineConfig, precision: Precision) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision.arithmetic,
        "KV_CACHE_PRECISION": precision.kv_cache,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    if config.num_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = config.num_threads
        # Pinning would put every replica of a machine on the same first cores.
        properties["ENABLE_CPU_PINNING"] = False
    # What the plugin would choose for itself is another size for each of its versions.
    properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = precision.activation_group
    return properties


def _with_groups_that_fit(model: ov.Model, precision: Precision) -> Precision:
    """Activations may share a scale only where their weights do: the plugin rounds none else."""
    sizes = [
        int(op.get_output_shape(0)[-1])
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
        and op.get_element_type() in (ov.Type.i4, ov.Type.i8)
        and len(op.get_output_shape(0)) == _GROUPED_RANK
    ]
    group = precision.activation_group
    return replace(precision, activation_group=group and math.gcd(group, *sizes))


def _block_bytes(port: Any) -> int:
    sizes = [int(size.get_length()) for size in list(port.partial_shape)[1:]]
    return math.prod(sizes) * int(port.element_type.size)


def _count(model: ov.Model, type_name: str) -> int:
    return sum(op.get_type_name() == type_name for op in model.get_ops())
