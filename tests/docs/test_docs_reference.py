"""Nothing that a user can set, send or see is undocumented."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from io import StringIO

import prometheus_client
import pytest
import yaml
from pages import GENERATED, ROOT, WRITTEN, commands
from pydantic import BaseModel

from adapters.commands import COMMANDS as STORE_COMMANDS
from docs import configuration
from training.calibrate import CalibrateConfig

TEXT = {page.name: page.read_text(encoding="utf-8") for page in WRITTEN}


def page(name: str) -> str:
    return TEXT[f"{name}.md"]


def mentions(text: str, name: str) -> bool:
    """Whether `text` has `name` in code, not as a part of a longer name."""
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


# ---------------------------------------------------------------------------- settings and flags


def test_the_configuration_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONMAXXER_PORT", "9000")  # changes no default of the page
    assert GENERATED.read_text(encoding="utf-8") == configuration.page(), (
        "run: python -m docs.configuration"
    )


SETTINGS = [
    (command.title, configuration.load(command.settings)) for command in configuration.COMMANDS
]


@pytest.mark.parametrize(("title", "settings"), SETTINGS, ids=[title for title, _ in SETTINGS])
def test_every_setting_has_a_row_with_a_meaning(title: str, settings: type[BaseModel]) -> None:
    section = page("configuration").partition(f"## `{title}`")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\S+)` \|.*\| ([^|]*(?:\\\|[^|]*)*) \|$", section, re.MULTILINE))
    wanted = {configuration.flag(*named) for named in configuration.fields(settings)}
    if title == "reasonmaxxer serve":
        wanted.remove("--engine")  # of the YAML file alone
    assert wanted == set(rows)
    assert [name for name, meaning in rows.items() if not meaning.strip()] == []


def test_a_help_text_is_understood_without_the_one_above() -> None:
    text = GENERATED.read_text(encoding="utf-8")
    meanings = [row.rsplit(" | ", 1)[-1] for row in text.splitlines() if row.startswith("| `")]
    assert len(meanings) > 150
    assert [one for one in meanings if re.match("of |and |likewise", one, re.IGNORECASE)] == []
    assert "likewise" not in text


def flags_in_help(command: Callable[[list[str]], object]) -> set[str]:
    """The flags of the usage line that `--help` begins with."""
    with redirect_stdout(StringIO()) as said, suppress(SystemExit):
        command(["--help"])
    usage = said.getvalue().partition("\n\n")[0]
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", usage)) - {"--help"}


@cache
def store_flags() -> dict[str, set[str]]:
    """The flags of each sub-command of the store."""
    return {name: flags_in_help(command.load) for name, command in STORE_COMMANDS.items()}


def test_every_command_and_flag_of_the_store() -> None:
    text = page("store")
    for name, flags in store_flags().items():
        assert "--store" in flags
        assert re.search(rf"^\| `{name}\b", text, re.MULTILINE), name
        for flag in flags:
            assert mentions(text, flag), f"store {name} {flag}"


@pytest.mark.parametrize(
    ("module", "command", "name"),
    [("loadtests.__main__", "parse", "loadtests"), ("training.gguf", "main", "bases")],
)
def test_every_flag_of_the_load_tests_and_of_gguf(module: str, command: str, name: str) -> None:
    flags = flags_in_help(getattr(import_module(module), command))
    assert flags
    for flag in flags:
        assert mentions(page(name), flag), flag


def test_every_scenario_of_the_load_tests() -> None:
    from loadtests.scenarios import SCENARIOS

    for name in SCENARIOS:
        assert f"| `{name}` |" in page("loadtests")


def test_every_command_of_the_console_script() -> None:
    from reasonmaxxer.cli import COMMANDS

    for name in COMMANDS:
        assert any(f"reasonmaxxer {name}" in text for text in TEXT.values()), name


def test_make_targets() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.compile(r"(?:^    |`)make ([a-z-]+)", re.MULTILINE)
    named = {name for text in TEXT.values() for name in called.findall(text)}
    assert named <= set(targets)
    assert {"demo", "serve", "install", "test", "docs"} <= named


# ------------------------------------------------------------------- commands that pages show


def flags_of(settings: type[BaseModel]) -> set[str]:
    """The flags that a command takes, those of a list item by item included."""
    return {configuration.flag(*named) for named in configuration.fields(settings)} | {"--help"}


def given_flags(words: Iterable[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


@pytest.mark.parametrize("name", ["fit", "evaluate", "grade"])
def test_examples_use_flags_that_exist(name: str) -> None:
    found = {title.rpartition(" ")[2]: settings for title, settings in SETTINGS}
    calls = commands(f"reasonmaxxer {name}")
    assert calls
    for place, words in calls:
        for flag in given_flags(words):
            assert flag in flags_of(found[name]), f"{place}: {' '.join(words)}"


def test_examples_of_the_store_are_parsed() -> None:
    calls = [(place, words) for place, words in commands("reasonmaxxer store") if words]
    assert len(calls) > 5
    known = store_flags() | {"calibrate": flags_of(CalibrateConfig)}
    for place, words in calls:
        assert words[0] in known, f"{place}: {words}"
        assert set(given_flags(words)) <= known[words[0]] | {"--help"}, f"{place}: {words}"


# ------------------------------------------------------------- requests, metrics, alerts, panels


def request_arguments() -> set[str]:
    """What a client may send in `vllm_xargs`: names that the gate's modules define."""
    source = (ROOT / "vllm_gate" / "params.py").read_text()
    return set(re.findall(r'^[A-Z_]+ = "((?:gate|correction|guidance)_[a-z]+)"', source, re.M))


