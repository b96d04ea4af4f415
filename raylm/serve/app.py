"""deploy, undeploy: models behind an endpoint, on the Ray cluster this process is connected to.

What the cluster's environment must hold before its head starts is in `raylm.deploy.environment`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from raylm.serve.auth import keys_for
from raylm.serve.build import APP, GATEWAY, build_application, engine_name
from raylm.serve.catalog import ServedModel, check_names
from raylm.serve.prepare import prepare
from raylm.serve.startup import AppState, DeploymentState, wait_answering, wait_running

ROOM_S = 10.0
"""How long other work may take to give its CPUs back."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the models answer."""

    host: str
    port: int
    models: tuple[str, ...]
    needs_key: bool

    @property
    def url(self) -> str:
        """The base that OpenAI clients take, as reached from this machine."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.port}/v1"


def deploy(
    models: Sequence[ServedModel],
    config: ServeConfig,
    engine: EngineConfig,
    *,
    cache_root: Path,
    base_dir: Path | None = None,
    report: Report = silent,
) -> Endpoint:
    """Serve models, and return when they answer.

    Deployed again, what changed is replaced replica by replica, and a failure leaves the old.
    `cache_root` is `<store>/engine`; a relative `api_keys` starts from `base_dir` (the working
    folder).

    Raises:
        ConfigError: keys are missing or exposed, or two models share a name; before anything
            is asked of the cluster.
        ModelError: a model cannot be served.
        HostError: the port is taken, the CPUs do not suffice, or it does not come up in
            `start_timeout_s`.
    """
    deadline_s = time.monotonic() + config.start_timeout_s
    check_names(models)
    hashes = keys_for(config, base_dir or Path.cwd())
    prepare(models, engine, cache_root=cache_root, report=report)
    _wait_room(models, config)
    is_new = APP not in serve.status().applications
    host, port = _listen(config)
    report(Tick("serve", f"starting on {host}:{port}"))
    application = build_application(
        models,
        config,
        engine,
        cache_root=cache_root,
        key_hashes=hashes,
        num_threads=num_threads(models, config, engine, _cpus_by_node()),
    )
    serve._run(application, name=APP, route_prefix="/", _blocking=False)
    wanted = {engine_name(model): config.replicas for model in models}
    wanted[GATEWAY] = config.gateways
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
    return Endpoint(host, port, tuple(m.name for m in models), needs_key=bool(hashes))


def undeploy(*, drain_s: float, report: Report = silent) -> bool:
    """End the endpoint: new calls get 503 at once, running ones have `drain_s` to end.

    Returns whether all running calls were finished; True if nothing was deployed.
    """
    if APP not in serve.status().applications:
        return True
    left = 0
    if drain_s > 0:
        report(Tick("serve", f"finishing running answers (at most {drain_s:g} s)"))
        try:
            gateway: Any = serve.get_deployment_handle(GATEWAY, APP)
            answers = gateway.broadcast("drain", drain_s).results(
                timeout_s=drain_s + 5, return_exceptions=True
            )
            # A gateway that died a moment ago is still asked, and has nothing left.
            left = sum(answer for answer in answers if isinstance(answer, int))
        except (TimeoutError, RayError, RayServeException):
            left = 1  # no gateway answers: nobody can tell
    serve.delete(APP)
    return left == 0


def _wait_room(models: Sequence[ServedModel], config: ServeConfig) -> None:
    largest = max(_cpus_by_node(), default=0.0)
    if config.cpus_per_replica > largest:
        raise HostError(
            f"serve.cpus_per_replica={config.cpus_per_replica:g}, and the largest node of the "
            f"cluster has {largest:g}",
            code="not-enough-cpus",
        )
    check_room(models, config, ray.cluster_resources().get("CPU", 0.0))
    if APP in serve.status().applications:
        return  # what is there now makes room for what comes
    deadline_s = time.monotonic() + ROOM_S
    while True:
        # What has just ended is counted as free a little later.
        try:
            check_room(models, config, ray.available_resources().get("CPU", 0.0), "free now")
            return
        except HostError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.2)


def check_room(
    models: Sequence[ServedModel], config: ServeConfig, cluster_cpus: float, which: str = "in all"
) -> None:
    """See that the CPUs suffice.

    Raises:
        HostError: they do not, with both figures.
    """
    engines = len(models) * config.replicas * config.cpus_per_replica
    needed = engines + config.gateways * config.cpus_per_gateway
    if needed > cluster_cpus + 1e-6:
        raise HostError(
            f"serving needs {needed:g} CPUs ({len(models)} models x {config.replicas} replicas x "
            f"{config.cpus_per_replica:g} + {config.gateways} gateways x "
            f"{config.cpus_per_gateway:g}), and the cluster has {cluster_cpus:g} {which}",
            code="not-enough-cpus",
            hint="lower serve.replicas or serve.cpus_per_replica, or raise cluster.num_cpus",
        )


def num_threads(
    models: Sequence[ServedModel],
    config: ServeConfig,
    engine: EngineConfig,
    cpus_by_node: Sequence[float],
) -> int:
    """Threads of one engine replica: as configured, or its whole CPUs, or its share of all."""
    if engine.num_threads is not None:
        return engine.num_threads
    if config.cpus_per_replica >= 1:
        return int(config.cpus_per_replica)
    share = sum(cpus_by_node) / (len(models) * config.replicas)
    return max(1, int(min(share, max(cpus_by_node, default=1.0))))


def _cpus_by_node() -> list[float]:
    return [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]


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
