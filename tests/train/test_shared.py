"""A run's folder that is another one on each node is found before anything is trained."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raylm.train.shared import check_shared
from raylm.train.signs import RANKS, begin_attempt

pytestmark = [pytest.mark.timeout(300)]


def test_every_rank_says_which_of_them_does_not_see_the_folder(tmp_path: Path) -> None:
    works = tmp_path / "node-0", tmp_path / "node-1"
    # The driver is beside the first rank; the second has the folder of a run of before.
    (works[0] / RANKS / "a1").mkdir(parents=True)
    (works[1] / RANKS / "a0").mkdir(parents=True)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.unshared", str(rank), tmp_path / "meeting", work],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, work in enumerate(works)
    ]  # fmt: skip
    for rank, work in zip(ranks, works, strict=True):
        out, err = rank.communicate(timeout=240)
        assert rank.returncode == 0, err
        code, message = out.strip().splitlines()
        assert code == "store-not-shared"
        assert message == (
            f"{work} is not shared between the nodes: rank 1 on {os.uname().nodename} does not "
            "see what the driver has written there"
        )
        assert not any(work.glob(f"{RANKS}/*/*")), "nobody began"


@pytest.mark.usefixtures("alone")
def test_a_folder_that_shows_late_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / RANKS / begin_attempt(tmp_path)
    folder.rename(tmp_path / "elsewhere")
    timer = threading.Timer(0.5, (tmp_path / "elsewhere").rename, (folder,))
    timer.start()
    check_shared(folder, world_size=1)
    timer.join()
