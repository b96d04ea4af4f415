"""Records and settings to make figures of."""

from __future__ import annotations

from raylm.bench.record import Draft, Phase, Record
from raylm.bench.settings import Settings


def record(
    *,
    index: int = 0,
    phase: Phase = "measured",
    at: float = 0.0,
    late: float = 0.0,
    first: float = 0.1,
    gaps: tuple[float, ...] = (0.01, 0.01, 0.01),
    end: float = 0.0,
    failure: str | None = None,
    tokens: int | None = 4,
) -> Record:
    """A request due `at`, with its first piece `first` later, and its end `end` after the last."""
    times = [at + first]
    for gap in gaps:
        times.append(times[-1] + gap)
    draft = Draft(
        index, phase, at, 0.0, at + late, times, times[-1] + end, failure, None, 7, tokens
    )
    return draft.finished(0.0)


SETTINGS = Settings(
    url="http://127.0.0.1:1/v1", model="tiny", endpoint="completions", loop="rate", levels=(8.0,),
    burstiness=1.0, trace=None, requests=None, duration_s=5.0, warmup=None, prompts=None,
    prompt_tokens=(8,), max_tokens=16, ignore_eos=False, temperature=0.0, seed=0, timeout_s=30.0,
    max_time_s=60.0, max_in_flight=64, max_requests=1000,
)  # fmt: skip
