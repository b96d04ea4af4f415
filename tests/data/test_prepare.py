"""The whole stage on Ray: exactness, determinism, lineage, and every bad corpus."""

import errno
import functools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

import raylm.data.preparation as preparation
import raylm.data.prepare_text as prepare_text
from raylm.artifact import Artifact
from raylm.config.data import DataConfig
from raylm.data.clean import clean
from raylm.data.hashing import document_id, text_hash
from raylm.data.parts import cut
from raylm.data.prepare import fingerprint
from raylm.data.shards import SPLITS, PackedSplit, token_bytes
from raylm.data.tokenizer import load_tokenizer
from raylm.errors import DataError, HostError, RaylmError
from raylm.progress import Tick

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
Prepare = Callable[..., Artifact]


@pytest.fixture(scope="module")
def texts(corpus_dir: Path) -> dict[str, bytes]:
    """Source -> clean text of every document that should be kept, duplicates left out."""
    found: dict[str, bytes] = {}
    for file in sorted((corpus_dir / "texts").rglob("*.txt")):
        found[f"texts/{file.relative_to(corpus_dir / 'texts').as_posix()}"] = file.read_bytes()
    for number, line in enumerate((corpus_dir / "records.jsonl").read_text().splitlines(), 1):
        try:
            found[f"records.jsonl:{number}"] = json.loads(line)["text"].encode()
        except (ValueError, KeyError, TypeError):
            continue
    seen: set[bytes] = set()
    kept: dict[str, bytes] = {}
    for source, data in found.items():
        data = clean(data.decode(), normalize=True, fix_mojibake=False).text.encode()
        if len(data) >= 16 and data not in seen:
            kept[source] = data
        seen.add(data)
    return kept


def tokenizer_of(dataset: Artifact) -> Tokenizer:
    return load_tokenizer((dataset.path / "tokenizer" / "tokenizer.json").read_text())


