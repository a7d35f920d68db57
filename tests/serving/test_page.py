"""/gate: what the static files are, and the page in a real browser over the real server.

The browser is Debian's `chromium`, driven by Playwright, which downloads nothing. Without it these
tests are skipped, but fail where CI is set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from support import KEY, Server

from serving import playground as served
from serving.middleware import ApiKey

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

KINDS = ("base", "always", "gated")  # of columns
QUESTION = "What is 3+4*2-5?"
TAU = 0.2
TOKENS = 40
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>"\'&lt;'


def static() -> TestClient:
    """The page alone behind the key, without an engine."""
    app = FastAPI()
    app.include_router(served.router)
    app.add_middleware(ApiKey, key=KEY)
    return TestClient(app)


def test_files_are_open_and_have_their_types_and_headers() -> None:
    client = static()
    types = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path in sorted(served.PATHS - {"/gate/"}):
        answer = client.get(path)
        assert answer.status_code == 200, path
        kind = types.get(path.rpartition(".")[2], "text/html")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
    assert client.head("/gate").status_code == 200
    assert client.get("/gate/", follow_redirects=False).headers["location"] == "../gate"


def test_the_page_holds_no_inline_code_and_asks_no_other_origin() -> None:
    page = served.FILES["index.html"].body.decode()
    assert not re.findall(r"<script(?![^>]*\bsrc=)", page)
    assert not re.findall(r"\son\w+=|\sstyle=|<style|javascript:", page)
    for name, file in served.FILES.items():
        text = file.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


@pytest.mark.parametrize(
    "path",
    [
        "/gate/../page.py",
        "/gate/%2e%2e/page.py",
        "/gate/..%2fguard.py",
        "/gate/....//page.py",
        "/gate//etc/passwd",
        "/gate/page",
        "/gate/page.js/",
        "/gate/page.js%00",
        "/gate/__init__.py",
    ],
)
def test_nothing_else_is_served(path: str) -> None:
    answer = static().get(path, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 404
    assert static().get(path).status_code == 401


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        complain = pytest.fail if os.environ.get("CI") else pytest.skip
        complain("no chromium, or no playwright to drive it")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield running
        running.close()


@dataclass
class Visit:
    """One open page, and what it did."""

    page: Page
    server: Server
    requests: list[Any] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def note(self, request: Any) -> None:
        """A request went out."""
        self.requests.append(request)

    def column(self, kind: str) -> Locator:
        """The column "base", "always" or "gated"."""
        return self.page.locator(f'.column[data-kind="{kind}"]')

    def enter_key(self, key: str = KEY) -> None:
        """Type the key and connect."""
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Connect").click()

    def set(self, **fields: Any) -> None:
        """Fill number fields by their label."""
        for label, value in fields.items():
            self.page.get_by_label(label.replace("_", " ")).fill(str(value))

    def until_connected(self) -> None:
        """Wait for the adapter to choose."""
        self.page.get_by_role("checkbox", name="alpha").wait_for()

    def connect(self) -> None:
        """Enter the right key."""
        self.enter_key()
        self.until_connected()

    def press_ask(self) -> None:
        """Press the button."""
        self.page.get_by_role("button", name="Ask", exact=True).click()

    def ask(self, **fields: Any) -> None:
        """Connect, ask greedily, and wait for all columns to end."""
        self.connect()
        self.set(**{"Temperature": 0, "Max_tokens": TOKENS, "Tau": TAU} | fields)
        self.page.get_by_label("Question").fill(QUESTION)
        self.press_ask()
        for kind in KINDS:
            self.wait(kind, "done")

    def wait(self, kind: str, state: str) -> None:
        """Until a column is in a state."""
        self.page.locator(f'.column[data-kind="{kind}"][data-state="{state}"]').wait_for()

    def answer(self, kind: str) -> str:
        """The text of a column's tokens."""
        return self.column(kind).locator(".tokens").evaluate("element => element.textContent")

    def overflow(self) -> int:
        """Pixels the page is wider than its window."""
        return int(
            self.page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        )


