"""What a deployed executor takes on."""

from __future__ import annotations

import pytest

from raylm.config.serve import BatchesConfig, ReplicaRange, ServeConfig
from raylm.errors import HostError
from raylm.serve.batches.replica import concurrency
from raylm.serve.catalog import ServedModel
from raylm.serve.room import check_room


@pytest.mark.parametrize(
    ("serve", "most", "expected"),
    [
        ({"replicas": 2, "max_ongoing_requests": 128}, 32, 32),
        ({"replicas": 2, "max_ongoing_requests": 8}, 32, 8),
        ({"replicas": 1, "max_ongoing_requests": 1}, 32, 1),
        ({"replicas": ReplicaRange(min=0, max=4), "max_ongoing_requests": 8}, 32, 4),
    ],
)
def test_half_of_the_places_are_left_to_others(serve, most, expected):
    config = ServeConfig(batches=BatchesConfig(max_concurrency=most), **serve)
    assert concurrency(config) == expected


def test_the_executor_needs_its_share_of_the_cpus(tmp_path):
    models = [ServedModel("m", tmp_path)]
    check_room(models, ServeConfig(replicas=2), 1.25)
    with pytest.raises(HostError, match=r"needs 1\.35 CPUs .* \+ 0\.1 for batches"):
        check_room(models, ServeConfig(replicas=2, batches=BatchesConfig()), 1.25)
