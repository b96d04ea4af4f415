"""Replicas whose engine is vLLM: in which interpreter they run, and what they take.

Ray starts such a replica with `runtime_env: {py_executable: ...}`; all else about it (handles,
health, failover) is as for any other replica.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.engine.load import takes_vllm
from raylm.errors import HostError
from raylm.serve.catalog import ServedModel


def vllm_actor(options: dict[str, Any], engine: EngineConfig) -> dict[str, Any]:
    """A replica's actor options, changed for vLLM's interpreter and its GPU."""
    assert engine.vllm is not None, "`prepare` has checked it"
    runtime_env = options["runtime_env"]
    # vLLM's environment has raylm of its own, unless this one's lies on the import path.
    variables = runtime_env["env_vars"]
    if "PYTHONPATH" in os.environ:
        variables = variables | {"PYTHONPATH": os.environ["PYTHONPATH"]}
    changed = options | {
        "runtime_env": runtime_env | {"py_executable": engine.vllm.python, "env_vars": variables}
    }
    # Of several GPUs, a placement group has the rest; see `placement`.
    return changed | ({"num_gpus": 1} if _num_gpus(engine) == 1 else {})


def gpu_bundles(model: ServedModel, engine: EngineConfig, num_cpus: float) -> dict[str, Any]:
    """Options of a deployment whose replicas take several GPUs: a placement group for each.

    The replica itself is in the first bundle and vLLM's workers, one a GPU, in those after it.
    """
    if not takes_vllm(model.path, engine) or _num_gpus(engine) < 2:
        return {}
    workers = [{"GPU": 1.0}] * _num_gpus(engine)
    return {
        "placement_group_bundles": [{"CPU": num_cpus}, *workers],
        # On one node where they fit: tensor parallelism is chatty.
        "placement_group_strategy": "PACK",
    }


def check_gpus(
    models: Sequence[ServedModel], config: ServeConfig, engine: EngineConfig, cluster_gpus: float
) -> None:
    """See that the GPUs suffice, since Ray would wait for them without a word.

    Raises:
        HostError: they do not, with both figures.
    """
    taking = [model for model in models if takes_vllm(model.path, engine)]
    needed = len(taking) * config.min_replicas * _num_gpus(engine)
    if needed > cluster_gpus:
        raise HostError(
            f"serving needs {needed} GPUs ({len(taking)} models x {config.min_replicas} replicas x "
            f"{_num_gpus(engine)}), and the cluster has {cluster_gpus:g}",
            code="not-enough-gpus",
            hint="lower serve.replicas or engine.vllm.tensor_parallel; or take engine.kind "
            "openvino, or engine.vllm.device cpu",
        )


def _num_gpus(engine: EngineConfig) -> int:
    if engine.vllm is None or engine.vllm.device == "cpu":
        return 0
    return engine.vllm.tensor_parallel
