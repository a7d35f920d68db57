"""Imports flow one way: from research to the product, and from its two wings to adapters."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = {"research", "tests"}
PACKAGES = sorted(
    folder.name
    for folder in ROOT.iterdir()
    if folder.name not in OUTSIDE and (folder / "__init__.py").exists()
)
# A module's name as text: what `python -m` or importlib is given.
MODULE = re.compile(r"research(\.[a-z_]+)+")
# The console script names the command that is there in a clone alone.
ALLOWED = {"reasonmaxxer/cli.py": ["research.reproduce"]}


def mentions(source: str) -> list[str]:
    """Modules of research that `source` imports, or names in a string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(str(node.module))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [node.value] if MODULE.fullmatch(node.value) else []
    return [name for name in found if name.partition(".")[0] == "research"]


def test_every_package_of_the_product_is_checked() -> None:
    assert {"adapters", "training", "serving", "demo", "loadtests", "benchmarks"} <= {*PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_product_does_not_import_research(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := mentions(path.read_text(encoding="utf-8")))
    }
    assert not {path: found for path, found in wrong.items() if found != ALLOWED.get(path)}


@pytest.mark.parametrize(
    "source",
    [
        "import research",
        "import os, research.paper.cells as cells",
        "def f():\n    from research.miniature.world import puzzles",
        "from research import paper",
        "run('python', '-m', 'research.miniature', 'problems')",
    ],
)
def test_an_import_of_research_is_found(source: str) -> None:
    assert mentions(source)


@pytest.mark.parametrize(
    "source", ["import researchers", "from .research import x", "print('see research/LOG.md')"]
)
def test_nothing_else_is(source: str) -> None:
    assert not mentions(source)


# --------------------------------------------------------------------------- within the product


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules, and names in modules, that running code imports, functions too."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{one.name}" for one in node.names)
        waiting += ast.iter_child_nodes(node)


def graph(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the same top-level package that it imports."""
    files = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts): path
        for path in package.rglob("*.py")
    }
    names = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        found[name] = set()
        for target in imports(ast.parse(path.read_text(encoding="utf-8"))):
            module = target if target in names else target.rpartition(".")[0]
            if module in names and module != package.name:
                found[name].add(module)
    return found


@pytest.mark.parametrize("package", ["adapters", "training", "vllm_gate"])
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    modules = graph(ROOT / package)
    assert len(modules) > 10
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))


def test_a_circle_is_found(tmp_path: Path) -> None:
    for name, text in (("a", "from x.b import f"), ("b", "def f():\n    import x.a")):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{name}.py").write_text(text)
    assert graph(tmp_path / "x") == {"x.a": {"x.b"}, "x.b": {"x.a"}}


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("vllm_gate", {"training", "serving", "demo", "benchmarks", "loadtests"}),
        ("adapters", {"vllm_gate", "training", "serving", "demo", "benchmarks", "loadtests"}),
        ("training", {"serving", "demo", "benchmarks", "loadtests"}),
        ("serving", {"training", "demo", "benchmarks", "loadtests"}),
    ],
)
def test_the_wings_do_not_import_each_other(package: str, others: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not {name.partition(".")[0] for name in imports(tree)} & others, path
