"""What a replica with vLLM takes of the cluster; read off the application, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raylm.config.engine import EngineConfig, VllmConfig
from raylm.config.serve import ServeConfig
from raylm.errors import HostError
from raylm.serve.build import build_application
from raylm.serve.catalog import ServedModel
from raylm.serve.vllm import check_gpus
from tests.serve.conftest import write_llama


def engine_options(engine: EngineConfig, folder: Path) -> Any:
    application = build_application(
        [ServedModel("m", folder)], ServeConfig(cpus_per_replica=0.5), engine,
        cache_root=folder / "engine", keys=[], key_file=None, num_threads=3,
    )  # fmt: skip
    (bound,) = (v for k, v in application._bound_deployment.init_kwargs.items() if "engine" in k)
    return bound._bound_deployment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("m"))


def test_it_runs_in_the_interpreter_that_has_vllm(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    vllm = VllmConfig(python="/envs/vllm/bin/python", device="cpu")
    actor = engine_options(EngineConfig(kind="vllm", vllm=vllm), folder).ray_actor_options
    assert actor["runtime_env"]["py_executable"] == "/envs/vllm/bin/python"
    variables = actor["runtime_env"]["env_vars"]
    assert variables["OMP_NUM_THREADS"] == "3" and variables["PYTHONPATH"] == "/somewhere"
    assert actor["num_cpus"] == 0.5 and not actor.get("num_gpus")
    other = engine_options(EngineConfig(vllm=vllm), folder).ray_actor_options
    assert "py_executable" not in other["runtime_env"]


def test_on_cuda_it_takes_a_gpu_or_a_placement_group_of_several(folder):
    one = engine_options(EngineConfig(vllm=VllmConfig(python="p")), folder)
    assert one.ray_actor_options["num_gpus"] == 1
    vllm = VllmConfig(python="p", tensor_parallel=2)
    two = engine_options(EngineConfig(vllm=vllm), folder)
    assert not two.ray_actor_options.get("num_gpus")
    config = two._replica_config
    assert config.placement_group_bundles == [{"CPU": 0.5}, *[{"GPU": 1.0}] * 2]
    assert config.placement_group_strategy == "PACK"


def test_gpus_that_are_missing_are_told_before_anything_waits_for_them(folder):
    models, config = [ServedModel("m", folder)], ServeConfig(replicas=2)
    four = EngineConfig(vllm=VllmConfig(python="p", tensor_parallel=4))
    check_gpus(models, config, four, 8.0)
    with pytest.raises(HostError, match=r"8 GPUs \(1 models x 2 replicas x 4\).* has 7") as error:
        check_gpus(models, config, four, 7.0)
    assert error.value.code == "not-enough-gpus"
    for without in (EngineConfig(), EngineConfig(kind="openvino", vllm=four.vllm)):
        check_gpus(models, config, without, 0.0)
