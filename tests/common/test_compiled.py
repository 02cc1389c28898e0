"""Loops compiled from other sources are not read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mess.common.compiled import STATE, forget_outdated

LOOP = """
from typing import NamedTuple
from numba import njit

class {name}(NamedTuple):
    value: int

@njit(cache=True)
def double(pair):
    return 2 * pair.value

def run():
    print(double({name}(3)))
"""

RUN = """
import sys
from pathlib import Path
from mess.common.compiled import forget_outdated

sys.path.insert(0, {folder!r})
if {forget}:
    forget_outdated(Path({folder!r}))
import loop
loop.run()
"""


def run_loop(folder: Path, name: str, *, forget: bool) -> subprocess.CompletedProcess[str]:
    """The loop in a process of its own, of a type of this name."""
    (folder / "loop.py").write_text(LOOP.format(name=name))
    command = [sys.executable, "-c", RUN.format(folder=str(folder), forget=forget)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_type_that_was_renamed_stops_no_loop(tmp_path: Path) -> None:
    assert run_loop(tmp_path, "Pair", forget=True).stdout == "6\n"
    assert list((tmp_path / "__pycache__").glob("*.nbi"))
    # Numba alone would fail, which is what this is for.
    assert "get attribute 'Pair'" in run_loop(tmp_path, "Twin", forget=False).stderr
    assert run_loop(tmp_path, "Twin", forget=True).stdout == "6\n"


def test_loops_of_the_same_sources_are_kept(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text("")
    forget_outdated(tmp_path)
    index = tmp_path / "__pycache__" / "loop.double-1.nbi"
    index.touch()
    forget_outdated(tmp_path)
    assert index.exists()
    os.utime(tmp_path / "loop.py", ns=(1, 1))
    forget_outdated(tmp_path)
    assert not index.exists()
    assert (tmp_path / "__pycache__" / STATE).is_file()


def test_where_nothing_can_be_written_nothing_is_done(tmp_path: Path) -> None:
    # A file in the place of the folder: not even root can write below it.
    (tmp_path / "__pycache__").write_text("")
    forget_outdated(tmp_path)
    assert (tmp_path / "__pycache__").read_text() == ""
