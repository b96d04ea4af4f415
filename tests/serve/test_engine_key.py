"""Kept answers are found again under settings that give the same text, and under no others."""

from __future__ import annotations

from typing import Any

import pytest

from raylm.config.engine import EngineConfig
from raylm.serve.results import engine_key

# Every field of EngineConfig is in one of the two, with a value that is not its default. What
# rounds otherwise changes texts, too: greedy choices that are almost ties fall the other way.
MAY_CHANGE_TEXTS: dict[str, Any] = {
    "kind": "torch",
    "precision": "bf16",
    "dynamic_quantization": "off",
    "kv_cache": "f32",
    "kv_cache_bytes": 2**30,  # where it runs out, sequences are computed anew in other steps
    "prefix_cache": False,
    "speculation": {"kind": "prompt_lookup", "num_tokens": 2},
    "max_batch_size": 2,
    "max_batch_tokens": 64,
    "max_context_tokens": 100,
    "vllm": {"python": "/envs/vllm/bin/python", "device": "cpu"},
}
NEVER_CHANGE_TEXTS: dict[str, Any] = {
    "max_waiting": 1,
    "step_timeout_s": 1.0,
    "num_threads": 1,
}


def test_every_setting_of_engines_is_decided_on():
    decided = MAY_CHANGE_TEXTS.keys() | NEVER_CHANGE_TEXTS.keys()
    assert EngineConfig.model_fields.keys() == decided, (
        "a setting of EngineConfig was added or removed: say in this table whether it may change "
        "a text, and mark it OUTSIDE_KEY if it never does"
    )
    assert not MAY_CHANGE_TEXTS.keys() & NEVER_CHANGE_TEXTS.keys()


@pytest.mark.parametrize("name", MAY_CHANGE_TEXTS)
def test_what_may_change_a_text_is_part_of_the_key(name):
    changed = EngineConfig.model_validate({name: MAY_CHANGE_TEXTS[name]})
    assert getattr(changed, name) != getattr(EngineConfig(), name)
    assert engine_key(changed) != engine_key(EngineConfig())


@pytest.mark.parametrize("name", ["num_threads", "step_timeout_s"])
def test_how_fast_an_engine_is_keeps_its_answers(name):
    changed = EngineConfig.model_validate({name: NEVER_CHANGE_TEXTS[name]})
    assert engine_key(changed) == engine_key(EngineConfig())


def test_the_settings_of_speculation_are_part_of_the_key_too():
    keys = {
        engine_key(EngineConfig.model_validate({"speculation": {"kind": "prompt_lookup", **more}}))
        for more in ({}, {"num_tokens": 2}, {"ngram": 2})
    }
    assert len(keys) == 3
