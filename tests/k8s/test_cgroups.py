from pathlib import Path

from k8s.local.cgroups import hierarchies


def test_version_2_has_one_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "system.slice").mkdir()
    assert hierarchies(tmp_path) == [tmp_path]


def test_version_1_has_one_for_each_controller_once(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    assert hierarchies(tmp_path) == [tmp_path / "cpu,cpuacct", tmp_path / "memory"]