@contextmanager
def visit(
    browser: Browser, server: Server, size: dict[str, int], may_fail: str = "", **options: Any
) -> Iterator[Visit]:
    """Open the page; afterwards: no console error but `may_fail`, no request to another origin."""
    context = browser.new_context(viewport=size, **options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    opened = Visit(page, server)
    page.on("request", opened.note)
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            opened.errors.append(message.text)
            if message.type in ("error", "warning") and not (may_fail and may_fail in message.text)
            else None
        ),
    )
    try:
        page.goto(f"{server.url}/gate")
        yield opened
        assert opened.errors == []
        for request in opened.requests:
            assert request.url.startswith(server.url + "/"), request.url
            assert KEY not in request.url
    finally:
        context.close()


# Before a key is given the server says 401, and the browser notes that on its console.
UNAUTHORIZED = "401 (Unauthorized)"


@pytest.fixture
def seen(browser: Browser, gated: Server) -> Iterator[Visit]:
    """The page on a desktop."""
    with visit(browser, gated, DESKTOP, UNAUTHORIZED) as opened:
        yield opened


def openai_answer(server: Server, model: str, **xargs: Any) -> Any:
    """The same question by the `openai` client."""
    return server.client().chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=TOKENS,
        extra_body={"vllm_xargs": xargs} if xargs else {},
    )


def candidates(column: Locator) -> list[float]:
    """Probabilities of the candidates shown, from top to bottom."""
    column.locator(".panel table").wait_for()
    rows = column.locator(".panel tr[data-p]")
    return [float(row.get_attribute("data-p")) for row in rows.all()]


def test_three_answers_side_by_side(seen: Visit, gated: Server) -> None:
    seen.ask()
    expected = {
        "base": openai_answer(gated, gated.base.name),
        "always": openai_answer(gated, "alpha"),
        "gated": openai_answer(gated, "alpha:gated", gate_tau=TAU),
    }
    for kind, answer in expected.items():
        assert seen.answer(kind) == answer.choices[0].message.content, kind
        whole = seen.column(kind).locator("[data-answer]").text_content()
        assert whole == answer.choices[0].message.content
        tokens = seen.column(kind).locator(".token")
        assert tokens.count() == answer.usage.completion_tokens

    marked = expected["gated"].usage.completion_tokens_details.gated_tokens
    assert seen.column("gated").locator(".token.gated").count() == marked > 0
    assert seen.column("gated").locator("[data-gated]").get_attribute("data-gated") == str(marked)
    assert seen.column("base").locator(".token.gated").count() == 0
    for figure in ("first", "between", "rate", "gate"):
        shown = seen.column("gated").locator(f'[data-figure="{figure}"]').text_content()
        assert re.match(r"[\d.]+( %| m?s)?$", shown), (figure, shown)
    assert "at decision points" in seen.page.get_by_role("status").text_content()
    bodies = [json.loads(r.post_data) for r in seen.requests if r.url.endswith("/chat/completions")]
    assert sorted(body["model"] for body in bodies) == ["alpha", "alpha:gated", "alpha:gated"]


def test_a_click_shows_what_the_base_would_have_said(seen: Visit, gated: Server) -> None:
    seen.ask()
    answer = openai_answer(gated, "alpha:gated", gate_tau=TAU, gate_trace=1)
    first = answer.choices[0].gate_trace[0]
    seen.column("gated").locator(".token.gated").first.click()
    shown = candidates(seen.column("gated"))
    assert shown == pytest.approx([top["probability"] for top in first["base_top"]], abs=1e-4)
    panel = seen.column("gated").locator(".panel")
    assert f"entropy {first['entropy']:.2f} nats" in panel.text_content()
    assert panel.locator("tr.taken").count() == 1
    assert "#" not in panel.locator("tbody th").all_text_contents()  # texts, not numbers

    for kind in ("base", "always"):
        seen.column(kind).locator(".token").nth(1).click()
        probabilities = candidates(seen.column(kind))
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-6
        assert seen.column(kind).locator(".panel tr.taken").count() == 1
    seen.column("base").locator(".token").nth(1).click()
    seen.column("base").locator(".panel").wait_for(state="hidden")


