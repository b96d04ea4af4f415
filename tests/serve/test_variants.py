"""Several variants under one model's name: which one answers, and who may ask for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from raylm.config.load import load_config
from raylm.config.serve import LimitsConfig, ServeConfig, VariantsConfig
from raylm.errors import ConfigError, RequestError
from raylm.serve.backend import LocalBackend
from raylm.serve.batches.ask import Retry, ask
from raylm.serve.catalog import Catalog, Entry, ServedModel, check_names
from raylm.serve.keys import Key, hash_key
from raylm.serve.ledger import Ledger
from raylm.serve.results import ResultStore
from raylm.serve.routes import build_app
from raylm.serve.tenant import ANYONE, Tenant
from tests.serve.conftest import gateway_of, keyring_of
from tests.serve.fake_encoder import FakeEncoder
from tests.serve.fake_engine import FakeEngine

VARIANTS = {"f32": "aa" * 32, "int8": "bb" * 32}
PLAIN = "cc" * 32
CALLS = {
    "/v1/completions": {"prompt": "the fox", "max_tokens": 4, "seed": 7},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
}


def served(files: Path, name: str, digest: str, engine: Any, **facts: Any) -> Entry:
    alias = f"{name.replace('@', '-')}-{digest[:12]}"
    model = ServedModel(name, files, digest, (alias,), **facts)
    return Entry.open(model, LocalBackend(engine), max_chars=10_000)


class Site:
    """Two variants of `notes`, f32 by default, and a plain model `other`."""

    def __init__(
        self, files: Path, keys: tuple[Key, ...] = (), results: ResultStore | None = None
    ) -> None:
        tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
        self.engines = {name: FakeEngine(tokenizer) for name in (*VARIANTS, "other")}
        entries = [
            served(
                files,
                f"notes@{variant}",
                digest,
                self.engines[variant],
                variant=variant,
                is_default=variant == "f32",
            )
            for variant, digest in VARIANTS.items()
        ]
        entries.append(served(files, "other", PLAIN, self.engines["other"]))
        self.gateway = gateway_of(
            Catalog(entries), limits=LimitsConfig(), ledger=Ledger(), results=results
        )
        app = build_app(self.gateway, keyring_of(keys))
        self.client = TestClient(app, raise_server_exceptions=False)

    def asked(self) -> list[str]:
        """Which engines have had a request."""
        return [name for name, engine in self.engines.items() if engine.seen]


@pytest.fixture
def site(model_files: Path) -> Site:
    return Site(model_files)


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(
    ("names", "variant"),
    [
        ({"model": "notes"}, "f32"),
        ({"model": "notes@f32"}, "f32"),
        ({"model": "notes@int8"}, "int8"),
        ({"model": "notes", "variant": "int8"}, "int8"),
        ({"model": "notes@int8", "variant": "int8"}, "int8"),
        ({"model": "notes-int8-bbbbbbbbbbbb"}, "int8"),
        ({"model": "notes", "variant": None}, "f32"),
    ],
)
def test_the_variant_that_is_asked_for_answers_and_says_so(site, path, names, variant):
    answer = site.client.post(path, json=CALLS[path] | names)
    assert answer.status_code == 200, answer.text
    assert site.asked() == [variant]
    assert answer.json()["model"] == f"notes@{variant}"
    assert answer.headers["x-raylm-variant"] == variant
    defaulted = names == {"model": "notes"} or names.get("variant", "") is None
    assert (f"variant={variant}" in answer.headers.get("x-raylm-defaults", "")) == defaulted
    if path == "/v1/completions":
        assert answer.json()["system_fingerprint"] == VARIANTS[variant][:12]


def test_streams_say_it_too(site):
    asked = CALLS["/v1/completions"] | {"model": "notes@int8", "stream": True}
    answer = site.client.post("/v1/completions", json=asked)
    lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
    assert {json.loads(line)["model"] for line in lines} == {"notes@int8"}
    assert answer.headers["x-raylm-variant"] == "int8"


def test_a_plain_model_says_nothing_of_variants(site):
    answer = site.client.post("/v1/completions", json=CALLS["/v1/completions"] | {"model": "other"})
    assert answer.json()["model"] == "other"
    assert "x-raylm-variant" not in answer.headers
    assert "variant" not in answer.headers.get("x-raylm-defaults", "")


@pytest.mark.parametrize("path", [*CALLS, "/v1/tokenize", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("names", "status", "param", "said"),
    [
        ({"model": "notes@int4"}, 404, "model", "no variant 'int4' here; it has 'f32', 'int8'"),
        (
            {"model": "notes", "variant": "int4"},
            404,
            "variant",
            "no variant 'int4' here; it has 'f32', 'int8'",
        ),
        ({"model": "other", "variant": "f32"}, 404, "variant", "it has no variants"),
        (
            {"model": "notes@int8", "variant": "f32"},
            400,
            "variant",
            "is the variant 'int8', and 'f32' is asked for",
        ),
        ({"model": "note"}, 404, "model", "known: 'notes', 'notes@int8', 'other'"),
        ({"model": "note@int8"}, 404, "model", "known: 'notes', 'notes@int8', 'other'"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(site, path, names, status, param, said):
    texts = {"/v1/tokenize": {"prompt": "x"}, "/v1/embeddings": {"input": "x"}}
    answer = site.client.post(path, json=(CALLS | texts)[path] | names)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert said in error["message"]
    assert error["code"] in ("variant_not_found", "model_not_found", "invalid_parameter")
    assert site.asked() == []


def test_the_list_of_models_has_every_variant_with_its_digest(site):
    cards = {card["id"]: card for card in site.client.get("/v1/models").json()["data"]}
    assert list(cards)[:3] == ["notes", "notes@f32", "notes-f32-aaaaaaaaaaaa"]
    told = {name: (c["root"], c["variant"], c["digest"]) for name, c in cards.items()}
    assert told["notes"] == told["notes@f32"] == ("notes@f32", "f32", VARIANTS["f32"])
    assert told["notes@int8"] == ("notes@int8", "int8", VARIANTS["int8"])
    assert told["other"] == ("other", None, PLAIN)
    assert site.client.get("/v1/models/notes@int8").json() == cards["notes@int8"]


def test_a_kept_answer_is_of_no_use_to_another_variant(model_files):
    site = Site(model_files, results=ResultStore(max_bytes=2**20, ttl_s=60))
    asked = CALLS["/v1/completions"]

    def found(name: str) -> str:
        return str(
            site.client.post("/v1/completions", json=asked | {"model": name}).headers[
                "x-raylm-cache"
            ]
        )

    assert [found("notes"), found("notes@int8"), found("notes@f32"), found("notes@int8")] == [
        "miss", "miss", "hit", "hit",
    ]  # fmt: skip


def key_for(*models: str) -> Key:
    return Key(hash_key("sk-one-0123456789abcdef"), Tenant("id-1", "one", models=models))


@pytest.mark.parametrize(
    ("allowed", "listed", "refused"),
    [
        (("notes",), {"notes", "notes@f32", "notes@int8"}, "other"),
        (("notes@int8",), {"notes@int8"}, "notes@f32"),
        (("notes@int8", "other"), {"notes@int8", "other"}, "notes"),
        (("notes@f32",), {"notes", "notes@f32"}, "notes@int8"),
        (("other",), {"other"}, "notes"),
    ],
)
def test_a_key_for_a_model_opens_all_its_variants_and_one_for_a_variant_that_alone(
    model_files, allowed, listed, refused
):
    site = Site(model_files, keys=(key_for(*allowed),))
    site.client.headers["Authorization"] = "Bearer sk-one-0123456789abcdef"
    cards = site.client.get("/v1/models").json()["data"]
    assert {c["id"] for c in cards if c["digest"][:12] not in c["id"]} == listed
    asked = CALLS["/v1/completions"]
    for name in listed:
        done = site.client.post("/v1/completions", json=asked | {"model": name})
        assert done.status_code == 200
    answer = site.client.post("/v1/completions", json=asked | {"model": refused})
    assert answer.status_code == 404
    if refused == "notes" and "notes@int8" in allowed:  # another one is not taken in its place
        assert "no default variant here; it has 'int8'" in answer.json()["error"]["message"]


def test_a_line_of_a_batch_asks_for_a_variant_as_a_request_does(site):
    async def answers() -> list[Any]:
        return [
            await ask(
                site.gateway.completions,
                json.dumps(CALLS["/v1/completions"] | names).encode(),
                ANYONE,
                Retry(),
                asyncio.Semaphore(1),
            )
            for names in ({"model": "notes@int8"}, {"model": "notes", "variant": "int4"})
        ]

    good, bad = asyncio.run(answers())
    assert good.status == 200 and good.body["model"] == "notes@int8"
    assert bad.status == 404 and bad.body["error"]["code"] == "variant_not_found"


def test_vectors_and_token_ids_come_from_the_variant_too(model_files):
    tokenizer = Tokenizer.from_file(str(model_files / "tokenizer.json"))
    encoders = {name: FakeEncoder(tokenizer) for name in VARIANTS}
    entries = [
        served(
            model_files, f"e@{name}", digest, encoders[name], variant=name, is_default=name == "f32"
        )
        for name, digest in VARIANTS.items()
    ]
    gateway = gateway_of(Catalog(entries), limits=LimitsConfig(), ledger=Ledger())
    client = TestClient(build_app(gateway, keyring_of(())), raise_server_exceptions=False)
    answer = client.post("/v1/embeddings", json={"model": "e", "variant": "int8", "input": "x"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "e@int8" and answer.headers["x-raylm-variant"] == "int8"
    answer = client.post("/v1/tokenize", json={"model": "e", "prompt": "x"})
    assert answer.headers["x-raylm-variant"] == "f32"
    assert answer.headers["x-raylm-defaults"] == "variant=f32"


def test_a_plain_name_with_an_at_is_found_as_it_is():
    entry: Any = Entry(ServedModel("a@b", Path("/m")), None, None, None)  # type: ignore[arg-type]
    catalog = Catalog([entry])
    assert catalog.find("a@b") is entry and entry.model.model == "a@b"
    with pytest.raises(RequestError, match="does not exist here"):
        catalog.find("a")


def test_a_variant_and_a_model_of_one_name_are_refused():
    variant = ServedModel("m@a", Path("/a"), variant="a", is_default=True)
    with pytest.raises(ConfigError, match="both named 'm'"):
        check_names([variant, ServedModel("m", Path("/m"))])


def test_variants_in_the_config():
    config = ServeConfig.model_validate(
        {
            "models": [
                "plain",
                {
                    "name": "notes",
                    "variants": {
                        "f32": "notes",
                        "int8": {"model": "notes-int8"},
                        "acme": {"model": "notes", "adapter": "adapters/acme"},
                    },
                },
            ]
        }
    )
    plain, notes = config.models
    assert plain == "plain" and isinstance(notes, VariantsConfig)
    assert notes.default_variant == "f32" and list(notes.variants) == ["f32", "int8", "acme"]
    assert notes.variants["f32"].model == "notes" and notes.variants["acme"].adapter is not None
    assert ServeConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{name: m, variants: {}}", "at least 1"),
        ("{name: m, variants: {a: x}, default: b}", "default='b' is no variant of 'm'; it has a"),
        ("{name: m, variants: {A@b: x}}", "A@b"),
        ("{name: m@n, variants: {a: x}}", "m@n"),
        ("{name: m, variants: {a: {model: x, trained_on: y}}}", "there is none"),
        ("{name: m, variants: {a: {modl: x}}}", "modl"),
    ],
)
def test_variants_that_cannot_be_are_refused(tmp_path, entry, said):
    (tmp_path / "c.yaml").write_text(f"serve: {{models: [{entry}]}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert said in caught.value.message and "serve.models" in caught.value.message
