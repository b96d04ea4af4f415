"""What the vocabulary's logits cost: kept in the graph, or handed out and sampled from here.

    python benchmarks/vocabulary.py [--vocab 49152] [--hidden 576] [--batches 1 8 32]

First the product with the vocabulary alone, as OpenVINO compiles it: with logits as its result;
with the likeliest token, or the 64 likeliest, in the graph besides or instead; with the 64 blocks
of 128 logits that hold the 64 likeliest instead, by their maxima, which is the cheapest way to find
them there. Then raylm's sampler on logits of standard deviation 6. Milliseconds of the processor
for all rows, the least of several on one core, taken in turns; what else runs changes them little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from raylm.engine.protocol import Sampling
from raylm.engine.sampler import Floats, Row, sample

NUM_LIKELIEST = 64
BLOCK = 128
SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "temperature 1": Sampling(),
    "top_k 50": Sampling(top_k=50),
    "top_p 0.95": Sampling(top_p=0.95),
    "greedy, 5 logprobs": Sampling(temperature=0.0, num_logprobs=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    table = (0.02 * rng.standard_normal((options.vocab, options.hidden))).astype(np.float16)
    graphs = {name: _graph(table, results) for name, results in RESULTS.items()}
    print("| rows |", " | ".join([*graphs, *SAMPLINGS]), "|")
    print(f"|{'---|' * (1 + len(graphs) + len(SAMPLINGS))}")
    for batch in options.batches:
        hidden = rng.standard_normal((batch, 1, options.hidden)).astype(np.float32)
        logits = 6 * rng.standard_normal((batch, options.vocab)).astype(np.float32)
        calls: list[Callable[[], Any]] = [_infer(graph, hidden) for graph in graphs.values()]
        calls += [_sample(logits, sampling) for sampling in SAMPLINGS.values()]
        print(f"| {batch} |", " | ".join(f"{s:.2f}" for s in _least_ms(calls, options.rounds)), "|")
    print(f"\nload average {os.getloadavg()[0]:.1f}")


def _likeliest(logits: Any, count: int) -> list[Any]:
    found = ops.topk(
        logits, ops.constant(np.int64(count)), axis=-1, mode="max", sort="value",
        index_element_type="i32",
    )  # fmt: skip
    return [found.output(0), found.output(1)]


def _blocks(logits: Any) -> list[Any]:
    num_blocks = logits.get_output_partial_shape(0)[2].get_length() // BLOCK
    shape = ops.constant(np.array([-1, num_blocks, BLOCK], np.int64))
    blocks = ops.reshape(logits, shape, False)
    maxima = ops.reduce_max(blocks, ops.constant(np.array([2], np.int64)), False)
    _, places = _likeliest(maxima, NUM_LIKELIEST)
    return [ops.gather(blocks, places, ops.constant(np.int64(1)), 1), places]


RESULTS: dict[str, Callable[[Any], list[Any]]] = {
    "logits": lambda logits: [logits],
    "and the likeliest": lambda logits: [logits, *_likeliest(logits, 1)],
    "and 64": lambda logits: [logits, *_likeliest(logits, NUM_LIKELIEST)],
    "only 64": lambda logits: _likeliest(logits, NUM_LIKELIEST),
    "only their blocks": _blocks,
}


def _graph(table: Any, results: Callable[[Any], list[Any]]) -> ov.InferRequest:
    hidden = ops.parameter([-1, 1, table.shape[1]], ov.Type.f32)
    weights = ops.convert(ops.constant(table), ov.Type.f32)
    logits = ops.matmul(hidden, weights, False, True)
    model = ov.Model([ops.result(one) for one in results(logits)], [hidden], "vocabulary")
    properties = {
        "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False, "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    return ov.Core().compile_model(model, "CPU", properties).create_infer_request()


def _infer(graph: ov.InferRequest, hidden: Floats) -> Callable[[], None]:
    def call() -> None:
        graph.set_input_tensor(ov.Tensor(hidden, shared_memory=True))
        graph.infer()  # results are read where they lie, as raylm's engine does

    return call


def _sample(logits: Floats, sampling: Sampling) -> Callable[[], None]:
    rows = [Row(sampling, position) for position in range(len(logits))]

    def call() -> None:
        sample(logits, rows)

    return call


def _least_ms(calls: list[Callable[[], None]], rounds: int) -> list[float]:
    least = [float("inf")] * len(calls)
    for _ in range(rounds + 1):
        for index, call in enumerate(calls):
            began_s = time.process_time()
            call()
            least[index] = min(least[index], 1e3 * (time.process_time() - began_s))
    return least


if __name__ == "__main__":
    main()
