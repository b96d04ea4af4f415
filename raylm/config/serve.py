"""The `serve` section: which models answer, where, within which limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

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
    max_logit_bias: int = Field(300, ge=0)
    """Tokens with a bias in one request."""
    max_tools: int = Field(128, ge=0)
    """Tools in one request."""
    max_choices: int = Field(16, ge=1)
    """Answers in one request: its prompts times `n`."""
    max_logprobs: int = Field(20, ge=0)
    """Likeliest alternatives listed for each token."""
    max_inputs: int = Field(256, ge=1)
    """Texts to embed or classify in one request."""
    max_input_tokens: int = Field(300_000, ge=1)
    """Tokens of all of them together."""
    request_timeout_s: float = Field(300.0, gt=0)
    """An answer that takes longer ends with an error."""
    body_timeout_s: float = Field(30.0, gt=0)
    """A client that takes longer to send its request is refused with 408."""
    stall_timeout_s: float = Field(30.0, gt=0)
    """A stream ends when its client takes nothing for so long while more is due."""


class CacheConfig(Section):
    """Whole answers that are kept, for requests whose answer is always the same."""

    max_bytes: int = Field(256 * 2**20, ge=2**20)
    """Memory for answers, one for all gateways; those asked for longest ago go first."""
    ttl_s: float = Field(3600.0, gt=0)
    """An answer is kept for so long."""


class ReplicaRange(Section):
    """Engine replicas that come and go with the load, of each model by itself."""

    min: int = Field(1, ge=0)
    """Replicas that are always there. 0: a model that nobody asks for has none, and the first
    request waits until one has started."""
    max: int = Field(ge=1)
    """More than these are never started."""
    target_ongoing_requests: float = Field(16.0, gt=0)
    """Answers in the making and waiting that one replica is meant to have."""
    look_back_s: float = Field(15.0, gt=0)
    """The load is averaged over so many seconds."""
    upscale_delay_s: float = Field(5.0, ge=0)
    """Seconds of too much load before replicas are added."""
    downscale_delay_s: float = Field(120.0, ge=0)
    """Seconds of too little load before replicas are taken away."""
    to_zero_delay_s: float | None = Field(None, ge=0)
    """The same for the last replica (min: 0); None takes `downscale_delay_s`."""

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaRange:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self


class BatchesConfig(Section):
    """OpenAI's Batch API: files of requests, answered when nothing else needs the engines."""

    max_file_bytes: int = Field(200 * 2**20, ge=1024)
    """Larger files are refused with 413."""
    max_files: int = Field(200, ge=1)
    """Files that one API key may have at a time; more are refused with 429."""
    max_batches: int = Field(100, ge=1)
    """Batches of one API key that have not ended; more are refused with 429."""
    max_lines: int = Field(50_000, ge=1)
    """Requests in one batch."""
    max_concurrency: int = Field(8, ge=1)
    """Requests of all batches that are being answered at a time; never more than half of what
    one model's replicas take (`replicas` times `max_ongoing_requests`). More is faster, and
    makes other answers slower: they share every step of an engine."""
    upload_timeout_s: float = Field(600.0, gt=0)
    """A client that takes longer to send a file is refused with 408."""
    expires_after_s: float = Field(30 * 86_400.0, ge=3600)
    """Files and batches are removed when they are so old; clients may ask for less."""
    num_cpus: float = Field(0.1, gt=0)
    """CPUs of the process that works on batches."""


class VariantConfig(Section):
    """One form of a model: other weights, or an adapter merged into them."""

    model: str
    """Artifact (`model/name-digest`, a unique prefix, or a name) or folder."""
    adapter: str | None = None
    """Folder of a LoRA adapter as PEFT writes it, which is merged into the model's weights once,
    before they are served; a relative path starts from this file."""
    trained_on: str | None = None
    """What the adapter's own `base_model_name_or_path` says, where that is another name for the
    same model; otherwise such an adapter is refused."""

    @model_validator(mode="after")
    def _trained_on_is_of_an_adapter(self) -> VariantConfig:
        if self.trained_on is not None and self.adapter is None:
            raise ValueError("trained_on says of which model an adapter is, and there is none")
        return self


def _plain_variant(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


VariantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
_Variant = Annotated[
    VariantConfig, BeforeValidator(_plain_variant, json_schema_input_type=str | VariantConfig)
]


class VariantsConfig(Section):
    """One name for several forms of a model, of which each request takes one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """What requests call the model."""
    variants: dict[VariantName, _Variant] = Field(min_length=1)
    """By name; `NAME@VARIANT`, or `variant` in a request, asks for one. Each has replicas of its
    own."""
    default: str | None = None
    """The variant of requests that name none; None takes the first."""

    @property
    def default_variant(self) -> str:
        """The variant of requests that name none."""
        return self.default if self.default is not None else next(iter(self.variants))

    @model_validator(mode="after")
    def _default_is_there(self) -> VariantsConfig:
        if self.default is not None and self.default not in self.variants:
            raise ValueError(
                f"default={self.default!r} is no variant of {self.name!r}; it has "
                f"{', '.join(self.variants)}"
            )
        return self


class ServeConfig(Section):
    """Which models answer, where, within which limits."""

    models: tuple[str | VariantsConfig, ...] = ()
    """Artifacts (`model/name-digest`, a unique prefix, or a name) or folders, and names with
    several variants each; empty serves the last model of the run."""
    host: str = "127.0.0.1"
    """Address of the endpoint: 127.0.0.1, or 0.0.0.0 for all interfaces, which requires
    `api_keys`. Ray Serve's replicas listen on the same address, so there is no third choice."""
    port: int = Field(8000, ge=0, le=65535)
    """Port of the endpoint; 0 takes a free one."""
    replicas: Annotated[int, Field(ge=1)] | ReplicaRange = 2
    """Engine replicas of each model, and of each variant of one: a number, or {min, max} for as
    many as the load needs."""
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
    silence_s: float = Field(5.0, gt=1)
    """An engine replica that gives no sign of life for so long while it works on an answer is
    taken for frozen, and the answer goes on by another; a sign comes every second."""
    drain_s: float = Field(30.0, ge=0)
    """How long running answers may take when the endpoint is stopped."""
    api_keys: Annotated[str | None, OUTSIDE_KEY] = None
    """File of mode 0600: a key store of `raylm keys`, or one key a line; every request must carry
    a key. None takes the store's `keys.json`, if there is one."""
    isolate_tenants: bool = True
    """What is cached for one key (answers, the engines' prefixes) is of no use to another, so that
    none can tell by an answer's speed what others ask. false shares it among all keys."""
    cache: CacheConfig | None = None
    """Keep the answers of requests at temperature 0 or with a seed; None: every answer is made."""
    limits: LimitsConfig = LimitsConfig()
    batches: BatchesConfig | None = None
    """Switches `/v1/files` and `/v1/batches` on: `{}` takes every default."""

    @property
    def min_replicas(self) -> int:
        """Replicas of each model that are always there."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min

    @property
    def max_replicas(self) -> int:
        """The most replicas of each model."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.max

    @field_validator("models", mode="before")
    @classmethod
    def _one_model_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str | dict) else value

    @field_validator("host")
    @classmethod
    def _host_that_serve_can_bind(cls, value: str) -> str:
        if value not in HOSTS:
            raise ValueError(f"is {value!r}; must be one of {', '.join(HOSTS)}")
        return "127.0.0.1" if value == "localhost" else value
