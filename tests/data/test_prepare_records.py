"""Records through the whole stage on Ray: what is packed is what was written, for every format."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

import raylm.data.preparation as preparation
from raylm.artifact import Artifact
from raylm.data.hashing import document_id, text_hash
from raylm.data.parts import cut
from raylm.data.shards import NO_TARGET, SPLITS, PackedSplit, token_bytes
from raylm.data.tokenizer import load_tokenizer
from raylm.errors import DataError, RaylmError
from tests.data.conftest import write_text

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
Prepare = Callable[..., Artifact]
Record = dict[str, Any]
SEQ_LEN = 256
END = 2
BAD = {
    "chat": [{"messages": []}, {"text": "x"}, {"messages": [{"role": "user", "content": "q"}]}],
    "pairs": [{"source": "x"}, {"source": "", "target": "x"}, {"source": 3, "target": "x"}],
    "labels": [{"text": "x"}, {"text": "x", "label": None}, {"text": " ", "label": 1}],
    "preferences": [
        {"prompt": "x"}, {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": "x", "chosen": "a", "rejected": "a"},
    ],
}  # fmt: skip


def good(format: str, number: int) -> Record:
    draw = random.Random(number)

    def say(words: int) -> str:
        return write_text(draw.randrange(10**6), 9)[: 5 * words].strip() or "x"

    if format == "chat":
        roles = ["system"] * (number % 2) + ["user", "assistant"] * (1 + number % 3)
        return {"messages": [{"role": r, "content": say(draw.randint(1, 9))} for r in roles]}
    if format == "pairs":
        return {"source": say(draw.randint(1, 20)), "target": say(draw.randint(1, 14))}
    if format == "labels":
        return {"text": say(draw.randint(1, 40)), "label": (7, 10, -3)[number % 3]}
    question = say(draw.randint(1, 10))
    prompt = [{"role": "user", "content": question}] if number % 2 else question
    return {"prompt": prompt, "chosen": f"yes {say(5)}", "rejected": f"no {say(3)}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per format: 150 records, of them three bad, two equal and one much too long."""
    root = tmp_path_factory.mktemp("records")
    for format, bad in BAD.items():
        records = [good(format, number) for number in range(145)]
        records.insert(140, dict(reversed(records[10].items())))
        long = good(format, 1000)
        grown = "word " * 400
        if format == "chat":
            long["messages"][0]["content"] += grown
        else:
            name = {"pairs": "source", "labels": "text", "preferences": "chosen"}[format]
            long[name] += grown
        records.insert(100, long)
        for place, record in zip((5, 60, 120), bad, strict=True):
            records.insert(place, record)
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (root / f"{format}.jsonl").write_text(text, encoding="utf-8")
    return root


def settings(format: str) -> dict[str, Any]:
    return {
        "paths": f"{format}.jsonl",
        "format": format,
        "seq_len": SEQ_LEN,
        "held_out": 0.2,
        "shard_samples": 7,
        "tokenizer": {"vocab_size": 330, "mask_token": format == "labels"},
        **({"source_len": 200} if format == "pairs" else {}),
    }


@pytest.fixture(scope="module")
def datasets(prepare_in: Prepare, root: Path) -> dict[str, Artifact]:
    return {format: prepare_in(root, **settings(format)) for format in BAD}


def tokenizer_file(folder: Path) -> Tokenizer:
    return load_tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))


def lines_of(root: Path, format: str) -> dict[str, Record]:
    text = (root / f"{format}.jsonl").read_text(encoding="utf-8")
    return {f"{format}.jsonl:{n}": json.loads(r) for n, r in enumerate(text.splitlines(), 1)}


