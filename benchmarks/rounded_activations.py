"""What rounding activations to 8 bits gains and costs, by how many columns share a scale.

    python benchmarks/rounded_activations.py MODEL [--text FILE] [--groups 0 32 64 128]

MODEL is a folder with integer weights; 0 rounds nothing. Times are of the processor, which other
work beside it changes little: the least of several steps on one core, taken in turns, of a prompt
of 512 tokens, and of one token each of 1, 8 and 32 sequences of 128.
With --text, what the model says of it in pieces of 512 tokens: perplexity, and beside the model
without rounding the divergence of its probabilities, and how often its likeliest token is the same.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.batch import token_batch
from raylm.engine.convert import convert
from raylm.engine.paged_model import PagedModel, TokenBatch, compile_paged_model
from raylm.engine.processor import Precision
from raylm.engine.scheduler import Slice, Step
from raylm.engine.sequence import new_sequence

PIECE = 512
PAST = 128
BATCHES = (1, 8, 32)
NUM_BLOCKS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--groups", type=int, nargs="+", default=[0, 32, 64, 128])
    parser.add_argument("--pieces", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    config = EngineConfig(num_threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        convert(options.model, Path(scratch, "ir"))
        models = {
            group: compile_paged_model(
                Path(scratch, "ir/model.xml"), config, Precision("f32", "f32", group)
            ).with_cache(NUM_BLOCKS)
            for group in options.groups
        }
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size()
    batches = [prompts(1, PIECE, vocab_size), *(nexts(size, vocab_size) for size in BATCHES)]
    least_ms = np.full((len(models), len(batches)), np.inf)
    for _ in range(options.rounds):
        for row, model in enumerate(models.values()):
            for column, make in enumerate(batches):
                batch = make(model)
                began_s = time.process_time()
                model.forward(batch)
                took_ms = 1e3 * (time.process_time() - began_s)
                least_ms[row, column] = min(least_ms[row, column], took_ms)
    print("| group | 512 of prompt, ms | 1, ms | 8, ms | 32, ms |\n|---|---|---|---|---|")
    for group, times in zip(models, least_ms, strict=True):
        print(f"| {group} |", " | ".join(f"{ms:.1f}" for ms in times), "|")
    print(f"\nload average {os.getloadavg()[0]:.1f}")
    if options.text is not None:
        ids = tokenizer.encode(options.text.read_text(), add_special_tokens=False).ids
        compare(models, np.array(ids[: options.pieces * PIECE + 1], np.int64))


def compare(models: dict[int, PagedModel], ids: NDArray[np.int64]) -> None:
    """Print what each model says of a text beside the first of them."""
    print("\n| group | perplexity | divergence, nats | same likeliest |\n|---|---|---|---|")
    figures: dict[int, list[tuple[float, float, float]]] = {group: [] for group in models}
    for begin in range(0, len(ids) - PIECE, PIECE):
        piece, following = ids[begin : begin + PIECE], ids[begin + 1 : begin + PIECE + 1]
        reference: NDArray[np.float64] | None = None
        for group, model in models.items():
            found = _log_softmax(model.forward(_whole(model, piece)))
            reference = found if reference is None else reference
            figures[group].append(
                (
                    -float(found[np.arange(PIECE), following].mean()),
                    float((np.exp(reference) * (reference - found)).sum(1).mean()),
                    float((found.argmax(1) == reference.argmax(1)).mean()),
                )
            )
    for group, values in figures.items():
        loss, divergence, same = np.mean(values, axis=0)
        print(f"| {group} | {np.exp(loss):.4f} | {divergence:.1e} | {same:.2%} |")


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    seen = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = seen - np.log(np.exp(seen).sum(axis=1, keepdims=True))
    return found


def _whole(model: PagedModel, ids: NDArray[np.int64]) -> TokenBatch:
    """One sequence, of which all logits are wanted."""
    sequence = new_sequence("text", ids.tolist(), num_scored=len(ids))
    sequence.blocks.extend(range(-(-len(ids) // model.block_size)))
    return token_batch(Step([Slice(sequence, 0, len(ids))], []), model.block_size)


def prompts(count: int, length: int, vocab_size: int) -> Callable[[PagedModel], TokenBatch]:
    """A step that reads prompts."""
    return lambda model: _batch(model, count, 0, length, vocab_size)


def nexts(count: int, vocab_size: int) -> Callable[[PagedModel], TokenBatch]:
    """A step of one token each."""
    return lambda model: _batch(model, count, PAST, 1, vocab_size)


def _batch(model: PagedModel, count: int, past: int, length: int, vocab_size: int) -> TokenBatch:
    parts = []
    each = -(-(past + length) // model.block_size)
    for index in range(count):
        ids = [(7919 * index + 104729 * place) % vocab_size for place in range(past + length)]
        sequence = new_sequence(str(index), ids)
        sequence.blocks.extend(range(index * each, (index + 1) * each))
        parts.append(Slice(sequence, past, length))
    return token_batch(Step(parts, []), model.block_size)


if __name__ == "__main__":
    main()
