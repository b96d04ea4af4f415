"""`run`: the stages in order, each skipped if its result is there, resumed if it was killed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylm.artifact import Artifact, json_hash
from raylm.config.load import Loaded
from raylm.config.run import RunConfig
from raylm.errors import ConfigError, RaylmError
from raylm.progress import Report, Tick, silent
from raylm.record import RECORD, Record, RunResult, StageResult, State
from raylm.stage import CHECKPOINTS, Context
from raylm.stages import STAGES, Found, Stage, check_compressible, check_stage
from raylm.store import Store, stage_key
from raylm.train.trackers.children import check_trackers

Connect = Callable[[], AbstractContextManager[object]]


def run(
    loaded: Loaded,
    *,
    connect: Connect | None = None,
    store: Store | None = None,
    start: str | None = None,
    until: str | None = None,
    force: Sequence[str] = (),
    dry_run: bool = False,
    resume: bool = True,
    report: Report = silent,
) -> RunResult:
    """Run the stages of a config.

    Args:
        connect: enters a Ray cluster, called when the first stage has work to do; None takes
            the one that the config names, that is up for this store, or a private one.
        start: stages before it must have their results already.
        until: the last stage.
        force: stages done anew even if their results are there.
        resume: go on from a killed stage's checkpoints; if not, start it anew.

    Raises:
        ConfigError: an unknown stage name, or `start` needs a result that is not there.
        RaylmError: a stage failed; finished stages keep their results.
    """
    config = loaded.config
    for name in [n for n in (start, until, *force) if n]:
        check_stage(name)
    names = [stage.name for stage in STAGES]
    first = names.index(start) if start else 0
    last = names.index(until) if until else len(names) - 1
    if "compress" in names[first : last + 1]:
        check_compressible(config, loaded.base_dir)
    if "train" in names[first : last + 1]:
        check_trackers(config.train.trackers)
    store = store or Store(config.store)
    run_id = run_name(config)
    path = store.root / "runs" / run_id
    if not dry_run:
        path.mkdir(parents=True, exist_ok=True)
    result = RunResult(run_id, path, [])
    record = Record(path, loaded, run_id, dry_run)
    context = Context(
        store, config.name, config.seed, loaded.base_dir, path, report=report, resume=resume
    )
    found: dict[str, Artifact] = {}
    with record.recording(result), _Lazy(connect or connector(loaded, store, report)) as cluster:
        for index, stage in enumerate(STAGES[: last + 1]):
            only_find = index < first
            if only_find and not any(stage.name in s.needs for s in STAGES[first : last + 1]):
                continue
            if any(need not in found for need in stage.needs):
                result.stages.append(StageResult(stage.name, "planned"))
                continue
            _one(stage, loaded, found, context, result, cluster,
                 force=stage.name in force, only_find=only_find, dry_run=dry_run)  # fmt: skip
            record.write(result)
    if not dry_run:
        result.report = _write_report(result, store)
    return result


def _write_report(result: RunResult, store: Store) -> Path:
    from raylm.observe.history import read_history
    from raylm.observe.report import write_report

    record = json.loads((result.path / RECORD).read_text(encoding="utf-8"))
    return write_report(result.path, read_history(store, record))


def connector(loaded: Loaded, store: Store, report: Report) -> Connect:
    """What enters the cluster that the config names, or is up for the store, or a private one."""

    def enter() -> AbstractContextManager[object]:
        from raylm.deploy.cluster import connect

        return connect(store, loaded.config.cluster, report)

    return enter


def find_result(loaded: Loaded, store: Store, name: str) -> Artifact | None:
    """The result of a stage, if it and all that it needs are there.

    Raises:
        RaylmError: what the stage reads from outside the store cannot be read.
    """
    found: dict[str, Artifact] = {}
    for stage in STAGES:
        if all(need in found for need in stage.needs):
            there = store.find(_key(stage, loaded, found))
            if there is not None:
                found[stage.name] = there
        if stage.name == name:
            break
    return found.get(name)


def run_name(config: RunConfig) -> str:
    """The run's id: runs that would train the same share a folder, and so resume each other."""
    trained = {"seed": config.seed}
    trained |= {name: getattr(config, name).key() for name in ("data", "model", "train")}
    return f"{config.name}-{json_hash(trained)[:8]}"


def _one(
    stage: Stage,
    loaded: Loaded,
    found: dict[str, Artifact],
    context: Context,
    result: RunResult,
    cluster: _Lazy,
    *,
    force: bool,
    only_find: bool,
    dry_run: bool,
) -> None:
    key = _key(stage, loaded, found)
    there = None if force else context.store.find(key)
    if there is None and only_find:
        raise ConfigError(
            f"--from needs the result of stage {stage.name!r}, which is not there",
            code="stage-missing",
            hint="leave --from out: finished stages are skipped anyway",
        )
    if there is None and dry_run:
        result.stages.append(StageResult(stage.name, "planned", key))
        return
    if there is None:
        if not stage.alone(loaded.config):
            cluster.enter()
        work = context.work / f"{stage.name}-{key[:12]}"
        started = time.monotonic()

        def waiting(holder: str) -> None:
            context.report(Tick(stage.name, f"waiting: {holder} does the same stage"))

        with context.store.lock(f"stage-{key}", waiting=waiting):
            # Whoever held the lock may have made it meanwhile.
            there = None if force else context.store.find(key)
            if there is None:
                state: State = "done"
                there = stage.work(loaded.config, found, replace(context, work=work, key=key))
                context.store.remember(key, there)
                _drop_checkpoints(work, key, context)
            else:
                state = "skipped"
        seconds = time.monotonic() - started
    else:
        state, seconds = "skipped", 0.0
        context.report(Tick(stage.name, f"skipped, {there.ref} is there", 1, 1))
    found[stage.name] = there
    result.stages.append(
        StageResult(stage.name, state, key, there.ref, round(seconds, 3), there.manifest.metrics)
    )


def _drop_checkpoints(work: Path, key: str, context: Context) -> None:
    shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
    bucket = context.store.bucket
    try:
        if bucket is not None:
            bucket.drop_folder(f"{CHECKPOINTS}/{key}")
    except RaylmError as error:  # the result is there: this is no reason to fail
        text = f"checkpoints stay in {bucket and bucket.place}/{CHECKPOINTS}/{key}: {error.message}"
        context.report(Tick("train", text, is_notice=True))


def _key(stage: Stage, loaded: Loaded, found: Found) -> str:
    inputs = dict(stage.inputs(loaded.config, loaded.base_dir))
    inputs |= {need: found[need].digest for need in stage.needs}
    return stage_key(stage.name, stage.code(), stage.key(loaded.config), inputs)


class _Lazy:
    """A context that is entered when it is first needed: skipping everything needs no Ray."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._inner: AbstractContextManager[object] | None = None

    def __enter__(self) -> _Lazy:
        return self

    def enter(self) -> None:
        if self._inner is None:
            inner = self._connect()
            inner.__enter__()
            self._inner = inner

    def __exit__(self, *error: Any) -> None:
        if self._inner is not None:
            self._inner.__exit__(*error)
