"""The one marker of each test, told by what the test uses; and what the tests of each marker cost.

    pytest -m unit                    # all that needs no engine
    pytest -m "unit and not long"     # the quick ones among them: `make test-fast`
    pytest -m "server or browser"     # all that asks a real server

A test starts a server by the fixture `start_server`, its own or that of a fixture, and vLLM's
engine by the fixture `engine`. The fixtures `fit` and `train` train a model, with real steps, and
`generator` and `exact` ask one. The fixture `serving` runs `python -m serving` for what it refuses
to start: no request is sent, but vLLM's server is imported in a process of its own. Those that no
fixture gives away bear their marker by hand: `engine` for a whole run too, of a load test, say, or
of an evaluation that is killed.
"""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Generator

import pytest

# Marker -> the fixtures that tell of it. The first line with a fixture of the test counts.
FIXTURES: dict[str, set[str]] = {
    "fuzz": set(),
    "browser": {"browser"},
    "server": {"start_server", "serving"},
    "engine": {"engine", "fit", "fitted", "generator", "exact", "train"},
    "unit": set(),
}
# Fixtures for tests of several files, which therefore run in one process.
SERVERS = ("server", "gated", "pressed")
PRELOADED = ("serving",)
# The groups that take longest, in the order in which they begin. What starts no engine comes last,
# in small pieces: so the processes of a run end together.
LONGEST = (
    *("gated", "server", "test_gate_exact", "test_gate_real", "pressed", "test_gate_drafts"),
    *("test_data_parallel", "test_plain_vllm", "test_server_shutdown", "test_gate_guidance"),
)
# Half the processor time of the unit tests: every step of a crash, whole commands and load tests.
# `make test-fast` leaves them out.
LONG = {
    *("test_store_faults", "test_store_races", "test_hub", "test_adapter_fuzz", "test_watched"),
    *("test_load_users", "test_load_report", "test_miniature", "test_paper", "test_real"),
    *("test_train", "test_gym", "test_grade", "test_graded_answers", "test_follower"),
    *("test_intervene", "test_footprint"),
}

_seconds: defaultdict[str, float] = defaultdict(float)
_tests: Counter[str] = Counter()


def marker(item: pytest.Item) -> str:
    """The marker of a test."""
    by_hand = next((mark.name for mark in item.iter_markers() if mark.name in FIXTURES), None)
    names = set(getattr(item, "fixturenames", ()))  # with the fixtures of its fixtures
    return by_hand or next((one for one, some in FIXTURES.items() if some & names), "unit")


def group(item: pytest.Item) -> str:
    """Tests of one group run in one process, one after the other: a file's, or a server's."""
    names = set(getattr(item, "fixturenames", ()))
    shared = SERVERS if "start_server" in names else PRELOADED
    return next((one for one in shared if one in names), item.path.stem)


@pytest.hookimpl(tryfirst=True)  # before pytest reads -m, and xdist the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its marker and its group, and put the groups into their order."""
    groups: dict[str, list[pytest.Item]] = {}
    large: set[str] = set()
    for item in items:
        name, its_group = marker(item), group(item)
        item.add_marker(name)
        item.user_properties.append(("marker", name))
        if item.path.stem in LONG:
            item.add_marker("long")
        item.add_marker(pytest.mark.xdist_group(its_group))
        groups.setdefault(its_group, []).append(item)
        if name != "unit":
            large.add(its_group)
    rank = {name: place for place, name in enumerate(LONGEST)}
    order = sorted(groups, key=lambda name: (name not in large, rank.get(name, len(rank))))
    items[:] = [item for name in order for item in groups[name]]


# ----------------------------------------------------------------------------- what they cost


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the seconds of a test, what was set up for it included."""
    name = dict(report.user_properties).get("marker")
    if isinstance(name, str):
        _seconds[name] += report.duration
        _tests[name] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds by marker; where tests run side by side, they add up to more than it took.

    The slowest tests are pytest's own: `--durations=15`.
    """
    terminalreporter.section("seconds by marker")
    for name in filter(_tests.__getitem__, FIXTURES):
        terminalreporter.line(f"{name:8} {_tests[name]:5} tests {_seconds[name]:8.1f} s")


# ------------------------------------------------------------------------------- the collection


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without garbage collection, which would look through all that they import.

    It is the same for the whole run: modules are left out for good.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
