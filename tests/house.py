"""The rooms of the house: what each folder says of itself, and what its files import.

A room is a folder of the package. The docstring of its `__init__.py` says in its first paragraph
what lives there, and in its last line which rooms it may import. Nothing else has to be kept: the
test of the layers reads both, and `python -m tests.house` writes from them the table in
CONTRIBUTING.md and the picture in docs/architecture.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = (("mess", "mess"), ("search", "mess.search"), ("cache", "mess.cache"))
_PLAIN = ("errors", "config", "exits")
"""Files beside the rooms that are rooms of their own; `workflow` and `__main__` are the roof."""

_BLOCK = "<!-- made by `python -m tests.house` -->"


@dataclass(frozen=True)
class Room:
    """A folder, or a file that stands alone; names leave `mess.` out."""

    name: str
    lives: str
    may_import: tuple[str, ...]


def _files() -> dict[str, Path]:
    files = {}
    for folder, package in _FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            files[name] = path
    return files


FILES = _files()
"""Every module of the package by its dotted name."""


def _read_rooms() -> dict[str, Room]:
    rooms = {}
    for module, path in FILES.items():
        name = module.removeprefix("mess.")
        folder = path.name == "__init__.py" and module != "mess"
        if not folder and name not in (*_PLAIN, "workflow"):
            continue
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lives, *_, last = text.split("\n\n") if "\n\n" in text else (text, "")
        allowed = re.fullmatch(r"May import: ([^.]*(?:\.\w[^.]*)*)\.", " ".join(last.split()))
        names = allowed.group(1).split(", ") if allowed else []
        rooms[name] = Room(name, " ".join(lives.split()), tuple(n for n in names if n != "nothing"))
    return rooms


ROOMS = _read_rooms()


def room_of(module: str) -> str | None:
    """The room a module lies in; None for the roof, `mess` itself and `mess.__main__`."""
    name = module.removeprefix("mess.")
    while name and name not in ROOMS:
        name = name.rpartition(".")[0]
    return name or None


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _statements(child)


@cache
def imports(module: str) -> frozenset[str]:
    """Modules that a module imports, within functions too."""
    found = set()
    for node in _statements(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else str(node.module))
    return frozenset(found)


def ours(module: str) -> set[str]:
    """Of `imports` those of the package."""
    return {name for name in imports(module) if name.partition(".")[0] == "mess"}


def outside(module: str) -> set[str]:
    """Top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imports(module)}


def arrows() -> dict[str, set[str]]:
    """The rooms that the files of each room import."""
    found: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module in FILES:
        here = room_of(module)
        if here:
            found[here] |= {r for r in map(room_of, ours(module)) if r and r != here}
    return found


def floors() -> dict[str, int]:
    """The floor of each room: above every room that it may import."""
    found: dict[str, int] = {}

    def floor(name: str, below: tuple[str, ...]) -> int:
        assert name not in below, f"rooms in a circle: {' -> '.join((*below, name))}"
        if name not in found:
            others = ROOMS[name].may_import
            found[name] = 1 + max((floor(r, (*below, name)) for r in others), default=-1)
        return found[name]

    for name in ROOMS:
        floor(name, ())
    return found


def _place(name: str) -> str:
    if name in (*_PLAIN, "workflow"):
        return f"`mess/{name}.py`"
    folder = name.replace(".", "/")
    return f"`{folder}/`" if folder.startswith(("search", "cache")) else f"`mess/{folder}/`"


def table() -> str:
    """The rooms as a table in Markdown, from the ground up."""
    rows = ["| floor | room | what lives there | may import |", "| --- | --- | --- | --- |"]
    for name, floor in sorted(floors().items(), key=lambda item: (item[1], item[0])):
        room = ROOMS[name]
        others = ", ".join(room.may_import) or "nothing"
        rows.append(f"| {floor} | {_place(name)} | {room.lives} | {others} |")
    return "\n".join(rows)


def written(text: str, content: str) -> str:
    """A document with `content` between its two marks."""
    before, _, after = text.split(_BLOCK)
    return f"{before}{_BLOCK}\n{content}\n{_BLOCK}{after}"


_WAY = {
    "train": (("images and masks",), ("network.safetensors",)),
    "memoise": (("images and masks", "network.safetensors"), ("cache/",)),
    "profile": (("network.safetensors",), ("latency/",)),
    "search": (("cache/", "latency/"), ("searches/",)),
    "export": (("searches/", "cache/", "network.safetensors"), ("exports/ (a bundle)",)),
    "predict": (("exports/ (a bundle)", "new images"), ("label maps",)),
    "evaluate": (("exports/ (a bundle)", "images and masks"), ("measured figures",)),
}
"""What each command reads and writes; which rooms do the work, its imports tell."""


def way() -> str:
    """The way of the data as a flowchart: files, and between them each command with its rooms."""
    below = {"errors", "config", "exits", "common"}
    lines, files = ["```mermaid", "flowchart LR"], {}
    for reads, writes in _WAY.values():
        for file in (*reads, *writes):
            files.setdefault(file, f"f{len(files)}")
    lines += [f'    {key}[("{file}")]' for file, key in files.items()]
    for command, (reads, writes) in _WAY.items():
        names = ours(f"mess.commands.{command}")
        rooms = sorted({room for name in names if (room := room_of(name))} - below - {"commands"})
        lines.append(f'    {command}["<b>{command}</b><br>{"<br>".join(rooms)}"]')
        lines += [f"    {files[file]} --> {command}" for file in reads]
        lines += [f"    {command} --> {files[file]}" for file in writes]
    return "\n".join([*lines, "```"])


DOCUMENTS = {"CONTRIBUTING.md": table, "docs/architecture.md": way}
"""Documents with a block that is made, and what makes it."""


if __name__ == "__main__":
    for name, make in DOCUMENTS.items():
        path = ROOT / name
        path.write_text(written(path.read_text(encoding="utf-8"), make()), encoding="utf-8")
