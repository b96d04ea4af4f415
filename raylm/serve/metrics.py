"""The gateway's metrics, in Prometheus' text format.

Names and buckets follow the OpenTelemetry GenAI conventions where there is one
(gen_ai.server.request.duration, .time_to_first_token, .time_per_output_token). Labels have few
values by construction: served model names, routes, status classes, finish reasons. A tenant's
name is a label of three counters only; beyond `MAX_TENANTS` names the others count as `other`.

With several gateways behind one address a scrape reaches one of them by chance. It therefore
collects from all: every series carries a `gateway` label, so that counters never seem to fall,
and sums over gateways are right. A gateway that does not answer within two seconds is missing
from that scrape, as any target would be; `raylm_gateways` says how many answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from raylm.serve.backend import ReplicaState

TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25),
    *(0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TPOT_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION_BUCKETS_S = tuple(0.01 * 2**i for i in range(14))
MEDIA_TYPE = "text/plain; version=0.0.4"


MAX_TENANTS = 100


class GatewayMetrics:
    """The instruments of one gateway."""

    def __init__(self, gateway: str) -> None:
        self._registry = CollectorRegistry()
        self._gateway = gateway
        self._tenants: set[str] = set()
        by_call = ("gateway", "model", "route")
        self._requests = self._counter(
            "raylm_requests", "Calls answered.", (*by_call, "status_class")
        )
        self._aborted = self._counter(
            "raylm_requests_aborted", "Calls whose client left before the end.", by_call
        )
        self._finished = self._counter(
            "raylm_answers",
            "Answers by reason of their end.",
            ("gateway", "model", "finish_reason"),
        )
        self._prompt = self._counter(
            "raylm_prompt_tokens", "Prompt tokens of answered calls.", ("gateway", "model")
        )
        self._generated = self._counter(
            "raylm_generated_tokens", "Tokens sent to clients.", ("gateway", "model")
        )
        self._lost = self._counter(
            "raylm_answers_interrupted",
            "Answers and texts whose replica died, fell silent or broke; another goes on.",
            ("gateway", "model", "cause"),
        )
        self._refused = self._counter(
            "raylm_auth_failures",
            "Requests without a key that opens their path.",
            ("gateway",),
        )
        by_tenant = ("gateway", "tenant")
        self._tenant_prompt = self._counter(
            "raylm_tenant_prompt_tokens", "Prompt tokens of a tenant's answered calls.", by_tenant
        )
        self._tenant_generated = self._counter(
            "raylm_tenant_generated_tokens", "Tokens sent to a tenant.", by_tenant
        )
        self._limited = self._counter(
            "raylm_tenant_limited", "Calls refused by a tenant's limits.", by_tenant
        )
        self._uncounted = self._counter(
            "raylm_limits_counted_alone",
            "Calls whose limits this gateway counted by itself: nobody counted for all.",
            ("gateway",),
        )
        self._lookups = self._counter(
            "raylm_cache_lookups",
            "Calls whose answer may be kept: there (hit), being made (shared), or not (miss).",
            ("gateway", "model", "found"),
        )
        self._waiting = Gauge(
            "raylm_requests_waiting",
            "Calls that wait in the gateway for their turn in the engines.",
            ("gateway",),
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "raylm_requests_in_flight",
            "Calls being answered.",
            ("gateway",),
            registry=self._registry,
        )
        self._duration = self._histogram(
            "raylm_request_duration_seconds", "Whole calls.", by_call, DURATION_BUCKETS_S
        )
        self._ttft = self._histogram(
            "raylm_time_to_first_token_seconds",
            "From the arrival of a call to its first token.",
            by_call,
            TTFT_BUCKETS_S,
        )
        self._tpot = self._histogram(
            "raylm_time_per_output_token_seconds",
            "Mean time between the tokens of an answer, after the first.",
            by_call,
            TPOT_BUCKETS_S,
        )

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def refused(self) -> None:
        """A request without a key that opens its path."""
        self._refused.labels(self._gateway).inc()

    def limited(self, tenant: str) -> None:
        """A call was refused by its tenant's limits."""
        self._limited.labels(self._gateway, self._tenant(tenant)).inc()

    def counted_alone(self) -> None:
        """A call's limits were counted by this gateway alone."""
        self._uncounted.labels(self._gateway).inc()

    def looked_up(self, model: str, found: str) -> None:
        """A call's answer was looked for among those that are kept."""
        self._lookups.labels(self._gateway, model, found).inc()

    def used(self, tenant: str, *, num_prompt: int, num: int) -> None:
        """A tenant got `num` tokens."""
        self._tenant_prompt.labels(self._gateway, self._tenant(tenant)).inc(num_prompt)
        self._tenant_generated.labels(self._gateway, self._tenant(tenant)).inc(num)

    def _tenant(self, name: str) -> str:
        if name not in self._tenants and len(self._tenants) >= MAX_TENANTS:
            return "other"
        self._tenants.add(name)
        return name

    def answered(self, model: str, route: str, status: int, duration_s: float) -> None:
        """A call has ended with a status."""
        self._requests.labels(self._gateway, model, route, f"{status // 100}xx").inc()
        self._duration.labels(self._gateway, model, route).observe(duration_s)

    def aborted(self, model: str, route: str) -> None:
        """A call's client has left."""
        self._aborted.labels(self._gateway, model, route).inc()

    def lost(self, model: str, cause: str) -> None:
        """An answer or a text has lost its replica."""
        self._lost.labels(self._gateway, model, cause).inc()

    def tokens(
        self, model: str, route: str, *, first_s: float, rest_s: float, num_prompt: int, num: int
    ) -> None:
        """A call has made `num` tokens: the first after `first_s`, the others in `rest_s`."""
        self.read(model, num_prompt)
        self._generated.labels(self._gateway, model).inc(num)
        if num:
            self._ttft.labels(self._gateway, model, route).observe(first_s)
        if num > 1:
            self._tpot.labels(self._gateway, model, route).observe(rest_s / (num - 1))

    def read(self, model: str, num_tokens: int) -> None:
        """A call's texts had so many tokens."""
        self._prompt.labels(self._gateway, model).inc(num_tokens)

    def finished(self, model: str, reason: str) -> None:
        """An answer has come to its end."""
        self._finished.labels(self._gateway, model, reason).inc()

    def families(self, num_in_flight: int, num_waiting: int) -> list[Metric]:
        """All series as they are now; these can be sent to another gateway."""
        self._waiting.labels(self._gateway).set(num_waiting)
        self._in_flight.labels(self._gateway).set(num_in_flight)
        return list(self._registry.collect())


