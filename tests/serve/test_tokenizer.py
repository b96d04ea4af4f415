"""The gateway's tokenizer: bytes of single tokens, and the bound on prompts."""

from __future__ import annotations

import asyncio

import pytest
from tokenizers import Tokenizer, decoders, models, processors

from raylm.errors import ModelError, RequestError
from raylm.serve.tokenizer import INLINE_BYTES, PromptTokenizer
from tests.serve.conftest import make_tokenizer


def byte_fallback() -> PromptTokenizer:
    vocab = {"<unk>": 0, "▁a": 1, "b": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    return PromptTokenizer(tokenizer)


def test_bytes_of_tokens_join_to_the_text(model_files):
    tokenizer = PromptTokenizer.from_folder(model_files)
    text = "the größe 日本 👍🏽\n"
    ids = asyncio.run(
        tokenizer.encode(text, add_special_tokens=False, limit_tokens=99, param="prompt")
    )
    assert b"".join(tokenizer.token_bytes(i) for i in ids).decode() == text
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_text(tokenizer._tokenizer.token_to_id("<eos>")) == "<eos>"
    assert tokenizer.token_bytes(10**6) == b""


def test_bytes_of_sentencepiece_tokens():
    tokenizer = byte_fallback()
    assert [tokenizer.token_bytes(i) for i in (1, 2, 3 + 0xE6)] == [b" a", b"b", b"\xe6"]
    assert tokenizer.token_text(3 + 0xE6) == "�"


def test_long_texts_are_tokenised_in_a_thread_with_the_same_result(model_files):
    tokenizer = PromptTokenizer.from_folder(model_files)
    text = "the quick brown fox " * (INLINE_BYTES // 10)
    ids = asyncio.run(
        tokenizer.encode(text, add_special_tokens=True, limit_tokens=10**6, param="prompt")
    )
    assert ids == tokenizer._encode(text, True)


def test_bound_never_refuses_what_fits(model_files):
    tokenizer = PromptTokenizer.from_folder(model_files)
    text = "the quick brown fox " * 50
    num = len(tokenizer._encode(text, False))
    kwargs = {"add_special_tokens": False, "param": "messages"}
    asyncio.run(tokenizer.encode(text, limit_tokens=num, **kwargs))
    with pytest.raises(RequestError) as caught:
        asyncio.run(tokenizer.encode(text, limit_tokens=10, **kwargs))
    assert caught.value.param == "messages"


def test_broken_tokenizer_is_a_model_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        PromptTokenizer.from_folder(tmp_path)


def test_what_is_cut_keeps_the_special_tokens_around_it():
    made = make_tokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer = PromptTokenizer(made)
    text = "the quick brown fox jumps"

    def encode(**options):
        options = {"limit_tokens": 5, "param": "p", "truncate": True, "end_id": 7, **options}
        return asyncio.run(tokenizer.encode(text, **options))

    whole = encode(add_special_tokens=True, truncate=False, limit_tokens=99)
    assert (whole[0], whole[-1]) == (1, 2) and len(whole) > 5  # and nothing behind them
    assert encode(add_special_tokens=True) == (*whole[:4], 2)
    assert encode(add_special_tokens=True, limit_tokens=99) == whole
    assert encode(add_special_tokens=False) == whole[1:6]


def test_an_end_goes_behind_what_has_no_special_tokens(model_files):
    tokenizer = PromptTokenizer.from_folder(model_files)

    def encode(special, **options):
        options = {"limit_tokens": 3, "param": "p", **options}
        call = tokenizer.encode("the fox jumps", add_special_tokens=special, **options)
        return asyncio.run(call)

    plain = encode(False, limit_tokens=99, end_id=2)
    assert encode(True, limit_tokens=99, end_id=2) == (*plain, 2)
    assert encode(True, end_id=2, truncate=True) == (*plain[:2], 2)


def test_names_of_tokens_that_are_not_there_are_refused(model_files):
    tokenizer = PromptTokenizer.from_folder(model_files)
    assert tokenizer.token_names((1, 2)) == ["<bos>", "<eos>"]
    assert tokenizer.decode((1, 2), skip_special_tokens=False) == "<bos><eos>"
    for wrong in (-1, 100_000, 2**40):
        with pytest.raises(RequestError, match=f"token {wrong} "):
            tokenizer.token_names((1, wrong))
