"""Metrics: names, labels, and the sum over several gateways."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from raylm.engine.protocol import Stats
from raylm.serve.backend import ReplicaState
from raylm.serve.metrics import MAX_TENANTS, GatewayMetrics, engine_families, exposition

ALLOWED_LABELS = {
    *("gateway", "model", "route", "status_class", "finish_reason", "replica", "le"),
    *("tenant", "found"),
}


def used(gateway: str, calls: int) -> GatewayMetrics:
    metrics = GatewayMetrics(gateway)
    for _ in range(calls):
        metrics.answered("m", "chat", 200, 0.3)
        metrics.tokens("m", "chat", first_s=0.02, rest_s=0.9, num_prompt=5, num=10)
        metrics.finished("m", "stop")
        metrics.aborted("m", "chat")
        metrics.refused()
    return metrics


def test_series_of_all_gateways_stand_side_by_side():
    text = exposition(
        [used("a", 2).families(1, 0), used("b", 3).families(0, 0)],
        engine_families(
            {
                "m": [
                    ReplicaState(
                        "r1",
                        Stats(
                            num_running=4,
                            prefix_query_tokens_total=90,
                            prefix_hit_tokens_total=64,
                            guessed_tokens_total=40,
                            confirmed_tokens_total=31,
                        ),
                        tokens_per_cpu_s=250.5,
                    ),
                    ReplicaState("r2", Stats(), "broken"),
                ]
            }
        ),
    ).decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert len(families) == text.count("# TYPE")
    values = {
        (s.name, s.labels.get("gateway") or s.labels.get("replica")): s.value
        for f in families.values()
        for s in f.samples
    }
    assert values["raylm_requests_total", "a"] == 2 and values["raylm_requests_total", "b"] == 3
    assert values["raylm_requests_in_flight", "a"] == 1
    assert values["raylm_gateways", None] == 2
    assert values["raylm_engine_up", "r1"] == 1 and values["raylm_engine_up", "r2"] == 0
    assert values["raylm_engine_requests_running", "r1"] == 4
    assert values["raylm_engine_prefix_query_tokens_total", "r1"] == 90
    assert values["raylm_engine_prefix_hit_tokens_total", "r1"] == 64
    assert values["raylm_engine_guessed_tokens_total", "r1"] == 40
    assert values["raylm_engine_confirmed_tokens_total", "r1"] == 31
    assert values["raylm_engine_decode_tokens_per_cpu_second", "r1"] == 250.5
    # What was not measured is not told as 0.
    assert ("raylm_engine_decode_tokens_per_cpu_second", "r2") not in values


def test_names_units_and_labels():
    for family in (
        *used("a", 1).families(0, 0),
        *engine_families({"m": [ReplicaState("r", Stats())]}),
    ):
        assert family.name.startswith("raylm_") and ":" not in family.name
        for sample in family.samples:
            assert set(sample.labels) <= ALLOWED_LABELS
            if family.type == "histogram":
                assert family.name.endswith("_seconds")


def test_time_per_token_leaves_the_first_token_out():
    samples = {
        s.name: s.value
        for f in used("a", 1).families(0, 0)
        for s in f.samples
        if "le" not in s.labels
    }
    assert abs(samples["raylm_time_per_output_token_seconds_sum"] - 0.1) < 1e-9
    assert samples["raylm_time_to_first_token_seconds_count"] == 1


def test_unknown_models_share_one_label(serve_here):
    client = serve_here().client
    for i in range(5):
        client.post("/v1/completions", json={"model": f"m{i}", "prompt": "x"})
    lines = [
        x for x in client.get("/metrics").text.splitlines() if x.startswith("raylm_requests_t")
    ]
    assert lines == [
        'raylm_requests_total{gateway="g1",model="unknown",route="completions",'
        'status_class="4xx"} 5.0'
    ]


def test_tokens_are_counted(serve_here):
    client = serve_here().client
    client.post("/v1/completions", json={"model": "tiny", "prompt": [5, 6], "max_tokens": 3})
    text = client.get("/metrics").text
    assert 'raylm_prompt_tokens_total{gateway="g1",model="tiny"} 2.0' in text
    assert 'raylm_generated_tokens_total{gateway="g1",model="tiny"} 3.0' in text
    assert 'raylm_engine_generated_tokens_total{model="tiny",replica="local"} 3.0' in text


def test_names_of_tenants_are_bounded():
    metrics = GatewayMetrics("a")
    for number in range(MAX_TENANTS + 50):
        metrics.used(f"t{number}", num_prompt=1, num=2)
    (family,) = [f for f in metrics.families(0, 0) if f.name == "raylm_tenant_generated_tokens"]
    values = {s.labels["tenant"]: s.value for s in family.samples if s.name.endswith("_total")}
    assert len(values) == MAX_TENANTS + 1 and values["other"] == 100