def reference(
    record: Record, tokenizer: Tokenizer, lengths: list[int]
) -> list[tuple[list[int], list[bool]]]:
    """Tokens of each segment, and which of them the model must say; written out by hand."""

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def chat(messages: list[Record], last_alone: bool) -> tuple[list[int], list[bool]]:
        tokens: list[int] = []
        says: list[bool] = []
        for number, message in enumerate(messages):
            head, body = [1, *ids(message["role"] + "\n")], [*ids(message["content"]), END]
            answers = message["role"] == "assistant"
            answers &= not last_alone or number == len(messages) - 1
            tokens += [*head, *body, *ids("\n")]
            says += [False] * len(head) + [answers] * len(body) + [False] * len(ids("\n"))
        return tokens, says

    if "messages" in record:
        return [chat(record["messages"], False)]
    if "target" in record:
        said = [*ids(record["target"]), 0]
        return [(said, [True] * len(said))]
    if "label" in record:
        text = [0, *ids(record["text"]), 0]
        return [(text, [False] * len(text))]
    found = []
    for answer in (record["chosen"], record["rejected"]):
        if isinstance(record["prompt"], list):
            found.append(chat([*record["prompt"], {"role": "assistant", "content": answer}], True))
        else:
            # A token that starts in the prompt is not said, wherever it ends.
            tokens, says, num_bytes = ids(record["prompt"] + answer), [], 0
            for token in tokens:
                says.append(num_bytes >= len(record["prompt"].encode()))
                num_bytes += lengths[token]
            found.append(([*tokens, 0], [*says, True]))
    return found


@pytest.mark.parametrize("format", BAD)
def test_every_record_lies_whole_in_one_row_with_its_targets(
    datasets: dict[str, Artifact], root: Path, format: str
) -> None:
    dataset, lines = datasets[format], lines_of(root, format)
    tokenizer = tokenizer_file(dataset.path / "tokenizer")
    index = json.loads((dataset.path / "index.json").read_text())
    lengths = token_bytes(dataset.path).tolist()
    seen: list[str] = []
    for name in SPLITS:
        split = PackedSplit.open(dataset.path, name)
        table = pq.read_table(dataset.path / name / "documents.parquet").to_pylist()
        assert split.num_documents == len(table)
        everything = np.arange(split.num_samples)
        batch, num_targets = split.batch(everything), 0
        for row in everything.tolist():
            place = 0
            pieces = split.trace(row)
            per_record = 2 if format == "preferences" else 1
            for number in range(0, len(pieces), per_record):
                source = pieces[number].source
                seen.append(source)
                for piece, (tokens, says) in zip(
                    pieces[number : number + per_record],
                    reference(lines[source], tokenizer, lengths),
                    strict=True,
                ):
                    assert (piece.source, piece.start, piece.num_tokens) == (
                        source, place, len(tokens)
                    )  # fmt: skip
                    inside = slice(place, place + len(tokens))
                    assert split.tokens([row])[0, inside].tolist() == tokens
                    targets = batch.targets[row, inside].tolist()
                    if format == "pairs":
                        assert targets == tokens
                        assert batch.input_ids[row, inside].tolist() == [0, *tokens[:-1]]
                    else:
                        said = [t if s else NO_TARGET for t, s in zip(tokens, says, strict=True)]
                        assert targets == [*said[1:], NO_TARGET]
                    num_targets += sum(says)
                    place += len(tokens)
                if format == "labels":
                    assert batch.labels is not None
                    label = str(lines[source]["label"])
                    assert batch.labels[row, number] == index["labels"].index(label)
            assert (batch.segment_ids[row, place:] == 0).all()
            assert (batch.targets[row, place:] == NO_TARGET).all()
        expected = {"labels": len(table), "preferences": len(table)}.get(format, num_targets)
        assert split.num_targets(everything) == index["splits"][name]["num_targets"] == expected
        assert expected > 0
    # All but bad ones (3), the copy and the one that is too long; none twice.
    assert len(seen) == len(set(seen)) == 145


