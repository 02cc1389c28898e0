"""Names of what lies in a run: they stay in it, are found again, and commands can be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mess.cache.content import remedy
from mess.errors import MessError
from mess.runs.run import Run


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "..", ".hidden", "a b", "a" * 101])
def test_a_name_that_would_leave_the_run_or_be_lost_is_refused(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path)
    with pytest.raises(MessError, match=r"a cache's name has .*Give another"):
        run.cache(name)
    with pytest.raises(MessError, match=r"a profile's name has .*Give another"):
        run.latency(name)


def test_what_is_hidden_is_neither_cache_nor_profile(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for name in ("day", ".day.building", "night-2"):
        run.path.joinpath("cache", name).mkdir(parents=True)
        run.path.joinpath("latency").mkdir(exist_ok=True)
        run.path.joinpath("latency", f"{name}.parquet").touch()
    assert run.caches() == run.profiles() == ["day", "night-2"]


def test_commands_in_messages_can_be_copied() -> None:
    path = Path("my runs/it's")
    for told in (Run(path).command("search"), remedy(path / "cache" / "calibration")):
        assert shlex.split(told.strip("`"))[-1] == str(path)
