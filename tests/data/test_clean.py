import pytest

from raylm.data.clean import Decoded, NotText, clean, decode


@pytest.mark.parametrize(
    ("data", "text", "repaired"),
    [
        (b"plain", "plain", False),
        ("café".encode(), "café", False),
        (b"\xef\xbb\xbfmark", "mark", False),
        ("wide ü".encode("utf-16"), "wide ü", False),
        ("wide ü".encode("utf-32"), "wide ü", False),
        (b"mostly fine text \xe9t\xe9 and more of it", "mostly fine text �t� and more of it", True),
        ("already � here".encode(), "already � here", False),
        (b"", "", False),
        (b"\x1b[31mred\x1b[0m\x0c", "\x1b[31mred\x1b[0m\x0c", False),
    ],
)
def test_bytes_become_text(data: bytes, text: str, repaired: bool) -> None:
    assert decode(data) == Decoded(text, repaired)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PNG\0\0\x01", "binary"),
        (bytes(range(1, 20)) * 3, "binary"),
        ("Привет, мир".encode("cp1251"), "not-utf8"),
    ],
)
def test_what_is_not_text_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(NotText) as caught:
        decode(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("a\nb", "a\nb"),
        ("e\u0301", "é"),
        ("a\x00b\x07c\td\x7f\x85", "abc\td"),
        ("\ufeffmark", "mark"),
        ("zero\u200dwidth", "zero\u200dwidth"),
    ],
)
def test_normalising_makes_text_uniform(text: str, expected: str) -> None:
    assert clean(text, normalize=True, fix_mojibake=False) == Decoded(expected)
    assert clean(expected, normalize=True, fix_mojibake=False) == Decoded(expected)


def test_without_normalising_text_stays() -> None:
    assert clean("a\r\ne\u0301\x07", normalize=False, fix_mojibake=False).text == "a\r\ne\u0301\x07"


def test_surrogates_are_joined_or_replaced() -> None:
    pair, alone = "x\ud83d\udc4dy", "x\ud83dy"
    assert clean(pair, normalize=False, fix_mojibake=False) == Decoded("x👍y", repaired=True)
    assert clean(alone, normalize=False, fix_mojibake=False) == Decoded("x�y", repaired=True)


def test_mojibake_is_undone_only_when_asked() -> None:
    broken = "café".encode().decode("latin-1")
    assert clean(broken, normalize=True, fix_mojibake=True) == Decoded("café", repaired=True)
    assert clean("café", normalize=True, fix_mojibake=True) == Decoded("café")
    assert clean(broken, normalize=False, fix_mojibake=False) == Decoded(broken)
