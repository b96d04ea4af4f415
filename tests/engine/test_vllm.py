"""What of the vLLM engine needs no vLLM: what it is told, what it draws, where it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from raylm.config.engine import EngineConfig, PromptLookup, VllmConfig
from raylm.engine.answer import Answer
from raylm.engine.load import load, takes_vllm
from raylm.engine.protocol import Capabilities, Request, Sampling
from raylm.engine.sampler import Sampled, sample
from raylm.engine.vllm.arguments import (
    PROCESSOR,
    check_decoder,
    engine_arguments,
    sampling_arguments,
)
from raylm.engine.vllm.draw import ORDER, Draw, order
from raylm.engine.vllm.interpreter import ask, check, check_interpreter
from raylm.errors import ConfigError, HostError, ModelError
from tests.engine.conftest import EOS, VOCAB_SIZE

ABLE = Capabilities("vllm", 512, VOCAB_SIZE, (EOS,))
CPU = VllmConfig(python=sys.executable, device="cpu")
CUDA = VllmConfig(python=sys.executable)
GREEDY = Sampling(max_tokens=8, temperature=0.0)
STEERED = Sampling(
    max_tokens=24,
    temperature=1.3,
    top_p=0.9,
    top_k=100,
    min_p=0.01,
    seed=2**62 + 3,
    repetition_penalty=1.2,
    frequency_penalty=0.4,
    presence_penalty=0.2,
    min_tokens=6,
    logit_bias=((3, 2.0), (EOS, 4.0)),
)


def asked(sampling: Sampling, emitted: tuple[int, ...] = ()) -> Request:
    return Request("r", (5, 6, 7), sampling, emitted)


def test_vllm_takes_the_likeliest_by_itself_and_nothing_else():
    for plain in (GREEDY, replace(GREEDY, temperature=1.0, top_k=1), replace(GREEDY, seed=4)):
        assert order(asked(plain), ABLE) is None
    for steered in (
        {"temperature": 0.1},
        {"repetition_penalty": 1.1},
        {"frequency_penalty": 0.1},
        {"presence_penalty": -0.1},
        {"logit_bias": ((3, 1.0),)},
        {"min_tokens": 2},
    ):
        assert order(asked(replace(GREEDY, **steered)), ABLE) is not None
    # An end token that is ignored may come at any time.
    assert order(asked(replace(GREEDY, min_tokens=2, ignore_eos=True)), ABLE) is None


def drawn_by_other_engines(request: Request, logits: np.ndarray, tokenizer: Any) -> list[int]:
    answer, found = Answer(request, tokenizer, ABLE), []
    for position in range(len(request.emitted_ids), len(logits)):
        (chosen,) = sample(logits[position : position + 1], [answer.row()])
        assert isinstance(chosen, Sampled)
        answer.take(chosen)
        found.append(chosen.token_id)
    return found


def drawn_inside_vllm(request: Request, logits: np.ndarray) -> list[int]:
    told = json.loads(json.dumps(order(request, ABLE)))  # as plain as what crosses a process
    draw, made = Draw(told, [*request.prompt_ids, *request.emitted_ids]), []
    for position in range(len(request.emitted_ids), len(logits)):
        (chosen,) = sample(logits[position : position + 1], [draw.row(made)])
        assert isinstance(chosen, Sampled)
        made.append(chosen.token_id)
    return made


@pytest.mark.parametrize("changed", [{}, {"ignore_eos": True}, {"temperature": 0.0}])
def test_the_draw_inside_vllm_is_that_of_all_engines_also_when_it_is_continued(tokenizer, changed):
    logits = np.random.default_rng(3).normal(0, 2, (20, VOCAB_SIZE)).astype(np.float32)
    request = asked(replace(STEERED, **changed))
    whole = drawn_by_other_engines(request, logits, tokenizer)
    assert drawn_inside_vllm(request, logits) == whole
    for emitted in (1, 5, 13):
        rest = drawn_inside_vllm(replace(request, emitted_ids=tuple(whole[:emitted])), logits)
        assert rest == whole[emitted:]
    other = replace(request, sampling=replace(request.sampling, seed=1))
    assert changed.get("temperature") == 0.0 or drawn_inside_vllm(other, logits) != whole


def test_a_row_that_vllm_has_preempted_is_drawn_as_before(tokenizer):
    logits = np.random.default_rng(4).normal(0, 2, (12, VOCAB_SIZE)).astype(np.float32)
    request = asked(STEERED)
    whole = drawn_inside_vllm(request, logits)
    told = order(request, ABLE)
    assert told is not None
    (chosen,) = sample(logits[7:8], [Draw(told, request.prompt_ids).row(whole[:7])])
    assert isinstance(chosen, Sampled) and chosen.token_id == whole[7]


def test_a_request_is_told_to_vllm_without_what_raylm_does_itself():
    told = sampling_arguments(asked(replace(GREEDY, stop=("x",), num_logprobs=2)), ABLE, 8)
    assert told == {
        "temperature": 0.0,
        "max_tokens": 8,
        "stop_token_ids": [EOS],
        "ignore_eos": True,
        "detokenize": False,
        "logprobs": 2,
        "prompt_logprobs": None,
        "extra_args": None,
    }
    scored = replace(STEERED, num_prompt_logprobs=1, ignore_eos=True)
    told = sampling_arguments(asked(scored), ABLE, 24)
    assert told["prompt_logprobs"] == 1 and told["stop_token_ids"] == []
    assert told["extra_args"].keys() == {ORDER} and told["temperature"] == 0.0
    continued = sampling_arguments(asked(scored, (8, 9)), ABLE, 24)
    assert continued["max_tokens"] == 22 and continued["prompt_logprobs"] is None


def test_the_config_is_told_to_vllm(tmp_path):
    config = EngineConfig(
        precision="bf16", kv_cache_bytes=2**22, max_batch_size=16, max_batch_tokens=64,
        max_context_tokens=100, prefix_cache=False,
    )  # fmt: skip
    told = engine_arguments(tmp_path, config, CPU)
    assert told["kv_cache_memory_bytes"] == 2**22 and "gpu_memory_utilization" not in told
    assert (told["max_num_seqs"], told["max_num_batched_tokens"]) == (16, 64)
    assert (told["dtype"], told["max_model_len"]) == ("bfloat16", 100)
    assert told["enable_prefix_caching"] is False and told["trust_remote_code"] is False
    assert told["logits_processors"] == [PROCESSOR] and told["load_format"] == "safetensors"
    assert told["distributed_executor_backend"] is None
    four = VllmConfig(python="python", tensor_parallel=4, memory_share=0.5)
    told = engine_arguments(tmp_path, config, four)
    assert told["gpu_memory_utilization"] == 0.5 and "kv_cache_memory_bytes" not in told
    assert (told["tensor_parallel_size"], told["distributed_executor_backend"]) == (4, "ray")


@pytest.mark.parametrize(
    ("asked_for", "code"),
    [
        ({"speculation": PromptLookup()}, "unsupported-speculation"),
        ({"dynamic_quantization": "on"}, "unsupported-quantization"),
        ({"kv_cache": "u8"}, "unsupported-kv-cache"),
        ({"kv_cache": "f32", "precision": "bf16"}, "unsupported-kv-cache"),
    ],
)
def test_what_it_lacks_is_refused(asked_for, code, llama, tmp_path):
    config = EngineConfig(kind="vllm", vllm=CPU, **asked_for)
    with pytest.raises(ConfigError) as error:
        load(llama, config, cache_root=tmp_path, digest="d")
    assert error.value.code == code


def test_without_its_environment_it_says_what_is_missing(llama, tmp_path):
    with pytest.raises(ConfigError, match=r"engine\.vllm\.python") as error:
        load(llama, EngineConfig(kind="vllm"), cache_root=tmp_path, digest="d")
    assert error.value.code == "no-vllm"
    with pytest.raises(HostError, match="not installed") as error:
        load(llama, EngineConfig(kind="vllm", vllm=CPU), cache_root=tmp_path, digest="d")
    assert error.value.code == "no-vllm"
    with pytest.raises(ValidationError, match="tensor_parallel is of GPUs"):
        VllmConfig(python="python", device="cpu", tensor_parallel=2)


def test_auto_takes_it_for_decoders_where_its_environment_is_named(llama, tmp_path):
    assert takes_vllm(llama, EngineConfig(kind="vllm"))
    assert takes_vllm(llama, EngineConfig(vllm=CUDA))
    for config in (
        EngineConfig(),
        EngineConfig(vllm=CPU),
        EngineConfig(kind="openvino", vllm=CUDA),
    ):
        assert not takes_vllm(llama, config)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    assert not takes_vllm(tmp_path, EngineConfig(vllm=CUDA))
    with pytest.raises(ModelError, match="answers with decoders"):
        check_decoder(tmp_path)
    check_decoder(llama)


def test_auto_goes_on_without_it_in_a_process_that_has_none(llama, tmp_path, caplog):
    config = EngineConfig(vllm=CUDA, kv_cache_bytes=2**21)
    with caplog.at_level("INFO", logger="raylm.engine.load"):
        engine = load(llama, config, cache_root=tmp_path, digest="d")
    assert engine.capabilities().engine == "openvino"
    assert "another environment" in caplog.text
    engine.close()


def test_the_interpreter_is_asked_what_it_has():
    found = ask(sys.executable)
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found["ray"] == version("ray") and found["raylm"] is not None
    assert found["vllm"] is None
    with pytest.raises(ConfigError, match="has no vllm") as error:
        check_interpreter(CPU)
    assert error.value.code == "vllm-python" and error.value.hint is not None
    with pytest.raises(ConfigError, match="cannot be run"):
        ask("/nowhere/python")


@pytest.mark.parametrize(
    ("has", "says"),
    [
        ({}, None),
        ({"raylm": None}, "has no raylm"),
        ({"ray": "2.40.0"}, "has ray 2.40.0, and this cluster 2.60.0"),
        ({"python": "3.12"}, "has python 3.12, and this cluster 3.11"),
    ],
)
def test_an_interpreter_that_cannot_join_the_cluster_is_refused(has, says):
    found = {"python": "3.11", "ray": "2.60.0", "vllm": "0.32.0", "raylm": ""} | has
    if says is None:
        check("p", found, own_python="3.11", own_ray="2.60.0")
        return
    with pytest.raises(ConfigError) as error:
        check("p", found, own_python="3.11", own_ray="2.60.0")
    assert says in error.value.message


_PARENT = """
import subprocess, sys, time
from raylm.engine.vllm.orphans import Guard
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
guard = Guard([child.pid])
print(child.pid, flush=True)
if sys.argv[1] == "close":
    guard.close()
    child.wait(60)
else:
    time.sleep(600)
"""


@pytest.mark.parametrize("ends", ["killed", "close"])
def test_what_vllm_started_ends_with_its_replica(ends):
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, ends], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    if ends == "killed":
        parent.kill()
    assert parent.wait(60) == (-9 if ends == "killed" else 0)
    gone, _ = psutil.wait_procs([child], timeout=60)
    parent.stdout.close()
    assert gone == [child]
