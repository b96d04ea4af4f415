"""Changes of a release under load: another model, back again, and one that does not load."""

from pathlib import Path

import pytest

from tests.e2e import served
from tests.e2e.deploy import deploy, status
from tests.e2e.load import Seen, under_load
from tests.e2e.models import Models
from tests.e2e.place import Place, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]
_CHANGE_S = 240.0


def text(cluster: Place, release: str) -> str:
    return str(served.ask(cluster, release, wait_s=30)["whole"])


def test_an_upgrade_to_another_model_and_the_way_back_fail_no_request(
    cluster: Place, release: str, file: Path, models: Models, seen: list[Seen], tmp_path: Path
) -> None:
    old = text(cluster, release)
    changed = served.config(cluster, models.new, tmp_path)
    with under_load(cluster, release, "upgrade to another model", seen):
        done = deploy("upgrade", "-c", changed)
        assert done.returncode == 0, done.stderr
        until("the new model answers", lambda: text(cluster, release) != old, _CHANGE_S)
    assert seen[-1].num_failed == 0
    with under_load(cluster, release, "rollback", seen):
        done = deploy("rollback", "-c", changed)
        assert done.returncode == 0, done.stderr
        until("the old model answers", lambda: text(cluster, release) == old, _CHANGE_S)
    assert seen[-1].num_failed == 0


def test_of_a_model_that_does_not_load_the_status_says_why_and_the_old_one_goes_on(
    cluster: Place, release: str, file: Path, models: Models, seen: list[Seen], tmp_path: Path
) -> None:
    old = text(cluster, release)
    broken = served.config(cluster, models.broken, tmp_path)
    with under_load(cluster, release, "upgrade to a model that does not load", seen):
        done = deploy("upgrade", "-c", broken, "--wait-s", "120")
        assert done.returncode != 0
        assert "model.safetensors" in done.stderr
        assert "model.safetensors" in status(file)["causes"][0]
        assert text(cluster, release) == old
        done = deploy("rollback", "-c", file)
        assert done.returncode == 0, done.stderr
    assert seen[-1].num_failed == 0
    assert text(cluster, release) == old
