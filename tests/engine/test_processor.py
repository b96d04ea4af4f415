import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.processor import Precision, choose_precision, processor_flags


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


def test_flags_are_read_as_linux_writes_them(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\nbugs\t: x\n")
    assert processor_flags(cpuinfo) == {"fpu", "avx2", "amx_bf16"}
    assert processor_flags(tmp_path / "none") == frozenset()
