"""Build the OpenVINO graph of a Llama-type decoder straight from its tensors.

The graph is the ordinary stateful one (input_ids, attention_mask, position_ids, beam_idx ->
logits; keys and values as variables), as optimum-intel exports it, so other OpenVINO tools
can run the file too. Attention is one ScaledDotProductAttention per layer, in the form that
OpenVINO's `paged_attention_transformation` turns into paged attention when raylm loads it.
Weights stay in the type they are stored in; the arithmetic around them is f32, which the
plugin may lower when it compiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.op import Constant
from openvino.op.util import Variable, VariableInfo

from raylm.engine.decoder import Decoder
from raylm.engine.quantized import IntegerWeight, integer_weight, is_quantized
from raylm.engine.weights import Checkpoint, StoredTensor

Node = Any  # openvino.Node or Output; its stubs do not type what the ops return

_DECOMPRESSES = "/decompress"  # ends the names of the nodes that widen stored weights
_TYPES = {"F32": ov.Type.f32, "F16": ov.Type.f16, "BF16": ov.Type.bf16, "I8": ov.Type.i8}


def write_ir(decoder: Decoder, weights: Checkpoint, path: Path) -> None:
    """Write `path` (.xml) and its .bin; logits are [batch, tokens, vocab_size] in f32."""
    # The model shares its tensors' memory, so both stay in scope until it is written.
    builder = _Builder(decoder, weights)
    ov.save_model(builder.model(), path, compress_to_fp16=False)
    _mark_decompressions(path)


def _mark_decompressions(path: Path) -> None:
    """Say of each 16-bit weight's Convert that it decompresses.

    The plugin then keeps the 16 bits in memory and widens them while it multiplies (m135 in
    bf16: 30 % less memory, 28 % less time a token at batch 1, exact); otherwise it widens
    them once and for all. It is an attribute of the node that Python cannot set.
    """
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        if layer.get("name", "").endswith(_DECOMPRESSES):
            info = ElementTree.Element("rt_info")
            ElementTree.SubElement(info, "attribute", name="decompression", version="0")
            layer.insert(1, info)  # after <data>
    tree.write(path)


class _Builder:
    def __init__(self, decoder: Decoder, weights: Checkpoint) -> None:
        self.decoder = decoder
        self.weights = weights
        self.input_ids = _input("input_ids", ov.Type.i64, 2)
        self.attention_mask = _input("attention_mask", ov.Type.i64, 2)
        self.position_ids = _input("position_ids", ov.Type.i64, 2)
        self.beam_idx = _input("beam_idx", ov.Type.i32, 1)
        self.kept: list[IntegerWeight] = []
        self.assigns: list[Node] = []
        self.variables: list[Variable] = []
        self.cos, self.sin = self._rotation()
        self.mask = self._mask()

    def model(self) -> ov.Model:
        decoder = self.decoder
        table = self._stored("model.embed_tokens.weight")
        hidden = ops.gather(table, self.input_ids, _i64(0))
        for layer in range(decoder.num_layers):
            prefix = f"model.layers.{layer}"
            normed = self._norm(hidden, f"{prefix}.input_layernorm")
            hidden = ops.add(hidden, self._attention(normed, layer))
            normed = self._norm(hidden, f"{prefix}.post_attention_layernorm")
            hidden = ops.add(hidden, self._mlp(normed, f"{prefix}.mlp"))
        hidden = self._norm(hidden, "model.norm")
        tied = decoder.tied and "lm_head.weight" not in self.weights
        logits = (
            ops.matmul(hidden, table, False, True)
            if tied and not is_quantized(self.weights, "lm_head")
            else self._linear(hidden, "lm_head")
        )
        logits = ops.result(logits, name="logits")
        logits.output(0).get_tensor().set_names({"logits"})
        inputs = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        return ov.Model([logits], self.assigns, inputs, self.variables, "decoder")

    def _attention(self, hidden: Node, layer: int) -> Node:
        decoder = self.decoder
        prefix = f"model.layers.{layer}.self_attn"
        query = self._heads(hidden, f"{prefix}.q", decoder.num_heads)
        key = self._heads(hidden, f"{prefix}.k", decoder.num_kv_heads)
        value = self._heads(hidden, f"{prefix}.v", decoder.num_kv_heads)
        query, key = self._rotate(query), self._rotate(key)
        keys = self._repeat(self._remember(key, f"past_key_values.{layer}.key"))
        values = self._repeat(self._remember(value, f"past_key_values.{layer}.value"))
        scale = _f32(decoder.head_dim**-0.5)
        mixed = ops.scaled_dot_product_attention(query, keys, values, self.mask, scale)
        mixed = ops.transpose(mixed, _i64([0, 2, 1, 3]))
        mixed = ops.reshape(mixed, _i64([0, 0, decoder.num_heads * decoder.head_dim]), True)
        return self._linear(mixed, f"{prefix}.o_proj")

    def _heads(self, hidden: Node, prefix: str, num_heads: int) -> Node:
        """Project and split: [batch, tokens, hidden] -> [batch, heads, tokens, head_dim]."""
        flat = self._linear(hidden, f"{prefix}_proj")
        heads = ops.reshape(flat, _i64([0, 0, num_heads, self.decoder.head_dim]), True)
        if f"{prefix}_norm.weight" in self.weights:  # Qwen3
            heads = self._norm(heads, f"{prefix}_norm")
        return ops.transpose(heads, _i64([0, 2, 1, 3]))

    def _rotate(self, heads: Node) -> Node:
        half = self.decoder.head_dim // 2
        first = ops.slice(heads, _i64([0]), _i64([half]), _i64([1]), _i64([3]))
        second = ops.slice(heads, _i64([half]), _i64([2**63 - 1]), _i64([1]), _i64([3]))
        turned = ops.concat([ops.multiply(second, _f32(-1.0)), first], -1)
        return ops.add(ops.multiply(heads, self.cos), ops.multiply(turned, self.sin))

    def _remember(self, new: Node, name: str) -> Node:
        """Append to the variable of this layer: [batch, kv_heads, past + tokens, head_dim]."""
        decoder = self.decoder
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, decoder.num_kv_heads, -1, decoder.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        batch = ops.gather(ops.shape_of(self.input_ids), _i64([0]), _i64(0))
        shape = ops.concat([batch, _i64([decoder.num_kv_heads, 0, decoder.head_dim])], 0)
        past = ops.read_value(ops.broadcast(_f32(0.0), shape), variable)
        whole = ops.concat([ops.gather(past, self.beam_idx, _i64(0)), new], 2)
        self.variables.append(variable)
        self.assigns.append(ops.assign(whole, variable))
        return whole

    def _repeat(self, heads: Node) -> Node:
        """Each key and value head serves a group of query heads."""
        decoder = self.decoder
        group = decoder.num_heads // decoder.num_kv_heads
        if group == 1:
            return heads
        spread = ops.broadcast(
            ops.unsqueeze(heads, _i64(2)), _i64([1, 1, group, 1, 1]), broadcast_spec="BIDIRECTIONAL"
        )
        return ops.reshape(spread, _i64([0, decoder.num_heads, -1, decoder.head_dim]), True)

    def _mlp(self, hidden: Node, prefix: str) -> Node:
        gate = _activate(self._linear(hidden, f"{prefix}.gate_proj"), self.decoder.activation)
        up = self._linear(hidden, f"{prefix}.up_proj")
        return self._linear(ops.multiply(gate, up), f"{prefix}.down_proj")

    def _linear(self, hidden: Node, prefix: str) -> Node:
        quantized = integer_weight(self.weights, prefix)
        weight = (
            self._stored(f"{prefix}.weight")
            if quantized is None
            else self._dequantized(quantized, prefix)
        )
        product = ops.matmul(hidden, weight, False, True)
        if f"{prefix}.bias" in self.weights:
            product = ops.add(product, self._stored(f"{prefix}.bias"))
        return product

    def _dequantized(self, quantized: IntegerWeight, prefix: str) -> Node:
        """Integers times scales, in the form that the plugin fuses into a matrix product."""
        self.kept.append(quantized)
        (rows, columns), groups = quantized.shape, quantized.scale.shape[1]
        grouped = groups > 1
        sizes = [rows, groups, columns // groups] if grouped else [rows, columns]
        kind = ov.Type.i8 if quantized.num_bits == 8 else ov.Type.i4
        integers = Constant(ov.Tensor(quantized.data, sizes, kind), shared_memory=True)
        integers.set_friendly_name(f"{prefix}.weight")
        scale = Constant(quantized.scale.reshape([*sizes[:-1], 1]), shared_memory=True)
        scale.set_friendly_name(f"{prefix}.weight_scale")
        weight = ops.multiply(ops.convert(integers, ov.Type.f32), scale)
        return ops.reshape(weight, _i64([rows, columns]), False) if grouped else weight

    def _norm(self, hidden: Node, prefix: str) -> Node:
        square = ops.power(hidden, _f32(2.0))
        mean = ops.reduce_mean(square, _i64([-1]), True)
        root = ops.sqrt(ops.add(mean, _f32(self.decoder.norm_epsilon)))
        unit = ops.multiply(hidden, ops.divide(_f32(1.0), root))
        return ops.multiply(unit, self._stored(f"{prefix}.weight"))

    def _stored(self, name: str) -> Node:
        """A constant in its stored type, brought to f32 in the graph."""
        constant = _constant(self.weights[name])
        constant.set_friendly_name(name)
        if constant.get_element_type() == ov.Type.f32:
            return constant
        widened = ops.convert(constant, ov.Type.f32)
        widened.set_friendly_name(name + _DECOMPRESSES)
        return widened

    def _rotation(self) -> tuple[Node, Node]:
        """Cosines and sines, each [batch, 1, tokens, head_dim]."""
        speeds = _f32(self.decoder.inverse_frequencies()[None, None, None, :])
        positions = ops.convert(ops.unsqueeze(self.position_ids, _i64([1, 3])), ov.Type.f32)
        angles = ops.multiply(positions, speeds)
        angles = ops.concat([angles, angles], -1)
        return ops.cos(angles), ops.sin(angles)

    def _mask(self) -> Node:
        """True where a token may look: [batch, 1, tokens, past + tokens]."""
        total = ops.gather(ops.shape_of(self.attention_mask), _i64(1), _i64(0))
        new = ops.gather(ops.shape_of(self.input_ids), _i64(1), _i64(0))
        columns = ops.range(_i64(0), total, _i64(1), ov.Type.i64)
        rows = ops.unsqueeze(
            ops.range(ops.subtract(total, new), total, _i64(1), ov.Type.i64), _i64(1)
        )
        seen = ops.less_equal(columns, rows)
        if self.decoder.sliding_window:
            near = ops.greater(columns, ops.subtract(rows, _i64(self.decoder.sliding_window)))
            seen = ops.logical_and(seen, near)
        real = ops.convert(ops.unsqueeze(self.attention_mask, _i64([1, 2])), ov.Type.boolean)
        return ops.logical_and(seen, real)


def _activate(values: Node, name: str) -> Node:
    if name in ("silu", "swish"):
        return ops.swish(values)
    if name == "relu":
        return ops.relu(values)
    return ops.gelu(values, "ERF" if name == "gelu" else "TANH")


def _constant(stored: StoredTensor) -> Node:
    kind = _TYPES[stored.dtype]
    return Constant(ov.Tensor(stored.data, list(stored.shape), kind), shared_memory=True)


def _input(name: str, kind: ov.Type, rank: int) -> Node:
    node = ops.parameter([-1] * rank, kind)
    node.set_friendly_name(name)
    node.output(0).get_tensor().set_names({name})
    return node


def _i64(value: int | list[int]) -> Node:
    return ops.constant(np.array(value, dtype=np.int64))


def _f32(value: float | NDArray[np.float32]) -> Node:
    return ops.constant(np.array(value, dtype=np.float32))
