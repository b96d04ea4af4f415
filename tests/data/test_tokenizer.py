import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from raylm.data.tokenizer import (
    MASK,
    SPECIAL_TOKENS,
    copy_tokenizer,
    end_of_text_id,
    load_tokenizer,
    role_id,
    save_tokenizer,
    token_lengths,
    train_tokenizer,
)
from raylm.errors import DataError, ModelError

Text = Callable[[int, int], str]


@pytest.fixture(scope="module")
def texts(text: Text) -> list[str]:
    return [text(seed, 30) for seed in range(20)]


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, 420)


@pytest.fixture(scope="module")
def folder(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    save_tokenizer(trained, path)
    return path


def test_the_vocabulary_has_exactly_the_size_and_special_tokens_first(trained: Tokenizer) -> None:
    assert trained.get_vocab_size() == 420
    assert [trained.id_to_token(i) for i in range(3)] == list(SPECIAL_TOKENS)
    assert set(trained.get_vocab().values()) == set(range(420))


def test_training_depends_on_the_text_alone(
    texts: list[str], trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_tokenizer(texts[::-1], 420).to_str() == trained.to_str()
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert train_tokenizer(texts, 420).to_str() == trained.to_str()


def test_too_little_text_says_which_size_is_reachable(texts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        train_tokenizer(texts[:2], 20_000)
    assert caught.value.code == "data-vocab-too-large"
    reachable = int((caught.value.hint or "").split("vocab_size to ")[1].split(" ")[0])
    assert train_tokenizer(texts[:2], reachable).get_vocab_size() == reachable


@pytest.mark.parametrize(
    "given",
    [
        "x = {'some': \"it's\"}\r\n\t\tif 2026 > 10:  # naïve\n\n    return None   \n",
        "👍🏽 नमस्ते 数据\u2028 e\u0301 \x00\x7f",
        "<|endoftext|><|im_start|>user\nhi<|im_end|> <|endoftext",
        " ",
        "a" * 5000,
    ],
)
def test_any_text_comes_back_byte_for_byte(trained: Tokenizer, given: str) -> None:
    tokenizer = load_tokenizer(trained.to_str())
    ids = tokenizer.encode(given, add_special_tokens=False).ids
    assert min(ids) >= len(SPECIAL_TOKENS), "special tokens in the text are text"
    assert tokenizer.decode(ids, skip_special_tokens=False) == given
    assert token_lengths(tokenizer)[ids].sum() == len(given.encode())


def test_text_is_cut_for_code_and_prose(trained: Tokenizer) -> None:
    cut = [
        piece for piece, _ in trained.pre_tokenizer.pre_tokenize_str("it's 'some' x12345\n    if")
    ]
    assert cut == ["it's", "Ġ'", "some", "'", "Ġx", "12", "34", "5", "Ċ", "ĠĠĠ", "Ġif"]


def test_token_lengths_are_bytes_and_zero_for_special_tokens(trained: Tokenizer) -> None:
    lengths = token_lengths(trained)
    assert lengths.dtype == np.int32
    assert lengths[:3].tolist() == [0, 0, 0]
    assert (lengths[3:259] == 1).all()
    assert (lengths[259:] >= 2).all()


def test_a_tokenizer_with_byte_fallback_has_lengths_by_spelling() -> None:
    vocab = {"<unk>": 0, "<0x0A>": 1, "▁the": 2, "é": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.add_tokens(["<tool>"])
    assert token_lengths(tokenizer).tolist() == [0, 1, 4, 2, 6]


def test_transformers_loads_the_folder_offline(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    assert len(loaded) == 420
    assert loaded.eos_token_id == loaded.bos_token_id == loaded.pad_token_id == 0
    assert loaded("it's", add_special_tokens=True)["input_ids"] == (
        load_tokenizer((folder / "tokenizer.json").read_text()).encode("it's").ids
    )
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    prompt = loaded.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = loaded.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert ids.count(1) == 2 and ids.count(2) == 2
    assert loaded.decode(ids, skip_special_tokens=True) == "user\nhi\nassistant\nyes\n"


def test_an_existing_tokenizer_is_copied_as_it_is(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a part of it")
    copy_tokenizer(folder, tmp_path / "copy")
    names = sorted(p.name for p in (tmp_path / "copy").iterdir())
    assert names == [
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(ModelError):
        copy_tokenizer(tmp_path, tmp_path / "none")


def test_the_end_of_text_is_found_or_asked_for(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer((folder / "tokenizer.json").read_text())
    assert end_of_text_id(folder, tokenizer) == 0
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert end_of_text_id(tmp_path, tokenizer) == 2
    config.write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(DataError) as caught:
        end_of_text_id(tmp_path, tokenizer)
    assert caught.value.code == "data-no-eos"


def test_truncation_and_padding_of_a_given_tokenizer_do_not_touch_documents(
    trained: Tokenizer,
) -> None:
    limited = Tokenizer.from_str(trained.to_str())
    limited.enable_truncation(4)
    limited.enable_padding(length=8)
    loaded = load_tokenizer(limited.to_str())
    text = "alpha beta gamma delta return import class value"
    assert loaded.decode(loaded.encode(text).ids) == text


def test_a_word_level_pattern_is_not_mistaken_for_bytes() -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab={"Ġé": 0}, unk_token="Ġé"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert token_lengths(tokenizer).tolist() == [4]


def test_an_encoder_s_tokenizer_has_a_mask_and_encloses_texts(
    texts: list[str], trained: Tokenizer, tmp_path: Path
) -> None:
    encoder = train_tokenizer(texts, 420, mask=True, enclosed=True)
    assert encoder.token_to_id(MASK) == 3 and encoder.get_vocab_size() == 420
    ids = encoder.encode("alpha <|mask|>").ids
    assert (ids[0], ids[-2], ids[-1]) == (0, 3, 0)
    assert 3 not in load_tokenizer(encoder.to_str()).encode("alpha <|mask|>").ids
    save_tokenizer(encoder, tmp_path / "t")
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    assert [config[f"{role}_token"] for role in ("cls", "sep", "mask")] == [
        "<|endoftext|>", "<|endoftext|>", "<|mask|>"
    ]  # fmt: skip
    assert role_id(tmp_path / "t", encoder, "mask_token") == 3
    save_tokenizer(trained, tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    assert not {"cls_token", "sep_token", "mask_token"} & plain.keys()
    assert role_id(tmp_path / "plain", trained, "mask_token") is None


def test_the_tokenizer_of_a_decoder_is_spelled_as_it_was(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config == {
        "bos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "extra_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    processor = json.loads((folder / "tokenizer.json").read_text())["post_processor"]
    assert processor["type"] == "ByteLevel"
