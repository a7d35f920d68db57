"""What the launcher makes of the flags of vLLM's server.

    --dtype float32          passes on: vLLM alone acts on it, as most flags
    --revision v2            is honoured: the launcher looks at the same files as the engine
    --api-server-count 2     is refused by name, with the reason and the way out

Refused are flags that `vllm serve` acts on outside of the server that we start, and flags that
would lead past the store or past the base that adapters were fitted on. What cannot be combined
with the gate is in vllm_gate/compat.py. A test goes through all flags of the installed vLLM, so
that a new one is looked at before it passes on.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple, NoReturn

from adapters.places import without_credentials
from adapters.program import program
from serving import vllm_versions
from serving.settings import Settings, SettingsError


class Refusal(NamedTuple):
    """Why a flag is refused, and what to do instead."""

    why: str
    but: tuple[object, ...] = ()  # values that are harmless, beside vLLM's default


_ONE_PROCESS = (
    "one process answers, as two would number the adapters apart, and an engine would take one for "
    "another; leave it out, or start several servers behind a load balancer"
)
_ALL_ENGINES = (
    "the server itself starts all engines of --data-parallel-size and shares requests out among "
    "them; leave the flag out, or start several servers behind a load balancer"
)
_ONE_MACHINE = "the server runs on one machine; start one on each, behind a load balancer"
_NO_GRPC = "the server speaks HTTP; leave the flag out"
_STORE = "adapters come from the store; add one with `reasonmaxxer store import`"
_GENERATES = "the server generates text; serve other models with `vllm serve`"
_OWN_FILES = "adapters are checked against the files of --model; point --model at a folder with all"

REFUSED: dict[str, Refusal] = {
    # `vllm serve` acts on these before it starts a server such as ours.
    "model_tag": Refusal("name the base with --model"),
    "headless": Refusal(_ONE_PROCESS),
    "api_server_count": Refusal(_ONE_PROCESS, (1,)),
    "grpc": Refusal(_NO_GRPC),
    "grpc_port": Refusal(_NO_GRPC),
    "config": Refusal("put vLLM's flags under 'engine' in our own YAML file (--config FILE)"),
    "data_parallel_multi_port_external_lb": Refusal(_ALL_ENGINES),
    "data_parallel_supervisor_port": Refusal(_ONE_PROCESS),
    "dp_supervisor_probe_interval_s": Refusal(_ONE_PROCESS),
    "dp_supervisor_probe_timeout_s": Refusal(_ONE_PROCESS),
    "dp_supervisor_probe_failure_threshold": Refusal(_ONE_PROCESS),
    # Engines elsewhere, or of another server, would not have this one's adapters.
    "data_parallel_rank": Refusal(_ALL_ENGINES),
    "data_parallel_start_rank": Refusal(_ALL_ENGINES),
    "data_parallel_size_local": Refusal(_ALL_ENGINES),
    "data_parallel_external_lb": Refusal(_ALL_ENGINES),
    "data_parallel_hybrid_lb": Refusal(_ALL_ENGINES),
    "data_parallel_address": Refusal(_ONE_MACHINE),
    "data_parallel_rpc_port": Refusal(_ONE_MACHINE),
    "data_parallel_backend": Refusal(_ONE_MACHINE, ("mp",)),
    "nnodes": Refusal(_ONE_MACHINE),
    "node_rank": Refusal(_ONE_MACHINE),
    # Adapters that the store does not know have no version, no check and no gate.
    "lora_modules": Refusal(_STORE),
    "default_mm_loras": Refusal(_STORE),
    "lora_target_modules": Refusal(
        "adapters would run without their other modules; fit one with these alone "
        "(--lora.target-modules)"
    ),
    # The registry, the keys and the adapters are there for models that generate.
    "runner": Refusal(_GENERATES, ("generate",)),
    "convert": Refusal(_GENERATES, ("none",)),
    # The base is what its folder holds, and stays so.
    "hf_config_path": Refusal(_OWN_FILES),
    "config_format": Refusal("the folder's config.json describes the base", ("hf",)),
    "load_format": Refusal(
        "adapters are checked against the safetensors files of --model, and the engine must load "
        "the same ones; leave it out, or convert the weights with save_pretrained",
        ("hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer"),
    ),
    "tokenizer_mode": Refusal(
        "its tokenizer renders chats itself, without the prompt that adapters were fitted on; "
        "leave it out",
        ("hf",),
    ),
    "weight_transfer_config": Refusal(
        "adapters belong to the weights that the server has started with; start a new server"
    ),
    # What is lost here cannot be told to the registry.
    "enable_elastic_ep": Refusal("a rescaled engine has lost its adapters; leave it out"),
    "elastic_ep_max_dp_size": Refusal("a rescaled engine has lost its adapters; leave it out"),
    # vLLM counts the adapters of a batch without the base, as if that were none of its rows.
    "specialize_active_lora": Refusal(
        "requests of the base beside an adapter's would leave the adapter out; leave the flag out"
    ),
    "enable_fault_tolerance": Refusal("a recovered engine has lost its adapters; leave it out"),
    # Ours stand in its place.
    "worker_extension_cls": Refusal("the server needs its own there; leave it out"),
    "api_key": Refusal("vLLM's check covers /v1 alone; use our own setting, which covers all"),
}

# Flags that the launcher acts on itself, so that it and the engine mean the same thing.
HONOURED: dict[str, str] = {
    "model": "the launcher's own setting",
    "host": "the launcher's own setting",
    "port": "the launcher's own setting",
    "shutdown_timeout": "the launcher's own setting",
    "max_lora_rank": "the launcher's own setting",
    "max_loras": "the launcher's own setting",
    "max_cpu_loras": "the launcher's own setting",
    "enable_lora": "always on; --no-enable-lora is refused",
    "served_model_name": "default: the base's name, and --model as it was given",
    "chat_template": "replaces the recipe's prompt, with a warning",
    "generation_config": "default: vllm, so that the base does not change requests' sampling",
    "revision": "of config.json and the weights (serving/base_files.py)",
    "code_revision": "of the model's own code, where --trust-remote-code lets it run",
    "tokenizer": "whose template renders chats",
    "tokenizer_revision": "of that tokenizer",
    "trust_remote_code": "for config.json and the tokenizer as for the weights",
    "hf_token": "for config.json and the tokenizer as for the weights",
    "download_dir": "where the weights are looked at",
    "kv_cache_memory_bytes": "default on a CPU: 1 GiB",
    "uvicorn_log_level": "default: warning",
    "log_level": "of vLLM's own log, as in `vllm serve`",
    "log_config_file": "of vLLM's own log, as in `vllm serve`",
    "logging_config": "of vLLM's own log, as in `vllm serve`",
    "ssl_keyfile": "also for what is answered while the server starts",
    "ssl_certfile": "also for what is answered while the server starts",
    "ssl_ca_certs": "also for what is answered while the server starts",
    "ssl_cert_reqs": "also for what is answered while the server starts",
    "ssl_ciphers": "also for what is answered while the server starts",
    "uds": "also for what is answered while the server starts",
    "middleware": "before our own, which lets the server start",
    "scheduler_cls": "the gate's; refused with it",
    "worker_cls": "the gate's; refused with it",
    "logits_processors": "after the gate's",
}


LOGGING = ("log_level", "log_config_file", "logging_config")  # there only where they were given


def configure_logging(args: Namespace) -> None:
    """Have vLLM's own log follow its flags, as `vllm serve` does."""
    vllm_versions.find("configure_logging_from_args", ("vllm.logger",))(args)


