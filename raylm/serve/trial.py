"""trial: a model is loaded once, aside, before it takes the place of one that serves.

Serve ends the deployments that an application does not have any more as soon as it is built, and
its new gateways do not wait for the new engines. So what can fail is tried before: a model that
does not load fails the building, and what serves goes on as it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.engine.load import load, takes_vllm
from raylm.errors import HostError, ModelError, RaylmError
from raylm.serve.build import APP, GATEWAY, Placement, engine_actor, engine_settings
from raylm.serve.catalog import ServedModel
from raylm.serve.results import engine_key

ANSWER_S = 5.0

Served = tuple[str, str, str]
"""As `GatewayReplica.served` tells it."""


def try_new(
    models: Sequence[ServedModel],
    config: ServeConfig,
    engine: EngineConfig,
    *,
    cache_root: Path,
    num_threads: int,
    placement: Placement,
) -> None:
    """Load each model that is not served yet, on a node where its replicas may run.

    Nothing is tried where nothing serves that could be lost, nor without a surge, when the CPUs
    of one more replica are not there.

    Raises:
        ModelError: one does not load.
        HostError: there is no place to try it on in `start_timeout_s`.
    """
    if placement.surge_percent == 0:
        return
    deadline_s = time.monotonic() + config.start_timeout_s
    for model in untried(models, engine, served_now()):
        task = _try.options(**engine_actor(model, config, num_threads, placement)).remote(
            model, engine_settings(engine, num_threads), cache_root
        )
        try:
            ray.get(task, timeout=max(0.0, deadline_s - time.monotonic()))
        except GetTimeoutError:
            ray.cancel(task, force=True)
            raise HostError(
                f"{model.name} was not loaded within {config.start_timeout_s:g} s for a trial; "
                f"one needs {config.cpus_per_replica:g} CPUs",
                code="trial-late",
                hint="give the cluster a worker more, or let old replicas end first "
                "(upgrade.surge_percent=0)",
            ) from None
        except RayError as error:
            raise _reason(model, error) from error


def untried(
    models: Sequence[ServedModel], engine: EngineConfig, served: Sequence[Served]
) -> list[ServedModel]:
    """The models that have to be tried before they take the place of `served`. Pure but for
    looking into the models' folders."""
    if not served:
        return []
    key = engine_key(engine)
    new = [m for m in models if (m.name, m.digest, key) not in served]
    # vLLM is another process in another environment, and takes the GPUs of a replica.
    return [model for model in new if not takes_vllm(model.path, engine)]


def served_now() -> list[Served]:
    """What the gateways that answer serve; nothing where there are none."""
    try:
        gateways: Any = serve.get_deployment_handle(GATEWAY, APP)
    except KeyError:  # there is none, nor was there
        return []
    try:
        answers = gateways.broadcast("served").results(timeout_s=ANSWER_S, return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return []
    return [served for answer in answers if isinstance(answer, list) for served in answer]


# A process of its own, which gives its memory back.
@ray.remote(max_calls=1, max_retries=0)
def _try(model: ServedModel, settings: Mapping[str, Any], cache_root: Path) -> None:
    config = EngineConfig.model_validate(settings)
    load(model.path, config, cache_root=cache_root, digest=model.digest).close()


def _reason(model: ServedModel, error: RayError) -> RaylmError:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RaylmError):
        return cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else type(cause).__name__
    return ModelError(f"{model.name} does not load: {text}", code="model-not-loaded")
