"""Places on a cluster that a controller kept when it was killed."""

from __future__ import annotations

import pytest

from raylm.train.placement import free_places, held_places

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_what_a_killed_actor_held_is_freed_and_what_was_held_before_is_kept(
    cluster: None,
) -> None:
    import ray
    from ray.util import placement_group, remove_placement_group

    class Controller:
        def hold(self) -> None:
            ray.get(placement_group([{"CPU": 0.01}]).ready())

    mine = placement_group([{"CPU": 0.01}])
    ray.get(mine.ready())
    before = held_places()
    assert mine.id.hex() in before
    controller = ray.remote(num_cpus=0)(Controller).remote()
    ray.get(controller.hold.remote())
    ray.kill(controller)
    assert len(held_places() - before) == 1
    free_places(before)
    assert held_places() == before
    remove_placement_group(mine)
    assert mine.id.hex() not in held_places()
