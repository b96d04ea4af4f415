from typing import Any

import pytest

from raylm.cli.deploy import release_name
from raylm.config.pods import ResourcesConfig, WorkerGroup
from raylm.config.run import RunConfig
from raylm.deploy.kubernetes.values import chart_values, train_values, whole_cpus
from raylm.errors import ConfigError

SERVING: dict[str, Any] = {
    "store": {"claim": "models"},
    "api_keys": {"existing_secret": "raylm-keys"},
}


def config(
    serving: dict[str, Any] | None = None, serve: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    values = {
        "name": "demo",
        "serve": {"models": ["demo-int8"], **(serve or {})},
        "deploy": {"serving": {**SERVING, **(serving or {})}},
        **more,
    }
    return RunConfig.model_validate(values)


def test_the_same_file_that_runs_here_becomes_values() -> None:
    values = chart_values(config(serve={"replicas": 3}, engine={"kv_cache": "u8"}))
    assert values["models"] == [{"ref": "demo-int8"}]
    assert values["serve"]["replicas"] == 3
    assert values["engine"]["kv_cache"] == "u8"
    assert values["store"] == {"claim": "models"}
    assert values["api_keys"]["existing_secret"] == "raylm-keys"


def test_what_the_chart_itself_sets_is_not_among_them() -> None:
    values = chart_values(config(serve={"host": "127.0.0.1", "port": 9000, "api_keys": "k"}))
    assert not {"host", "port", "api_keys", "models"} & set(values["serve"])
    run = train_values(config(deploy={"training": {"store": {"url": "s3://a/b"}}}))
    assert not {"store", "cluster", "deploy"} & set(run["config"])
    assert run["config"]["name"] == "demo"


@pytest.mark.parametrize(
    ("given", "gateways"), [({}, 2), ({"gateways": 1}, 1), ({"gateways": 4}, 4)]
)
def test_there_are_two_gateways_unless_it_is_said(given: dict[str, int], gateways: int) -> None:
    assert chart_values(config(serve=given))["serve"]["gateways"] == gateways


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (config(serve={"models": []}), "no-model"),
        (config({"store": {}}), "store-needed"),
        (config({"store": {"claim": "a", "url": "s3://a/b"}}), "store-needed"),
        (config({"api_keys": {}}), "keys-needed"),
        (config(serve={"replicas": 40}), "not-enough-cpus"),
        (config({"workers": [{"resources": {"limits": {"cpu": "two"}}}]}), "config-value"),
    ],
)
def test_what_cannot_work_is_an_error_before_any_cluster(wrong: RunConfig, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chart_values(wrong)
    assert caught.value.code == code


def test_a_run_needs_a_store_that_all_pods_reach() -> None:
    with pytest.raises(ConfigError, match=r"deploy\.training\.store"):
        train_values(config())


@pytest.mark.parametrize(
    ("cpu", "whole"), [(2, 2), ("2", 2), ("3500m", 4), ("500m", 1), (0.5, 1), ("1.0", 1)]
)
def test_cpus_are_whole_as_kubray_counts_them(cpu: Any, whole: int) -> None:
    assert whole_cpus(WorkerGroup(resources=ResourcesConfig(limits={"cpu": cpu}))) == whole


def test_without_a_limit_the_request_counts() -> None:
    assert whole_cpus(WorkerGroup(resources=ResourcesConfig(requests={"cpu": "1500m"}))) == 2


@pytest.mark.parametrize(
    ("name", "train", "release"),
    [
        ("demo", False, "demo"),
        ("demo", True, "demo-train"),
        ("my_run.2", False, "my-run-2"),
        ("9lives", False, "run-9lives"),
        ("a" * 63, False, "a" * 40),
        ("a" * 63, True, "a" * 34 + "-train"),
    ],
)
def test_a_release_has_a_name_that_kubernetes_takes(name: str, train: bool, release: str) -> None:
    assert release_name(RunConfig(name=name), train) == release


def test_a_release_may_be_named() -> None:
    assert release_name(config(deploy={"release": "prod"}), False) == "prod"


def test_the_section_does_not_change_results() -> None:
    assert config().key() == config({"spread": "none"}).key()


def test_a_secret_does_not_go_into_the_environment_by_name() -> None:
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN is set by"):
        config({"pod": {"env": {"RAY_AUTH_TOKEN": "x"}}})
