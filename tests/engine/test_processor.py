import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.processor import Precision, choose_precision, processor_flags, processor_name
from raylm.errors import ConfigError


@pytest.mark.parametrize(
    ("precision", "kv_cache", "flags", "expected"),
    [
        ("auto", "auto", {"avx2"}, Precision("f32", "u8")),
        ("auto", "auto", {"avx512_bf16"}, Precision("f32", "u8")),
        ("auto", "auto", {"amx_bf16"}, Precision("bf16", "u8")),
        ("f32", "auto", {"amx_bf16"}, Precision("f32", "f32")),
        ("bf16", "auto", set(), Precision("bf16", "u8")),
        ("f32", "u8", set(), Precision("f32", "u8")),
        ("auto", "bf16", set(), Precision("f32", "bf16")),
    ],
)
def test_precision_follows_the_config_and_the_flags(precision, kv_cache, flags, expected):
    config = EngineConfig(precision=precision, kv_cache=kv_cache)
    assert choose_precision(config, frozenset(flags)) == expected


@pytest.mark.parametrize(("precision", "flags"), [("bf16", set()), ("auto", {"amx_bf16"})])
def test_an_exact_cache_of_rounded_arithmetic_is_refused(precision, flags):
    with pytest.raises(ConfigError, match="cannot be kept in f32"):
        choose_precision(EngineConfig(precision=precision, kv_cache="f32"), frozenset(flags))


@pytest.mark.parametrize(
    ("asked", "precision", "flags", "rounds"),
    [
        ("auto", "auto", {"avx512_vnni"}, True),
        ("auto", "auto", {"avx_vnni"}, True),
        ("auto", "bf16", {"avx512_vnni"}, True),
        ("auto", "auto", {"avx2"}, False),
        ("auto", "f32", {"avx512_vnni"}, False),
        ("on", "f32", set(), True),
        ("off", "auto", {"avx512_vnni"}, False),
    ],
)
def test_activations_are_rounded_where_that_is_fast_and_not_forbidden(
    asked, precision, flags, rounds
):
    config = EngineConfig(dynamic_quantization=asked, precision=precision)
    assert (choose_precision(config, frozenset(flags)).activation_group > 0) is rounds


def test_flags_are_read_as_linux_writes_them(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    lines = ("processor\t: 0", "model name\t: EPYC 9", "flags\t\t: fpu avx2 amx_bf16", "bugs\t: x")
    cpuinfo.write_text("\n".join(lines) + "\n")
    assert processor_flags(cpuinfo) == {"fpu", "avx2", "amx_bf16"}
    assert processor_flags(tmp_path / "none") == frozenset()
    assert (processor_name(cpuinfo), processor_name(tmp_path / "none")) == ("EPYC 9", "")