def parse(argv: Sequence[str]) -> Namespace:
    """The arguments of vLLM's server. A flag that vLLM does not know or like exits with 2.

    Raises:
        SettingsError: flags that are refused here, each by name; or a combination that vLLM
            refuses.
    """
    make_arg_parser = vllm_versions.find("make_arg_parser", vllm_versions.CLI_ARGS)
    validate = vllm_versions.find("validate_parsed_serve_args", vllm_versions.CLI_ARGS)
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        """Says what is wrong in one line, without the some hundred flags of its usage."""

        def error(self, message: str) -> NoReturn:
            raise SettingsError(_with_alike(message, [*self._option_string_actions]))

    parser = make_arg_parser(Parser(prog=program("python -m serving")))
    args: Namespace = parser.parse_args(list(argv))
    refused = [
        f"--{dest.replace('_', '-')}: {refusal.why}"
        for dest, refusal in REFUSED.items()
        if getattr(args, dest, None) not in (None, parser.get_default(dest), *refusal.but)
    ]
    if refused:
        raise SettingsError("\n".join(refused).replace("--model-tag", str(args.model_tag)))
    _check_engines(args)
    try:
        validate(args)
    except (ValueError, TypeError) as error:
        raise SettingsError(str(error)) from error
    return args


def without_secrets(flags: Sequence[str]) -> list[str]:
    """The flags for a log: no token, and no credentials in an address."""
    told: list[str] = []
    for word in flags:
        follows_token = bool(told) and _TOKEN.fullmatch(told[-1]) is not None
        if follows_token and not word.startswith("--"):
            told.append("***")
        elif (named := _TOKEN.match(word)) and word[named.end() :].startswith("="):
            told.append(f"{named[0]}=***")
        else:
            told.append(without_credentials(word))
    return told


_TOKEN = re.compile(r"--hf[-_]t[a-z]*")  # --hf-token; argparse takes the beginning of a flag too
_OTHER_WORDS = {"--store": "--adapters"}  # what other commands call it


def _with_alike(message: str, theirs: list[str]) -> str:
    """What argparse says, and the flag that was meant where one is alike.

    Args:
        theirs: vLLM's flags.
    """
    unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
    if unknown is None:
        return message
    flag = unknown[1].replace("_", "-")
    ours = [f"--{name.replace('_', '-')}" for name in Settings.model_fields]
    alike = _OTHER_WORDS.get(flag) or next(iter(get_close_matches(flag, [*ours, *theirs], 1)), "")
    meant = f"; do you mean {alike}?" if alike else "; `--help` lists ours"
    return f"{unknown[1]}: neither a setting of this server nor a flag of vLLM{meant}"


def _check_engines(args: Namespace) -> None:
    """Raise SettingsError where --data-parallel-size cannot be, or vLLM would drop a setting."""
    if args.data_parallel_size < 1:
        raise SettingsError(f"--data-parallel-size {args.data_parallel_size}: 1 or more engines")
    by_load = "num_speculative_tokens_per_batch_size"
    drafts = {key.replace("-", "_") for key in args.speculative_config or {}}
    if args.data_parallel_size > 1 and by_load in drafts:
        raise SettingsError(
            f"--speculative-config: vLLM ignores {by_load} with --data-parallel-size; leave one of "
            "the two out"
        )
