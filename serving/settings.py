"""What the server can be told, by flag, environment (REASONMAXXER_*) or YAML (--config FILE).

A flag wins over the environment, that over the YAML file, that over the default. Flags unknown here
are vLLM's and reach it untouched, after those under `engine` in the YAML file:

    python -m serving --model Qwen/Qwen2.5-1.5B --dtype float32 --max-num-seqs 64
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from adapters.gate import RATES
from adapters.places import CACHE_GIB, Place, default_model, default_store, shown
from adapters.program import program

PREFIX = "REASONMAXXER_"
# The ranks for which vLLM has kernels (vllm/config/lora.py, MaxLoRARanks).
LoraRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]


class SettingsError(ValueError):
    """The server cannot start as told; the message names the setting and the way out."""


def _vllm_api_key() -> SecretStr | None:
    """The key in vLLM's own variable, whose check would cover /v1 alone."""
    key = os.environ.get("VLLM_API_KEY")
    return SecretStr(key) if key else None


class Settings(BaseSettings):
    """The launcher's own settings; names are vLLM's where vLLM has the same one."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    model: str = Field(
        default_factory=default_model, validate_default=True, description="Folder or hub id."
    )
    adapters: Place = Field(
        default_factory=default_store,
        description="The store of adapters: a folder, or a bucket as s3://, gs:// or az://.",
    )
    store_cache: Path | None = Field(
        None,
        description="Folder for versions of a store in a bucket; default: in the user's cache.",
    )
    store_cache_gib: float = Field(
        CACHE_GIB,
        gt=0,
        description="GiB of them that stay on this machine; what is served stays anyway.",
    )
    store_poll_seconds: float = Field(
        1.0, ge=0.1, le=60, description="Seconds between two looks at the store for moved aliases."
    )
    family: str | None = Field(
        None,
        description="Recipe whose prompt is served, by name or as a YAML file; default: found for "
        "the model.",
    )
    host: str = Field("127.0.0.1", description="Address to bind; 0.0.0.0 opens it to the network.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    api_key: SecretStr | None = Field(
        default_factory=_vllm_api_key,
        validate_default=True,
        description="Clients must send it as a bearer token; default: VLLM_API_KEY.",
    )
    admin_key: SecretStr | None = Field(
        None, description="Opens /admin to those who send it; must differ from the API key."
    )
    controller_sources: str = Field(
        "",
        description="Sources that a cluster's controller may load adapters from (hf://org/, "
        "s3://bucket/prefix, /mnt/adapters/), separated by commas; opens /v1/load_lora_adapter to "
        "the admin key.",
    )
    gate: Literal["on", "off"] = Field(
        "on", description="Offer each adapter as NAME:gated too; off leaves vLLM as it is."
    )
    default_gate_rate: float | None = Field(
        None,
        ge=RATES[0],
        le=RATES[-1],
        description="Measure a threshold of this gate rate for adapters that bring none.",
    )
    max_lora_rank: LoraRank = Field(64, description="Adapters of a larger rank are refused.")
    max_loras: int = Field(4, ge=1, description="Different adapters in one batch.")
    max_cpu_loras: int = Field(16, ge=1, description="Adapters kept in host memory.")
    max_waiting: int = Field(
        1024, ge=1, description="Requests that may wait for an adapter's slot; then 503 (429)."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people, or one JSON object a line."
    )
    shutdown_timeout: int = Field(
        30, ge=0, description="Seconds that requests in flight get to finish after SIGTERM."
    )
    engine: dict[str, Any] = Field({}, description="vLLM flags by name, for the YAML file.")

    @field_validator("model")
    @classmethod
    def _model_named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("name a base model: a folder or a hub id")
        return value

    @field_validator("default_gate_rate")
    @classmethod
    def _needs_the_gate(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("gate") == "off":
            raise ValueError("needs --gate on")
        return value

    @field_validator("max_lora_rank", mode="before")
    @classmethod
    def _rank_from_text(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("api_key", "admin_key")
    @classmethod
    def _key_not_empty(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip():
            raise ValueError("must not be empty; leave it out to serve without")
        return value

    @field_validator("engine")
    @classmethod
    def _engine_has_vllms_flags_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = [name for name in value if name.replace("-", "_") in cls.model_fields]
        if ours:
            raise ValueError(f"{ours[0]} is a setting of its own; move it out of 'engine'")
        return value

    @field_validator("admin_key")
    @classmethod
    def _keys_differ(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and value == info.data.get("api_key"):
            raise ValueError("must differ from the API key, which clients hold")
        return value

    @field_validator("controller_sources")
    @classmethod
    def _sources_allowed(cls, value: str, info: ValidationInfo) -> str:
        from serving.controller_sources import Sources  # reads PEFT's rules, which takes a while

        if Sources.parse(value).places and info.data.get("admin_key") is None:
            raise ValueError("needs an admin key, which controllers send")
        return value

    @property
    def engine_flags(self) -> list[str]:
        """`engine` as vLLM flags: true is a bare flag, false its --no- form, null none."""
        flags: list[str] = []
        for name, value in self.engine.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            elif isinstance(value, list):
                flags += [f"--{flag}", *map(_word, value)]
            elif value is not None:
                flags += [f"--{flag}", _word(value)]
        return flags


def _word(value: Any) -> str:
    """A value of the YAML file as vLLM's flags take it: mappings and lists as JSON."""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("python -m serving"),
        description="Serve a base model and its adapters with vLLM's OpenAI server.",
        epilog=f"Each setting may also stand in the environment ({PREFIX}MAX_LORA_RANK=32) or in "
        "the YAML file. Any other flag is vLLM's own; --help=all lists those.",
        allow_abbrev=False,  # else a vLLM flag that begins like one of ours would be taken for it
        add_help=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    for name, field in Settings.model_fields.items():
        if name == "engine":
            continue
        choices = f" One of {get_args(LoraRank)}." if name == "max_lora_rank" else ""
        value = field.get_default(call_default_factory=True)
        default = "" if value in (None, "") else f" [{value}]"
        text = f"{field.description or ''}{choices}{default}".strip()
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, default=argparse.SUPPRESS)
    return parser


