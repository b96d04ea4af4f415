"""The table of faults is made from what was seen, and the page shows what its file holds."""

from pathlib import Path

from tests.campaign.__main__ import CASES, FAULTS
from tests.campaign.case import Case
from tests.campaign.nodes import ELASTIC
from tests.campaign.seen import MARKS, Seen, read, table
from tests.marked import put_between
from tests.train.series import WORLD_SIZE_TOLERANCE

ROOT = Path(__file__).parent.parent


def test_a_line_for_each_fault_with_the_worst_of_its_repetitions() -> None:
    seen = [
        Seen("kill -9 of all ranks", "fp32", 2, 30, 4, 11.0, 0.0),
        Seen("kill -9 of all ranks", "bf16", 3, 50, 9, 14.6, 0.25),
        Seen("kill -9 of all ranks", "bf16", 3, 70, 5, 12.0, 0.0),
        Seen("disk full during a save", "fp32", 2, 90, 8, 20.0, 0.0),
    ]
    lines = table(seen, ["kill -9 of all ranks", "disk full during a save"]).splitlines()
    assert lines[2:4] == [
        "| kill -9 of all ranks | 3 | 5 (9) | 12 (15) | 0.25 |",
        "| disk full during a save | 1 | 8 (8) | 20 (20) | 0 |",
    ]
    assert "bf16 with ZeRO 3, fp32 with ZeRO 2" in lines[-1]


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    put_between(page, MARKS, "new")
    assert page.read_text() == f"before\n{MARKS[0]}\nnew\n{MARKS[1]}\nafter\n"


def test_the_table_in_the_docs_is_that_of_the_campaign() -> None:
    page = (ROOT / "docs/training.md").read_text()
    shown = page.split(MARKS[0])[1].split(MARKS[1])[0].strip("\n")
    seen = read([ROOT / "docs/faults.json"])
    assert shown == table(seen, FAULTS)
    assert {one.fault for one in seen} <= set(FAULTS)


def test_losses_in_the_docs_are_the_same_bit_for_bit_unless_the_number_of_workers_changed() -> None:
    seen = read([ROOT / "docs/faults.json"])
    changed = {one.fault for one in seen if one.max_loss_difference}
    assert changed <= set(ELASTIC)
    assert max(one.max_loss_difference for one in seen) <= WORLD_SIZE_TOLERANCE["fp32"]


def test_cases_are_known_by_their_names() -> None:
    assert Case.of("fp32-2") == Case("", "fp32", 2)
    assert Case.of("nodes-bf16-3") == Case("nodes", "bf16", 3)
    assert tuple(str(Case.of(name)) for name in CASES) == CASES


def test_the_docs_say_what_another_number_of_workers_may_change() -> None:
    page = (ROOT / "docs/training.md").read_text()
    fp32, bf16 = (f"{WORLD_SIZE_TOLERANCE[p]:.0e}".replace("e-0", "e-") for p in ("fp32", "bf16"))
    assert f"tests allow {fp32} of a loss in fp32 and {bf16} in bf16" in " ".join(page.split())