def test_same_seed_gives_the_columns_the_same_luck(seen: Visit) -> None:
    seen.ask(Temperature=0.8, Seed=11, Tau=20)  # a gate that never opens is the base
    assert seen.answer("gated") == seen.answer("base")
    bodies = [json.loads(r.post_data) for r in seen.requests if r.method == "POST"]
    assert {body["seed"] for body in bodies} == {11}


def test_a_wrong_key_is_said_and_the_right_one_kept_for_the_session(seen: Visit) -> None:
    problem = seen.page.locator("#problem")
    problem.filter(has_text="API key").wait_for()
    seen.enter_key("wrong")
    problem.filter(has_text="The API key is missing or wrong").wait_for()
    assert "press Connect" in problem.text_content()
    seen.connect()
    problem.wait_for(state="hidden")
    seen.page.reload()
    seen.until_connected()
    stores = seen.page.evaluate(
        "() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
    )
    assert stores == [[KEY], [], ""]


def test_what_the_server_refuses_stands_in_the_column(browser: Browser, gated: Server) -> None:
    with visit(browser, gated, DESKTOP, "Failed to load resource") as seen:
        seen.connect()
        seen.set(Max_tokens=5000)
        seen.press_ask()
        for kind in KINDS:
            seen.wait(kind, "failed")
            assert "5000" in seen.column(kind).locator(".note").text_content()


def test_stop_ends_all_streams(seen: Visit) -> None:
    seen.connect()
    seen.page.route("**/v1/chat/completions", without_end)
    seen.page.evaluate(HOLD_ANSWERS)
    seen.set(Temperature=1, Max_tokens=480)
    stop = seen.page.get_by_role("button", name="Stop")
    assert stop.is_disabled()
    seen.press_ask()
    seen.column("gated").locator(".token").nth(2).wait_for()
    stop.click()
    for kind in KINDS:
        seen.wait(kind, "stopped")
        assert seen.column(kind).locator(".token").count() < 480
    assert stop.is_disabled()
    assert seen.page.get_by_label("Question").evaluate("e => e === document.activeElement")


# The rest of an answer keeps waiting until the page gives it up: however slow the browser is, no
# answer has ended when Stop is pressed.
HOLD_ANSWERS = """() => {
  const fetched = window.fetch;
  const given_up = (signal) =>
    new Promise((_, fail) => signal.addEventListener("abort", () => fail(signal.reason)));
  async function* beginning(answer, signal) {
    let events = 0;
    for await (const text of answer.body.pipeThrough(new TextDecoderStream()))
      for (const part of text.split(/(?<=\\n\\n)/)) {
        if (events === 8) await given_up(signal);
        yield part;
        events += part.endsWith("\\n\\n");
      }
  }
  window.fetch = async (path, options) => {
    const answer = await fetched(path, options);
    if (!path.endsWith("chat/completions")) return answer;
    const parts = beginning(answer, options.signal);
    const pull = async (body) => body.enqueue((await parts.next()).value);
    return new Response(new ReadableStream({ pull }).pipeThrough(new TextEncoderStream()));
  };
}"""


def without_end(route: Any) -> None:
    """Pass a request on, to be answered to its last token."""
    route.continue_(
        post_data=json.dumps(json.loads(route.request.post_data) | {"ignore_eos": True})
    )


def test_by_keyboard_alone(seen: Visit) -> None:
    keys = seen.page.keyboard
    seen.page.get_by_label("API key").focus()
    keys.type(KEY)
    keys.press("Enter")
    seen.until_connected()
    for _ in range(2):  # Connect, then the question
        keys.press("Tab")
    keys.press("Control+a")
    keys.type(QUESTION)
    keys.press("Tab")
    keys.press("Enter")  # Ask
    for kind in KINDS:
        seen.wait(kind, "done")

    def in_gated() -> bool:
        return bool(
            seen.page.evaluate(
                "() => !!document.activeElement.closest('.column.gated [role=option]')"
            )
        )

    for _ in range(30):
        keys.press("Tab")
        if in_gated():
            break
    assert in_gated()
    keys.press("Home")
    keys.press("ArrowRight")
    focused = seen.page.locator(":focus")
    assert focused.evaluate("e => [...e.parentNode.children].indexOf(e)") == 1
    assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    keys.press("Enter")
    assert len(candidates(seen.column("gated"))) == 5
    assert "top 5" in seen.page.get_by_role("status").text_content()
    keys.press("ArrowRight")  # what is open follows
    seen.column("gated").locator(".panel", has_text="position 2").wait_for()
    keys.press("Escape")
    seen.column("gated").locator(".panel").wait_for(state="hidden")
    assert in_gated()
    keys.press("Home")
    keys.press("ArrowDown")
    assert "gated" in focused.get_attribute("class")
    keys.press("Space")
    assert len(candidates(seen.column("gated"))) == 5


