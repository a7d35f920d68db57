"""Our server as a Ray Serve deployment: replicas, autoscaling and one HTTP address by Ray.

    python deploy/ray/serve_app.py --replicas 2 -- --model models/tiny-qwen2
    serve deploy deploy/ray/serve.yaml                       # on a cluster; see docs/fleet.md

Each replica is one of our servers, engine and routes, without a port of its own: Ray's proxy calls
its ASGI application. What follows `--` are flags of `reasonmaxxer serve`. All replicas read one
store, so --adapters must be reachable from every node.

A request may carry the header `serve_multiplexed_model_id: NAME`. Ray then prefers a replica that
has answered for NAME before, whose engine holds the adapter.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import threading
from argparse import Namespace
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions

STICKY_NAMES = 64  # names for which Ray remembers a replica


class _Up:
    """In place of what answers while a server with a port starts (serving/starting.py)."""

    def __init__(self) -> None:
        self.ready = False

    def end(self) -> None:
        """There is nothing to end: Ray sends a replica no request before it is up."""


@serve.ingress()
class Replica:
    """One server.

    Args:
        flags: of `reasonmaxxer serve`; host, port and TLS are Ray's and have no effect.
    """

    async def __init__(self, flags: list[str]) -> None:
        from serving.settings import from_command_line

        settings, engine_flags = from_command_line(flags)
        self._closing = AsyncExitStack()
        folder = self._closing.enter_context(
            tempfile.TemporaryDirectory(prefix="reasonmaxxer-", ignore_cleanup_errors=True)
        )
        self._application = await self._build(_arguments(settings, engine_flags, Path(folder)))

    async def _build(self, args: Namespace) -> Any:
        """The engine, and the application over it."""
        from serving import vllm_versions

        names = ("build_async_engine_client", "build_app", "init_app_state")
        client, build_app, init_app_state = (
            vllm_versions.find(name, vllm_versions.RUN_SERVER) for name in names
        )
        args.starting = _Up()
        self._engine = await self._closing.enter_async_context(client(args))
        tasks = await self._engine.get_supported_tasks()
        app = build_app(args, tasks, self._engine.model_config)
        await init_app_state(self._engine, app.state, args, tasks)
        return app

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray's proxy calls, with the lifespan that says whether our plugin is in place."""

        async def application(scope: Any, receive: Any, send: Any) -> None:
            name = serve.get_multiplexed_model_id() if scope["type"] == "http" else ""
            if name:
                await self.answers_for(name)
            await self._application(scope, receive, send)

        return application

    @serve.multiplexed(max_num_models_per_replica=STICKY_NAMES)
    async def answers_for(self, name: str) -> str:
        """Tell Ray that requests for `name` come here; the engine loads the adapter itself."""
        return name

    async def check_health(self) -> None:
        """Ray asks every ten seconds; an engine that is dead raises, and Ray starts another."""
        await self._engine.check_health()

    async def __del__(self) -> None:
        """Ray has let the requests finish."""
        await self._closing.aclose()


def _arguments(settings: Any, engine_flags: list[str], folder: Path) -> Namespace:
    """vLLM's arguments; counters of all processes are gathered from `folder`."""
    from serving.launch import prepare

    args = prepare(settings, engine_flags, folder)
    if "prometheus_client" in sys.modules:  # imported by Ray, before the folder was known
        from prometheus_client import values

        values.ValueClass = values.get_value_class()
    return args


def build(options: dict[str, Any]) -> Application:
    """The application, for `serve run` and `serve deploy`.

    Args:
        options: `flags` (one string or a list), `replicas`, `max_replicas`, `cpus`, `gpus`,
            `ongoing` (requests for each replica at which another one starts).
    """
    flags = options.get("flags", [])
    least = int(options.get("replicas", 1))
    most = int(options.get("max_replicas", least))
    ongoing = int(options.get("ongoing", 32))
    deployment = serve.deployment(
        name="reasonmaxxer",
        # Ray's own default of five would leave the engine's batch empty.
        max_ongoing_requests=max(256, 4 * ongoing),
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "initial_replicas": least,
            "target_ongoing_requests": ongoing,
            "downscale_delay_s": 600,  # a replica starts slowly, so it does not go at once
        },
        ray_actor_options={
            "num_cpus": float(options.get("cpus", 1)),
            "num_gpus": float(options.get("gpus", 0)),
        },
        graceful_shutdown_timeout_s=float(options.get("shutdown_timeout", 60)),
        health_check_timeout_s=60,
    )(Replica)
    return deployment.bind(shlex.split(flags) if isinstance(flags, str) else list(flags))


def main(argv: list[str]) -> int:
    """Serve on this machine, with a Ray of its own, until SIGTERM or Ctrl-C."""
    import ray

    end = argv.index("--") if "--" in argv else len(argv)
    ours, flags = argv[:end], argv[end + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--replicas", type=int, default=1, help="at least so many [1]")
    parser.add_argument("--max-replicas", type=int, help="at most so many [--replicas]")
    parser.add_argument("--ongoing", type=int, default=32, help="requests for each replica [32]")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of a replica [1]")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a replica [0]")
    parser.add_argument("--host", default="127.0.0.1", help="address of the proxy [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8000, help="port of the proxy [8000]")
    options = vars(parser.parse_args(ours))
    address = HTTPOptions(host=options.pop("host"), port=options.pop("port"))
    if options["max_replicas"] is None:
        options["max_replicas"] = options["replicas"]
    # Ray's own five seconds for its proxy to import itself are too few on a busy machine.
    for name in ("READY_CHECK", "HEALTH_CHECK"):
        os.environ.setdefault(f"RAY_SERVE_PROXY_{name}_TIMEOUT_S", "60")
    # Ray starts its workers with niceness 15: beside anything else a replica would get nothing.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Workers find this module and the working copy as this process does.
    paths = os.pathsep.join(filter(None, sys.path))
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, include_dashboard=False)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options=address)
    serve.run(build(options | {"flags": flags}), name="reasonmaxxer", route_prefix="/")
    print(f"ready: http://{address.host}:{address.port}", flush=True)
    stop.wait()
    serve.shutdown()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
