import subprocess
import sys

import pytest

import raylm
from raylm.cli import execute, main
from raylm.cli.commands import COMMANDS, HELP_END
from raylm.errors import GateError, HostError, RaylmError


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


HEAVY = "torch ray pydantic rich numpy psutil yaml typer click transformers openai"
IMPORTS = f"""
import sys
from raylm.cli import main
assert main(sys.argv[1:] or {{args!r}}) == 0
print([m for m in {HEAVY!r}.split() if m in sys.modules], file=sys.stderr)
"""


def test_help_imports_nothing_of_weight() -> None:
    done = python(IMPORTS.format(args=["--help"]))
    assert done.stderr.strip() == "[]"
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_imports_typer_and_no_more(name: str) -> None:
    done = python(IMPORTS.format(args=[name, "--help"]))
    assert done.stderr.strip() == "['typer']"
    assert done.stdout.startswith(f"Usage: raylm {name}")


def test_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raylm", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"raylm {raylm.__version__}\n"


def test_no_command_shows_help(raylm) -> None:
    assert HELP_END in raylm().out
    assert "verify" in raylm("models").out


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["dotcor"], "no such command: dotcor", "'doctor'"),
        (["--debgu"], "no such option: --debgu", "'--debug'"),
        (["models", "verfiy"], "verfiy", "verify"),
        (["run", "--unitl", "data"], "--unitl", "--until"),
        (["logs", "-n", "many"], "--lines", "raylm logs --help"),
    ],
)
def test_a_wrong_command_line_is_code_2_with_the_nearest_name(
    raylm, args: list[str], message: str, hint: str
) -> None:
    done = raylm(*args)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error[usage]: ")
    assert message in done.err
    assert hint in done.err


def fail(error: BaseException):
    def invoke(name: str, args: list[str]) -> int:
        raise error

    return invoke


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RaylmError("it broke", code="broke", hint="mend it"), 1,
         "error[broke]: it broke\nhint: mend it\n"),
        (HostError("no disk", code="disk-full"), 3, "error[disk-full]: no disk\n"),
        (GateError("too far", code="gate"), 4, "error[gate]: too far\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(143), 143, ""),
        (FileNotFoundError(2, "No such file", "/x"), 3, "error[system]: /x: No such file\n"),
        (ZeroDivisionError("division by zero"), 1,
         "error[unexpected]: ZeroDivisionError: division by zero\n"),
    ],
)  # fmt: skip
def test_each_error_has_its_line_and_its_code(
    raylm, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr(execute, "_invoke", fail(error))
    done = raylm("status")
    assert done.code == code
    assert done.err.startswith(said)
    assert "Traceback" not in done.err


def test_debug_shows_the_traceback_wherever_it_stands(
    raylm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "_invoke", fail(HostError("no", code="no")))
    for args in (["--debug", "status"], ["status", "--debug"]):
        assert "Traceback" in raylm(*args).err


def test_an_error_of_a_ray_task_is_shown_as_its_cause(
    raylm, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = RuntimeError("[36mray::work()[39m ...")
    wrapped.cause = GateError("kl is 0.3", code="gate")  # type: ignore[attr-defined]
    monkeypatch.setattr(execute, "_invoke", fail(wrapped))
    done = raylm("status")
    assert (done.code, done.err) == (4, "error[gate]: kl is 0.3\n")


def test_a_reader_that_leaves_is_no_error(tmp_path) -> None:
    pipe = f"{sys.executable} -m raylm config schema | head -c 10"
    command = f"{pipe}; code=${{PIPESTATUS[0]}}; echo; echo $code"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


def test_a_bad_first_option_does_not_import_the_command() -> None:
    assert main(["--nope", "run"]) == 2
