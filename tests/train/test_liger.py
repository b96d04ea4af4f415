"""Liger's kernels beside transformers' own modules.

They are Triton's, which has an interpreter for CPUs: real kernels, slowly, in a process of their
own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from transformers import BertConfig, BertForMaskedLM

from raylm.errors import MissingExtra, ModelError
from raylm.train import liger
from raylm.train.liger import use_liger

has_liger = pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger is not installed")
SCRIPT = """
import liger_kernel.ops.rms_norm
import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from transformers import LlamaForCausalLM
from raylm.config.train import LoraConfig
from raylm.model.build import llama_config
from raylm.model.shapes import DecoderShape
from raylm.train.liger import use_liger
from raylm.train.lora import add_adapters

# What the interpreter (Triton 3.9) lacks: a compiled kernel gets a float as a scalar of its own,
# and has the functions of CUDA's library.
liger_kernel.ops.rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)
convert = interpreter._implicit_cvt

def scalar(arg):
    if type(arg) is not float:
        return convert(arg)
    handle = interpreter.TensorHandle(np.array([arg], np.float32), tl.float32)
    return tl.tensor(handle, tl.float32)

interpreter._implicit_cvt = scalar
torch.manual_seed(0)
model = LlamaForCausalLM(llama_config(DecoderShape(32, 64, 2, 4, 2, 64), 50, {}))
add_adapters(model, LoraConfig(rank=2))
for name, parameter in model.named_parameters():
    if name.endswith("lora_b"):
        torch.nn.init.normal_(parameter)
ids = torch.randint(0, 50, (2, 16))

def gradients():
    loss = model(ids, labels=ids).loss
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss, *torch.autograd.grad(loss, trained)]

plain = gradients()
assert use_liger(model, required=True)
for part in (model.model.layers[0].mlp, model.model.norm):
    assert "Liger" in part.forward.__func__.__qualname__, part.forward
torch.testing.assert_close(gradients(), plain, rtol=1e-3, atol=1e-5)
print("the same", len(plain))
"""


@has_liger
def test_a_llama_with_adapters_learns_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the same ")


def bert() -> BertForMaskedLM:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64,
        )
    )  # fmt: skip


@has_liger
def test_a_model_that_liger_does_not_know_stays_as_it_is_unless_it_must_not() -> None:
    model = bert()
    before = [type(module) for module in model.modules()]
    assert use_liger(model, required=False) is False
    assert [type(module) for module in model.modules()] == before
    with pytest.raises(ModelError, match="no kernels for a model of type 'bert'"):
        use_liger(model, required=True)


def test_without_the_package_it_is_left_out_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Any:
        return None

    monkeypatch.setattr(liger, "find_spec", none)
    assert use_liger(bert(), required=False) is False
    with pytest.raises(MissingExtra) as caught:
        use_liger(bert(), required=True)
    assert caught.value.hint == "pip install 'raylm[liger]'"
