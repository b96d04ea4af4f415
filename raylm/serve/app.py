"""deploy, undeploy: models behind an endpoint, on the Ray cluster this process is connected to.

What the cluster's environment must hold before its head starts is in `raylm.deploy.environment`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.errors import HostError
from raylm.progress import Report, Tick, silent
from raylm.serve.auth import key_file, keys_for
from raylm.serve.build import APP, GATEWAY, build_application, engine_name, shared
from raylm.serve.catalog import ServedModel, check_names
from raylm.serve.endpoint import Endpoint, endpoint_of
from raylm.serve.prepare import prepare
from raylm.serve.room import cpus_by_node, num_threads, wait_room
from raylm.serve.startup import AppState, DeploymentState, wait_answering, wait_running
from raylm.serve.vllm import check_gpus

DRAIN_POLL_S = 0.1
GONE_S = 60.0
WARNINGS_S = 5.0


def deploy(
    models: Sequence[ServedModel],
    config: ServeConfig,
    engine: EngineConfig,
    *,
    cache_root: Path,
    base_dir: Path | None = None,
    store_keys: Path | None = None,
    report: Report = silent,
) -> Endpoint:
    """Serve models, and return when they answer.

    Deployed again, what changed is replaced replica by replica, and a failure leaves the old.
    `cache_root` is `<store>/engine`, beside which batches lie; a relative `api_keys` starts from
    `base_dir` (the working folder); `store_keys` is the key store that is used when `api_keys` is
    not set.

    Raises:
        ConfigError: keys are missing or exposed, or two models share a name; before anything
            is asked of the cluster.
        ModelError: a model cannot be served.
        HostError: the port is taken, the CPUs or GPUs do not suffice, or it does not come up in
            `start_timeout_s`.
    """
    deadline_s = time.monotonic() + config.start_timeout_s
    check_names(models)
    path = key_file(config, base_dir or Path.cwd(), store_keys)
    keys = keys_for(config, path)
    engine = prepare(models, engine, cache_root=cache_root, report=report)
    check_gpus(models, config, engine, ray.cluster_resources().get("GPU", 0.0))
    wait_room(models, config, is_running=APP in serve.status().applications)
    is_new = APP not in serve.status().applications
    host, port = _listen(config)
    report(Tick("serve", f"starting on {host}:{port}"))
    application = build_application(
        models,
        config,
        engine,
        cache_root=cache_root,
        keys=keys,
        key_file=path,
        num_threads=num_threads(models, config, engine, cpus_by_node()),
    )
    serve._run(application, name=APP, route_prefix="/", _blocking=False)
    wanted = {engine_name(model): config.min_replicas for model in models}
    wanted[GATEWAY] = config.gateways
    wanted |= dict.fromkeys(shared(config, has_keys=bool(keys)), 1)
    try:
        wait_running(lambda: _look(wanted), wanted, deadline_s, report)
        local = "127.0.0.1" if host == "0.0.0.0" else host
        wait_answering(local, port, deadline_s, report)
    except BaseException:
        # What did not come up must not keep trying, nor hold the CPUs; but an endpoint that
        # was there before goes on with what it had.
        if is_new:
            undeploy(drain_s=0)
        raise
    return endpoint_of(host, port, models, needs_key=bool(keys))


def warnings() -> list[str]:
    """What there is to say of the models that are served; nothing where no gateway answers."""
    gateway: Any = serve.get_deployment_handle(GATEWAY, APP)
    try:
        answers = gateway.broadcast("slower").results(timeout_s=WARNINGS_S, return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return []
    return next((answer for answer in answers if isinstance(answer, list)), [])


def undeploy(*, drain_s: float, report: Report = silent) -> bool:
    """End the endpoint: new calls get 503 at once, running ones have `drain_s` to end.

    Returns whether all running calls were finished; True if nothing was deployed.
    """
    if APP not in serve.status().applications:
        return True
    left = 0
    if drain_s > 0:
        report(Tick("serve", f"finishing running answers (at most {drain_s:g} s)"))
        left = _drain(drain_s)
    serve.delete(APP, _blocking=False)
    _wait_gone(report)
    return left == 0


def _wait_gone(report: Report) -> None:
    deadline_s = time.monotonic() + GONE_S
    while APP in serve.status().applications:
        if time.monotonic() > deadline_s:
            report(Tick("serve", "a replica does not end; it is killed when its time is over"))
            return
        time.sleep(DRAIN_POLL_S)


def _drain(drain_s: float) -> int:
    """Tell the gateways to take nothing new until nothing runs; how many calls are left."""
    gateway: Any = serve.get_deployment_handle(GATEWAY, APP)
    deadline_s = time.monotonic() + drain_s
    while True:
        # Asked again and again, since a gateway may die or be replaced meanwhile.
        try:
            answers = gateway.broadcast("drain").results(timeout_s=2, return_exceptions=True)
            left = sum(answer for answer in answers if isinstance(answer, int))
        except (TimeoutError, RayError, RayServeException):
            left = 1  # nobody can tell
        if left == 0 or time.monotonic() > deadline_s:
            return left
        time.sleep(DRAIN_POLL_S)


def _listen(config: ServeConfig) -> tuple[str, int]:
    """Start Serve's controller and proxy, or see that they listen where they should."""
    # Serve's options cannot be changed once it runs, and it only warns of others.
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        host, port = str(running.http_config.host), int(running.http_config.port)
        if host != config.host or config.port not in (0, port):
            raise HostError(
                f"Ray Serve already listens on {host}:{port} in this cluster, not on "
                f"{config.host}:{config.port}",
                code="serve-elsewhere",
                hint="`raylm down` ends it; or set serve.host and serve.port to what it has",
            )
        return host, port
    port = free_port(config.host, config.port)
    # On a busy machine Serve may kill and restart a proxy that is slow to come up; `deploy`
    # waits for the endpoint to answer, so this is no error yet.
    with suppress(RayActorError):
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": config.host, "port": port, "keep_alive_timeout_s": 90},
            logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
        )
    return config.host, port


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        HostError: something else listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise HostError(
                f"serve.port={port} on {host} cannot be used: {error.strerror}",
                code="port-taken",
                hint="set serve.port to another, or to 0 for a free one",
            ) from error
        return int(probe.getsockname()[1])


def _look(wanted: dict[str, int]) -> AppState:
    app = serve.status().applications.get(APP)
    if app is None:
        return AppState("NOT_STARTED", "", ())
    deployments = []
    for name, deployment in app.deployments.items():
        counts = {getattr(s, "value", s): n for s, n in deployment.replica_states.items()}
        deployments.append(
            DeploymentState(
                name=name,
                running=counts.get("RUNNING", 0),
                wanted=wanted.get(name, 0),
                unplaced="to be scheduled" in deployment.message,
                message=deployment.message,
                failed=deployment.status.value in ("DEPLOY_FAILED", "UNHEALTHY"),
            )
        )
    return AppState(app.status.value, app.message, tuple(deployments))
