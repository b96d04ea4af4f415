"""Every command, and the import path of what it does: `raylm --help` imports none of them."""

from __future__ import annotations

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Begin": {
        "init": ("raylm.cli.init:init", "write a raylm.yaml to start from"),
        "doctor": ("raylm.cli.doctor:doctor", "look whether this machine has what is needed"),
        "demo": ("raylm.cli.demo:demo", "the whole way once, in about five minutes"),
        "config": ("raylm.cli.config:app", "show, check and describe configurations"),
    },
    "Make a model": {
        "run": (
            "raylm.cli.run:run",
            "all stages; what is done is skipped, what was killed resumes",
        ),
        "plan": ("raylm.cli.plan:plan", "what the training will cost, before it runs"),
        "data": ("raylm.cli.run:data", "text to packed token shards"),
        "train": ("raylm.cli.run:train", "up to a trained model"),
        "eval": ("raylm.cli.run:evaluate", "up to the figures on held-out text"),
        "compress": ("raylm.cli.run:compress", "up to a smaller model that passed its gate"),
        "submit": ("raylm.cli.submit:submit", "the same as a Ray job on a cluster"),
    },
    "Serve it": {
        "serve": ("raylm.cli.serve:serve", "put models behind an OpenAI-compatible endpoint"),
        "chat": ("raylm.cli.chat:chat", "talk to what is served"),
        "keys": ("raylm.cli.keys:app", "make, list and revoke API keys of the endpoint"),
        "deploy": ("raylm.cli.deploy:app", "a served model, or a run, on Kubernetes"),
        "bench": ("raylm.cli.bench:bench", "put load on an endpoint, and say how it was borne"),
    },
    "Look after it": {
        "up": ("raylm.cli.cluster:up", "start a Ray cluster on this machine"),
        "down": ("raylm.cli.cluster:down", "finish running answers, then end the cluster"),
        "status": ("raylm.cli.cluster:status", "what runs, and where"),
        "logs": ("raylm.cli.cluster:logs", "the last lines of the cluster's logs"),
        "model": ("raylm.cli.model:app", "show what a model is made of"),
        "jobs": ("raylm.cli.jobs:app", "list, show, follow and stop submitted jobs"),
        "models": ("raylm.cli.models:app", "list, show, verify and remove artifacts"),
        "runs": ("raylm.cli.runs:app", "list, show and compare runs"),
    },
}

COMMANDS: dict[str, tuple[str, str]] = {
    name: entry for group in GROUPS.values() for name, entry in group.items()
}

HELP_END = """Options:
  --debug     show the traceback of an error
  --version   show raylm's version
  --help      show this, or a command's own help

Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 environment, 4 a gate was not met,
130 and 143 ended by Ctrl-C and SIGTERM.
"""


def help_text() -> str:
    """What `raylm --help` prints."""
    lines = [
        "Usage: raylm [--debug] COMMAND [OPTIONS]",
        "",
        "Train, compress and serve language models on Ray, from one file.",
        "",
    ]
    for title, commands in GROUPS.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<10}  {what}" for name, (_, what) in commands.items()]
        lines.append("")
    return "\n".join(lines) + HELP_END
