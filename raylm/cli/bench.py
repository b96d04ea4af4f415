"""raylm bench: load on an OpenAI-compatible endpoint, open or closed loop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raylm.cli.options import Output
from raylm.cli.output import emit, say
from raylm.errors import ConfigError, GateError, RaylmError

if TYPE_CHECKING:
    from raylm.bench.compare import Comparison
    from raylm.bench.result import Run
    from raylm.bench.settings import Settings

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}
_MAX_TOKENS, _PROMPT_TOKENS, _DURATION_S = 128, "128", 30.0

Text = str | None


def _option(name: str, metavar: str, help: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help, show_default=False)


def bench(
    url: Annotated[str, typer.Option("--url", help="Base of the endpoint, as OpenAI clients take "
                                     "it: http://127.0.0.1:8000/v1.")],
    rate: Annotated[Text, _option("--rate", "R[,R...]", "Open loop: requests a second, one level "
                                  "after the other.")] = None,
    concurrency: Annotated[Text, _option("--concurrency", "N[,N...]", "Closed loop: clients that "
                                         "each wait for their answer.")] = None,
    trace: Annotated[Path | None, _option("--trace", "FILE", "Open loop: JSON lines of at_s, "
                                          "prompt or prompt_tokens, max_tokens.")] = None,
    burstiness: Annotated[float | None, typer.Option(
        "--burstiness", min=0.01, show_default=False,
        help="Shape of the gamma distribution of arrivals; less comes in bursts. [default: 1, "
        "Poisson]")] = None,
    requests: Annotated[int | None, typer.Option(
        "--requests", min=1, show_default=False,
        help="Measured requests of a level. [default: as many as --duration has]")] = None,
    duration: Annotated[Text, _option("--duration", "TIME", "How long requests of a level are "
                                      "measured. [default: 30s]")] = None,
    warmup: Annotated[int | None, typer.Option(
        "--warmup", min=0, show_default=False,
        help="Requests before the measured ones. [default: one a client; 10 in an open loop; none "
        "before a trace]")] = None,
    endpoint: Annotated[Literal["completions", "chat"], typer.Option(
        "--endpoint", help="Which one is asked; always as a stream.")] = "completions",
    model: Annotated[str, typer.Option("--model", show_default=False, help="[default: the only one "
                                       "that is served]")] = "",
    prompts: Annotated[Path | None, _option("--prompts", "FILE", "Prompts: a text a line, or "
                                            ".jsonl with prompt or messages.")] = None,
    prompt_tokens: Annotated[Text, _option("--prompt-tokens", "N[,N...]", "Made-up prompts of so "
                                           "many words, drawn evenly. [default: 128]")] = None,
    max_tokens: Annotated[int | None, typer.Option(
        "--max-tokens", min=1, show_default=False, help="Longest answer. [default: 128]")] = None,
    ignore_eos: Annotated[bool, typer.Option(
        "--ignore-eos", help="Ask for answers of the full length; not every server knows it."
    )] = False,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="Sent as it is.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of arrivals and prompts.")] = 0,
    slo: Annotated[Text, _option("--slo", "BOUNDS", "What a good request keeps, as in ttft=500ms,"
                                 "tpot=50ms,e2e=10s.")] = None,
    key_file: Annotated[Path | None, _option("--key-file", "FILE", "Holds the API key. [default: "
                                             "$RAYLM_API_KEY, if set]")] = None,
    header: Annotated[list[str] | None, _option("--header", "NAME: VALUE", "Sent with every "
                                                "request; may be given again.")] = None,
    timeout: Annotated[str, typer.Option("--timeout", metavar="TIME", help="Of a request.")]
    = "300s",
    max_time: Annotated[str, typer.Option("--max-time", metavar="TIME", help="Of all levels; what "
                                          "is measured by then is kept.")] = "60min",
    max_in_flight: Annotated[int, typer.Option(
        "--max-in-flight", min=1, help="Requests on their way at once; more wait, and their time "
        "counts.")] = 1024,
    max_requests: Annotated[int, typer.Option(
        "--max-requests", min=1, help="Of a level; a record of each is in memory.")] = 100_000,
    no_ceiling: Annotated[bool, typer.Option(
        "--no-ceiling", help="Do not measure first what this client can do.")] = False,
    save: Annotated[Path | None, _option("--save", "FILE", "Write all records, figures and "
                                         "settings as JSON.")] = None,
    html: Annotated[Path | None, _option("--html", "FILE", "Write a page with plots.")] = None,
    compare: Annotated[Path | None, _option("--compare", "FILE", "A saved run to put beside this "
                                            "one.")] = None,
    fail_if_slower: Annotated[float | None, typer.Option(
        "--fail-if-slower", min=1.0, show_default=False,
        help="Exit code 4 if a figure is this many times slower than that of --compare, and by "
        "more than chance.")] = None,
    output: Output = "text",
) -> None:  # fmt: skip
    """Put load on an OpenAI-compatible endpoint and measure how it is borne.

    One of --rate, --concurrency and --trace says how requests come. Ctrl-C ends it with what was
    measured.
    """
    given = {"--rate": rate, "--concurrency": concurrency, "--trace": trace}
    loops = [name for name, value in given.items() if value is not None]
    if len(loops) != 1:
        raise ConfigError(
            f"one of {', '.join(given)} is needed, not {' and '.join(loops) or 'none'}",
            code="bench-load", hint="--concurrency 8, or --rate 4",
        )  # fmt: skip
    _refuse("--burstiness", burstiness, "without --rate", rate is None)
    in_trace = {"--requests": requests, "--duration": duration, "--prompts": prompts,
                "--prompt-tokens": prompt_tokens, "--max-tokens": max_tokens}  # fmt: skip
    for name, value in in_trace.items():
        _refuse(name, value, "with --trace, which says it itself", trace is not None)
    _refuse("--duration", duration, "with --requests", requests is not None)
    _refuse("--prompt-tokens", prompt_tokens, "with --prompts", prompts is not None)
    _refuse("--fail-if-slower", fail_if_slower, "without --compare", compare is None)
    for path in (save, html):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} to write into", code="bench-file")

    from raylm.bench.compare import compare as compare_runs
    from raylm.bench.report import write_report
    from raylm.bench.result import load_run, save_run
    from raylm.bench.run import run
    from raylm.bench.settings import Settings, digest_of
    from raylm.bench.slo import parse_duration_s, parse_slo
    from raylm.cli.levels import comparison_text, run_text
    from raylm.cli.progress import progress

    if requests is None and trace is None:
        measured_s = parse_duration_s(duration, "--duration") if duration else _DURATION_S
    else:
        measured_s = None
    headers = dict(_header(text) for text in header or ())
    settings = Settings(
        url=url.rstrip("/"),
        model=model,
        endpoint=endpoint,
        loop="trace" if trace else "rate" if rate is not None else "concurrency",
        levels=(0.0,) if trace
        else _numbers(rate, "--rate", float) if rate is not None
        else _numbers(concurrency or "", "--concurrency", int),
        burstiness=1.0 if burstiness is None else burstiness,
        trace=str(trace) if trace else None,
        requests=requests,
        duration_s=measured_s,
        warmup=warmup,
        prompts=str(prompts) if prompts else None,
        prompt_tokens=_numbers(prompt_tokens or _PROMPT_TOKENS, "--prompt-tokens", int),
        max_tokens=max_tokens or _MAX_TOKENS,
        ignore_eos=ignore_eos,
        temperature=temperature,
        seed=seed,
        timeout_s=parse_duration_s(timeout, "--timeout"),
        max_time_s=parse_duration_s(max_time, "--max-time"),
        max_in_flight=max_in_flight,
        max_requests=max_requests,
        headers=tuple(headers),
        file_sha256=digest_of(trace, "--trace") if trace
        else digest_of(prompts, "--prompts") if prompts else None,
    )  # fmt: skip
    bounds = parse_slo(slo) if slo else None
    old = load_run(compare) if compare else None
    if old is not None and fail_if_slower is not None:
        _require_the_same_load(old, settings)
    key = _key(key_file)
    with progress() as report:
        made = run(settings, key=key, headers=headers, slo=bounds, with_ceiling=not no_ceiling,
                   report=report)  # fmt: skip
    comparison = compare_runs(old, made) if old else None
    document = made.summary() | {"comparison": comparison.to_json() if comparison else None}
    text = run_text(made) + (f"\n\n{comparison_text(comparison)}" if comparison else "")
    try:
        if save is not None:
            save_run(made, save)
        if html is not None:
            write_report(made, html, comparison)
    finally:
        # A full disk is no reason not to tell what was measured.
        emit(document, text, output)
    _judge(made, comparison, fail_if_slower)


def _judge(made: Run, comparison: Comparison | None, factor: float | None) -> None:
    if made.stopped in EXIT_CODES:
        say(f"ended by {made.stopped}; what was measured is kept")
        raise typer.Exit(EXIT_CODES[made.stopped])
    if not any(level.figures(None).num_ok for level in made.levels):
        failures = [name for level in made.levels for name in level.figures(None).failures]
        raise RaylmError(
            f"no request was answered: {', '.join(dict.fromkeys(failures)) or 'none ended'}",
            code="bench-no-answer",
            hint="--save FILE keeps what the server said of each",
        )
    if comparison is not None and factor is not None:
        if made.is_partial:
            raise GateError("a part of a run cannot be judged", code="bench-partial",
                            hint="a longer --max-time, or fewer requests")  # fmt: skip
        slower = comparison.slower_than(factor)
        if slower:
            told = ", ".join(f"{r.figure} at {r.level} {r.slowdown:.2f}x" for r in slower)
            raise GateError(f"slower by {factor:g} or more: {told}", code="bench-slower")


def _require_the_same_load(old: Run, settings: Settings) -> None:
    from raylm.bench.compare import differences

    other = differences(old.settings, settings)
    if set(settings.levels).isdisjoint(old.settings.levels):
        other += ("no level is in both",)
    if other:
        raise ConfigError(
            f"--fail-if-slower: the older run had another load: {'; '.join(other)}",
            code="bench-other-load",
        )


def _refuse(name: str, value: object, where: str, is_there: bool) -> None:
    if value is not None and is_there:
        raise ConfigError(f"{name} has no effect {where}", code="bench-options")


def _numbers(text: str, option: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < value < float("inf") for value in found):
        raise ConfigError(
            f"{option}: {text!r}: numbers above 0 are wanted, with commas between",
            code="bench-load",
        )
    return found


def _header(text: str) -> tuple[str, str]:
    name, found, value = text.partition(":")
    if not found or not name.strip():
        raise ConfigError(f"--header {text!r}: `Name: value` is wanted", code="bench-header")
    return name.strip(), value.strip()


def _key(path: Path | None) -> str | None:
    from raylm.serve.howto import KEY_VARIABLE

    if path is None:
        return os.environ.get(KEY_VARIABLE)
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file: cannot read {path}: {error}", code="bench-key") from error
    if len(lines) != 1:
        raise ConfigError(f"--key-file: {path} has to hold one key", code="bench-key")
    return lines[0]
