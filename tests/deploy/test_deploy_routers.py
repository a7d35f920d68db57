"""Two real replicas behind nginx, vllm-router and the LiteLLM proxy (`make test-routers`)."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from stand_in import StandIn, moving_store
from support import ADMIN, KEY, Server, StartServer

from adapters.store import Store
from demo.server import free_port
from loadtests.routers import KINDS, Kind, Router, running

QUESTION = [{"role": "user", "content": "What is 9-11*7+12+9?"}]
XARGS = {"gate_tau": 0.05, "gate_trace": 1}
MISSING = [kind.name for kind in KINDS if kind.find() is None]

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        len(MISSING) == len(KINDS), reason="no router is installed; `make test-routers` gets them"
    ),
]


@dataclass
class Replicas:
    """Two servers over one store, each of which can be restarted at its address."""

    start: StartServer
    base: Path
    store: Path
    work: Path
    ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])
    servers: dict[int, Server] = field(default_factory=dict)
    _running: dict[int, AbstractContextManager[Server]] = field(default_factory=dict)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def begin(self, number: int) -> None:
        """Start a replica, again at the address that it had before."""
        context = self.start(self.base, self.store, self.work, port=self.ports[number])
        self.servers[number] = context.__enter__()
        self._running[number] = context

    def end(self, number: int) -> None:
        """SIGTERM: what it answers is finished."""
        self._running.pop(number).__exit__(None, None, None)

    def counted(self, **labels: str) -> list[float]:
        """Requests that each replica has answered, with these labels."""
        wanted = {f'{name}="{value}"' for name, value in labels.items()} | {'outcome="ok"'}
        totals = []
        for number in range(2):
            page = self.servers[number].page()
            lines = [one for one in page.splitlines() if one.startswith("reasonmaxxer_requests_")]
            totals.append(
                sum(float(one.rpartition(" ")[2]) for one in lines if all(w in one for w in wanted))
            )
        return totals


@pytest.fixture(scope="module")
def replicas(
    start_server: StartServer, base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    work = tmp_path_factory.mktemp("replicas")
    fleet = Replicas(start_server, base_folder, moving_store(work, base_folder), work)
    try:
        with ThreadPoolExecutor() as both:
            list(both.map(fleet.begin, range(2)))
        yield fleet
    finally:
        for number in list(fleet._running):
            fleet.end(number)


# ------------------------------------------------------------------- replicas without an engine


@pytest.fixture(params=[kind for kind in KINDS if kind.find()], ids=lambda kind: kind.name)
def stand_ins(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Router, list[StandIn]]]:
    """A router before two stand-ins."""
    pair = [StandIn(), StandIn()]
    for one in pair:
        one.begin()
    try:
        with running(request.param, [one.url for one in pair], tmp_path / "router", KEY) as router:
            yield router, pair
    finally:
        for one in pair:
            one.end()


class Load:
    """Clients that ask without a pause and without trying again; context manager.

    Each asks for one model after the other.
    """

    def __init__(
        self, router: Router, clients: int = 4, models: Sequence[str] = ("tiny-math",)
    ) -> None:
        self.failed: list[str] = []
        self.answered = 0
        self._router, self._models, self._over = router, models, threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        models = itertools.cycle(self._models)
        with client(self._router) as asking:
            while not self._over.is_set():
                body = {"model": next(models), "prompt": "1+1=", "max_tokens": 8}
                try:
                    answer = asking.post("/v1/completions", json=body)
                    good = answer.status_code == 200
                    said = "" if good else f"{answer.status_code} {answer.text[:300]}"
                except httpx.HTTPError as error:
                    said = repr(error)
                with self._changed:
                    self.failed += [said] if said else []
                    self.answered += not said
                    self._changed.notify_all()

    def wait_for(self, more: int) -> None:
        """Until so many more requests are over."""
        with self._changed:
            until = self.answered + len(self.failed) + more
            assert self._changed.wait_for(
                lambda: self.answered + len(self.failed) >= until, timeout=120
            )

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_no_request_is_lost_while_stand_ins_restart(
    stand_ins: tuple[Router, list[StandIn]],
) -> None:
    """Drain, closed port, start: what a router sees of a rolling restart."""
    router, pair = stand_ins
    with Load(router) as load:
        for one in pair:
            load.wait_for(20)
            one.busy = True
            load.wait_for(20)
            one.end()
            load.wait_for(20)
            one.begin()
            load.wait_for(20)
            one.busy = False
        load.wait_for(20)
    assert load.failed == []
    assert all(one.answered for one in pair)


def test_a_header_keeps_a_name_at_one_stand_in(stand_ins: tuple[Router, list[StandIn]]) -> None:
    router, pair = stand_ins
    if router.sticky is None:
        pytest.skip(f"{router.name} knows no sticky header")
    body = {"model": "tiny-math", "prompt": "1+1="}
    for name in ("tiny-math", "other", "third", "fourth"):
        before = [one.answered for one in pair]
        with client(router, **{router.sticky: name}) as asking:
            for _ in range(6):
                assert asking.post("/v1/completions", json=body).status_code == 200
        rises = [one.answered - then for one, then in zip(pair, before, strict=True)]
        assert sorted(rises) == [0, 6]


# ------------------------------------------------------------------------------- real replicas


@pytest.fixture(scope="module")
def all_routers(
    replicas: Replicas, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Router]]:
    """Every router that is installed."""
    work = tmp_path_factory.mktemp("routers")
    with ExitStack() as stack:
        yield {
            kind.name: stack.enter_context(running(kind, replicas.urls, work / kind.name, KEY))
            for kind in KINDS
            if kind.find() is not None
        }


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def router(request: pytest.FixtureRequest, all_routers: dict[str, Router]) -> Router:
    kind: Kind = request.param
    if kind.name not in all_routers:
        pytest.skip(f"{kind.name} is not installed; `make test-routers` gets it")
    return all_routers[kind.name]


def client(router: Router, **headers: str) -> httpx.Client:
    bearer = {"Authorization": f"Bearer {router.key}"} | headers
    return httpx.Client(base_url=router.url, headers=bearer, timeout=120)


def chat(asking: httpx.Client, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": QUESTION, "max_tokens": 12, "temperature": 0} | more
    answer = asking.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def said_by(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_every_name_answers_as_without_a_router(router: Router, replicas: Replicas) -> None:
    direct = Router("direct", replicas.urls[0], replicas.servers[0].key, None)
    version = str(Store(replicas.store).resolve("tiny-math"))
    with client(router) as asking, client(direct) as straight:
        for name in ("tiny-qwen2", "tiny-math", "tiny-math:gated", version, f"{version}:gated"):
            seen, wanted = chat(asking, name), chat(straight, name)
            assert said_by(seen) == said_by(wanted)
            assert seen["model"] == name
        traced = chat(asking, "tiny-math:gated", vllm_xargs=XARGS)
        details = traced["usage"]["completion_tokens_details"]
        choice = traced["choices"][0]
        fields = choice["message"].get("provider_specific_fields") or {}
        trace = choice.get("gate_trace") or fields.get("gate_trace")
        trace = trace or (choice.get("provider_specific_fields") or {}).get("gate_trace")
        assert len(trace) == details["gated_tokens"] > 0
        refused = asking.post(
            "/v1/chat/completions", json={"model": "no-such", "messages": QUESTION}
        )
        assert 400 <= refused.status_code < 500


def test_streams_come_in_pieces(router: Router) -> None:
    body = {"model": "tiny-math:gated", "messages": QUESTION, "max_tokens": 12, "stream": True}
    with client(router) as asking:
        whole = said_by(chat(asking, "tiny-math:gated"))
        with asking.stream("POST", "/v1/chat/completions", json=body | {"temperature": 0}) as got:
            lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    said = "".join(
        one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"]
    )
    assert said == whole
    assert len(chunks) > 2


def test_the_other_routes(router: Router) -> None:
    routes: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": "tiny-math:gated", "prompt": "1+1=", "max_tokens": 4},
        "/v1/responses": {"model": "tiny-math", "input": "1+1=", "max_output_tokens": 4},
        "/v1/messages": {"model": "tiny-math", "messages": QUESTION, "max_tokens": 4},
        "/tokenize": {"model": "tiny-math", "prompt": "1+1="},
    }
    if router.name == "litellm":
        del routes["/tokenize"]  # the proxy has no such route
    with client(router) as asking:
        for path, body in routes.items():
            answer = asking.post(path, json=body)
            wanted = 401 if path in router.keyless else 200  # docs/fleet.md says so
            assert answer.status_code == wanted, f"{path}: {answer.text}"
        listed = {one["id"] for one in asking.get("/v1/models").json()["data"]}
        if router.name != "litellm":  # which lists what its own configuration names
            assert {"tiny-math", "tiny-math:gated", "moving"} <= listed


def test_an_alias_moves_for_all_replicas(router: Router, replicas: Replicas) -> None:
    """By the admin API through the router, or of one replica; the store tells the other."""
    first, second = (move.version for move in Store(replicas.store).history("moving")[:2])
    now = str(Store(replicas.store).resolve("moving"))
    to = first if now == second else second
    through = router.url if router.name == "nginx" else replicas.urls[0]
    url = f"{through}/admin/adapters/moving/alias"
    moved = httpx.post(url, json={"version": to}, headers=ADMIN, timeout=60)
    assert moved.status_code == 200, moved.text
    for server in replicas.servers.values():
        versions = []
        for _ in range(50):  # a replica may still load it while it answers with the other
            answer = server.client().completions.with_raw_response.create(
                model="moving", prompt="1+1=", max_tokens=1
            )
            versions.append(answer.headers["X-ReasonMaxxer-Version"])
            if versions[-1] == to:
                break
        assert versions[-1] == to


def test_a_header_keeps_a_name_at_one_replica(router: Router, replicas: Replicas) -> None:
    if router.sticky is None:
        pytest.skip(f"{router.name} knows no sticky header")
    before = replicas.counted()
    with client(router, **{router.sticky: "tiny-math"}) as asking:
        for _ in range(8):
            chat(asking, "tiny-math", max_tokens=1)
    rises = [now - then for now, then in zip(replicas.counted(), before, strict=True)]
    assert sorted(rises) == [0, 8]


def test_rolling_restart_loses_no_request(
    all_routers: dict[str, Router], replicas: Replicas
) -> None:
    """Both replicas are ended and started again, one after the other, under load by each router."""
    models = ("tiny-qwen2", "tiny-math", "tiny-math:gated")
    with ExitStack() as stack:
        loads = {
            name: stack.enter_context(Load(router, clients=3, models=models))
            for name, router in all_routers.items()
        }
        for number in range(2):
            replicas.end(number)
            replicas.begin(number)
    print({name: (load.answered, len(load.failed)) for name, load in loads.items()})
    assert {name: load.failed[:3] for name, load in loads.items() if load.failed} == {}
    assert all(load.answered > 10 for load in loads.values())
