"""The page on serving says what is so: its blocks of configuration are read as users' are."""

import re
from pathlib import Path

import pytest

from raylm.config.engine import DraftModel, PromptLookup
from raylm.config.load import load_config

PAGE = Path(__file__).parents[2].joinpath("docs/serving.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def read(block, tmp_path):
    (tmp_path / "raylm.yaml").write_text(block)
    return load_config(tmp_path / "raylm.yaml").config


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_configuration_is_read(block, tmp_path):
    read(block, tmp_path)


def test_both_ways_of_guessing_are_shown(tmp_path):
    shown = [block for block in BLOCKS if "speculation:" in block]
    found = [read(block, tmp_path).engine.speculation for block in shown]
    assert [type(one) for one in found] == [PromptLookup, DraftModel]
    assert found[0] == PromptLookup()
