"""One model as original, compressed and adapted, as docs/serving.md shows it: the page's blocks are
run as they stand, by the command line and the official client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml
from tokenizers import Tokenizer

from raylm.compress.folder import write_int8_folder
from raylm.config.engine import EngineConfig
from raylm.deploy import owned
from raylm.deploy.record import read_record
from raylm.engine.load import load
from raylm.engine.processor import processor_name
from raylm.engine.protocol import Request, Sampling
from raylm.serve.slower import Pace, slower_than_originals
from raylm.store import Store
from tests.engine.adapters import write_adapter
from tests.serve.conftest import write_llama

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()
SECTION = PAGE.split("\n## Variants\n")[1].split("\n## ")[0]
(YAML,) = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
(SHELL,) = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
(PYTHON,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
ENGINE = {"precision": "f32", "kv_cache": "f32", "kv_cache_bytes": 2**24}
LAYERS = {
    f"model.layers.{i}.{name}": shape
    for i in range(4)
    for name, shape in (("self_attn.q_proj", (128, 128)), ("mlp.down_proj", (128, 256)))
}
ASKED: dict[str, Any] = {
    "prompt": "the quick brown fox",
    "max_tokens": 24,
    "temperature": 0,
    "logprobs": 0,
    "extra_body": {"ignore_eos": True},
}


@dataclass(frozen=True)
class Site:
    """A store with a model in its forms, served from a folder with a raylm.yaml."""

    folder: Path
    store: Store
    endpoint: dict[str, Any]

    def raylm(self, *arguments: str) -> str:
        return run(self.folder, *arguments)


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "raylm", *arguments],
        cwd=folder,
        env={**os.environ, "RAYLM_STORE": str(folder / "store")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("variants")
    store = Store(folder / "store")
    with store.draft("model", "notes") as draft:
        notes = write_llama(draft.path, hidden=128, layers=4, context=2048) and draft.commit()
    with store.draft("model", "notes-int8") as draft:
        write_int8_folder(notes.path, draft.path)
        draft.commit(parents=(notes,))
    write_adapter(folder / "adapters/acme", LAYERS, base_model_name_or_path="notes")
    config = yaml.safe_load(YAML)
    config["engine"] = ENGINE
    config["cluster"] = {"num_cpus": 4, "object_store_bytes": 100 * 2**20}
    config["serve"] |= {"port": 0, "replicas": 1, "batches": {}, "cache": {}, "drain_s": 1}
    (folder / "raylm.yaml").write_text(yaml.safe_dump(config))
    assert SHELL.split("\n")[0] == "raylm serve -c raylm.yaml --detach"
    try:
        out = run(folder, "serve", "-c", "raylm.yaml", "--detach", "-o", "json")
        yield Site(folder, store, json.loads(out))
    finally:
        run(folder, "down", "--drain-s", "0")


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    url = site.endpoint["url"]
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def expected(site: Site, ref: str, num: int = 24) -> tuple[str, list[float]]:
    """Greedy text and logprobs of an artifact, by an engine in this process."""
    artifact = site.store.resolve(ref, "model")
    config = EngineConfig.model_validate(ENGINE)
    engine = load(
        artifact.path, config, cache_root=site.store.root / "engine", digest=artifact.digest
    )
    tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))
    ids = tuple(tokenizer.encode(ASKED["prompt"]).ids)
    sampling = Sampling(max_tokens=num, temperature=0, num_logprobs=0, ignore_eos=True)

    async def collect() -> tuple[str, list[float]]:
        text, logprobs = "", []
        async for chunk in engine.generate(Request("r", ids, sampling)):
            text += chunk.text
            logprobs += [one.logprob for one in chunk.logprobs]
        return text, logprobs

    try:
        return asyncio.run(collect())
    finally:
        engine.close()


def test_each_variant_answers_with_its_own_weights(site, client):
    by_variant = {"f32": "notes", "int8": "notes-int8", "acme": "notes-acme"}
    wanted = {variant: expected(site, ref) for variant, ref in by_variant.items()}
    asks = [(f"notes@{variant}", variant) for variant in by_variant] + [("notes", "f32")]
    for model, variant in asks:
        raw = client.completions.with_raw_response.create(model=model, **ASKED)
        answer = raw.parse()
        text, logprobs = wanted[variant]
        choice = answer.choices[0]
        assert choice.logprobs.token_logprobs == pytest.approx(logprobs, abs=1e-4)
        assert choice.text == text
        assert answer.model == f"notes@{variant}" and raw.headers["x-raylm-variant"] == variant
        digest = site.store.resolve(by_variant[variant], "model").digest
        assert answer.system_fingerprint == digest[:12]
    assert wanted["acme"][0] != wanted["f32"][0]
    # Of one model, and yet not the same numbers: none was answered by another.
    assert wanted["int8"][1] != pytest.approx(wanted["f32"][1], abs=1e-3)


def test_the_page_asks_for_variants_as_it_shows(client, capsys):
    exec(PYTHON, {"client": client})
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("notes@")] == [
        "notes@f32", "notes@int8", "notes@acme", "notes@int8",
    ]  # fmt: skip


def test_models_and_status_list_every_variant_with_its_digest(site, client):
    digests = {
        f"notes@{variant}": site.store.resolve(ref, "model").digest
        for variant, ref in (("f32", "notes"), ("int8", "notes-int8"), ("acme", "notes-acme"))
    }
    cards = {card.id: card.model_dump() for card in client.models.list()}
    assert {name: cards[name]["digest"] for name in digests} == digests
    assert cards["notes"]["root"] == "notes@f32"
    found = json.loads(site.raylm("status", "-o", "json"))
    served = found["endpoint"]["served"]
    assert {each["name"]: each["digest"] for each in served} == digests
    deployed = {each["name"]: each["replicas"] for each in found["deployments"]}
    for name in digests:
        assert deployed[f"engine-{name}"] == {"RUNNING": 1}
    text = site.raylm("status")
    for name, digest in digests.items():
        assert re.search(rf"{re.escape(name)}.*{digest[:12]}", text)
    lineage = json.loads(site.raylm("models", "show", "notes-acme", "-o", "json"))["lineage"]
    assert [ref.rpartition("-")[0] for ref in lineage] == ["model/notes-acme", "model/notes"]


def test_status_warns_of_quantized_variants_that_are_slower(site):
    """What the replicas measured decides; a model this small may well be slower in 8 bits."""
    pattern = r'raylm_engine_decode_tokens_per_cpu_second\{model="(.*?)".*?\} (\S+)'
    measured = {name: float(rate) for name, rate in re.findall(pattern, get(site, "/metrics"))}
    assert measured.keys() == {"notes@f32", "notes@int8", "notes@acme"}
    assert min(measured.values()) > 0
    weights = {"notes@f32": "f32", "notes@int8": "int8", "notes@acme": "f32"}
    wanted = slower_than_originals(
        Pace(name, "notes", weights[name], processor_name(), rate)
        for name, rate in measured.items()
    )
    assert json.loads(site.raylm("status", "-o", "json"))["warnings"] == wanted
    text = site.raylm("status")
    assert [line for line in text.splitlines() if line.startswith("warning")] == [
        f"warning: {each}" for each in wanted
    ]


def test_an_unknown_variant_is_a_404_that_lists_those_there_are(client):
    for names in ({"model": "notes@int4"}, {"model": "notes", "extra_body": {"variant": "int4"}}):
        with pytest.raises(openai.NotFoundError, match="it has 'acme', 'f32', 'int8'") as caught:
            client.completions.create(prompt="x", **names)
        assert caught.value.code == "variant_not_found"


def test_the_cache_keeps_the_variants_apart(client):
    def found(model: str) -> str:
        asked = ASKED | {"prompt": "lazy dog", "max_tokens": 4}
        raw = client.completions.with_raw_response.create(model=model, **asked)
        return raw.headers["x-raylm-cache"]

    assert [found("notes"), found("notes@int8"), found("notes@acme"), found("notes@f32")] == [
        "miss", "miss", "miss", "hit",
    ]  # fmt: skip


def test_lines_of_a_batch_ask_for_variants(client):
    body = {"prompt": "the fox", "max_tokens": 4, "temperature": 0}
    names = [
        {"model": "notes"},
        {"model": "notes@acme"},
        {"model": "notes", "variant": "int8"},
        {"model": "notes@int4"},
    ]
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": body | each}
        for i, each in enumerate(names)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    deadline = time.monotonic() + 60
    while batch.status in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() < deadline, batch.status
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    output = client.files.content(str(batch.output_file_id)).text
    models = {
        line["custom_id"]: line["response"]["body"]["model"]
        for line in map(json.loads, output.splitlines())
    }
    assert models == {"c0": "notes@f32", "c1": "notes@acme", "c2": "notes@int8"}
    (bad,) = map(json.loads, client.files.content(str(batch.error_file_id)).text.splitlines())
    assert bad["response"]["body"]["error"]["code"] == "variant_not_found"


def replicas(site: Site, deployment: str) -> list[psutil.Process]:
    record = read_record(site.store)
    assert record is not None
    title = f"ray::ServeReplica:raylm:{deployment}"
    processes = [psutil.Process(pid) for pid in owned.marked(owned.MARK, record.id)]
    return [process for process in processes if title in (process.cmdline() or [""])[0]]


def test_an_answer_whose_replica_dies_goes_on_in_the_same_variant(site, client):
    num = 1200
    text, _ = expected(site, "notes-int8", num)
    (victim,) = replicas(site, "engine-notes@int8")
    options = {**ASKED, "max_tokens": num, "logprobs": None, "stream": True}
    pieces: list[str] = []
    killed = False
    with client.completions.create(model="notes@int8", **options) as stream:
        for event in stream:
            assert event.model == "notes@int8"
            pieces.append(event.choices[0].text)
            if not killed and len(pieces) > 5:
                os.kill(victim.pid, signal.SIGKILL)
                killed = True
    assert killed and "".join(pieces) == text
    metrics = get(site, "/metrics")
    lost = re.findall(r"raylm_answers_interrupted_total\{(.*?)\} (\S+)", metrics)
    assert [(re.findall(r'model="(.*?)"', labels)[0], float(n)) for labels, n in lost] == [
        ("notes@int8", 1.0)
    ]


def get(site: Site, path: str) -> str:
    url = site.endpoint["url"].removesuffix("/v1") + path
    with urllib.request.urlopen(url, timeout=20) as response:
        return str(response.read().decode())
