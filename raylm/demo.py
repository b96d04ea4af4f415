"""`raylm demo`: the whole way once, from the source of this machine's Python to an answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from raylm.config import Loaded, load_config
from raylm.progress import Report, Tick, silent
from raylm.record import RunResult
from raylm.serve.howto import KEY_VARIABLE, curl_line, python_script
from raylm.store import Store

if TYPE_CHECKING:
    from raylm.serve.endpoint import Endpoint

PROMPT = "import os\n\n\ndef "
_ASK = "def main("
_ANSWER_TOKENS = 96


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo made, and how to go on with it."""

    run: RunResult
    url: str
    model: str
    needs_key: bool
    answer: str
    first_token_s: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return {**values, "run": self.run.to_dict(), "curl": self.curl, "python": self.python}

    @property
    def curl(self) -> str:
        """A line for the shell that asks the endpoint."""
        return curl_line(self.url, self.model, _ASK, needs_key=self.needs_key)

    @property
    def python(self) -> str:
        """A script that asks the endpoint with the official client."""
        return python_script(self.url, self.model, _ASK, needs_key=self.needs_key)


def run_demo(
    *,
    overrides: Sequence[str] = (),
    report: Report = silent,
    show: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Run the `demo` recipe, serve its compressed model, and ask it once.

    Args:
        show: given the answer's text as it streams in.

    Raises:
        RaylmError: a stage failed; the cluster is ended again if this call started it.
    """
    from raylm.deploy.cluster import down, ensure_up

    started = time.monotonic()
    loaded = load_config("demo", overrides)
    store = Store(loaded.config.store)
    started_here = ensure_up(store, loaded.config.cluster, report=report)
    try:
        run, endpoint = _make_and_serve(loaded, store, report)
        answer, first_token_s = _ask(endpoint.url, endpoint.models[0], report, show)
    except BaseException:
        if started_here:
            down(store, drain_s=0, report=report)
        raise
    seconds = time.monotonic() - started
    return DemoResult(
        run=run,
        url=endpoint.url,
        model=endpoint.models[0],
        needs_key=endpoint.needs_key,
        answer=answer,
        first_token_s=round(first_token_s, 3),
        seconds=round(seconds, 1),
    )


def _make_and_serve(loaded: Loaded, store: Store, report: Report) -> tuple[RunResult, Endpoint]:
    from raylm.deploy.cluster import connect
    from raylm.deploy.status import write_endpoint
    from raylm.pipeline import run as run_pipeline

    config = loaded.config
    with connect(store, config.cluster, report):
        run = run_pipeline(loaded, store=store, report=report)
        compressed = run.of("compress")
        assert compressed is not None
        assert compressed.ref is not None
        from raylm.serve.app import deploy
        from raylm.serve.prepare import served_artifact

        endpoint = deploy(
            [served_artifact(store.resolve(compressed.ref))],
            config.serve,
            config.engine,
            cache_root=store.root / "engine",
            base_dir=loaded.base_dir,
            report=report,
        )
        write_endpoint(store, endpoint.to_dict())
    return run, endpoint


def _ask(url: str, model: str, report: Report, show: Callable[[str], None]) -> tuple[str, float]:
    report(Tick("ask", "waiting for the first token"))
    from openai import OpenAI

    started = time.monotonic()
    first_token_s = 0.0
    parts: list[str] = []
    key = os.environ.get(KEY_VARIABLE, "none")
    with OpenAI(base_url=url, api_key=key, timeout=60) as client:
        stream = client.completions.create(
            model=model,
            prompt=PROMPT,
            max_tokens=_ANSWER_TOKENS,
            temperature=0.4,
            seed=1,
            stream=True,
        )
        for chunk in stream:
            text = chunk.choices[0].text if chunk.choices else ""
            if text and not parts:
                first_token_s = time.monotonic() - started
                report(Tick("ask", f"first token after {first_token_s * 1000:.0f} ms", 1, 1))
                show(PROMPT)
            if text:
                parts.append(text)
                show(text)
    return "".join(parts), first_token_s


def summary(run: RunResult) -> list[tuple[str, str, str]]:
    """Rows of figure, original, compressed; an empty text where there is none."""
    rows: list[tuple[str, str, str]] = []
    evaluation, compression = run.of("evaluate"), run.of("compress")
    train = run.of("train")
    if train:
        metrics = train.metrics
        rows.append(("trained on, tokens", f"{metrics['tokens']:,}", ""))
        rows.append(("training, tokens/s", f"{metrics['tokens_per_s']:,.0f}", ""))
    if evaluation:
        metrics = evaluation.metrics
        rows.append(("held out, bits per byte", f"{metrics['bits_per_byte']:.3f}", ""))
        rows.append(("held out, top-1 accuracy", f"{metrics['top1_accuracy']:.1%}", ""))
    if compression:
        rows += _compression_rows(compression.metrics)
    return rows


def _compression_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = [
        (
            "perplexity",
            f"{metrics['reference_perplexity']:.2f}",
            f"{metrics['perplexity']:.2f}",
        ),
        (
            "weights, MB",
            f"{metrics['reference_weight_bytes'] / 1e6:.2f}",
            f"{metrics['weight_bytes'] / 1e6:.2f}",
        ),
        ("KL to the original, nats", "", f"{metrics['kl']:.5f}"),
        ("top-1 agreement", "", f"{metrics['top1_agreement']:.2%}"),
    ]
    if "tokens_per_s" in metrics:
        rows.append(
            (
                "generated tokens/s, batch 8",
                f"{metrics['reference_tokens_per_s']:,.0f}",
                f"{metrics['tokens_per_s']:,.0f}",
            )
        )
    return rows