def test_phone_width(browser: Browser, gated: Server) -> None:
    with visit(browser, gated, PHONE, UNAUTHORIZED, has_touch=True) as seen:
        assert seen.overflow() <= 0
        seen.ask()
        seen.column("gated").locator(".token.gated").first.tap()
        candidates(seen.column("gated"))
        assert seen.overflow() <= 0
        boxes = [seen.column(kind).bounding_box() for kind in KINDS]
        assert len({box["x"] for box in boxes}) == 1  # one above the other
        assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]


def fake_stream(*events: dict[str, Any]) -> str:
    """Server-sent events of a chat completion."""
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def test_hostile_output_is_inert(browser: Browser, gated: Server) -> None:
    top = [{"token": HOSTILE, "logprob": -0.1}, {"token": "<b>b</b>", "logprob": -3.0}]
    token = {"token": HOSTILE, "logprob": -0.1, "top_logprobs": top}
    trace = {"position": 0, "entropy": 1.5, "gated": True, "token_id": 1, "rank": 2}
    trace["base_top"] = [{"token_id": i, "probability": 0.5 / (i + 1)} for i in range(5)]
    content = HOSTILE + "\\boxed{" + HOSTILE + "}"
    choice = {"delta": {"content": content}, "logprobs": {"content": [token]}}
    chunk = {"choices": [choice | {"finish_reason": "stop", "gate_trace": [trace]}]}
    cards = {"data": [{"id": "base", "parent": None}]}
    cards["data"] += [
        {"id": HOSTILE + tail, "parent": "base", "root": HOSTILE} for tail in ("", ":gated")
    ]

    def answer(route: Any) -> None:
        asked = json.loads(route.request.post_data)
        if asked["model"] == HOSTILE:
            route.fulfill(status=400, json={"error": {"message": HOSTILE, "code": 400}})
        else:
            route.fulfill(body=fake_stream(chunk), content_type="text/event-stream")

    with visit(browser, gated, PHONE, "Failed to load resource") as seen:
        seen.page.route("**/v1/models", lambda route: route.fulfill(json=cards))
        seen.page.route("**/v1/chat/completions", answer)
        seen.page.route("**/detokenize", lambda route: route.fulfill(json={"prompt": HOSTILE}))
        seen.enter_key("any")
        seen.page.get_by_role("checkbox").wait_for()
        seen.page.get_by_label("Question").fill(HOSTILE)
        seen.press_ask()
        seen.wait("gated", "done")
        seen.wait("always", "failed")
        seen.column("gated").locator(".token").first.click()
        assert len(candidates(seen.column("gated"))) == 5
        assert seen.column("gated").locator(".panel code").first.text_content() == HOSTILE
        assert HOSTILE in seen.column("always").locator(".note").text_content()
        assert seen.page.locator("main img, main script, main b").count() == 0
        assert seen.page.title() == "ReasonMaxxer: the gate"
        assert seen.overflow() <= 0


def test_an_error_in_mid_stream_and_a_stream_cut_short(seen: Visit) -> None:
    token = {"token": "4", "logprob": -0.1, "top_logprobs": []}
    chunk = {"choices": [{"delta": {"content": "4"}, "logprobs": {"content": [token]}}]}
    failed = fake_stream(chunk, {"error": {"message": "the engine is gone", "code": 500}})
    cut = fake_stream(chunk).removesuffix("data: [DONE]\n\n")

    def answer(route: Any) -> None:
        gate = json.loads(route.request.post_data)["model"].endswith(":gated")
        route.fulfill(body=failed if gate else cut, content_type="text/event-stream")

    seen.page.route("**/v1/chat/completions", answer)
    seen.connect()
    seen.press_ask()
    seen.wait("gated", "failed")
    seen.wait("always", "failed")
    assert seen.column("gated").locator(".note").text_content() == "the engine is gone"
    assert "broke off" in seen.column("always").locator(".note").text_content()
    assert seen.answer("gated") == "4"