@pytest.mark.parametrize("format", BAD)
def test_what_is_left_out_is_counted_and_named(datasets: dict[str, Artifact], format: str) -> None:
    path = datasets[format].path
    steps = {s["step"]: s for s in json.loads((path / "report.json").read_text())["funnel"]}
    assert steps["read"]["documents"] == 150
    assert sum(steps["cleaned"]["set_aside"].values()) == 3
    assert steps["unique"]["dropped"] == 1
    assert (steps["encoded"]["documents"], steps["encoded"]["reasons"]) == (145, {"too-long": 1})
    assert steps["train"]["documents"] + steps["held_out"]["documents"] == 145
    aside = [json.loads(line) for line in (path / "set_aside.jsonl").read_text().splitlines()]
    assert [item["source"] for item in aside] == [f"{format}.jsonl:{n}" for n in (6, 61, 121)]
    metrics = datasets[format].manifest.metrics
    assert (metrics["num_documents"], metrics["num_set_aside"]) == (145, 3)
    assert metrics["train_num_samples"] == PackedSplit.open(path, "train").num_samples


@pytest.mark.parametrize("format", BAD)
def test_rows_are_nearly_full(datasets: dict[str, Artifact], format: str) -> None:
    figures = json.loads((datasets[format].path / "index.json").read_text())["splits"]["train"]
    assert figures["num_padding"] == figures["num_samples"] * SEQ_LEN - figures["num_tokens"]
    sides = [figures["num_padding"] / (figures["num_samples"] * SEQ_LEN)]
    if format == "pairs":
        sides.append(figures["num_source_padding"] / (figures["num_samples"] * 200))
    assert min(sides) < 0.1


def test_a_packed_record_is_traced_to_its_text(datasets: dict[str, Artifact], root: Path) -> None:
    split = PackedSplit.open(datasets["pairs"].path, "train")
    lines = lines_of(root, "pairs")
    for row in range(split.num_samples):
        for piece in split.trace(row):
            found = {name: lines[piece.source][name] for name in ("source", "target")}
            content = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
            hashed = text_hash(content.encode())
            assert piece.document_id == document_id(piece.source, hashed).hex()
            assert piece.num_bytes == len(found["target"].encode())


def test_the_source_of_a_pair_is_its_segment_of_the_same_number(
    datasets: dict[str, Artifact], root: Path
) -> None:
    path = datasets["pairs"].path
    split = PackedSplit.open(path, "held_out")
    tokenizer = tokenizer_file(path / "tokenizer")
    batch = split.batch(np.arange(split.num_samples))
    assert batch.source is not None and batch.source.input_ids.shape[1] == 200
    for row in range(split.num_samples):
        for number, piece in enumerate(split.trace(row), 1):
            source = lines_of(root, "pairs")[piece.source]["source"]
            inside = batch.source.segment_ids[row] == number
            ids = batch.source.input_ids[row, inside].tolist()
            assert ids == [*tokenizer.encode(source, add_special_tokens=False).ids, 0]
            positions = batch.source.position_ids[row, inside].tolist()
            assert positions == list(range(len(ids)))


def test_the_index_says_what_the_format_has(datasets: dict[str, Artifact]) -> None:
    found = {f: json.loads((d.path / "index.json").read_text()) for f, d in datasets.items()}
    assert {f: i["schema_version"] for f, i in found.items()} == dict.fromkeys(BAD, 2)
    assert all(index["format"] == format for format, index in found.items())
    assert found["labels"]["labels"] == ["-3", "7", "10"]
    folder = datasets["labels"].path / "tokenizer"
    assert json.loads((folder / "tokenizer_config.json").read_text())["mask_token"] == "<|mask|>"
    assert tokenizer_file(folder).token_to_id("<|mask|>") == 3
    assert tokenizer_file(datasets["chat"].path / "tokenizer").token_to_id("<|mask|>") is None
    assert (found["pairs"]["source_len"], found["pairs"]["decoder_start_id"]) == (200, 0)
    assert all(index["exact_bytes"] for index in found.values())
    assert not (datasets["chat"].path / "train" / "source").exists()
    assert list(datasets["pairs"].path.rglob("*.tmp")) == []


