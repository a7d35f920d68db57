"""What is answered while the server starts: 503 with Retry-After, on the server's own port.

vLLM binds the port first and listens when the engine is up, a minute or more later. Until then a
client would see a refused connection, as if there were no server. Here a small server of its own
thread listens meanwhile. It ends when the real one is about to listen on the same socket, so that
connections which arrive between the two wait and are lost to nobody.

The real server listens only if its store and its keys are in place (`Ready`): vLLM logs an endpoint
plugin that fails to load and serves on, without them.
"""

from __future__ import annotations

import socket
import threading
from argparse import Namespace
from importlib.metadata import entry_points
from types import TracebackType

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.settings import SettingsError

PLUGIN = "reasonmaxxer_models"
GROUP = "vllm.endpoint_plugins"
RETRY_AFTER = 5  # seconds


async def not_yet(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI application: every request gets 503, in OpenAI's error shape."""
    if scope["type"] != "http":
        return
    answer = JSONResponse(
        {
            "error": {
                "message": "The server is starting; ask again later.",
                "type": "ServiceUnavailableError",
                "param": None,
                "code": 503,
            }
        },
        status_code=503,
        headers={"Retry-After": str(RETRY_AFTER), "Connection": "close"},
    )
    await answer(scope, receive, send)


class Starting:
    """Context manager: answers on `sock` until `end` is called, or the block is left."""

    def __init__(self, sock: socket.socket, args: Namespace) -> None:
        """Prepare, with the TLS settings of the real server.

        Raises:
            SettingsError: the certificate or the key cannot be used.
        """
        config = uvicorn.Config(
            not_yet,
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
            timeout_graceful_shutdown=1,  # a client that sends half a request delays nobody
            ssl_keyfile=args.ssl_keyfile,
            ssl_certfile=args.ssl_certfile,
            ssl_ca_certs=args.ssl_ca_certs,
            ssl_cert_reqs=args.ssl_cert_reqs,
            **({"ssl_ciphers": args.ssl_ciphers} if args.ssl_ciphers else {}),
        )
        try:
            config.load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise SettingsError(f"--ssl-certfile, --ssl-keyfile: cannot be used ({error})") from (
                error
            )
        self._server = uvicorn.Server(config)
        self._sock = sock
        self._thread: threading.Thread | None = None
        self.ready = False  # the real server has begun to listen

    def __enter__(self) -> Starting:
        # Closing the copy leaves the real server's socket open.
        copy = self._sock.dup()
        self._thread = threading.Thread(
            target=self._server.run, args=([copy],), name="starting", daemon=True
        )
        self._thread.start()
        return self

    def end(self) -> None:
        """Stop answering; again is harmless."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class Ready:
    """ASGI middleware: lets the server listen with our plugin, and not without it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass requests on; look at the state when the server is about to listen."""
        if scope["type"] == "lifespan":
            state = scope["app"].state
            starting: Starting = state.args.starting
            starting.end()
            loaded = getattr(state, "endpoint_plugins", [])
            starting.ready = PLUGIN in {plugin.name for plugin in loaded}
            if not starting.ready:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": f"no {PLUGIN}"})
                return
        await self.app(scope, receive, send)


MIDDLEWARE = f"{Ready.__module__}.{Ready.__qualname__}"


def check_plugin() -> None:
    """That vLLM will find our endpoint plugin and can load it.

    Raises:
        SettingsError: it is not installed, or cannot be imported.
    """
    found = [one for one in entry_points(group=GROUP) if one.name == PLUGIN]
    if not found:
        raise SettingsError(
            f"vLLM finds no plugin '{PLUGIN}'; install this project (`pip install -e .` in a clone)"
        )
    try:
        found[0].load()
    except Exception as error:  # whatever a broken import raises
        raise SettingsError(
            f"the plugin '{PLUGIN}' cannot be loaded ({type(error).__name__}: {error}); without it "
            "vLLM would serve no adapters and ask for no key; install this project again"
        ) from error