SCRAPE = """
reasonmaxxer_generated_tokens_total{adapter="a",version="1",mode="gated"} %d
reasonmaxxer_gated_tokens_total{adapter="a",version="1",mode="gated"} %d
reasonmaxxer_time_to_first_token_seconds_bucket{mode="gated",le="0.1"} %d
reasonmaxxer_time_to_first_token_seconds_bucket{mode="gated",le="0.2"} %d
reasonmaxxer_time_to_first_token_seconds_bucket{mode="gated",le="+Inf"} %d
""".strip()


def test_the_servers_own_tiles(seen: Visit) -> None:
    """Two scrapes with known numbers: rates and quantiles by hand."""
    scrapes, after = iter([SCRAPE % (100, 10, 5, 5, 5)]), SCRAPE % (500, 50, 5, 15, 15)
    seen.page.route("**/metrics", lambda route: route.fulfill(body=next(scrapes, after)))
    seen.page.reload()

    def tile(name: str) -> Locator:
        return seen.page.locator(f'[data-tile="{name}"]')

    tile("p50").filter(has_text="150 ms").wait_for()  # halfway from 0.1 to 0.2
    assert tile("p95").text_content() == "195 ms"
    assert tile("gate").text_content() == "10 %"  # 40 of 400
    assert tile("load").text_content() == "–"  # no such series


def test_real_metrics_fill_the_tiles(seen: Visit) -> None:
    seen.page.locator('[data-tile="load"]', has_text=re.compile(r"\d+, \d+")).wait_for()
    seen.ask()
    for tile, pattern in {"p50": r"\d+ ms|\d s", "gate": r"\d %"}.items():
        seen.page.locator(f'[data-tile="{tile}"]', has_text=re.compile(pattern)).wait_for()


ROLES = ("button", "textbox", "spinbutton", "checkbox", "option", "listbox", "img", "article")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_and_contrast(browser: Browser, gated: Server, scheme: str) -> None:
    with visit(browser, gated, DESKTOP, UNAUTHORIZED, color_scheme=scheme) as seen:
        seen.ask()
        seen.column("gated").locator(".token.gated").first.click()
        candidates(seen.column("gated"))
        snapshot = seen.page.locator("body").aria_snapshot()
        for role in ROLES:
            lines = re.findall(rf"^\s*- '?{role}\b(.*)$", snapshot, re.MULTILINE)
            assert lines, role
            for line in lines:
                assert re.match(r'\s+("[^"]|/)', line), f"{role} without a name: {line}"
        for landmark in ("banner", "main", "contentinfo", "status"):
            assert re.search(rf"^\s*- {landmark}\b", snapshot, re.MULTILINE), landmark
        assert re.search(r'option ".*decision point', snapshot)
        for live in seen.page.locator("[aria-live], [role=status], [role=alert]").all():
            assert live.locator(".token").count() == 0  # not one announcement a token

        colors = seen.page.evaluate(COLORS)
        for ink, ground, least in CONTRASTS:
            assert contrast(colors[ink], colors[ground]) >= least, (scheme, ink, ground)


COLORS = """() => {
    const style = getComputedStyle(document.documentElement);
    const names = ["paper", "card", "sunk", "ink", "soft", "edge", "accent", "on-accent", "gate",
                   "always", "heat", "bad", "ok"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`)]));
}"""
CONTRASTS = [
    *((ink, ground, 4.5) for ink in ("ink", "soft") for ground in ("paper", "card", "sunk")),
    *((ink, "card", 4.5) for ink in ("gate", "always", "bad", "ok")),
    *(("ink", "heat", 4.5), ("on-accent", "accent", 4.5), ("bad", "sunk", 4.5)),
    *(("edge", ground, 3.0) for ground in ("paper", "card")),
    *(("accent", ground, 3.0) for ground in ("paper", "card")),
]


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two #rrggbb colours."""

    def luminance(color: str) -> float:
        channels = [int(color.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
