"""The `serve` section: which models answer, where, within which limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from raylm.config.section import OUTSIDE_KEY, Section

HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")


class LimitsConfig(Section):
    """What one request may ask for."""

    max_body_bytes: int = Field(2**20, ge=1024)
    """Larger request bodies are refused with 413."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Beyond the model's own context limit; None leaves only that."""
    max_output_tokens: int = Field(4096, ge=1)
    """Larger max_tokens are refused with 400."""
    default_output_tokens: int = Field(256, ge=1)
    """max_tokens when a request names none; less where the context has no room for it."""
    max_stop: int = Field(4, ge=0)
    """Stop strings in one request."""
    max_choices: int = Field(16, ge=1)
    """Answers in one request: its prompts times `n`."""
    max_logprobs: int = Field(20, ge=0)
    """Likeliest alternatives listed for each token."""
    request_timeout_s: float = Field(300.0, gt=0)
    """An answer that takes longer ends with an error."""
    body_timeout_s: float = Field(30.0, gt=0)
    """A client that takes longer to send its request is refused with 408."""


class ServeConfig(Section):
    """Which models answer, where, within which limits."""

    models: tuple[str, ...] = ()
    """Artifacts (`model/name-digest`, a unique prefix, or a name) or folders; empty serves
    the last model of the run."""
    host: str = "127.0.0.1"
    """Address of the endpoint: 127.0.0.1, or 0.0.0.0 for all interfaces, which requires
    `api_keys`. Ray Serve's replicas listen on the same address, so there is no third choice."""
    port: int = Field(8000, ge=0, le=65535)
    """Port of the endpoint; 0 takes a free one."""
    replicas: int = Field(2, ge=1)
    """Engine replicas of each model."""
    gateways: int = Field(1, ge=1)
    """Gateway replicas in front of them."""
    cpus_per_replica: float = Field(0.5, gt=0)
    cpus_per_gateway: float = Field(0.25, gt=0)
    max_ongoing_requests: int = Field(128, ge=1)
    """Answers that one engine replica works on at a time; more wait in the gateway."""
    max_queued_requests: int = Field(256, ge=0)
    """Answers that wait in one gateway for a replica; more are refused with 503."""
    start_timeout_s: float = Field(300.0, gt=0)
    """A deployment that is not ready by then is an error."""
    drain_s: float = Field(30.0, ge=0)
    """How long running answers may take when the endpoint is stopped."""
    api_keys: Annotated[str | None, OUTSIDE_KEY] = None
    """File of mode 0600 with one key a line; every request must carry one."""
    limits: LimitsConfig = LimitsConfig()

    @field_validator("models", mode="before")
    @classmethod
    def _one_model_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _host_that_serve_can_bind(cls, value: str) -> str:
        if value not in HOSTS:
            raise ValueError(f"is {value!r}; must be one of {', '.join(HOSTS)}")
        return "127.0.0.1" if value == "localhost" else value
