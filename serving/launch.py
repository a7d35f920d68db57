"""Settings -> vLLM's arguments -> vLLM's own OpenAI server, in this process.

Our defaults come first on the command line that vLLM parses, the user's flags last: theirs win.
With LoRA vLLM's CPU build compiles nothing (vllm/platforms/cpu.py), so --enforce-eager makes no
difference there; on a GPU vLLM's own default, compilation and CUDA graphs, stands.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.base_checkpoint import BaseCheckpoint
from adapters.first_line import first_line
from adapters.places import open_store, user_store
from adapters.recipe import look_up
from adapters.store import Store
from serving import logs, preloading, starting, vllm_flags, vllm_versions
from serving.base_files import BaseFiles
from serving.prompts import ServedPrompt
from serving.settings import Settings, SettingsError
from vllm_gate import GateError, compat
from vllm_gate.worker_extension import EXTENSION

logger = logging.getLogger("serving")

PLUGINS = (starting.PLUGIN,)
CPU_KV_CACHE_BYTES = 2**30


class EngineFailureError(RuntimeError):
    """An engine has ended by itself."""


@dataclass(frozen=True)
class Base:
    """What has to be known of the base model before vLLM starts."""

    names: list[str]  # the one listed, then others that clients may use
    prompt: ServedPrompt
    checkpoint: BaseCheckpoint  # what adapters are checked against
    temperature: float  # at which the recipe samples


def set_environment(settings: Settings, engine_flags: Sequence[str] = ()) -> None:
    """What vLLM reads from the environment, where the user has not set it."""
    plugins = [*filter(None, os.environ.get("VLLM_PLUGINS", "").split(",")), *PLUGINS]
    os.environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys(plugins))
    # It would open routes that load any path a client names; our registry does without.
    os.environ.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)
    os.environ.pop("VLLM_API_KEY", None)  # our own setting has it by now
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # A connection that the server ends may be in use again by then, and that request is lost. So it
    # waits longer than openai's client (5 s, as vLLM) and load balancers (a minute).
    os.environ.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "75")
    if os.path.isdir(settings.model) and not _needs_the_hub(settings, engine_flags):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


# vLLM's flags that may name something on the hub, or a file of flags that does; argparse takes the
# beginning of a flag too, and underscores.
_MAY_NAME = re.compile(r"--(to|spec|conf|gen|hf)|-sc")


def _needs_the_hub(settings: Settings, engine_flags: Sequence[str]) -> bool:
    """Whether anything besides a base that is a folder may come from the hub."""
    if any(map(_MAY_NAME.match, engine_flags)):
        return True
    if not settings.controller_sources:
        return False
    from serving.controller_sources import Sources  # reads PEFT's rules, which takes a while

    return any(place.scheme == "hf" for place in Sources.parse(settings.controller_sources).places)


def look_at_base(settings: Settings, engine_flags: Sequence[str] = ()) -> Base:
    """Find the base's family and prompt; of a hub model only the small files are fetched.

    Raises:
        SettingsError: no such model, or no such family.
    """
    path = Path(settings.model)
    name = path.resolve().name if path.is_dir() else settings.model
    if path.is_file():
        made = f"python -m training.gguf {path} --out FOLDER makes one of a GGUF file"
        raise SettingsError(f"--model {settings.model}: a file, not a model folder; {made}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise SettingsError(f"--model {settings.model}: the folder has no config.json")
    files = BaseFiles(settings.model)
    if engine_flags:
        files = BaseFiles.of(vllm_flags.parse(["--model", settings.model, *engine_flags]))
    if path.is_dir() and files.revision:
        raise SettingsError(f"--revision {files.revision}: {path} is a folder, without revisions")
    try:
        tokenizer = files.fetch()
        checkpoint = files.checkpoint()
    except (OSError, ValueError) as error:
        reason = first_line(error)
        at = f" --revision {files.revision}" if files.revision else ""
        raise SettingsError(
            f"--model {settings.model}{at}: neither a model folder nor a hub model within reach "
            f"({reason})"
        ) from error
    try:
        found = look_up(checkpoint, settings.family or "")
    except ValueError as error:
        raise SettingsError(str(error)) from error
    prompt = ServedPrompt.of(tokenizer, found.recipe)
    logger.info(
        "recipe '%s': %s; prompt: %s", found.recipe.family, found.reason, prompt.format.source
    )
    names = list(dict.fromkeys([name, settings.model]))
    return Base(names, prompt, checkpoint, found.recipe.sampling.temperature)


def vllm_arguments(
    settings: Settings, engine_flags: list[str], base: Base, template_file: Path
) -> Namespace:
    """The arguments of vLLM's server, checked by vLLM. A bad flag exits with 2.

    Raises:
        SettingsError: a flag that is refused here, or not together with the gate.
    """
    template_file.write_text(base.prompt.format.template, encoding="utf-8")
    defaults = _defaults(settings) | {"chat-template": template_file}
    argv = [text for flag, value in defaults.items() for text in (f"--{flag}", str(value))]
    argv += ["--served-model-name", *base.names, "--enable-lora", *engine_flags]

    args = vllm_flags.parse(argv)
    if not args.enable_lora:
        raise SettingsError("--no-enable-lora: a server of adapters needs LoRA")
    args.prompt = base.prompt
    if args.chat_template != str(template_file):
        args.prompt = None
        logger.warning(
            "--chat-template %s replaces the prompt of family '%s': adapters were fitted on that "
            "one, and their thresholds measured on it",
            args.chat_template,
            base.prompt.family,
        )
    args.gate = settings.gate == "on"
    if args.gate:
        try:
            compat.put_in(args)
        except GateError as error:
            raise SettingsError(str(error)) from error
    else:
        compat.leave_out(args)
    _tell_the_routes(args, settings, base)
    args.worker_extension_cls = EXTENSION
    args.middleware = [*args.middleware, starting.MIDDLEWARE]
    if any(hasattr(args, name) for name in vllm_flags.LOGGING):
        vllm_flags.configure_logging(args)
    return args


def _defaults(settings: Settings) -> dict[str, object]:
    """Flags of vLLM's server with our values for them, which the user's flags override."""
    from vllm.platforms import current_platform

    defaults: dict[str, object] = {
        "model": settings.model,
        "host": settings.host,
        "port": settings.port,
        "max-lora-rank": settings.max_lora_rank,
        "max-loras": settings.max_loras,
        # One more than can be used at a time: a new version is loaded before an old one goes.
        "max-cpu-loras": max(settings.max_cpu_loras, settings.max_loras + 1),
        "shutdown-timeout": settings.shutdown_timeout,
        # The base's generation_config.json must not change sampling behind the client's back.
        "generation-config": "vllm",
        "uvicorn-log-level": "warning",
    }
    if current_platform.is_cpu():
        # vLLM's own default is a share of all memory, and fails on a small machine.
        defaults["kv-cache-memory-bytes"] = CPU_KV_CACHE_BYTES
    return defaults


def _tell_the_routes(args: Namespace, settings: Settings, base: Base) -> None:
    """What serving.routes needs, which vLLM hands `args`."""
    args.store_poll_seconds = settings.store_poll_seconds
    args.base = base.checkpoint
    args.guard_key = settings.api_key.get_secret_value() if settings.api_key else None
    args.admin_key = settings.admin_key.get_secret_value() if settings.admin_key else None
    args.controller_sources = settings.controller_sources
    args.max_waiting = settings.max_waiting
    args.default_gate_rate = settings.default_gate_rate
    args.sampling_temperature = base.temperature


def find_store(settings: Settings) -> Store:
    """The store to serve.

    Raises:
        SettingsError: there is none, or it is out of reach and nothing is known of it here.
    """
    place = settings.adapters
    if isinstance(place, Path):
        if place == user_store():
            make_store(place)
        if not place.is_dir():
            raise SettingsError(f"--adapters {place}: no such folder")
    try:
        return open_store(place, settings.store_cache, settings.store_cache_gib)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--adapters: {error}") from error


def make_store(folder: Path) -> None:
    """Create the user's own store where it is not there yet: a server may be the first to ask.

    Raises:
        SettingsError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"--adapters {folder}: cannot be created ({error}); name another folder"
        ) from error


