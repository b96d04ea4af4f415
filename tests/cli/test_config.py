import json
from pathlib import Path

import pytest

from raylm.config.load import recipe_names, recipe_text


def test_show_names_the_origin_of_every_value(raylm) -> None:
    Path("raylm.yaml").write_text("name: a\ntrain:\n  steps: 7\n")
    rows = {
        row["key"]: row for row in raylm("config", "show", "--set", "seed=3", "-o", "json").json
    }
    assert rows["train.steps"] == {"key": "train.steps", "value": 7, "origin": "raylm.yaml:3"}
    assert rows["seed"] == {"key": "seed", "value": 3, "origin": "--set"}
    assert rows["train.workers"]["origin"] == "default"
    text = raylm("config", "show").out.splitlines()
    assert next(line.split() for line in text if line.startswith("train.steps")) == [
        "train.steps", "7", "raylm.yaml:3",
    ]  # fmt: skip


def test_validate_names_file_line_key_and_the_nearest(raylm) -> None:
    Path("raylm.yaml").write_text("name: a\ntrain:\n  stepps: 7\n")
    done = raylm("config", "validate")
    assert done.code == 2
    assert done.out == ""
    assert done.err == (
        "error[config-unknown-key]: raylm.yaml:3: unknown key 'train.stepps'\n"
        "hint: did you mean 'steps'?\n"
    )
    assert raylm("config", "validate", "-c", "demo", "-o", "json").json["ok"] is True


def test_schema_knows_every_section_and_its_generator(raylm) -> None:
    schema = raylm("config", "schema").json
    assert {"data", "train", "serve", "cluster"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert list(schema)[1] == "$comment"


def test_recipes(raylm) -> None:
    found = raylm("config", "recipes", "-o", "json").json
    assert [recipe["name"] for recipe in found] == recipe_names()
    assert all(recipe["about"] for recipe in found)


def test_init_writes_a_recipe_once(raylm) -> None:
    assert raylm("init").code == 0
    assert Path("raylm.yaml").read_text() == recipe_text("pretrain")
    Path("raylm.yaml").write_text("name: mine\n")
    done = raylm("init")
    assert done.code == 2
    assert "--force" in done.err
    assert Path("raylm.yaml").read_text() == "name: mine\n"
    assert raylm("init", "--force", "--recipe", "serve").code == 0
    assert Path("raylm.yaml").read_text() == recipe_text("serve")


@pytest.mark.parametrize("path", ["sub", "sub/other.yaml"])
def test_init_makes_folders(raylm, path: str) -> None:
    assert raylm("init", path).code == 0
    file = Path(path) if path.endswith("yaml") else Path(path) / "raylm.yaml"
    assert file.is_file()


def test_init_names_the_nearest_recipe(raylm) -> None:
    done = raylm("init", "--recipe", "pretrian")
    assert done.code == 2
    assert "did you mean 'pretrain'?" in done.err


def test_what_init_writes_is_valid(raylm) -> None:
    for recipe in recipe_names():
        assert raylm("init", f"{recipe}.yaml", "--recipe", recipe).code == 0
        assert raylm("config", "validate", "-c", f"{recipe}.yaml").code == 0


def test_doctor_is_one_document_with_a_state_for_each_check(raylm) -> None:
    done = raylm("doctor", "--set", "train.workers=1", "-o", "json")
    assert done.code == (0 if done.json["ok"] else 3)
    assert all(set(c) == {"name", "state", "found", "remedy"} for c in done.json["checks"])
    assert all(c["remedy"] for c in done.json["checks"] if c["state"] != "ok")
    assert json.dumps(done.json)


def test_doctor_ends_with_3_if_something_is_missing(raylm) -> None:
    done = raylm("doctor", "--set", f"cluster.object_store_bytes={2**50}")
    assert done.code == 3
    assert "fail  /dev/shm" in done.out
    assert "cluster.object_store_bytes" in done.out
