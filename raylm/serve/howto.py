"""How to ask an endpoint: a line for the shell and a script that work as they stand."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Literal

from raylm.engine.torch.kind import kind_of
from raylm.errors import ModelError
from raylm.model.folder import read_config

KEY_VARIABLE = "RAYLM_API_KEY"
"""Where raylm's own clients, and what is written here, take an API key from."""
FirstCall = Literal["completions", "embeddings", "classify"]
"""What a model is for, by the path of the call."""


def first_call(folder: Path) -> FirstCall:
    """What to ask a model, told from its folder: for a text, unless it makes none."""
    if (folder / "modules.json").is_file():  # sentence-transformers
        return "embeddings"
    try:
        features = kind_of(read_config(folder)).features
    except ModelError:  # an engine of a plug-in runs it
        return "completions"
    if "generate" in features:
        return "completions"
    return "classify" if "classify" in features else "embeddings"


def curl_line(
    url: str, model: str, prompt: str, *, needs_key: bool, call: FirstCall = "completions"
) -> str:
    """A line for the shell; `url` is the base that OpenAI clients take."""
    body = json.dumps(_body(model, prompt, call))
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if needs_key else ""
    return f"curl {url}/{call}{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def python_script(
    url: str, model: str, prompt: str, *, needs_key: bool, call: FirstCall = "completions"
) -> str:
    """A script with the official client."""
    key = f'os.environ["{KEY_VARIABLE}"]' if needs_key else '"none"'
    lines = [
        *(["import os", ""] if needs_key else []),
        "from openai import OpenAI",
        "",
        f"client = OpenAI(base_url={json.dumps(url)}, api_key={key})",
        *_ASKING[call](json.dumps(model), json.dumps(prompt)),
    ]
    return "\n".join(lines)


def _body(model: str, prompt: str, call: FirstCall) -> dict[str, Any]:
    if call == "completions":
        return {"model": model, "prompt": prompt, "max_tokens": 48}
    return {"model": model, "input": prompt}


_ASKING = {
    "completions": lambda model, prompt: [
        "answer = client.completions.create(",
        f"    model={model}, prompt={prompt}, max_tokens=48",
        ")",
        "print(answer.choices[0].text)",
    ],
    "embeddings": lambda model, prompt: [
        f"answer = client.embeddings.create(model={model}, input={prompt})",
        "print(answer.data[0].embedding[:4])",
    ],
    "classify": lambda model, prompt: [
        f'body = {{"model": {model}, "input": {prompt}}}',
        'answer = client.post("/classify", body=body, cast_to=object)',
        'print(answer["data"][0]["label"])',
    ],
}
