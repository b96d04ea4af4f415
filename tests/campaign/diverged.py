"""Steps that go wrong: the run goes back by itself, and leaves their samples out.

What it is compared with is an undisturbed run that leaves the same samples out from the
beginning, as it finds them named in `skipped.json`.
"""

from __future__ import annotations

from pathlib import Path

from raylm.train.metrics import METRICS, read_metrics
from raylm.train.skips import read_skips
from tests.campaign.case import STEPS_PER_FAULT, Case, Note, Plan, next_step
from tests.campaign.poison import poisoned_at, put_poison
from tests.campaign.run import Run
from tests.campaign.seen import EVERY, Seen, largest_difference

NAN = "a loss that is NaN: back to the last checkpoint, its samples skipped"
FAULTS = (NAN,)


def campaign(config: Path, case: Case, plan: Plan, note: Note) -> bool:
    """Steps that go wrong in one run; whether losses and model are those of the undisturbed one."""
    draw, steps = plan.draw(case), [0]
    for _ in plan.chosen(FAULTS):
        steps.append(next_step(steps[-1], draw))
    del steps[0]
    run = Run(config, case, STEPS_PER_FAULT * (len(steps) + 1), ("-m", "tests.campaign.poison"))
    run.start()
    run.wait(lambda: run.work.exists(), "its folder")
    put_poison(run.work, steps)
    assert run.end() == 0, run.said()
    found, models = run.losses(), run.models()
    lines = list(read_metrics(run.work / METRICS))
    assert [skip.step for skip in read_skips(run.work)] == steps
    back = [line["step"] for line in lines if line.get("event") == "rollback"]
    assert back == [step // EVERY * EVERY for step in steps]
    assert {skip.why for skip in read_skips(run.work)} == {"the loss is nan"}
    run.begin_anew()
    assert run.end() == 0, run.said()
    assert not any(line.get("event") == "rollback" for line in read_metrics(run.work / METRICS))
    expected = run.losses()
    assert len(expected) == len(found) == run.num_steps
    for began, (step, hit_s) in zip(back, poisoned_at(run.work).items(), strict=True):
        first = next(x for x in lines if "loss" in x and x["step"] == began + 1)
        note(
            Seen(
                NAN,
                case.precision,
                case.zero,
                step,
                step - began,
                round(first["time"] - hit_s, 1),
                largest_difference(found, expected),
            )
        )
    return found == expected and run.models() == models and len(models) == 1
