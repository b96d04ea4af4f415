"""A gateway in this process, in front of the fake engine; and a real cluster for all modules."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from raylm.config.serve import LimitsConfig
from raylm.serve.backend import LocalBackend
from raylm.serve.cache import ResultCache
from raylm.serve.catalog import Catalog, Entry, ServedModel
from raylm.serve.dispatch import Dispatch
from raylm.serve.endpoints import Gateway
from raylm.serve.keyring import Keyring
from raylm.serve.keys import Key, hash_key
from raylm.serve.ledger import Ledger, Verdict
from raylm.serve.limits import Admission
from raylm.serve.metrics import GatewayMetrics
from raylm.serve.quota import Quota
from raylm.serve.readiness import Readiness
from raylm.serve.results import ResultStore
from raylm.serve.routes import build_app
from raylm.serve.tenant import Tenant
from raylm.serve.turns import Turns
from raylm.store import Store
from tests.serve.fake_engine import FakeEngine

if TYPE_CHECKING:  # Ray takes its time to be imported
    from tests.serve.deployed import SharedCluster

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KEY = "sk-test-0123456789abcdef"
DIGEST = "ab" * 32


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<unk>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    return tokenizer


def write_model_files(
    folder: Path, *, template: str | None = TEMPLATE, tags: tuple[str, ...] = ()
) -> Path:
    """`tags` become tokens of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(tags))
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@dataclass
class Served:
    client: TestClient
    gateway: Gateway
    engine: Any
    app: Any = None


def tenants(keys: Sequence[str]) -> tuple[Key, ...]:
    """A tenant without limits for each key."""
    return tuple(Key(hash_key(key), Tenant(f"id-{i}", f"key-{i}")) for i, key in enumerate(keys))


def keyring_of(keys: Sequence[str] | Sequence[Key]) -> Keyring:
    """Texts are each a tenant of its own."""
    return Keyring([k for k in keys if isinstance(k, Key)] or tenants(keys))


def quota_of(ledger: Ledger, metrics: GatewayMetrics, num_gateways: int = 1) -> Quota:
    """Limits counted in this process."""

    async def take(lease: str, tenant: str, limits: Any, num: int, lease_s: float) -> Verdict:
        now_s = time.monotonic()
        return ledger.take(lease, tenant, limits, num, now_s=now_s, lease_s=lease_s)

    async def settle(lease: str, num_tokens: int) -> None:
        ledger.settle(lease, num_tokens, now_s=time.monotonic())

    return Quota(take, settle, num_gateways=num_gateways, lease_s=60, on_away=metrics.counted_alone)


def cache_of(store: ResultStore) -> ResultCache:
    """Answers kept in this process."""

    async def get(key: str) -> bytes | None:
        return store.get(key, time.monotonic())

    async def put(key: str, value: bytes) -> None:
        store.put(key, value, time.monotonic())

    return ResultCache(get, put)


def gateway_of(
    catalog: Catalog,
    *,
    limits: LimitsConfig,
    capacity: int = 64,
    running: int = 64,
    ledger: Ledger,
    results: ResultStore | None = None,
    isolate: bool = True,
    keep_alive_s: float = 15.0,
) -> Gateway:
    """A gateway that counts and keeps in this process."""
    turns, metrics = Turns(running), GatewayMetrics("g1")
    return Gateway(
        catalog=catalog,
        limits=limits,
        admission=Admission(capacity, turns),
        dispatch=Dispatch(
            quota=quota_of(ledger, metrics),
            turns=turns,
            metrics=metrics,
            cache=None if results is None else cache_of(results),
            isolate=isolate,
        ),
        metrics=metrics,
        readiness=Readiness(catalog),
        keep_alive_s=keep_alive_s,
    )


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[SharedCluster]:
    """For `store`."""
    from tests.serve.deployed import SHARED

    yield SHARED
    SHARED.end()


@pytest.fixture(scope="module")
def store(
    shared_cluster: SharedCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """The store of a cluster that modules use one after the other."""
    yield shared_cluster.store(lambda: tmp_path_factory.mktemp("cluster") / "store")
    shared_cluster.clear()


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_files(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def serve_here(model_files: Path) -> Iterator[Callable[..., Served]]:
    """serve_here(limits=..., keys=..., capacity=..., files=..., engine_of=...) -> Served.

    `keys` are texts, each a tenant of its own, or `raylm.serve.keys.Key`s. `engine_of` makes an
    engine from the tokenizer; what else is given goes to the fake one.
    """
    clients = []

    def make(
        limits: LimitsConfig | None = None,
        keys: Sequence[str] | Sequence[Key] = (),
        capacity: int = 64,
        running: int = 64,
        chat: bool = True,
        keep_alive_s: float = 15.0,
        keyring: Keyring | None = None,
        ledger: Ledger | None = None,
        results: ResultStore | None = None,
        isolate: bool = True,
        digest: str = DIGEST,
        files: Path = model_files,
        engine_of: Callable[..., Any] = FakeEngine,
        **engine: Any,
    ) -> Served:
        fake = engine_of(Tokenizer.from_file(str(files / "tokenizer.json")), **engine)
        model = ServedModel("tiny", files, digest, (f"tiny-{digest[:12]}",), created=7)
        entry = Entry.open(model, LocalBackend(fake), max_chars=10_000)
        if not chat:
            entry = Entry(model, entry.backend, entry.tokenizer, None)
        gateway = gateway_of(
            Catalog([entry]),
            limits=limits or LimitsConfig(),
            capacity=capacity,
            running=running,
            ledger=ledger or Ledger(),
            results=results,
            isolate=isolate,
            keep_alive_s=keep_alive_s,
        )
        if keyring is None:
            keyring = keyring_of(keys)
        app = build_app(gateway, keyring)
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return Served(client, gateway, fake, app)

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def write_llama(folder: Path, *, hidden: int = 64, layers: int = 2, context: int = 512) -> Path:
    """A random Llama as transformers would save it, made without torch; sharp, so that greedy
    choices are far from ties."""
    write_model_files(folder)
    rng = np.random.default_rng(7)
    vocab, heads, kv_heads, mlp = make_tokenizer().get_vocab_size(), 4, 2, 2 * hidden
    kv = hidden // heads * kv_heads
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    norms = ["model.norm.weight"]
    for i in range(layers):
        at = f"model.layers.{i}"
        norms += [f"{at}.input_layernorm.weight", f"{at}.post_attention_layernorm.weight"]
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (kv, hidden),
            f"{at}.self_attn.v_proj.weight": (kv, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_proj.weight": (mlp, hidden),
            f"{at}.mlp.up_proj.weight": (mlp, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, mlp),
        }
    tensors = {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}
    tensors |= {name: np.ones(hidden, np.float32) for name in norms}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