def test_every_request_argument() -> None:
    found = request_arguments()
    assert {"gate_tau", "gate_rate", "gate_trace", "guidance_scale"} <= found
    for name in found:
        assert f"| `{name}` |" in page("serving"), name


def metrics() -> set[str]:
    """The names of all series of ours, as /metrics has them."""
    import serving.metrics
    import vllm_gate.counters  # noqa: F401  # which registers its own

    suffix = {"counter": "_total"}
    found = {
        family.name + suffix.get(family.type, "")
        for family in prometheus_client.REGISTRY.collect()
        if family.name.startswith("reasonmaxxer_")
    }
    text = serving.metrics.METRICS.page()
    found |= set(re.findall(r"^# TYPE (reasonmaxxer_\w+) ", text, re.MULTILINE))
    gauges = (ROOT / "serving" / "metrics_page.py").read_text()
    return found | {f"reasonmaxxer_{name}" for name in re.findall(r'Gauge\(\s*"(\w+)"', gauges)}


def test_every_metric() -> None:
    found = metrics()
    assert len(found) > 20
    for name in found:
        assert f"`{name}`" in page("operations"), name
    shown = set(re.findall(r"`(reasonmaxxer_[a-z_]+)`", page("operations"))) - {"reasonmaxxer_"}
    assert shown == found


def test_every_alert() -> None:
    groups = yaml.safe_load((ROOT / "dashboards" / "rules" / "alerts.yml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    headings = re.findall(r"^### (Reasonmaxxer\w+)$", page("operations"), re.MULTILINE)
    assert headings == alerts


def test_every_action_of_the_admin_api() -> None:
    source = (ROOT / "serving" / "admin_api.py").read_text()
    for action in re.findall(r'@router\.(?:post|put)\("/\{name\}/([a-z]+)"\)', source):
        assert re.search(rf"`(POST|PUT) \.\.\./NAME/{action}\b", page("serving")), action


def test_every_recipe_has_a_row() -> None:
    for path in (ROOT / "adapters" / "recipes").glob("*.yaml"):
        rows = page("bases").partition("| recipe | for |")[2]
        assert f"`{path.stem}`" in rows, path.stem


def test_every_extra_is_named() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in project["optional-dependencies"]:
        named = rf"(`{extra}`|\[[a-z,]*\b{extra}\b[a-z,]*\])"
        assert extra == "dev" or re.search(named, TEXT["README.md"]), extra


def test_benchmarks_are_listed() -> None:
    text = page("loadtests")
    for path in (ROOT / "benchmarks").glob("*.py"):
        if "__main__" in path.read_text():
            assert re.search(rf"benchmarks[./]{path.stem}\b", text), path.stem
