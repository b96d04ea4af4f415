from pathlib import Path

import pytest

from raylm.config import load_config
from raylm.config.load import recipe_names
from raylm.errors import ConfigError


def failing(tmp_path: Path, text: str, *overrides: str) -> ConfigError:
    file = tmp_path / "raylm.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert caught.value.exit_code == 2
    caught.value.message = caught.value.message.replace(f"{file}", "raylm.yaml")
    return caught.value


def test_defaults_are_a_valid_config() -> None:
    config = load_config().config
    assert config.train.steps == 100
    assert config.serve.host == "127.0.0.1"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name: str) -> None:
    assert load_config(name).config.name == name


def test_an_unknown_key_names_file_line_and_the_nearest(tmp_path: Path) -> None:
    error = failing(tmp_path, "name: x\ntrain:\n  stepz: 3\n")
    assert error.message == "raylm.yaml:3: unknown key 'train.stepz'"
    assert error.hint == "did you mean 'steps'?"
    assert error.code == "config-unknown-key"


def test_a_key_of_another_section_is_found_there(tmp_path: Path) -> None:
    error = failing(tmp_path, "seq_len: 4\n")
    assert error.hint == "did you mean 'data.seq_len'?"


def test_an_unknown_key_without_a_near_one_lists_the_known(tmp_path: Path) -> None:
    error = failing(tmp_path, "evaluate: {xyzzy: 1}\n")
    assert error.hint == "known here: max_samples, batch, num_cpus"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {micro_batch: a}", "train.micro_batch: a whole number is expected, found 'a'"),
        ("train: {zero: 4}", "train.zero=4: must be 0, 1, 2 or 3"),
        ("data: {held_out: 1.5}", "data.held_out=1.5: must be less than 1"),
        ("data: 3", "data: a mapping is expected, found 3"),
        ("name: UP", "name='UP': must match ^[a-z0-9][a-z0-9._-]{0,62}$"),
        ("train: {steps: 1, time_s: 1}", "train: set either steps or time_s, not both"),
    ],
)
def test_values_out_of_range_or_of_a_wrong_type(tmp_path: Path, text: str, message: str) -> None:
    assert failing(tmp_path, text).message.endswith(message)


def test_batches_that_do_not_divide_say_the_nearest_that_does(tmp_path: Path) -> None:
    error = failing(tmp_path, "train:\n  global_batch: 10\n  workers: 2\n  micro_batch: 4\n")
    assert error.message.startswith("raylm.yaml:1: train: global_batch=10 is not a multiple")
    assert "the nearest is 8" in error.message


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    error = failing(tmp_path, "train:\n  stepz: 3\n  zero: 9\n", "data.seq_len=1")
    assert len(error.message.splitlines()) == 3
    assert "--set: data.seq_len=1" in error.message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- a\n", "a mapping of sections is expected"),
        ("name: a\nname: b\n", "raylm.yaml:2: name is set twice (first in line 1)"),
        ("name: !!python/object/apply:os.system [ls]\n", "name"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(tmp_path: Path, text: str, part: str) -> None:
    assert part in failing(tmp_path, text).message


def test_a_missing_file_and_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config("dmeo")
    assert caught.value.hint == "did you mean 'demo'?"


def test_overrides_win_and_are_named_as_origin(tmp_path: Path) -> None:
    file = tmp_path / "raylm.yaml"
    file.write_text("train:\n  steps: 5\n  optimizer:\n    lr: 3e-4\n")
    loaded = load_config(
        file, ["train.steps=7", "name=other", "data.paths=[a, b]", "data.pattern=**/*.py"]
    )
    assert loaded.config.data.pattern == "**/*.py"
    assert loaded.config.train.steps == 7
    assert loaded.config.train.optimizer.lr == 3e-4
    assert loaded.config.data.paths == ("a", "b")
    assert loaded.origins["train.steps"] == "--set"
    assert loaded.origins["train.optimizer.lr"] == f"{file}:4"
    assert loaded.origins["train.zero"] == "default"
    assert loaded.base_dir == tmp_path


def test_the_key_leaves_out_where_and_how_fast() -> None:
    one = load_config(None, ["data.num_cpus=1", "train.cpus_per_worker=1"]).config
    two = load_config(None, ["data.num_cpus=2", "train.cpus_per_worker=2"]).config
    assert one.key() == two.key()
    assert one.key() != load_config(None, ["data.seq_len=64"]).config.key()
    assert "workers" not in one.train.key()