async def run(args: Namespace) -> None:
    """vLLM's `run_server`, which answers with 503 while the engine starts.

    Raises:
        SettingsError: the server cannot listen as told, or lacks what only its engine shows.
        EngineFailureError: an engine has ended by itself, and the server with it.
    """
    setup_server = vllm_versions.find("setup_server", vllm_versions.RUN_SERVER)
    run_server_worker = vllm_versions.find("run_server_worker", vllm_versions.RUN_SERVER)
    from serving.middleware import FLUSH_SECONDS

    # Until vLLM's server has handlers of its own.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        address, sock = setup_server(args, **vllm_versions.known(setup_server, reuse_port=False))
    except (OSError, KeyError) as error:
        raise SettingsError(f"the server cannot listen as told: {error}") from error
    with starting.Starting(sock, args) as args.starting:
        await run_server_worker(address, sock, args, timeout_graceful_shutdown=FLUSH_SECONDS)
    if not args.starting.ready:
        raise SettingsError(
            f"--model {args.model}: vLLM did not load the plugin '{starting.PLUGIN}' for it, as "
            "the model does not generate text; serve it with `vllm serve`"
        )
    if args.drain.failure is not None:
        raise EngineFailureError(args.drain.failure)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("terminated")


def prepare(
    settings: Settings, engine_flags: list[str], folder: Path, *, preload: bool = False
) -> Namespace:
    """Set up logs and environment, check what can be, and return the arguments of vLLM's server.

    Args:
        folder: for files of this process; it is there until the server has ended.
        preload: vLLM is imported for the engine's processes meanwhile; from the main thread alone.

    Raises:
        SettingsError: the server cannot start as told.
    """
    logs.configure(settings.log_format)
    vllm_versions.check(settings.gate == "on")
    store = find_store(settings)
    set_environment(settings, engine_flags)
    # The scheduler's counters stand in the engine's process; /metrics gathers them here.
    # prometheus_client looks once, when it is first imported: with vLLM, for its flags.
    metrics = folder / "metrics"
    metrics.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    preloaded = preload and preloading.begin()
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    base = look_at_base(settings, engine_flags)
    args = vllm_arguments(settings, engine_flags, base, folder / "chat_template.jinja")
    args.store = store
    shown = settings.model_dump(mode="json", exclude={"engine"})
    logger.info("settings: %s", json.dumps(shown | {"family": base.prompt.family}))
    logger.info("vLLM flags: %s", " ".join(vllm_flags.without_secrets(engine_flags)) or "none")
    starting.check_plugin()
    if preloaded:
        preloading.use()
    return args


def serve(settings: Settings, engine_flags: list[str]) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        SettingsError: the server cannot start as told.
    """
    with tempfile.TemporaryDirectory(prefix="reasonmaxxer-") as folder:
        args = prepare(settings, engine_flags, Path(folder), preload=True)
        import uvloop

        try:
            uvloop.run(run(args))
        except KeyboardInterrupt:
            logger.info("stopped before the server was up")
        except EngineFailureError as error:
            logger.error("%s, and the server with all its engines; start it again", error)
            return 1
    return 0
