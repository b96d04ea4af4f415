import json

import numpy as np
import pytest

from raylm.engine.decoder import eos_token_ids, parse_decoder
from raylm.errors import ModelError
from raylm.model.folder import read_config

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_defaults_are_those_of_transformers():
    decoder = parse_decoder(CONFIG)
    assert (decoder.head_dim, decoder.num_kv_heads, decoder.sliding_window) == (16, 4, 0)
    assert (decoder.norm_epsilon, decoder.activation, decoder.tied) == (1e-6, "silu", False)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        LLAMA3,
    ],
)
def test_frequencies_equal_those_of_transformers(rope):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = {**CONFIG, "head_dim": 64, "rope_parameters": rope}
    expected = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=64, head_dim=64, max_position_embeddings=512, rope_parameters=dict(rope)
        )
    ).inv_freq.numpy()
    found = parse_decoder(config).inverse_frequencies()
    assert np.allclose(found, expected, rtol=1e-6, atol=0)


def test_the_older_spelling_of_rope_is_read_too():
    old = {**CONFIG, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {**CONFIG, "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}
    assert parse_decoder(old) == parse_decoder(new)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": None},
        {"hidden_act": "tanhshrink"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 9},
    ],
)
def test_what_is_not_covered_is_named(changes):
    with pytest.raises(ModelError) as error:
        parse_decoder({**CONFIG, **changes})
    assert error.value.code == "unsupported-architecture"
    assert "torch" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "missing-config"), ("{", "bad-config"), ('{"auto_map": {}}', "remote-code")],
)
def test_a_folder_that_cannot_be_used(tmp_path, content, code):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as error:
        read_config(tmp_path)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [3, 4]}, {"eos_token_id": 2}, (3, 4)),
        ({"eos_token_id": 3}, {}, (3,)),
        ({}, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": None}, ()),
    ],
)
def test_end_tokens_come_from_the_generation_config_first(tmp_path, generation, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert eos_token_ids(tmp_path) == expected
