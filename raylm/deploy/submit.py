"""submit: a run of the pipeline, handed to a cluster as a Ray job.

What is sent: the resolved configuration (every value, `--set` included), where its relative
paths start, and the name of the stage to end with. Not the data, nor the store: the cluster
must reach both under the same paths, or as URLs. There is no secret in it.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import raylm
from raylm.bucket import is_url, refuse_key
from raylm.config.load import Loaded
from raylm.config.train import CheckpointConfig
from raylm.deploy.jobs import Jobs

FILE = "raylm.yaml"


def submit(
    jobs: Jobs,
    loaded: Loaded,
    *,
    store: str | None,
    until: str | None = None,
    force: Sequence[str] = (),
    resume: bool = True,
    ship: bool = False,
) -> str:
    """Hand a run over; it goes on without this process.

    Args:
        store: the store's place as the cluster sees it; None takes the cluster's own default.
        until: the last stage; None is all of them.
        ship: send this raylm's Python files along, for a cluster that has its dependencies
            but not raylm, or an older one.

    Returns:
        The job's id.

    Raises:
        ConfigError: the store's URL has a secret in it.
        HostError: the cluster does not take it.
    """
    name = loaded.config.name
    job_id = f"{name}-{until or 'run'}-{os.urandom(3).hex()}"
    with tempfile.TemporaryDirectory(prefix="raylm-submit-") as folder:
        (Path(folder) / FILE).write_text(resolved(loaded, store), encoding="utf-8")
        runtime_env: dict[str, Any] = {"working_dir": folder}
        if ship:
            runtime_env["py_modules"] = [str(Path(raylm.__file__).parent)]
        jobs.submit(
            job_id,
            entrypoint(loaded.base_dir, until=until, force=force, resume=resume),
            runtime_env=runtime_env,
            metadata={"run": name, "stage": until or "all", "raylm": raylm.__version__},
            save_s=save_s(loaded.config.train.checkpoint),
        )
    return job_id


def save_s(config: CheckpointConfig) -> float:
    """How long a training that is told to end may take for its last checkpoint."""
    return config.grace_s + (config.upload_wait_s if config.upload else 0.0)


def resolved(loaded: Loaded, store: str | None) -> str:
    """The YAML that is sent: every value, those by default too."""
    if store is not None and is_url(store):
        refuse_key(store)
    values = {**loaded.config.model_dump(mode="json"), "store": store}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def entrypoint(
    base_dir: Path, *, until: str | None, force: Sequence[str] = (), resume: bool = True
) -> str:
    """The command line of the job's driver, for the shell that Ray gives it to."""
    words = ["python", "-m", "raylm", "run", "-c", FILE, "--base-dir", str(base_dir)]
    words += ["--until", until] if until else []
    for stage in force:
        words += ["--force", stage]
    words += [] if resume else ["--no-resume"]
    # The shell gives way to the driver, so that Ray sees the driver's own exit code and end.
    # The cluster's address is known there alone.
    return f'exec {shlex.join(words)} --set "cluster.address=$RAY_ADDRESS" -o json'


def store_there(
    given: str | None, environment: Mapping[str, str], *, root: Path, is_ours: bool
) -> str | None:
    """The store's place as the job is told it.

    What was asked for by name (a flag, the config, $RAYLM_STORE), absolute; else this
    machine's on a cluster that is its own, and on another that one's default (None).
    """
    named = given or environment.get("RAYLM_STORE")
    if named and is_url(named):
        return named
    return str(root) if named or is_ours else None
