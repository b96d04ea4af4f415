"""Load on a release by `raylm bench`, from a pod, while something happens; and what clients saw."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from raylm.bench.record import CUT, Record
from raylm.deploy.kubernetes.client import tool
from tests.e2e.models import NAME
from tests.e2e.place import CLIENT, NAMESPACE, Place, say

BEFORE_S = 6.0
"""Of quiet load, before anything is done."""
AFTER_S = 10.0
"""Of load, after all is well again."""
_SAVED = "/tmp/load.json"
_LONGEST_S = 900.0
_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Seen:
    """What clients saw of one event."""

    event: str
    num_requests: int
    failures: dict[str, int]
    """Failed requests by class; see `raylm.bench.client`."""
    longest_gap_s: float
    """Between two pieces of one answer."""
    longest_first_s: float
    """To the first piece of an answer, from when it was due."""
    recovery_s: float
    """Until the release was as it should be."""

    @property
    def num_failed(self) -> int:
        return sum(self.failures.values())


@dataclass(slots=True)
class Load:
    """A load that is on; `end` is called when all is well, and says how long that took."""

    process: subprocess.Popen[str]
    begun_s: float = field(default_factory=time.monotonic)
    recovery_s: float = 0.0

    def over(self, recovery_s: float) -> None:
        self.recovery_s = recovery_s


@contextmanager
def under_load(
    place: Place, name: str, event: str, seen: list[Seen], *, rate: float = 2.0
) -> Iterator[Load]:
    """Open-loop load around what is done inside; appends to `seen` what came of it."""
    words = [
        "raylm", "bench", "--url", f"http://{name}.{NAMESPACE}.svc:8000/v1", "--model", NAME,
        "--key-file", "/etc/raylm/key/client-key", "--rate", str(rate), "--duration",
        f"{_LONGEST_S:.0f}s", "--max-tokens", str(_TOKENS), "--prompt-tokens", "16",
        "--ignore-eos", "--warmup", "0", "--no-ceiling", "--timeout", "60s", "--save", _SAVED,
    ]  # fmt: skip
    # The shell tells the process's id, by which it is ended: kubectl passes no signals on.
    script = 'echo $$ > /tmp/load.pid; exec "$@"'
    command = [
        tool("kubectl"), f"--namespace={NAMESPACE}", "exec", CLIENT, "--",
        "sh", "-c", script, "sh", *words,
    ]  # fmt: skip
    if place.client.context:
        command.insert(1, f"--context={place.client.context}")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    load = Load(process)
    try:
        time.sleep(BEFORE_S)
        assert process.poll() is None, process.communicate()[0]
        load.begun_s = time.monotonic()
        yield load
        load.recovery_s = load.recovery_s or time.monotonic() - load.begun_s
        time.sleep(AFTER_S)
        assert process.poll() is None, process.communicate()[0]
        place.run(CLIENT, "sh", "-c", "kill -INT $(cat /tmp/load.pid)")
        said, _ = process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait(timeout=30)
    saved = json.loads(place.run(CLIENT, "cat", _SAVED))
    found = what_was_seen(event, saved, load.recovery_s)
    say(
        f"  {event}: {found.num_requests} requests, {found.num_failed} failed "
        f"{found.failures or ''}, longest gap {found.longest_gap_s:.1f} s, longest wait "
        f"{found.longest_first_s:.1f} s, recovery {found.recovery_s:.1f} s"
    )
    assert found.num_requests > 0, said
    seen.append(found)


def what_was_seen(event: str, saved: dict[str, Any], recovery_s: float) -> Seen:
    """From what `raylm bench --save` wrote."""
    records = [Record.from_json(r) for level in saved["levels"] for r in level["records"]]
    ended = [record for record in records if record.failure != CUT]
    gaps = [b - a for record in records for a, b in pairwise(record.chunks_at_s)]
    return Seen(
        event,
        len(ended),
        dict(Counter(record.failure for record in ended if record.failure is not None)),
        round(max(gaps, default=0.0), 2),
        round(max((r.ttft_s for r in records if r.ttft_s is not None), default=0.0), 2),
        round(recovery_s, 1),
    )
