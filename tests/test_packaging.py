"""What is in the repository is what gets installed."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    """Setuptools installs only what the list names; one forgotten is missed by users alone."""
    found = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for file in (ROOT / folder).rglob("__init__.py"):
            inside = file.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inside]))
    assert found == set(SETUPTOOLS["packages"])


def folder_of(package: str) -> Path:
    for known in sorted(SETUPTOOLS["package-dir"], key=len, reverse=True):
        if package == known or package.startswith(f"{known}."):
            inside = package.removeprefix(known).removeprefix(".").split(".")
            return ROOT.joinpath(SETUPTOOLS["package-dir"][known], *inside)
    raise AssertionError(package)


def test_every_file_beside_the_code_is_packaged() -> None:
    packaged = {
        file
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for file in folder_of(package).glob(pattern)
    }
    others = {
        file
        for folder in SETUPTOOLS["package-dir"].values()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".py" and file.parent.name != "__pycache__"
    }
    assert others == packaged
