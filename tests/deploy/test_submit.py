from pathlib import Path
from typing import Any

import pytest
import yaml

from raylm.config import load_config
from raylm.config.load import recipe_names
from raylm.config.train import CheckpointConfig
from raylm.deploy.jobs import exit_code
from raylm.deploy.submit import entrypoint, resolved, save_s, store_there
from raylm.errors import ConfigError


@pytest.mark.parametrize("name", recipe_names())
def test_what_is_sent_is_the_whole_config_and_reads_the_same(name: str, tmp_path: Path) -> None:
    loaded = load_config(name, ["train.zero=1", "data.paths=[a b, käse/*.txt]"])
    file = tmp_path / "raylm.yaml"
    file.write_text(resolved(loaded, "/shared/store"))
    there = load_config(file, base_dir="/home/me")
    assert there.config == loaded.config.model_copy(update={"store": "/shared/store"})
    assert there.base_dir == Path("/home/me")
    assert yaml.safe_load(file.read_text()).keys() == type(loaded.config).model_fields.keys()


def test_a_store_with_a_key_in_its_url_is_not_sent() -> None:
    with pytest.raises(ConfigError) as error:
        resolved(load_config(), "s3://key:secret@bucket/x")
    assert error.value.code == "store-key-in-url"
    assert "secret" not in error.value.message


def test_the_driver_replaces_its_shell_and_gets_its_words_whole() -> None:
    line = entrypoint(Path("/a b/$x"), until="data", force=["data"], resume=False)
    assert line == (
        "exec python -m raylm run -c raylm.yaml --base-dir '/a b/$x' --until data --force data "
        '--no-resume --set "cluster.address=$RAY_ADDRESS" -o json'
    )
    assert "--until" not in entrypoint(Path("/a"), until=None)


@pytest.mark.parametrize(
    ("given", "variable", "is_ours", "place"),
    [
        (None, None, True, "/srv/store"),
        (None, None, False, None),
        ("store", None, False, "/srv/store"),
        (None, "store", False, "/srv/store"),
        ("s3://b/p?region=x", "other", False, "s3://b/p?region=x"),
        (None, "gs://b/p", True, "gs://b/p"),
    ],
)
def test_the_store_is_named_as_the_cluster_sees_it(
    given: str | None, variable: str | None, is_ours: bool, place: str | None
) -> None:
    environment = {"RAYLM_STORE": variable} if variable else {}
    found = store_there(given, environment, root=Path("/srv/store"), is_ours=is_ours)
    assert found == place


@pytest.mark.parametrize(
    ("state", "driver_code", "code"),
    [
        ("running", None, None),
        ("pending", None, None),
        ("succeeded", 0, 0),
        ("succeeded", None, 0),
        ("failed", 1, 1),
        ("failed", 4, 4),
        ("failed", -9, 137),
        ("failed", None, 3),
        ("stopped", None, 143),
    ],
)
def test_a_jobs_end_is_one_exit_code(state: str, driver_code: int | None, code: int | None) -> None:
    assert exit_code(state, driver_code) == code


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [({}, 90), ({"upload": False}, 30), ({"grace_s": 200.0, "upload_wait_s": 5.5}, 205.5)],
)
def test_a_job_that_is_stopped_has_the_time_for_its_last_checkpoint(
    changes: dict[str, Any], seconds: float
) -> None:
    assert save_s(CheckpointConfig(**changes)) == seconds