@pytest.mark.parametrize("format", BAD)
def test_parallelism_and_block_sizes_do_not_change_a_byte(
    datasets: dict[str, Artifact],
    prepare_in: Prepare,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
) -> None:
    monkeypatch.setattr(preparation, "_TASK_BYTES", (1, 1))
    monkeypatch.setattr(preparation, "cut", functools.partial(cut, max_bytes=3000))
    again = prepare_in(root, **settings(format), num_cpus=0.5)
    assert again.digest == datasets[format].digest


def test_a_record_that_is_too_long_is_cut_or_ends_the_stage(
    datasets: dict[str, Artifact], prepare_in: Prepare, root: Path
) -> None:
    cut_off = prepare_in(root, **settings("labels"), too_long="truncate")
    steps = json.loads((cut_off.path / "report.json").read_text())["funnel"]
    assert steps[5]["step"] == "encoded"
    assert (steps[5]["documents"], steps[5]["truncated"], steps[5]["dropped"]) == (146, 1, 0)
    with pytest.raises(DataError) as caught:
        prepare_in(root, **settings("labels"), too_long="error")
    assert caught.value.code == "data-too-long"
    assert caught.value.message.startswith("labels.jsonl:103: it has ")
    # A question that is cut before its answer leaves nothing to learn.
    cut_off = prepare_in(root, **settings("chat"), too_long="truncate")
    [step] = [s for s in json.loads((cut_off.path / "report.json").read_text())["funnel"]
              if s["step"] == "encoded"]  # fmt: skip
    assert (step["reasons"], step["documents"]) == ({"no-target": 1}, 145)


@pytest.mark.parametrize(
    ("records", "config", "code", "hint"),
    [
        ([{"turns": []}] * 30, {"format": "chat"}, "data-no-field", "data.fields.messages to 'tu"),
        (
            [{"text": f"text {n}", "label": "x"} for n in range(30)],
            {"format": "labels"}, "data-one-label", "data.fields.label",
        ),
        (
            [{"text": f"text {n}", "label": n or "x"} for n in range(30)],
            {"format": "labels"}, "data-mixed-labels", "in one way",
        ),
        (
            [{"source": "word " * 40, "target": f"t {n}"} for n in range(30)],
            {"format": "pairs", "source_len": 8}, "data-too-small", "data.too_long=truncate",
        ),
        (
            [{"messages": [{"role": "assistant", "content": f"<|im_end|> {n}"}]} for n in range(9)],
            {"format": "chat"}, "data-bad-records", "data.max_bad",
        ),
    ],
)  # fmt: skip
def test_bad_records_end_with_a_cause_and_a_remedy(
    prepare_in: Prepare,
    tmp_path: Path,
    records: list[Record],
    config: dict[str, Any],
    code: str,
    hint: str,
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    common = {"paths": "a.jsonl", "held_out": 0.3, "seq_len": 64, "tokenizer": {"vocab_size": 262}}
    with pytest.raises(RaylmError) as caught:
        prepare_in(tmp_path, store=tmp_path / "store", **common | config)
    assert caught.value.code == code
    assert hint in (caught.value.hint or "")
    assert list((tmp_path / "store" / "drafts").iterdir()) == []


def test_a_given_tokenizer_without_a_template_is_refused_before_anything_is_read(
    prepare_in: Prepare, datasets: dict[str, Artifact], root: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "t"
    shutil.copytree(datasets["chat"].path / "tokenizer", folder)
    given = settings("chat") | {"tokenizer": {"path": str(folder)}}
    same = prepare_in(root, **given)
    for split in SPLITS:
        for file in (same.path / split).iterdir():
            assert (datasets["chat"].path / split / file.name).read_bytes() == file.read_bytes()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError) as caught:
        prepare_in(root, **given)
    assert caught.value.code == "data-no-chat-template"