def engine_families(states: Mapping[str, Sequence[ReplicaState]]) -> list[Metric]:
    """The engine replicas' own figures, by model."""
    labels = ("model", "replica")
    gauges = {
        "num_running": ("raylm_engine_requests_running", "Requests in the batch."),
        "num_waiting": ("raylm_engine_requests_waiting", "Requests waiting for a place in it."),
        "num_blocks": ("raylm_engine_kv_blocks", "Blocks of the key-value cache."),
        "num_free_blocks": ("raylm_engine_kv_blocks_free", "Blocks not in use; cached ones too."),
    }
    counters = {
        "prompt_tokens_total": ("raylm_engine_prompt_tokens", "Prompt tokens processed."),
        "generated_tokens_total": ("raylm_engine_generated_tokens", "Tokens generated."),
        "steps_total": ("raylm_engine_steps", "Forward passes."),
        "cancelled_total": ("raylm_engine_requests_cancelled", "Requests cancelled."),
        "prefix_query_tokens_total": (
            "raylm_engine_prefix_query_tokens",
            "Tokens looked up in the prefix cache.",
        ),
        "prefix_hit_tokens_total": (
            "raylm_engine_prefix_hit_tokens",
            "Tokens found in the prefix cache.",
        ),
        "guessed_tokens_total": ("raylm_engine_guessed_tokens", "Tokens guessed by speculation."),
        "confirmed_tokens_total": (
            "raylm_engine_confirmed_tokens",
            "Guessed tokens that were right.",
        ),
    }
    pace = GaugeMetricFamily(
        "raylm_engine_decode_tokens_per_cpu_second",
        "Tokens a second of processor time, decoding a few sequences when it was loaded.",
        labels=labels,
    )
    up = GaugeMetricFamily("raylm_engine_up", "1 if the replica can work.", labels=labels)
    found: dict[str, Metric] = {"": up}
    found |= {k: GaugeMetricFamily(*v, labels=labels) for k, v in gauges.items()}
    found |= {k: CounterMetricFamily(*v, labels=labels) for k, v in counters.items()}
    for model, replicas in states.items():
        for state in replicas:
            for name, family in found.items():
                value = float(getattr(state.stats, name)) if name else float(not state.problem)
                family.add_metric([model, state.replica], value)  # type: ignore[attr-defined]
            if state.tokens_per_cpu_s:
                pace.add_metric([model, state.replica], state.tokens_per_cpu_s)
    return [*found.values(), pace]


def exposition(gateways: Sequence[Iterable[Metric]], engines: Iterable[Metric]) -> bytes:
    """Prometheus text of all gateways' series and the engines'."""
    answered = GaugeMetricFamily("raylm_gateways", "Gateways in this scrape.")
    answered.add_metric([], len(gateways))
    merged: dict[str, Metric] = {answered.name: answered}
    for families in (*gateways, engines):
        for family in families:
            if family.name in merged:
                merged[family.name].samples.extend(family.samples)
            else:
                merged[family.name] = family
    registry = CollectorRegistry()
    registry.register(_Fixed(merged.values()))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
