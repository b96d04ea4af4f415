"""A run small enough for seconds: two layers of 64, on a package of the standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

TINY = """
name: tiny
data:
  paths: {corpus}
  pattern: "**/*.py"
  seq_len: 64
  held_out: 0.2
  tokenizer: {{vocab_size: 400}}
model: {{preset: llama-1m, hidden_size: 64, intermediate_size: 160, num_layers: 2}}
train:
  steps: 12
  global_batch: 8
  micro_batch: 2
  optimizer: {{lr: 1e-2}}
evaluate: {{max_samples: 16}}
compress:
  max_samples: 16
  gate: {{max_kl: 0.1, min_top1_agreement: 0.8, max_perplexity_ratio: 1.05}}
"""


def write_tiny(file: Path) -> Path:
    """Write it as a config file."""
    file.write_text(TINY.format(corpus=Path(sysconfig.get_path("stdlib"), "json")))
    return file