def _with_dashes(word: str) -> str:
    """A flag of ours that was written with underscores, which vLLM's parser takes too."""
    name, equals, value = word.partition("=")
    dashed = name.replace("_", "-")
    ours = {f"--{field.replace('_', '-')}" for field in Settings.model_fields}
    return f"{dashed}{equals}{value}" if dashed in ours else word


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path}: {error}") from error
    if not isinstance(values, dict | None):
        raise SettingsError(f"--config {path}: must be a mapping of settings to values")
    return values or {}


def _explain(error: ValidationError, flags: dict[str, Any]) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"]))
        flag = name.replace("_", "-")
        said = f"--{flag}" if name in flags else f"{name} (--{flag}, {PREFIX}{name.upper()})"
        if problem["type"] == "extra_forbidden":
            said, problem["msg"] = name, "no such setting; vLLM's own flags belong under 'engine'"
        # What belongs elsewhere may be a key or a token, and so may a part of `engine`.
        secretive = problem["type"] == "extra_forbidden" or isinstance(problem["input"], dict)
        told = not (secretive or name.endswith("_key") or problem["input"] == "")
        given = f", not {shown(problem['input'])}" if told else ""
        lines.append(f"{said}: {problem['msg']}{given}")
    return "\n".join(lines)


def from_command_line(argv: list[str]) -> tuple[Settings, list[str]]:
    """(settings, flags for vLLM) of a command line. `--help` prints and exits.

    Raises:
        SettingsError: a value does not fit; every bad one is named.
    """
    parser = _parser()
    if "--help" in argv or "-h" in argv:
        parser.print_help()
        raise SystemExit(0)
    try:
        known, rest = parser.parse_known_args(list(map(_with_dashes, argv)))
    except SystemExit as stop:  # argparse has said what is wrong
        raise SystemExit(2) from stop
    flags = vars(known)
    config = flags.pop("config")
    file_values = _read_yaml(config) if config else {}

    class WithFile(Settings):
        """Settings with the YAML file as the last source."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Flags, environment, file."""
            return init_settings, env_settings, InitSettingsSource(settings_cls, file_values)

    try:
        settings = WithFile(**flags)
    except ValidationError as error:
        raise SettingsError(_explain(error, flags)) from error
    return settings, [*settings.engine_flags, *rest]
