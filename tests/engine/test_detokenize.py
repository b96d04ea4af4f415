import pytest
from tokenizers import Tokenizer, decoders, models

from raylm.engine.detokenize import Detokenizer

TEXTS = [
    "The quick brown fox",
    "Straße 日本語 👍🏽👨‍👩‍👧 naïve €5",
    "  leading and\n\n\ttabs  ",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿" * 3,
    "ab STOP cd",
]


def pieces(tokenizer, token_ids, **options):
    made = Detokenizer(tokenizer, [], **options)
    return made, [made.feed(token_id) for token_id in token_ids]


def byte_fallback_tokenizer():
    """Llama 2's kind: words with a leading mark, and single bytes for all the rest."""
    words = ["<unk>", "▁Hello", "▁world", "!"]
    vocab = {word: i for i, word in enumerate(words)}
    vocab |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_split_no_character(tokenizer, text):
    token_ids = tokenizer.encode(text).ids
    made, parts = pieces(tokenizer, token_ids)
    assert "".join(parts) + made.flush() == text
    assert all("\ufffd" not in part for part in parts)


def test_byte_fallback_characters_come_whole_and_spaces_stay():
    tokenizer = byte_fallback_tokenizer()
    token_ids = [1, 2, *(4 + byte for byte in "€😀".encode()), 2, 3]
    made, parts = pieces(tokenizer, token_ids)
    assert "".join(parts) + made.flush() == "Hello world€😀 world!"
    assert parts[2:9] == ["", "", "€", "", "", "", "😀"]


def test_a_space_after_the_prompt_is_kept():
    tokenizer = byte_fallback_tokenizer()
    made = Detokenizer(tokenizer, [1])
    assert made.feed(2) == " world"


def test_half_a_character_at_the_end_comes_out_on_flush(tokenizer):
    token_ids = tokenizer.encode("x👍").ids[:-1]
    made, parts = pieces(tokenizer, token_ids)
    assert "".join(parts) == "x"
    assert made.flush() == "\ufffd"


def test_bytes_that_never_become_characters_do_not_pile_up(tokenizer):
    lone = tokenizer.encode("👍").ids[0]
    made, parts = pieces(tokenizer, [lone] * 200)
    text = "".join(parts) + made.flush()
    assert text == "\ufffd" * 200
    assert max(map(len, parts)) <= 64


@pytest.mark.parametrize(
    ("stop", "expected", "found"),
    [
        ((" STOP",), "ab", True),
        (("cd", "STOP"), "ab ", True),
        (("STOP cd!",), "ab STOP cd", False),
        (("b S", "ab STOP"), "a", True),  # the first to be complete
        (("d",), "ab STOP c", True),
    ],
)
def test_the_text_is_cut_at_the_first_stop_string(tokenizer, stop, expected, found):
    made, parts = pieces(tokenizer, tokenizer.encode("ab STOP cd").ids, stop=stop)
    text = "".join(parts)
    assert made.finished is found
    assert text + made.flush() == expected


def test_a_possible_beginning_of_a_stop_string_is_held_back(tokenizer):
    made, parts = pieces(tokenizer, tokenizer.encode("x\n\nUse").ids, stop=("\n\nUser:",))
    assert "".join(parts) == "x"
    token_ids = tokenizer.encode("d").ids
    assert "".join(made.feed(t) for t in token_ids) + made.flush() == "\n\nUsed"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stop", [(), (" STOP",), ("日本語 👍",), ("\n\n\t",)])
def test_continuing_after_any_token_gives_the_same_pieces(tokenizer, text, stop):
    token_ids = tokenizer.encode(text).ids
    whole, parts = pieces(tokenizer, token_ids, stop=stop)
    parts.append(whole.flush())
    for done in range(len(token_ids)):
        rest, new = pieces(tokenizer, token_ids[done:], stop=stop, emitted_ids=token_ids[:done])
        assert [*new, rest.flush()] == parts[done:]
        assert rest.finished == whole.finished


def test_nothing_comes_after_a_stop_string(tokenizer):
    made, _ = pieces(tokenizer, tokenizer.encode("a STOP").ids, stop=("STOP",))
    assert made.finished
    assert made.feed(40) == "" and made.flush() == ""


def test_special_tokens_have_no_text(tokenizer):
    made, parts = pieces(tokenizer, [1, *tokenizer.encode("hi").ids, 1])
    assert "".join(parts) + made.flush() == "hi"


def test_stop_strings_before_the_least_length_are_text(tokenizer):
    token_ids = [tokenizer.token_to_id(sign) for sign in "aXbXc"]
    made, parts = pieces(tokenizer, token_ids, stop=("X",), min_tokens=3)
    assert parts == ["a", "X", "b", "", ""]
    assert made.finished
    made, parts = pieces(tokenizer, token_ids[:2], stop=("X",), min_tokens=3)
    assert "".join(parts) + made.flush() == "aX" and not made.finished


def test_a_stop_string_that_begins_before_the_least_length_ends_the_text_after_it(tokenizer):
    token_ids = [tokenizer.token_to_id(sign) for sign in "aXYb"]
    made, parts = pieces(tokenizer, token_ids, stop=("XY",), min_tokens=2)
    assert parts[:3] == ["a", "", ""] and made.finished
    other = Detokenizer(tokenizer, [], stop=("XY",), min_tokens=2, emitted_ids=token_ids[:2])
    assert other.feed(token_ids[2]) == "" and other.finished
