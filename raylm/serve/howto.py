"""How to ask an endpoint: a line for the shell and a script that work as they stand."""

from __future__ import annotations

import json
import shlex

KEY_VARIABLE = "RAYLM_API_KEY"
"""Where raylm's own clients, and what is written here, take an API key from."""


def curl_line(url: str, model: str, prompt: str, *, needs_key: bool) -> str:
    """A line for the shell; `url` is the base that OpenAI clients take."""
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 48})
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if needs_key else ""
    return f"curl {url}/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def python_script(url: str, model: str, prompt: str, *, needs_key: bool) -> str:
    """A script with the official client."""
    key = f'os.environ["{KEY_VARIABLE}"]' if needs_key else '"none"'
    lines = [
        *(["import os", ""] if needs_key else []),
        "from openai import OpenAI",
        "",
        f"client = OpenAI(base_url={json.dumps(url)}, api_key={key})",
        "answer = client.completions.create(",
        f"    model={json.dumps(model)}, prompt={json.dumps(prompt)}, max_tokens=48",
        ")",
        "print(answer.choices[0].text)",
    ]
    return "\n".join(lines)
