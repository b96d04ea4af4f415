"""A real answer from an endpoint: `python -m raylm.deploy.kubernetes.probe`.

The readiness probe of pods that serve, and what `helm test` runs. A socket that listens and a
process that lives say nothing of a model that answers; so every model is asked for a token. That
is done once before a pod gets any traffic, and then every `--token-every-s`; between, `/readyz`
says what the engines say of themselves. Only the standard library: it starts every few seconds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

KEY_FILE = Path("/etc/raylm/client/key")
MARK = Path("/tmp/raylm/answered")
"""Its time is that of the last answer."""
BUSY = "overloaded"
"""The refusal of an endpoint that works: taken out of the Service, others would get its load."""


class NotReadyError(Exception):
    """The endpoint does not answer as it should; the text says how."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where, and with which key; `deadline_s` is on the monotonic clock."""

    url: str
    key: str | None
    deadline_s: float

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        """Status and JSON of one call.

        Raises:
            NotReadyError: nobody answers in time, or not in JSON.
        """
        place = urlsplit(self.url)
        left_s = max(0.1, self.deadline_s - time.monotonic())
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=left_s)
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read(2**20))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotReadyError(f"{self.url}{path}: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def models(self) -> list[str]:
        """Names of what is served."""
        status, found = self.ask("GET", "/v1/models")
        if status != 200 or not isinstance(found, dict):
            raise NotReadyError(f"/v1/models: {status} {_message(found)}")
        return [str(model["id"]) for model in found["data"]]

    def answer(self, model: str, max_tokens: int) -> str | None:
        """A model's text; None where the endpoint is too busy to say.

        Raises:
            NotReadyError: there is no answer.
        """
        body = {"model": model, "prompt": "Once", "max_tokens": max_tokens, "temperature": 0}
        status, found = self.ask("POST", "/v1/completions", body)
        if status == 200 and isinstance(found, dict):
            return str(found["choices"][0]["text"])
        if status == 429 or _code(found) == BUSY:
            return None
        if status == 400:
            # A model for embeddings or classes has no text to give; `/readyz` speaks for it.
            return None
        raise NotReadyError(f"{model}: {status} {_message(found)}")

    def ready(self) -> None:
        """What the engines say of themselves.

        Raises:
            NotReadyError: one that is needed cannot work.
        """
        status, found = self.ask("GET", "/readyz")
        if status != 200:
            raise NotReadyError(f"/readyz: {status} {_message(found)}")


def probe(endpoint: Endpoint, *, max_tokens: int) -> dict[str, str | None]:
    """Every model's answer.

    Raises:
        NotReadyError: one does not answer.
    """
    endpoint.ready()
    answers = {model: endpoint.answer(model, max_tokens) for model in endpoint.models()}
    if not answers:
        raise NotReadyError("no model is served")
    return answers


def is_due(mark: Path, every_s: float, now_s: float) -> bool:
    """Whether it is time for an answer; the clock is the file system's."""
    try:
        age_s = now_s - mark.stat().st_mtime
    except OSError:
        return True
    return not 0 <= age_s < every_s


def _code(found: object) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    return str(error.get("code")) if isinstance(error, dict) else ""


def _message(found: object) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, dict):
        return str(error.get("message"))
    problems = found.get("problems") if isinstance(found, dict) else None
    return "; ".join(map(str, problems)) if isinstance(problems, list) else ""


def main(argv: Sequence[str] | None = None) -> int:
    """0 when it answers, 1 otherwise, with the reason."""
    parser = argparse.ArgumentParser(prog="raylm.deploy.kubernetes.probe")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key-file", type=Path, default=KEY_FILE)
    parser.add_argument("--mark", type=Path, default=MARK)
    parser.add_argument("--timeout-s", type=float, default=10.0)
    parser.add_argument("--token-every-s", type=float, default=0.0)
    parser.add_argument("--wait-s", type=float, default=0.0, help="try again for so long")
    parser.add_argument("--max-tokens", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print the answers")
    args = parser.parse_args(argv)
    key = args.key_file.read_text().strip() if args.key_file.exists() else None
    give_up_s = time.monotonic() + args.wait_s
    while True:
        endpoint = Endpoint(args.url, key, time.monotonic() + args.timeout_s)
        try:
            if not is_due(args.mark, args.token_every_s, time.time()):
                endpoint.ready()
                return 0
            answers = probe(endpoint, max_tokens=args.max_tokens)
        except NotReadyError as reason:
            if time.monotonic() < give_up_s:
                time.sleep(1)
                continue
            sys.stderr.write(f"{reason}\n")
            return 1
        if args.mark.parent.is_dir():
            args.mark.touch()
        if args.show:
            for model, text in answers.items():
                sys.stdout.write(f"{model}: {text!r}\n")
        return 0


if __name__ == "__main__":
    sys.exit(main())
