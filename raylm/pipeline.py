"""`run`: the stages in order, each skipped if its result is there, resumed if it was killed.

The table below is the whole of it: what a stage is called, what decides its result, what it
needs, and the function that does it. A stage's key is the hash of its code version, of its
config without workers, paths, ports and logging, and of its inputs' digests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from raylm.artifact import Artifact, json_hash, write_atomic
from raylm.config.load import Loaded
from raylm.config.run import RunConfig
from raylm.errors import ConfigError, RaylmError, nearest
from raylm.progress import Report, Tick, silent
from raylm.stage import Context
from raylm.store import Store, stage_key

Found = Mapping[str, Artifact]
State = Literal["done", "skipped", "planned"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the pipeline."""

    name: str
    needs: tuple[str, ...]
    key: Callable[[RunConfig], Mapping[str, Any]]
    """The part of the config that decides the result."""
    work: Callable[[RunConfig, Found, Context], Artifact]
    code: Callable[[], int]
    """Raised when the same config and inputs give another result."""
    inputs: Callable[[RunConfig, Path], Mapping[str, str]] = lambda config, base: {}
    """Digests of what comes from outside the store."""


def _data(config: RunConfig, found: Found, context: Context) -> Artifact:
    from raylm.data.prepare import prepare

    return prepare(config.data, context)


def _data_code() -> int:
    from raylm.data.prepare import CODE_VERSION

    return CODE_VERSION


def _data_inputs(config: RunConfig, base: Path) -> Mapping[str, str]:
    from raylm.data.prepare import fingerprint

    return fingerprint(config.data, base)


def _train(config: RunConfig, found: Found, context: Context) -> Artifact:
    from raylm.train.train import train

    model = config.model
    if model.path is not None:
        model = model.model_copy(update={"path": str(context.base_dir / model.path)})
    return train(model, config.train, found["data"], context)


def _train_code() -> int:
    from raylm.train.train import CODE_VERSION

    return CODE_VERSION


def _model_inputs(config: RunConfig, base: Path) -> Mapping[str, str]:
    if config.model.path is None:
        return {}
    from raylm.artifact import hash_file
    from raylm.model.folder import check_folder

    folder = base / config.model.path
    check_folder(folder)
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return {f"model:{file.name}": hash_file(file) for file in files}


def _evaluate(config: RunConfig, found: Found, context: Context) -> Artifact:
    from raylm.evaluate.evaluate import evaluate

    return evaluate(config.evaluate, found["train"], found["data"], context)


def _evaluate_code() -> int:
    from raylm.evaluate.evaluate import CODE_VERSION

    return CODE_VERSION


def _compress(config: RunConfig, found: Found, context: Context) -> Artifact:
    from raylm.compress.compress import compress

    return compress(config.compress, config.engine, found["train"], found["data"], context)


def _compress_code() -> int:
    from raylm.compress.compress import CODE_VERSION

    return CODE_VERSION


STAGES: tuple[Stage, ...] = (
    Stage(
        "data", (), lambda c: {"seed": c.seed, "data": c.data.key()}, _data, _data_code,
        _data_inputs,
    ),
    Stage(
        "train", ("data",),
        lambda c: {"seed": c.seed, "model": c.model.key(), "train": c.train.key()},
        _train, _train_code, _model_inputs,
    ),
    Stage(
        "evaluate", ("train", "data"), lambda c: {"evaluate": c.evaluate.key()},
        _evaluate, _evaluate_code,
    ),
    Stage(
        "compress", ("train", "data"), lambda c: {"compress": c.compress.key()},
        _compress, _compress_code,
    ),
)  # fmt: skip


@dataclass(slots=True)
class StageResult:
    """What became of one stage."""

    stage: str
    state: State
    key: str = ""
    ref: str | None = None
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RunResult:
    """What became of a run."""

    run_id: str
    path: Path
    stages: list[StageResult]

    def of(self, stage: str) -> StageResult | None:
        """The result of one stage, if it took part."""
        return next((s for s in self.stages if s.stage == stage), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        stages = [asdict(s) for s in self.stages]
        return {"run_id": self.run_id, "path": str(self.path), "stages": stages}


Connect = Callable[[], AbstractContextManager[object]]


def run(
    loaded: Loaded,
    *,
    connect: Connect,
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
        connect: enters a Ray cluster; called when the first stage has work to do.
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
        _check_stage(name)
    store = store or Store(config.store)
    run_id = f"{config.name}-{json_hash(config.key())[:8]}"
    path = store.root / "runs" / run_id
    path.mkdir(parents=True, exist_ok=True)
    result = RunResult(run_id, path, [])
    record = _Record(path, loaded, run_id, dry_run)
    names = [stage.name for stage in STAGES]
    first = names.index(start) if start else 0
    last = names.index(until) if until else len(names) - 1
    context = Context(
        store, config.name, config.seed, loaded.base_dir, path, report=report, resume=resume
    )
    found: dict[str, Artifact] = {}
    with record.recording(result), _Lazy(connect) as cluster:
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
    return result


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
                there = stage.work(loaded.config, found, replace(context, work=work))
                context.store.remember(key, there)
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


def _key(stage: Stage, loaded: Loaded, found: Found) -> str:
    inputs = dict(stage.inputs(loaded.config, loaded.base_dir))
    inputs |= {need: found[need].digest for need in stage.needs}
    return stage_key(stage.name, stage.code(), stage.key(loaded.config), inputs)


def _check_stage(name: str) -> None:
    names = [stage.name for stage in STAGES]
    if name not in names:
        close = nearest(name, names)
        raise ConfigError(
            f"unknown stage {name!r}; known: {', '.join(names)}",
            code="unknown-stage",
            hint=f"did you mean {close!r}?" if close else None,
        )


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


class _Record:
    """run.json: what the run was asked, and how far it came."""

    def __init__(self, path: Path, loaded: Loaded, run_id: str, dry_run: bool) -> None:
        self._file = path / "run.json"
        self._quiet = dry_run
        self._values: dict[str, Any] = {
            "id": run_id,
            "name": loaded.config.name,
            "state": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": loaded.config.model_dump(mode="json"),
            "base_dir": str(loaded.base_dir),
            "stages": [],
        }

    @contextmanager
    def recording(self, result: RunResult) -> Iterator[None]:
        """Keep the state true to what happens, failures and signals included."""
        self.write(result)
        try:
            yield
        except BaseException as error:
            self._values["state"] = "failed" if isinstance(error, Exception) else "interrupted"
            self._values["error"] = error.message if isinstance(error, RaylmError) else repr(error)
            self.write(result)
            raise
        self._values["state"] = "done"
        self.write(result)

    def write(self, result: RunResult) -> None:
        """Write the file anew."""
        if not self._quiet:
            self._values["stages"] = [asdict(stage) for stage in result.stages]
            write_atomic(self._file, json.dumps(self._values, indent=2) + "\n")
