"""Imports flow one way: research looks at the product, and nothing of the product at research."""

import ast
import re
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
    assert not wrong


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
