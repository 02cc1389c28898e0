"""Who may import whom, and what must not be loaded to start fast."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house import DOCUMENTS, FILES, ROOMS, ROOT, arrows, floors, ours, outside, written

TORCH_FREE = (
    "errors", "config", "exits", "common", "cache", "search", "runtime", "report", "runs", "cli",
    "sentences",
)  # fmt: skip
"""Rooms of which no file but those below may import torch."""

WITH_TORCH = {
    "mess.runtime.torch_program",  # runs torch's own programs
    "mess.runs.network",  # opens the trained network
    "mess.data.loader",
    "mess.data.augment",
    "mess.data.sets",
}

KNOWS = {
    "pyarrow": {"cache"},
    "optuna": {"search.sampled"},
    "typer": {"cli"},
    "rich": {"cli"},
    "jinja2": {"report"},
    "plotly": {"report"},
    "onnxruntime": {"runtime"},
}
"""Rooms that alone may import a library, with those within them."""


def inside(module: str, room: str) -> bool:
    return f"{module}.".startswith(f"mess.{room}.")


def test_every_room_says_what_lives_there_and_what_it_may_import() -> None:
    assert len(ROOMS) > 20
    for room in ROOMS.values():
        assert room.lives, room.name
        assert set(room.may_import) <= set(ROOMS), room.name
        if room.name not in ("errors", "exits", "search"):
            assert room.may_import, f"the docstring of {room.name} ends in no `May import: ...`"


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_imports_what_it_says_and_nothing_else(name: str) -> None:
    assert arrows()[name] == set(ROOMS[name].may_import)


def test_rooms_have_floors() -> None:
    found = floors()  # raises where rooms import each other in a circle
    assert found["errors"] == 0
    assert found["cli"] == max(found.values())


def test_no_file_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def follow(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in sorted(ours(module) & set(FILES)):
                follow(other, (*above, module))
            done.add(module)

    for module in FILES:
        if module != "mess":  # whose `load_bundle` is imported when it is asked for
            follow(module, ())


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_documents_show_the_house_as_it_is(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert written(text, DOCUMENTS[name]()) == text, "run `python -m tests.house`"


@pytest.mark.parametrize(("library", "rooms"), KNOWS.items())
def test_a_library_is_known_in_its_room_alone(library: str, rooms: set[str]) -> None:
    known = {module for module in FILES if library in outside(module)}
    assert known
    assert {module for module in known if not any(inside(module, room) for room in rooms)} == set()


@pytest.mark.parametrize("module", sorted(FILES))
def test_torch_is_imported_where_it_is_needed(module: str) -> None:
    if module in WITH_TORCH:
        assert outside(module) & {"torch", "torchvision"}
    elif any(inside(module, room) for room in (*TORCH_FREE, "data", "workflow")):
        assert not outside(module) & {"torch", "torchvision"}


def test_only_the_command_line_is_not_imported() -> None:
    importers = [name for name in FILES if any(inside(module, "cli") for module in ours(name))]
    assert [name for name in importers if not inside(name, "cli")] == ["mess.__main__"]


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
        pytest.param("import mess.workflow, mess.commands.search", id="search"),
        pytest.param("import mess.runs.pair_signals", id="pairs"),
    ],
)
def test_commands_that_need_no_network_start_without_torch(code: str) -> None:
    loaded = loaded_after(code)
    assert "mess" in loaded
    assert not loaded & {"torch", "torchvision", "onnxruntime", "onnx", "optuna", "plotly"}


def test_libraries_of_backbones_are_loaded_by_those_that_need_them() -> None:
    loaded = loaded_after(
        "from mess.config import BackboneConfig\n"
        "from mess.networks.backbones import build_backbone\n"
        "build_backbone(BackboneConfig(name='small_resnet'), 5)"
    )
    assert "torchvision" in loaded
    assert not loaded & {"timm", "segmentation_models_pytorch", "transformers"}


def test_running_a_bundle_needs_no_torch() -> None:
    loaded = loaded_after(
        "import mess; mess.load_bundle\n"
        "from mess.runtime.registry import DEFAULT_RUNTIME; DEFAULT_RUNTIME.load()"
    )
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "pyarrow", "numba", "pandas", "pydantic", "tomli_w"}


def test_the_package_itself_loads_next_to_nothing() -> None:
    heavy = {"torch", "torchvision", "numpy", "pyarrow", "onnxruntime", "onnx", "optuna", "typer"}
    assert not loaded_after("import mess") & heavy
