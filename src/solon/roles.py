"""Which model plays a role in a run, where it runs, and how a server is asked."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from solon.settings import Settings

EngineKind = Literal["local", "http", "vllm"]
RoleName = Literal["critic", "judge", "evaluator"]


class ServerSettings(Settings):
    """engine `http`: how the servers are asked, and how much at the most."""

    interface: Literal["chat", "completions"] = Field(
        default="chat",
        description="completions: for base models, which are given a plain User/Assistant transcript",
    )
    concurrency: int = Field(default=32, ge=1, description="Requests in flight per endpoint, at most")
    timeout: float = Field(default=120.0, gt=0, description="Seconds without a byte, then it asks again")
    template: dict[str, bool | int | float | str] = Field(
        default={},
        description="chat: for the server's chat template, such as {enable_thinking: false} (vLLM, SGLang)",
    )
    tokens: bool = Field(
        default=False, description="Ask for ids and log-probabilities of what is generated (vLLM)"
    )
    cache: str = Field(
        default="",
        description="File of answers already given; empty: in the user's cache folder; off: none",
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Tokens that a command may use, prompts and answers together"
    )
    max_spending: float | None = Field(
        default=None, gt=0, description="What a command may cost, in the currency of the prices"
    )
    price_read: float = Field(default=0.0, ge=0, description="Price of a million prompt tokens")
    price_written: float = Field(default=0.0, ge=0, description="Price of a million new tokens")

    @model_validator(mode="after")
    def _fits(self) -> "ServerSettings":
        if self.max_spending is not None and not (self.price_read or self.price_written):
            raise ValueError("max_spending: without price_read or price_written nothing costs anything")
        if self.template and self.interface != "chat":
            raise ValueError("template: the completions interface has no chat template; set interface: chat")
        return self


class VllmSettings(Settings):
    """engine `vllm`: what it may take of the machine."""

    memory: float = Field(
        default=0.9, gt=0, le=1, description="Share of a GPU's memory; less where others use the GPU too"
    )
    gpus: int = Field(default=1, ge=1, description="GPUs over which the model is spread")
    context: int | None = Field(
        default=None, ge=1, description="Tokens of prompt and answer at the most; null: as the model says"
    )


class Role(Settings):
    """The model of a role."""

    model: str = Field(default="", description="The role's model; empty: the recipe's model")
    engine: EngineKind = Field(
        default="local",
        description="http: on a server, where `model` is its name; vllm: in this process, by vLLM",
    )
    endpoints: tuple[str, ...] = Field(
        default=(), description="http: the servers' addresses, such as http://127.0.0.1:8000/v1"
    )
    api_key_env: str = Field(
        default="SOLON_API_KEY", description="http: the environment variable with the key"
    )
    http: ServerSettings = ServerSettings()
    vllm: VllmSettings = VllmSettings()

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str) -> str:
        # What stands here is written to files: the value is not repeated, it may be a key.
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("it is the name of an environment variable, such as SOLON_API_KEY, not a key")
        return name

    @field_validator("endpoints")
    @classmethod
    def _are_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if any("@" in url or "?" in url for url in urls):
            raise ValueError("an address has no user, password or query: put a key where api_key_env says")
        if not all(re.match(r"https?://[^/\s]", url) for url in urls):
            raise ValueError("write http addresses, such as http://127.0.0.1:8000/v1")
        return urls

    @model_validator(mode="after")
    def _has_endpoints(self) -> "Role":
        if self.engine == "http" and not self.endpoints:
            raise ValueError("engine: http needs `endpoints`, the servers' addresses")
        if self.engine != "http" and self.endpoints:
            raise ValueError(f"endpoints: they are for `engine: http`, and the engine is {self.engine}")
        return self