def spelling(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each token, worked out apart from raylm: GPT-2's byte alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    alphabet = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    special = tokenizer.get_added_tokens_decoder()
    return [
        b"" if i in special else bytes(alphabet[c] for c in tokenizer.id_to_token(i))
        for i in range(tokenizer.get_vocab_size())
    ]


def test_every_byte_of_every_document_lies_in_exactly_one_piece(
    dataset: Artifact, texts: dict[str, bytes]
) -> None:
    spelled = spelling(tokenizer_of(dataset))
    found: dict[str, bytearray] = {}
    for name in SPLITS:
        split = PackedSplit.open(dataset.path, name)
        here: dict[str, bytearray] = {}
        for row in range(split.num_samples):
            ids = split.tokens([row])[0]
            for piece in split.trace(row):
                data = b"".join(spelled[i] for i in ids[piece.start :][: piece.num_tokens])
                so_far = here.setdefault(piece.source, bytearray())
                # Lineage: the piece is the document's text at its byte offset.
                assert piece.byte_offset == len(so_far)
                assert texts[piece.source][piece.byte_offset :][: piece.num_bytes] == data
                expected = document_id(piece.source, text_hash(texts[piece.source]))
                assert piece.document_id == expected.hex()
                so_far += data
        assert not here.keys() & found.keys(), "no document is in both splits"
        found |= here
    assert {source: bytes(data) for source, data in found.items()} == texts


def test_segments_positions_and_targets_follow_the_documents(dataset: Artifact) -> None:
    split = PackedSplit.open(dataset.path, "train")
    batch = split.batch(np.arange(split.num_samples))
    eos = 0
    for row in range(split.num_samples):
        place = 0
        for number, piece in enumerate(split.trace(row), 1):
            inside = slice(place, place + piece.num_tokens)
            assert piece.start == place
            assert (batch.segment_ids[row, inside] == number).all()
            assert batch.position_ids[row, inside].tolist() == list(range(piece.num_tokens))
            ids = batch.input_ids[row, inside]
            assert batch.targets[row, inside].tolist() == [*ids[1:].tolist(), -100]
            assert (ids[:-1] != eos).all(), "a document ends only once"
            place += piece.num_tokens
        assert (batch.segment_ids[row, place:] == 0).all()
        assert (batch.targets[row, place:] == -100).all()
        assert place == 64 or row == split.num_samples - 1
    index = json.loads((dataset.path / "index.json").read_text())["splits"]["train"]
    assert (
        (batch.targets != -100).sum()
        == index["num_targets"]
        == split.num_targets(np.arange(split.num_samples))
    )
    assert (batch.segment_ids > 0).sum() == index["num_tokens"]
    assert (batch.input_ids[batch.segment_ids > 0] == eos).sum() == index["num_documents"]


def test_token_bytes_add_up_to_the_documents(dataset: Artifact, texts: dict[str, bytes]) -> None:
    lengths = token_bytes(dataset.path)
    assert lengths.tolist() == [len(b) for b in spelling(tokenizer_of(dataset))]
    index = json.loads((dataset.path / "index.json").read_text())
    assert index["exact_bytes"] is True
    total = 0
    for name in SPLITS:
        split = PackedSplit.open(dataset.path, name)
        batch = split.batch(np.arange(split.num_samples))
        num_bytes = int(lengths[batch.input_ids[batch.segment_ids > 0]].sum())
        assert num_bytes == index["splits"][name]["num_bytes"]
        total += num_bytes
    assert total == sum(map(len, texts.values()))


def test_the_tables_and_the_report_have_the_figures(
    dataset: Artifact, texts: dict[str, bytes]
) -> None:
    rows = [
        r for s in SPLITS for r in pq.read_table(dataset.path / s / "documents.parquet").to_pylist()
    ]
    assert {r["source"]: r["num_bytes"] for r in rows} == {s: len(t) for s, t in texts.items()}
    report = json.loads((dataset.path / "report.json").read_text())
    steps = {step["step"]: step for step in report["funnel"]}
    assert steps["found"]["files"] == 41
    assert steps["read"]["documents"] == 100
    assert steps["cleaned"]["set_aside"] == {"no-field": 1, "not-an-object": 1, "not-json": 1}
    assert steps["unique"]["dropped"] == 1
    assert steps["unique"]["documents"] == len(texts)
    assert steps["train"]["documents"] + steps["held_out"]["documents"] == len(texts)
    aside = (dataset.path / "set_aside.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in aside] == [
        "records.jsonl:6", "records.jsonl:21", "records.jsonl:42"
    ]  # fmt: skip
    assert dataset.manifest.metrics["num_documents"] == len(texts)
    assert dataset.manifest.metrics["vocab_size"] == 400
    assert dataset.manifest.metrics["num_duplicates"] == 1
    assert dataset.manifest.metrics["num_set_aside"] == 3


def test_the_tokenizer_has_seen_the_training_split_alone(
    dataset: Artifact, texts: dict[str, bytes]
) -> None:
    from raylm.data.tokenizer import train_tokenizer

    sources = pq.read_table(dataset.path / "train" / "documents.parquet")["source"].to_pylist()
    again = train_tokenizer([texts[s].decode() for s in sources], 400)
    assert json.loads(again.to_str()) == json.loads(
        (dataset.path / "tokenizer" / "tokenizer.json").read_text()
    )


@pytest.mark.parametrize(
    ("num_cpus", "task_bytes", "part_bytes"),
    [(2.0, 10**9, 10**9), (0.5, 1, 1000), (1.0, 20_000, 5000)],
)
def test_parallelism_and_block_sizes_do_not_change_a_byte(
    dataset: Artifact,
    prepare_in: Prepare,
    corpus_dir: Path,
    basic: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    num_cpus: float,
    task_bytes: int,
    part_bytes: int,
) -> None:
    monkeypatch.setattr(preparation, "_TASK_BYTES", (task_bytes, task_bytes))
    monkeypatch.setattr(preparation, "cut", functools.partial(cut, max_bytes=part_bytes))
    again = prepare_in(corpus_dir, **basic, num_cpus=num_cpus)
    assert again.digest == dataset.digest


def test_the_place_of_the_corpus_does_not_change_a_byte_but_the_seed_does(
    dataset: Artifact,
    prepare_in: Prepare,
    corpus_dir: Path,
    basic: dict[str, Any],
    tmp_path: Path,
) -> None:
    shutil.copytree(corpus_dir, tmp_path / "moved")
    moved = basic | {"paths": [str(tmp_path / "moved" / "texts"), "records.jsonl"]}
    assert prepare_in(tmp_path / "moved", **moved).digest == dataset.digest
    assert prepare_in(corpus_dir, seed=1, **basic).digest != dataset.digest
    for file in dataset.path.rglob("*.json*"):
        assert str(corpus_dir) not in file.read_text() or file.name == "manifest.json"


def test_an_existing_tokenizer_is_taken_and_bounded_samples_are_deterministic(
    dataset: Artifact, prepare_in: Prepare, corpus_dir: Path, basic: dict[str, Any]
) -> None:
    path = dataset.path / "tokenizer"
    given = prepare_in(corpus_dir, **basic | {"tokenizer": {"path": str(path)}})
    for split in SPLITS:
        for file in (dataset.path / split).iterdir():
            assert (given.path / split / file.name).read_bytes() == file.read_bytes()
    sampled = basic | {"tokenizer": {"vocab_size": 300, "sample_bytes": 20_000}}
    report = json.loads((prepare_in(corpus_dir, **sampled).path / "report.json").read_text())
    assert 10_000 < report["tokenizer"]["trained_on_bytes"] <= 20_000


def test_progress_comes_in_each_step(
    prepare_in: Prepare, corpus_dir: Path, basic: dict[str, Any]
) -> None:
    ticks: list[Tick] = []
    times: list[float] = []

    class Timed(list[Tick]):
        def append(self, tick: Tick) -> None:
            ticks.append(tick)
            times.append(time.monotonic())

    prepare_in(corpus_dir, ticks=Timed(), **basic)
    texts = " ".join(tick.text for tick in ticks)
    for step in ("Ray's workers", "training a tokenizer", "tokenising", "packing"):
        assert step in texts
    assert {tick.stage for tick in ticks} == {"data"}


# Bad corpora -------------------------------------------------------------------------------


def write_corpus(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def records(*values: object) -> str:
    return "".join(json.dumps(v) + "\n" for v in values)


MANY = {f"c/{n}.txt": f"document {n} " + "word " * (n % 7 + 3) for n in range(60)}


@pytest.mark.parametrize(
    ("files", "config", "code", "hint"),
    [
        ({"c/a.txt": "x"}, {"paths": "nowhere"}, "data-missing-path", "nowhere"),
        ({"c/a.bin": b"\0\1", "c/b.bin": b"\0"}, {}, "data-all-binary", "plain text and JSONL"),
        ({"c/a.jsonl": "\n\n"}, {}, "data-empty", "no record"),
        ({"c/a.txt": "short", "c/b.txt": "x"}, {}, "data-empty", "data.min_bytes"),
        (
            {"c/a.jsonl": records(*({"body": "some text here", "id": n} for n in range(9)))},
            {},
            "data-no-field",
            "set data.text_field to 'body'",
        ),
        ({"c/a.jsonl": "{\n{\n" + records({"text": "good"})}, {}, "data-bad-records", "max_bad"),
        ({"c/a.txt": "one document only, of some length"}, {}, "data-one-document", "JSONL"),
        ({"c/a.txt.gz": b"no gzip at all"}, {}, "data-broken-gzip", "data.exclude"),
        (MANY, {"held_out": 0.0001}, "data-no-held-out", "set data.held_out to 0."),
        (MANY, {"tokenizer": {"vocab_size": 5000}}, "data-vocab-too-large", "or less"),
        (
            MANY,
            {"tokenizer": {"vocab_size": 262}, "held_out": 0.1, "seq_len": 400},
            "data-too-small",
            "set data.held_out to 0.",
        ),
        (
            MANY,
            {"tokenizer": {"path": "c"}, "held_out": 0.1},
            "missing-tokenizer",
            "save_pretrained",
        ),
        (MANY, {"num_cpus": 64}, "data-no-cpus", "data.num_cpus"),
    ],
)
def test_a_bad_corpus_ends_with_a_cause_and_a_remedy(
    prepare_in: Prepare,
    tmp_path: Path,
    files: dict[str, bytes | str],
    config: dict[str, Any],
    code: str,
    hint: str,
) -> None:
    write_corpus(tmp_path, files)
    store = tmp_path / "store"
    with pytest.raises(RaylmError) as caught:
        prepare_in(tmp_path, store=store, **{"paths": "c"} | config)
    assert caught.value.code == code
    assert hint in (caught.value.hint or "")
    assert list((store / "drafts").iterdir()) == []
    assert list((store / "dataset").iterdir()) == []


def test_the_remedy_of_a_small_corpus_works(prepare_in: Prepare, tmp_path: Path) -> None:
    write_corpus(tmp_path, MANY)
    config: dict[str, Any] = {"paths": "c", "tokenizer": {"vocab_size": 262}, "seq_len": 400}
    with pytest.raises(DataError) as caught:
        prepare_in(tmp_path, held_out=0.1, **config)
    offered = float((caught.value.hint or "").split("data.held_out to ")[1].split(",")[0])
    index = json.loads(
        (prepare_in(tmp_path, held_out=offered, **config).path / "index.json").read_text()
    )
    assert index["splits"]["held_out"]["num_tokens"] >= 400


def test_a_full_disk_is_named_and_leaves_nothing(
    prepare_in: Prepare,
    corpus_dir: Path,
    basic: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_text, "write_split", full)
    with pytest.raises(HostError) as caught:
        prepare_in(corpus_dir, store=tmp_path, **basic)
    assert caught.value.code == "disk-full"
    assert list((tmp_path / "drafts").iterdir()) == []


# The key -----------------------------------------------------------------------------------


def test_the_fingerprint_covers_content_names_and_order(corpus_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus_dir, tmp_path / "copy")
    both = DataConfig(paths=("texts", "records.jsonl"))
    first = fingerprint(both, corpus_dir)
    assert fingerprint(both, tmp_path / "copy") == first
    turned = fingerprint(DataConfig(paths=("records.jsonl", "texts")), corpus_dir)
    assert turned != first
    file = tmp_path / "copy" / "texts" / "part0" / "00.txt"
    file.write_bytes(file.read_bytes() + b"!")
    changed = fingerprint(both, tmp_path / "copy")
    assert changed != first
    file.rename(file.with_name("zz.txt"))
    assert fingerprint(both, tmp_path / "copy") not in (first, changed)


def test_the_fingerprint_covers_a_given_tokenizer(dataset: Artifact, corpus_dir: Path) -> None:
    path = str(dataset.path / "tokenizer")
    config = DataConfig.model_validate({"paths": ["texts"], "tokenizer": {"path": path}})
    found = fingerprint(config, corpus_dir)
    assert sorted(found) == ["corpus", "tokenizer"]
    with pytest.raises(DataError):
        fingerprint(DataConfig(paths=("nowhere",)), corpus_dir)
