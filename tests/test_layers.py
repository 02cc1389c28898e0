"""Who may import whom, and what must not be loaded to start fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    f"mess.{name}"
    for name in (
        "config",
        "errors",
        "exits",
        "files",
        "images",
        "maps",
        "metrics",
        "plugins",
        "policy",
        "progress",
        "seeds",
        "signals",
        "variation",
    )
}
"""Facts that every layer shares."""

HEAVY = {"torch", "torchvision", "pyarrow", "onnxruntime", "onnx", "optuna", "typer", "rich"}


def python_files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    files = {}
    for folder, package in (("mess", "mess"), ("search", "mess.search"), ("cache", "mess.cache")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            files[name] = path
    return files


FILES = python_files()


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imports(name: str) -> set[str]:
    """Modules that a module imports, within functions too."""
    found = set()
    for node in statements(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else str(node.module))
    return found


def outside(name: str) -> set[str]:
    """Top-level packages that a module imports."""
    return {module.partition(".")[0] for module in imports(name)}


def ours(name: str) -> set[str]:
    return {module for module in imports(name) if module.partition(".")[0] == "mess"}


def modules(package: str) -> list[str]:
    return [name for name in FILES if name == package or name.startswith(f"{package}.")]


def who_imports(library: str) -> set[str]:
    return {name for name in FILES if library in outside(name)}


REPORT = {name for name in FILES if name.startswith("mess.report.page")}
UPPER = {
    "mess.workflow",
    "mess.cli.app",
    "mess.cli.tables",
    "mess.runs.tables",
    "mess.runs.run",
    "mess.__main__",
    *modules("mess.commands"),
    *REPORT,
}
"""Where network, cache and search meet, and what is above."""

NETWORKS = set(FILES) - PLAIN - UPPER - set(modules("mess.search")) - set(modules("mess.cache"))


def test_the_package_was_found() -> None:
    assert set(FILES) > PLAIN
    assert {"mess.networks.network", "mess.data.voc", "mess.networks.backbones.resnet"} <= NETWORKS
    assert "torch" in outside("mess.networks.network")
    assert len(modules("mess.search")) > 3


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_facts_know_plain_facts_alone(name: str) -> None:
    assert ours(name) <= PLAIN
    assert not outside(name) & HEAVY


@pytest.mark.parametrize("name", modules("mess.cache"))
def test_the_cache_knows_neither_networks_nor_search(name: str) -> None:
    assert ours(name) <= PLAIN | set(modules("mess.cache"))
    assert not outside(name) & (HEAVY - {"pyarrow"})


def test_the_cache_alone_knows_pyarrow() -> None:
    assert who_imports("pyarrow")
    assert who_imports("pyarrow") <= set(modules("mess.cache"))


@pytest.mark.parametrize("name", modules("mess.search"))
def test_the_search_knows_neither_networks_nor_files(name: str) -> None:
    assert ours(name) <= PLAIN | set(modules("mess.search")) | set(modules("mess.cache"))
    assert not outside(name) & (HEAVY - {"optuna"})


def test_optuna_is_imported_in_one_file_at_most() -> None:
    assert len(who_imports("optuna")) <= 1


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_know_neither_cache_nor_search(name: str) -> None:
    above = UPPER | set(modules("mess.search")) | set(modules("mess.cache"))
    assert not ours(name) & above


def test_only_the_command_line_knows_typer_and_rich() -> None:
    assert who_imports("typer") == {"mess.cli.app"}
    assert who_imports("rich") == {"mess.cli.tables"}
    assert [name for name in FILES if "mess.cli.tables" in ours(name)] == ["mess.cli.app"]


@pytest.mark.parametrize("library", ["jinja2", "plotly"])
def test_the_report_alone_knows(library: str) -> None:
    assert who_imports(library) <= REPORT


def test_only_the_command_line_is_not_imported() -> None:
    assert [name for name in FILES if "mess.cli.app" in ours(name)] == ["mess.__main__"]


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh process holds after running `code`."""
    report = "\nimport sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


HELP = """
import runpy, sys
sys.argv = ["mess", "--help"]
try:
    runpy.run_module("mess", run_name="__main__")
except SystemExit as done:
    assert done.code == 0
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import mess.cli.app", id="cli"),
        pytest.param(HELP, id="python -m mess --help"),
        pytest.param("import mess.workflow, mess.search, mess.commands.search", id="search"),
        pytest.param("import mess.runs.pair_signals", id="pairs"),
    ],
)
def test_commands_that_need_no_network_start_without_torch(code: str) -> None:
    loaded = loaded_after(code)
    assert "mess" in loaded
    assert not loaded & {"torch", "torchvision", "onnxruntime", "onnx", "optuna", "plotly"}


def test_running_a_bundle_needs_no_torch() -> None:
    loaded = loaded_after("import mess; mess.load_bundle")
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "pyarrow", "numba", "pandas"}


def test_the_package_itself_loads_next_to_nothing() -> None:
    assert not loaded_after("import mess") & (HEAVY | {"numpy"})
