import pytest

from raylm.errors import ConfigError
from raylm.registry import Registry


def test_a_name_is_imported_only_when_asked_for() -> None:
    table = Registry("thing", {"join": "posixpath:join", "broken": "no.such.module:x"})
    assert table.names() == ["broken", "join"]
    assert table.load("join")("a", "b") == "a/b"
    with pytest.raises(ModuleNotFoundError):
        table.load("broken")


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        Registry("engine", {"openvino": "a:b", "torch": "a:c"}).load("openvin")
    assert caught.value.code == "unknown-engine"
    assert "openvino, torch" in caught.value.message
    assert caught.value.hint == "did you mean 'openvino'?"
